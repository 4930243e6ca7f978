"""The run's teacher: trained on the next token, or taken from a teacher source."""

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxdiv.data import pipeline
from jaxdiv.runs import config as run_config
from jaxdiv.runs import processes, progress, sharding
from jaxdiv.runs.checkpoints import Checkpoints
from jaxdiv.runs.specs import DataSpec, RunSpec, StageSpec
from jaxdiv.runs.workdir import DATA_READY, Workdir
from jaxdiv.training import objectives, run_data, teacher_sources
from jaxdiv.training.loop import Monitoring, Training, run_stage
from jaxdiv.training.run_data import ImageData, RunData, TextData
from jaxdiv.training.state import Model, TrainState, population, population_shapes
from jaxdiv.training.step import Step, make_optimizer, make_step
from jaxdiv.training.teacher_sources import restore

__all__ = ["initial_state", "prepare", "quality", "resolve", "restore", "step"]

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
        if path and path == run_path and _is_saved(workdir):
            return path, teacher_sources.sizes(run)
    if not path:
        return "", {}
    source = teacher_sources.find(path)
    try:
        source.check()
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"`config.teacher.checkpoint`: {error}") from None
    return path, source.sizes()


def _is_saved(workdir):
    if not workdir.teacher.exists():
        return False
    with Checkpoints(workdir.teacher, read_only=True) as checkpoints:
        return checkpoints.latest() is not None


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
        measure = accuracy if spec.data.is_images else nats_per_byte
        value = measure(data, teacher, mesh, batch_size=spec.teacher_stage.batch_size)
        workdir.add_facts({fact: round(value, 4)})
        processes.barrier("teacher measured")
    return teacher


def quality(spec: DataSpec) -> str:
    """Returns the name of the fact that holds the teacher's quality."""
    return ACCURACY if spec.is_images else QUALITY


def nats_per_byte(data: TextData, teacher: Model, mesh: Mesh, *, batch_size: int) -> float:
    """Computes the teacher's cross-entropy on the test documents' first tokens.

    Returns nats per UTF-8 byte; tokens that end a text count as 0 bytes.
    """
    windows = data.windows("test")

    def nats(params, batch):
        return _cross_entropy(teacher.with_params(params), batch) * batch["weights"].sum()

    total = _sum_over_windows(nats, teacher, windows, sharding.BatchSharding(mesh, batch_size))
    return total / float((data.tokenizer.byte_lengths[windows.labels] * windows.weights).sum())


def accuracy(data: ImageData, teacher: Model, mesh: Mesh, *, batch_size: int) -> float:
    """Computes how often the teacher's likeliest class is the label of a test image."""
    windows = data.windows("test")

    def matches(params, batch):
        classes = jnp.argmax(teacher.with_params(params)(batch["inputs"]).logits, axis=-1)
        return jnp.sum((classes == batch["labels"]) * batch["weights"])

    total = _sum_over_windows(matches, teacher, windows, sharding.BatchSharding(mesh, batch_size))
    return total / float(windows.weights.sum())


def _sum_over_windows(
    measure: Callable, teacher: Model, windows: pipeline.Windows, rows: sharding.BatchSharding
) -> float:
    """Sums `measure(teacher's parameters, batch)` over batches of all windows."""

    @functools.partial(sharding.jit, mesh=rows.mesh)
    def value(params, batch):
        return sharding.replicate(measure(params, batch), rows.mesh)

    arrays = [getattr(windows, name) for name in run_data.BATCH_FIELDS]
    batches = (run_data.batch(block) for block in pipeline.blocks(arrays, rows.rows))
    return sum(float(value(teacher.params, rows.put(batch))) for batch in batches)


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
    return TrainState.create([model.params], [_optimizer(stage)], mesh=mesh)


def step(stage: StageSpec, model: Model, *, mesh: Mesh | None = None) -> Step:
    """Returns the teacher's training step, on the next token alone."""
    return make_step(
        teacher_forward=lambda _, inputs: None,
        objectives=lambda _, params, batch, shared: [
            _cross_entropy(model.with_params(params[0]), batch)
        ],
        fuse_losses=lambda shared: False,
        optimizers=[_optimizer(stage)],
        mesh=mesh,
    )


def _optimizer(stage):
    return make_optimizer(stage.optimizers[0], stage.steps)


def _cross_entropy(teacher: Model, batch: Mapping) -> Float[Array, ""]:
    """Computes nats per token of the batch."""
    output = teacher(batch["inputs"])
    student = objectives.features_and_head(output)
    return objectives.means(["ce_data"], [student], batch, vocab_size=output.vocab_size)[0]
