"""The run's students: every loss and seed trained side by side on one teacher pass."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool

import jaxdiv
from jaxdiv import models
from jaxdiv.runs import config_keys, progress
from jaxdiv.runs.checkpoints import Checkpoints
from jaxdiv.runs.specs import RunSpec, StageSpec
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import draft_tokens, objectives, on_policy, run_data, sharding, state
from jaxdiv.training.loop import Monitoring, Training, run_stage
from jaxdiv.training.run_data import RunData, TextData
from jaxdiv.training.state import Model, population_shapes, student_builder
from jaxdiv.training.step import Step, for_each_seed, initial_state, make_step, optimizers_of
from jaxdiv.training.teacher_cache import CachedTeacher


def teacher_forward(students: Model, teacher: Model) -> Callable:
    """Returns the function of (teacher's parameters, inputs [B, L]) that returns the TeacherOutput
    that `students` read."""
    exit_layer = students.module().exit_layer
    return lambda params, inputs: teacher.with_params(params)(inputs, exit_layer=exit_layer)


def teacher_outputs(
    students: Model,
    teacher: Model | CachedTeacher,
    losses: Sequence[jaxdiv.Loss] = (),
    temperature: float = 1.0,
) -> Callable:
    """Returns the function of (teacher's parameters, batch) that returns the `TeacherOutputs` that
    all students share in training under `losses`, at the distillation temperature."""
    vocabulary, exit_layer = students.module().vocabulary, students.module().exit_layer
    need = any(loss.is_of_acceptance for loss in losses)
    options = {"temperature": temperature if need else None}
    forward = teacher_forward(students, teacher) if isinstance(teacher, Model) else None

    def outputs(params, batch):
        if forward is None:
            output = teacher.output(params, batch, exit_layer, temperature)
        else:
            output = forward(params, batch["inputs"])
        return objectives.teacher_outputs(output, vocabulary, **options)

    return outputs


def untrained(
    spec: RunSpec,
    vocab_size: int,
    mesh: Mesh | None = None,
    vocabulary: models.DraftVocabulary | None = None,
) -> Model:
    """Builds the students as they are before their first step, spread over `mesh`."""
    return state.population(student_builder(spec, vocab_size, vocabulary), spec.seeds, mesh)


def step(
    spec: RunSpec,
    students: Model,
    teacher_outputs: Callable,
    write: Callable | None = None,
    *,
    mesh: Mesh | None = None,
) -> Step:
    """Returns the training step of all students of a run.

    Args:
      spec: the run.
      students: from `untrained`, or their shapes.
      teacher_outputs: the teacher's pass, from the function of this name.
      write: from `on_policy.writer`.
      mesh: where the state lies; None for one device.
    """
    writer = spec.on_policy and spec.on_policy.writer
    return make_step(
        teacher_forward=teacher_outputs,
        objectives=objectives.for_students(students, spec.losses, temperature=spec.temperature),
        fuse_losses=lambda shared: not shared.is_dense,
        optimizers=optimizers_of(spec.student_stage),
        write=write,
        batch_per_student=writer == config_keys.STUDENT_TEXT,
        mesh=mesh,
    )


def train(
    spec: RunSpec,
    workdir: Workdir,
    data: RunData,
    teacher: Model | CachedTeacher,
    monitoring: Monitoring | None = None,
) -> None:
    """Trains every loss's students from the newest checkpoint on; the last one holds them then.

    `teacher` is from `teacher_cache.prepare`.

    Raises:
      Stopped: a signal came; the step under way was saved.
      ValueError: the teacher's outputs are not finite.
      OSError: a checkpoint or a curve can't be written.
    """
    stage, mesh = spec.student_stage, sharding.make_mesh(spec)
    rows = sharding.BatchSharding(mesh, stage.batch_size)
    is_cached, write = isinstance(teacher, CachedTeacher), None
    if is_cached:
        vocabulary = draft_tokens.load(spec, workdir)
        held_out = teacher.validation_batch(mesh)
    else:
        vocabulary = draft_tokens.prepare(spec, workdir, data, teacher, mesh)
        held_out = run_data.validation_batch(stage, data, mesh)
    build = student_builder(spec, data.vocab_size, vocabulary)
    model = population_shapes(build, len(spec.seeds), mesh)
    forward = teacher_outputs(model, teacher, spec.losses, spec.temperature)
    if isinstance(data, TextData) and not is_cached:
        write = on_policy.writer(spec.on_policy, teacher, model, data.tokenizer.end_of_text)
    total_variation = [jaxdiv.get("tv")]
    rejection = objectives.for_students(model, total_variation, temperature=1.0)
    forward_held_out = teacher_outputs(model, teacher, total_variation)

    @functools.partial(sharding.jit, mesh=mesh)
    def held_out_acceptance(groups, teacher_params, batch):
        shared = forward_held_out(teacher_params, batch)
        tv = [
            for_each_seed(lambda params: rejection([0], [params], batch, shared)[0], group, mesh)
            for group in groups
        ]
        return sharding.replicate(1 - jnp.stack(tv), mesh)

    @functools.partial(sharding.jit, mesh=mesh)
    def teacher_is_finite(teacher_params, batch):
        target = forward(teacher_params, batch).target
        finite = [jnp.isfinite(part).all() for part in jax.tree.leaves(target)]
        return sharding.replicate(jnp.stack(finite).all(), mesh)

    def report(number, finite, batch):
        if not teacher_is_finite(teacher.params, batch):
            path = workdir.save_batch(number, rows.gather(batch))
            raise ValueError(
                f"the teacher's outputs are not finite at step {number}, whose batch is kept in "
                f"{path}; give another teacher, or `config.dtype` float32"
            )
        report_diverged(stage, number, finite)

    training = Training(
        spec=stage,
        folder=workdir.students,
        initial_state=lambda: initial_state(
            stage, untrained(spec, data.vocab_size, mesh, vocabulary), mesh
        ),
        step=step(spec, model, forward, write, mesh=mesh),
        teacher=teacher.params,
        batches=(teacher if is_cached else data).batches(stage, rows.local_rows),
        measure=lambda trained: {
            "acceptance": held_out_acceptance(trained.params, teacher.params, held_out)
        },
        report_diverged=report,
    )
    run_stage(training, workdir, mesh, monitoring)


def report_diverged(stage: StageSpec, number: int, finite: Bool[np.ndarray, "losses S"]) -> None:
    """Logs which students of a stage have diverged by step `number`."""
    names = [
        f"{stage.members[i]} (seed {stage.seeds[j]})"
        for i, j in zip(*np.nonzero(~finite), strict=True)
    ]
    progress.log(
        f"not finite by step {number}, frozen and left out: {', '.join(names)}", style="red"
    )


def restore(
    spec: RunSpec, workdir: Workdir, vocab_size: int, loss: str, mesh: Mesh | None = None
) -> tuple[Model, Bool[np.ndarray, " S"]]:
    """Restores the students of one loss, and reads no other loss's.

    Args:
      spec: the run.
      workdir: the run's folder.
      vocab_size: tokens or classes.
      loss: as the config has it.
      mesh: where the students lie; None for one device.

    Returns:
      The students, with their seeds on the first axis, and which of them are finite.

    Raises:
      ValueError: the run has no such loss.
      FileNotFoundError: training did not end.
    """
    names = spec.student_stage.members
    if loss not in names:
        raise ValueError(
            f"{workdir.root} has no students of loss {loss!r}; it has {', '.join(names)}"
        )
    mesh, index, count = mesh or sharding.single_device_mesh(), names.index(loss), len(spec.seeds)
    build = student_builder(spec, vocab_size, draft_tokens.load(spec, workdir))
    shapes = population_shapes(build, count, mesh)
    finite = jax.ShapeDtypeStruct((count,), jnp.bool_)
    target = {
        "params": {index: shapes.params},
        "alive": {index: sharding.shapes(finite, mesh, stacked=False)},
    }
    with Checkpoints(workdir.students, read_only=True) as checkpoints:
        tree, _ = checkpoints.restore(target, step=spec.student_stage.steps)
    return shapes.with_params(tree["params"][index]), np.asarray(tree["alive"][index])


def restore_one(path: str, loss: str, seed: int) -> Model:
    """Restores one student of a finished run, by its loss as the config has it and its seed.

    Raises:
      ValueError: the run has no such student, or it diverged in training.
      FileNotFoundError: `path` is no run's folder, or its training did not end.
    """
    workdir = Workdir(path)
    spec = workdir.spec()
    if seed not in spec.seeds:
        raise ValueError(f"{path} has no seed {seed}; it has {', '.join(map(str, spec.seeds))}")
    students, finite = restore(spec, workdir, state.vocab_size(workdir), loss)
    index = spec.seeds.index(seed)
    if not finite[index]:
        raise ValueError(
            f"the student of loss {loss!r} and seed {seed} in {path} turned non-finite in training"
        )
    return students.student(index)
