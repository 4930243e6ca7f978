"""The teacher: trained on the next token, or taken from another run or a Llama folder."""

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxdiv.data import pipeline
from jaxdiv.runs import config as run_config
from jaxdiv.runs import processes, progress, sharding
from jaxdiv.runs.checkpoints import Checkpoints
from jaxdiv.runs.workdir import DATA_READY, Workdir
from jaxdiv.training import loop, objectives, run_data, teacher_sources
from jaxdiv.training.run_data import ImageData, RunData, TextData
from jaxdiv.training.state import Model, TrainState, population, population_shapes
from jaxdiv.training.step import make_optimizer, make_step
from jaxdiv.training.teacher_sources import restore

QUALITY = "teacher, nats a UTF-8 byte on test documents"
ACCURACY = "teacher, accuracy on test images"


def resolve(config: Mapping, workdir: Workdir, *, typed: Mapping[str, Any]) -> dict[str, Any]:
    """The config as the run will have it, checked: a teacher that is taken over brings its sizes
    and vocabulary.

    A folder that took over a teacher before keeps it where the config names no other, and needs no
    donor any more.

    Args:
      config: as the user has it.
      workdir: the run's folder, claimed or not.
      typed: dotted key below `config` to value, of those that must stay as they are.

    Raises:
      ValueError, FileNotFoundError: `config.teacher.checkpoint` holds no finished teacher or no
        Llama that fits, or a typed key says something else than its teacher has.
    """
    run_config.check_each(config)
    path, sizes = _taken(config, workdir)
    if not path:
        run_config.check(config)
        return dict(config)
    settled, changed = copy.deepcopy(dict(config)), []
    settled["teacher"]["checkpoint"] = path
    for key, theirs in sizes.items():
        group, name = key.split(".")
        ours, settled[group][name] = settled[group][name], theirs
        if key in typed and ours != theirs:
            raise ValueError(
                f"`config.{key}` is {ours}, but the teacher of {path} (`config.teacher.checkpoint`) has {theirs}"
            )
        changed += [f"{key}={theirs}"] if ours != theirs else []
    run_config.check(settled)
    if changed:
        progress.log(f"the teacher of {path} has {', '.join(changed)}, in place of the config's")
    return settled


def _taken(config, workdir):
    """(where the teacher comes from, its sizes in the config's words); ("", {}) where it is
    trained."""
    path = config["teacher"]["checkpoint"]
    if DATA_READY in workdir.facts():
        own = workdir.config()
        before = own["teacher"]["checkpoint"]
        path = path or before
        if path == before and path and _holds(workdir):
            return path, teacher_sources.sizes(own)
    if not path:
        return "", {}
    donor = teacher_sources.find(path)
    try:
        donor.check()
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"`config.teacher.checkpoint`: {error}") from None
    return path, donor.sizes()


def prepare(config: Mapping, workdir: Workdir, corpus: RunData, **watched: Any) -> Model:
    """The teacher that the config asks for, restored from the run's own folder, where it is put
    first if need be.

    `watched` is what `loop.run_stage` takes of `profile` and `also`, where the teacher is trained.
    """
    mesh = sharding.make(config)
    if config["teacher"]["checkpoint"]:
        _adopt(config, workdir, mesh)
    else:
        _train(config, workdir, corpus, mesh, watched)
    teacher = restore(config, workdir, corpus.vocab_size, mesh)
    fact, measured = quality(config), accuracy if run_config.of_images(config) else nats_a_byte
    if processes.broadcast_from_first(fact not in workdir.facts()):
        workdir.add_facts({fact: round(measured(config, corpus, teacher, mesh), 4)})
        processes.barrier("teacher measured")
    return teacher


def quality(config: Mapping) -> str:
    """The fact that says how good the teacher is."""
    return ACCURACY if run_config.of_images(config) else QUALITY


def nats_a_byte(config: Mapping, corpus: TextData, teacher: Model, mesh: Mesh) -> float:
    """Nats a UTF-8 byte of the test documents' first tokens; ends of text count as 0 bytes."""
    windows = corpus.windows("test", config)

    def nats(params, batch):
        return _cross_entropy(teacher.with_params(params), batch) * batch["weights"].sum()

    total = _summed(config, nats, teacher, windows, mesh)
    return total / float((corpus.tokenizer.byte_lengths[windows.labels] * windows.weights).sum())


def accuracy(config: Mapping, gallery: ImageData, teacher: Model, mesh: Mesh) -> float:
    """The share of test images whose likeliest class is theirs."""
    windows = gallery.windows("test", config)

    def right(params, batch):
        chosen = jnp.argmax(teacher.with_params(params)(batch["inputs"]).logits, axis=-1)
        return jnp.sum((chosen == batch["labels"]) * batch["weights"])

    return _summed(config, right, teacher, windows, mesh) / float(windows.weights.sum())


def _summed(config, measure, teacher, windows, mesh):
    """`measure(teacher's parameters, batch)` summed over all windows."""

    @functools.partial(sharding.jit, mesh=mesh)
    def measured(params, batch):
        return sharding.everywhere(measure(params, batch), mesh)

    rows = sharding.Rows(mesh, config["teacher"]["batch_size"])
    blocks = pipeline.blocks([getattr(windows, name) for name in run_data.BATCH_FIELDS], rows.count)
    return sum(
        float(measured(teacher.params, rows.spread(run_data.batch(block)))) for block in blocks
    )


def _holds(workdir):
    if not workdir.teacher.exists():
        return False
    with Checkpoints(workdir.teacher, read_only=True) as checkpoints:
        return checkpoints.latest() is not None


def _adopt(config, workdir, mesh):
    """Copies the donor's teacher, so that this folder alone holds all that decides its result."""
    with Checkpoints(workdir.teacher) as checkpoints:
        if checkpoints.latest() is None:
            for fault in checkpoints.damaged():
                progress.log(f"{fault}; taking the teacher over again")
            donor = teacher_sources.find(config["teacher"]["checkpoint"])
            teacher_sources.check_same_source(donor, workdir.facts())
            workdir.add_facts(donor.facts())
            checkpoints.save(
                teacher_sources.last_step(config),
                {"params": (donor.params(config["dtype"], mesh),)},
                {},
            )


def _train(config, workdir, corpus, mesh, watched):
    seeds, build = [config["seed"]], teacher_sources.builder(config, corpus.vocab_size)
    model = population_shapes(build, 1, mesh)
    held_out = run_data.validation_batch(config, corpus, mesh)
    rows = sharding.Rows(mesh, config["teacher"]["batch_size"])

    @functools.partial(sharding.jit, mesh=mesh)
    def validation_loss(params, batch):
        return sharding.everywhere(
            _cross_entropy(model.with_params(params).student(0), batch), mesh
        )

    def report_diverged(number, _, batch):
        raise ValueError(
            f"the teacher's loss or gradient is not finite at step {number}, whose batch is kept in "
            f"{workdir.save_batch(number, rows.whole(batch))}; lower `config.teacher.optimizer.learning_rate`"
        )

    loop.run_stage(
        config,
        workdir,
        stage="teacher",
        folder=workdir.teacher,
        names=("teacher",),
        seeds=seeds,
        optimizers=[config["teacher"]["optimizer"]],
        mesh=mesh,
        begin=lambda: initial_state(config, population(build, seeds, mesh), mesh),
        step=step(config, model, mesh=mesh),
        teacher=None,
        batches=run_data.batches(config, "teacher", corpus, mesh),
        measure=lambda state: {
            "validation_loss": np.asarray(validation_loss(state.params[0], held_out)).reshape(1, 1)
        },
        report_diverged=report_diverged,
        **watched,
    )


def initial_state(config: Mapping, model: Model, mesh: Mesh | None = None) -> TrainState:
    """The state, spread over `mesh`, in which the teacher's training starts; `model` is a
    population of one."""
    return TrainState.create([model.params], [_optimizer(config)], mesh=mesh)


def step(config: Mapping, model: Model, *, mesh: Mesh | None = None) -> Callable:
    """The teacher's training step, on the next token alone; `mesh` as `make_step` has it."""
    return make_step(
        teacher_forward=lambda _, inputs: None,
        objectives=lambda _, params, batch, shared: [
            _cross_entropy(model.with_params(params[0]), batch)
        ],
        fuse_losses=lambda shared: False,
        optimizers=[_optimizer(config)],
        mesh=mesh,
    )


def _optimizer(config):
    return make_optimizer(config["teacher"]["optimizer"], config["teacher"]["steps"])


def _cross_entropy(teacher, batch):
    """Nats a token of the batch."""
    output = teacher(batch["inputs"])
    student = objectives.features_and_head(output)
    return objectives.means(["ce_data"], [student], batch, vocab_size=output.vocab_size)[0]
