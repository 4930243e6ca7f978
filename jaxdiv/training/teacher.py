"""The run's teacher: trained on the next token, or taken from a teacher source."""

import functools
from collections.abc import Mapping

import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxdiv.runs import processes
from jaxdiv.runs.specs import DataSpec, RunSpec, StageSpec, TeacherSpec
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import objectives, run_data, sharding, state, teacher_sources
from jaxdiv.training.loop import Monitoring, Training, run_stage
from jaxdiv.training.run_data import RunData, TextData
from jaxdiv.training.state import Model
from jaxdiv.training.step import Step, initial_state, make_step, optimizers_of

# Facts of a run.
QUALITY = "teacher, nats a UTF-8 byte on test documents"
ACCURACY = "teacher, accuracy on test images"


def prepare(
    spec: RunSpec, workdir: Workdir, data: RunData, monitoring: Monitoring | None = None
) -> Model:
    """Trains the teacher or takes it over, unless the run's folder has it, and restores it.

    Its quality on test documents becomes a fact of the run.
    """
    mesh = sharding.make_mesh(spec)
    if spec.teacher.checkpoint:
        teacher_sources.take_over(spec, workdir, mesh)
    else:
        _train(spec, workdir, data, mesh, monitoring)
    teacher = restore(spec.teacher, workdir, data.vocab_size, mesh)
    fact = quality(spec.data)
    if processes.broadcast_from_first(fact not in workdir.facts()):
        rows = sharding.BatchSharding(mesh, spec.teacher_stage.batch_size)
        workdir.add_facts({fact: round(measure_quality(data, teacher, rows), 4)})
        processes.barrier("teacher measured")
    return teacher


def restore(
    spec: TeacherSpec, workdir: Workdir, vocab_size: int, mesh: Mesh | None = None
) -> Model:
    """Restores the trained teacher from the run's folder, spread over `mesh`.

    Raises FileNotFoundError if its training did not end.
    """
    return state.restore_teacher(spec, workdir, vocab_size, mesh).student(0)


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


def _train(
    spec: RunSpec, workdir: Workdir, data: RunData, mesh: Mesh, monitoring: Monitoring | None
) -> None:
    stage, build = spec.teacher_stage, state.teacher_builder(spec.teacher, data.vocab_size)
    model = state.population_shapes(build, 1, mesh)
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
        initial_state=lambda: initial_state(
            stage, state.population(build, stage.seeds, mesh), mesh
        ),
        step=step(stage, model, mesh=mesh),
        teacher=None,
        batches=data.batches(stage, rows.local_rows),
        measure=lambda trained: {"validation_loss": validation_loss(trained.params[0], held_out)},
        report_diverged=report_diverged,
    )
    run_stage(training, workdir, mesh, monitoring)


def step(stage: StageSpec, model: Model, *, mesh: Mesh | None = None) -> Step:
    """Returns the teacher's training step, on the next token alone."""
    return make_step(
        teacher_forward=lambda _, batch: None,
        objectives=lambda _, params, batch, shared: [
            _cross_entropy(model.with_params(params[0]), batch)
        ],
        fuse_losses=lambda shared: False,
        optimizers=optimizers_of(stage),
        mesh=mesh,
    )


def _cross_entropy(teacher: Model, batch: Mapping) -> Float[Array, ""]:
    """Computes nats per token of the batch."""
    output = teacher(batch["inputs"])
    student = objectives.features_and_head(output)
    return objectives.means(["ce_data"], [student], batch, vocab_size=output.vocab_size)[0]
