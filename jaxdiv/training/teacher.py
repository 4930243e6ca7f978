"""The run's teacher: trained on the next token, or taken from a teacher source."""

import copy
import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxdiv.runs import config as run_config
from jaxdiv.runs import processes, progress
from jaxdiv.runs.checkpoints import Checkpoints
from jaxdiv.runs.specs import DataSpec, RunSpec, StageSpec
from jaxdiv.runs.workdir import DATA_READY, Workdir
from jaxdiv.training import objectives, run_data, sharding, teacher_sources
from jaxdiv.training.loop import Monitoring, Training, run_stage
from jaxdiv.training.run_data import RunData, TextData
from jaxdiv.training.state import Model, TrainState, population, population_shapes
from jaxdiv.training.step import Step, make_optimizer, make_step
from jaxdiv.training.teacher_sources import restore

# Facts of a run.
QUALITY = "teacher, nats a UTF-8 byte on test documents"
ACCURACY = "teacher, accuracy on test images"


def resolve(config: Mapping, workdir: Workdir, *, typed: Mapping[str, Any]) -> dict[str, Any]:
    """Completes and checks a config: a pretrained teacher decides its sizes and vocabulary.

    A folder that took a teacher over before keeps it if the config names no other, and its source
    is not read again.

    Args:
      config: as the user has it.
      workdir: the run's folder, which may not exist yet.
      typed: values of keys below `config`, dotted, that the user typed and that must stay.

    Returns:
      The config that the run has.

    Raises:
      ValueError, FileNotFoundError: `config.teacher.checkpoint` holds no finished teacher or no
        model that fits, or a typed key contradicts the teacher.
    """
    run_config.check_each(config)
    path, sizes = _pretrained(config, workdir)
    if not path:
        run_config.check(config)
        return dict(config)
    resolved, changes = copy.deepcopy(dict(config)), []
    resolved["teacher"]["checkpoint"] = path
    for key, size in sizes.items():
        group, name = key.split(".")
        before, resolved[group][name] = resolved[group][name], size
        if before != size:
            if key in typed:
                raise ValueError(
                    f"`config.{key}` is {before}, but the teacher of {path} "
                    f"(`config.teacher.checkpoint`) has {size}"
                )
            changes.append(f"{key}={size}")
    run_config.check(resolved)
    if changes:
        progress.log(f"the teacher of {path} has {', '.join(changes)}, in place of the config's")
    return resolved


def _pretrained(config: Mapping, workdir: Workdir) -> tuple[str, dict[str, Any]]:
    """Returns the teacher source's path and its sizes by dotted key; ("", {}) without a source."""
    path = config["teacher"]["checkpoint"]
    if DATA_READY in workdir.facts():
        run = workdir.config()
        run_path = run["teacher"]["checkpoint"]
        path = path or run_path
        if path and path == run_path and workdir.teacher.exists():
            with Checkpoints(workdir.teacher, read_only=True) as checkpoints:
                if checkpoints.latest() is not None:
                    return path, teacher_sources.sizes(run)
    if not path:
        return "", {}
    source = teacher_sources.find(path)
    try:
        return path, source.checked_sizes()
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"`config.teacher.checkpoint`: {error}") from None


def prepare(
    spec: RunSpec, workdir: Workdir, data: RunData, monitoring: Monitoring | None = None
) -> Model:
    """Trains the teacher or takes it over, unless the run's folder has it, and restores it.

    Its quality on test documents becomes a fact of the run.
    """
    mesh = sharding.make_mesh(spec)
    if spec.teacher.checkpoint:
        _take_over(spec, workdir, mesh)
    else:
        _train(spec, workdir, data, mesh, monitoring)
    teacher = restore(spec.teacher, workdir, data.vocab_size, mesh)
    fact = quality(spec.data)
    if processes.broadcast_from_first(fact not in workdir.facts()):
        rows = sharding.BatchSharding(mesh, spec.teacher_stage.batch_size)
        workdir.add_facts({fact: round(measure_quality(data, teacher, rows), 4)})
        processes.barrier("teacher measured")
    return teacher


def quality(spec: DataSpec) -> str:
    """Returns the name of the fact that holds the teacher's quality."""
    return ACCURACY if spec.is_images else QUALITY


def measure_quality(data: RunData, teacher: Model, rows: sharding.BatchSharding) -> float:
    """Measures the teacher on the first tokens of test documents, or on test images.

    Returns:
      Nats per UTF-8 byte, where tokens that end a text count as 0 bytes; or the share of images
      whose label is the likeliest class.
    """
    windows, is_text = data.windows("test"), isinstance(data, TextData)

    @functools.partial(sharding.jit, mesh=rows.mesh)
    def total(params, batch):
        model, weights = teacher.with_params(params), batch["weights"]
        if is_text:
            value = _cross_entropy(model, batch) * weights.sum()
        else:
            classes = jnp.argmax(model(batch["inputs"]).logits, axis=-1)
            value = jnp.sum((classes == batch["labels"]) * weights)
        return sharding.replicate(value, rows.mesh)

    value = sum(float(total(teacher.params, batch)) for batch in run_data.spread(windows, rows))
    units = data.tokenizer.byte_lengths[windows.labels] if is_text else 1.0
    return value / float((units * windows.weights).sum())


def _take_over(spec: RunSpec, workdir: Workdir, mesh: Mesh) -> None:
    """Copies the source's teacher, so that the run's folder holds all that decides its results."""
    with Checkpoints(workdir.teacher) as checkpoints:
        if checkpoints.latest() is None:
            for fault in checkpoints.damaged():
                progress.log(f"{fault}; taking the teacher over again")
            source = teacher_sources.find(spec.teacher.checkpoint)
            teacher_sources.check_same_source(source, workdir.facts())
            workdir.add_facts(source.facts())
            params = source.params(spec.teacher.dtype, mesh)
            checkpoints.save(spec.teacher.last_step, {"params": (params,)}, {})


def _train(
    spec: RunSpec, workdir: Workdir, data: RunData, mesh: Mesh, monitoring: Monitoring | None
) -> None:
    stage, build = spec.teacher_stage, teacher_sources.builder(spec.teacher, data.vocab_size)
    model = population_shapes(build, 1, mesh)
    held_out = run_data.validation_batch(spec.student_stage, data, mesh)
    rows = sharding.BatchSharding(mesh, stage.batch_size)

    @functools.partial(sharding.jit, mesh=mesh)
    def validation_loss(params, batch):
        loss = _cross_entropy(model.with_params(params).student(0), batch)
        return sharding.replicate(loss.reshape(1, 1), mesh)

    def report_diverged(number, _, batch):
        path = workdir.save_batch(number, rows.gather(batch))
        raise ValueError(
            f"the teacher's loss or gradient is not finite at step {number}, whose batch is kept "
            f"in {path}; lower `config.teacher.optimizer.learning_rate`"
        )

    training = Training(
        spec=stage,
        folder=workdir.teacher,
        initial_state=lambda: initial_state(stage, population(build, stage.seeds, mesh), mesh),
        step=step(stage, model, mesh=mesh),
        teacher=None,
        batches=run_data.batches(stage, data, mesh),
        measure=lambda state: {"validation_loss": validation_loss(state.params[0], held_out)},
        report_diverged=report_diverged,
    )
    run_stage(training, workdir, mesh, monitoring)


def initial_state(stage: StageSpec, model: Model, mesh: Mesh | None = None) -> TrainState:
    """Returns the state, spread over `mesh`, in which the training of `model`, a population of
    one, starts."""
    optimizer = make_optimizer(stage.optimizers[0], stage.steps)
    return TrainState.create([model.params], [optimizer], mesh=mesh)


def step(stage: StageSpec, model: Model, *, mesh: Mesh | None = None) -> Step:
    """Returns the teacher's training step, on the next token alone."""
    return make_step(
        teacher_forward=lambda _, inputs: None,
        objectives=lambda _, params, batch, shared: [
            _cross_entropy(model.with_params(params[0]), batch)
        ],
        fuse_losses=lambda shared: False,
        optimizers=[make_optimizer(stage.optimizers[0], stage.steps)],
        mesh=mesh,
    )


def _cross_entropy(teacher: Model, batch: Mapping) -> Float[Array, ""]:
    """Computes nats per token of the batch."""
    output = teacher(batch["inputs"])
    student = objectives.features_and_head(output)
    return objectives.means(["ce_data"], [student], batch, vocab_size=output.vocab_size)[0]
