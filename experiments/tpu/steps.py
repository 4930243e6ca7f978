"""The steps that a run compiles, with the shapes of their arguments, for absent chips too."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from jaxdiv import models, schema, speculative
from jaxdiv.evaluation import contexts, measurement
from jaxdiv.models import meshes
from jaxdiv.runs.specs import RunSpec, StageSpec
from jaxdiv.speculative import decoding_loop
from jaxdiv.training import on_policy, sharding, state, students, teacher, teacher_sources
from jaxdiv.training.state import Model, population_shapes
from jaxdiv.training.step import Step, initial_state

STUDENT, TEACHER, DECODE = "student", "teacher", "decode"
GAMMA = schema.HEADLINE_GAMMA


@dataclasses.dataclass(frozen=True)
class UncompiledStep:
    """A jitted function that a run calls.

    Attributes:
      run: the function.
      shapes: of its arguments, with their shardings.
      predictions: N, the positions of one call for which logits are computed.
      rounds: whether it is a loop without a known end, of which one round is examined.
    """

    run: Callable
    shapes: tuple
    predictions: int
    rounds: bool = False


def names(spec: RunSpec) -> tuple[str, ...]:
    """Returns the names of a run's steps; a pretrained teacher is not trained."""
    return tuple(name for name in NAMES if name != TEACHER or not spec.teacher.checkpoint)


def build(
    spec: RunSpec, mesh: Mesh, chosen: Iterable[str] | None = None
) -> dict[str, UncompiledStep]:
    """Returns the chosen steps by name, or all of `names`, with arguments placed on `mesh`."""
    return {name: _BUILDERS[name](spec, mesh) for name in (chosen or names(spec))}


def logits_sizes(spec: RunSpec, step: UncompiledStep, mesh: Mesh) -> set[int]:
    """Returns the possible numbers of elements of an array with all logits of one chip.

    It may hold one student or all seeds, and classes with or without padding.
    """
    rows, tensor = math.prod(mesh.shape[axis] for axis in meshes.ROWS), mesh.shape["tensor"]
    vocabularies = spec.teacher.padded_vocabulary, spec.student.vocabulary
    classes = {spec.data.vocabulary, *vocabularies} - {0}
    predictions = step.predictions if step.rounds else -(-step.predictions // rows)
    return {
        models * predictions * count // parts
        for models in (1, len(spec.seeds))
        for count in classes
        for parts in (1, tensor)
    }


def _builders(spec: RunSpec) -> tuple[Callable[[nnx.Rngs], nnx.Module], ...]:
    """Returns the functions that build an untrained teacher and student.

    The first tokens stand for those of a draft vocabulary, which only a run's texts decide.
    """
    vocab_size, size = spec.data.vocabulary, spec.student.vocabulary
    vocabulary = models.DraftVocabulary.of(np.arange(size), vocab_size) if size else None
    build_student = state.student_builder(spec, vocab_size, vocabulary)
    return state.teacher_builder(spec.teacher, vocab_size), build_student


def _models(spec: RunSpec, mesh: Mesh) -> tuple[Model, Model]:
    """Returns shapes of the teacher as students read it, and of one loss's students, all seeds."""
    build_teacher, build_student = _builders(spec)
    target = population_shapes(build_teacher, 1, mesh)
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), target.params)
    cast = functools.partial(teacher_sources.cast, parameters=spec.teacher.parameters)
    params = jax.eval_shape(cast, params)
    return (
        target.with_params(sharding.shapes(params, mesh, stacked=False)),
        population_shapes(build_student, len(spec.seeds), mesh),
    )


def _batch(spec: RunSpec, mesh: Mesh, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    types = {"inputs": jnp.int32, "labels": jnp.int32, "weights": jnp.float32}
    rows = sharding.BatchSharding(mesh, rows)
    shape = (rows.padded_rows, spec.data.sequence_length)
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=rows.sharding)
        for name, dtype in types.items()
    }


def _student_step(spec: RunSpec, mesh: Mesh) -> UncompiledStep:
    """Returns the training step of all students."""
    target, model = _models(spec, mesh)
    write = on_policy.writer(spec.on_policy, target, model, end_of_text=0)
    outputs = students.teacher_outputs(model, target, spec.losses, spec.temperature)
    step = students.step(spec, model, outputs, write, mesh=mesh)
    return _training(spec, mesh, spec.student_stage, step, model, target.params)


def _teacher_step(spec: RunSpec, mesh: Mesh) -> UncompiledStep:
    """Returns the training step of the teacher, as a population of one."""
    model = population_shapes(_builders(spec)[0], 1, mesh)
    step = teacher.step(spec.teacher_stage, model, mesh=mesh)
    return _training(spec, mesh, spec.teacher_stage, step, model, None)


def _training(
    spec: RunSpec, mesh: Mesh, stage: StageSpec, step: Step, model: Model, teacher_params: Any
) -> UncompiledStep:
    """Returns the step of a stage with the shapes of its first state, teacher and batch."""
    begin = functools.partial(initial_state, stage, mesh=mesh)
    first = jax.eval_shape(lambda params: begin(model.with_params(params)), model.params)
    batch = _batch(spec, mesh, stage.batch_size)
    arguments = (sharding.shapes(first, mesh), teacher_params, batch)
    return UncompiledStep(step, arguments, stage.batch_size * spec.data.sequence_length)


def _teacher_pass(spec: RunSpec, mesh: Mesh) -> UncompiledStep:
    """Returns the teacher's pass over a block of held-out windows."""
    target, model = _models(spec, mesh)
    read, _, batch = _measuring(spec, mesh, target, model)
    inputs = batch["inputs"]
    return UncompiledStep(read, (target.params, inputs), inputs.size)


def _student_pass(spec: RunSpec, mesh: Mesh) -> UncompiledStep:
    """Returns the pass of one loss's students over a block that the teacher has read."""
    target, model = _models(spec, mesh)
    read, compare, batch = _measuring(spec, mesh, target, model)
    inputs = batch["inputs"]
    # The teacher's pass leaves its results spread by rows, except for the head.
    by_rows = NamedSharding(mesh, PartitionSpec(meshes.ROWS))
    output, logits = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=by_rows),
        jax.eval_shape(read, target.params, inputs),
    )
    output = dataclasses.replace(output, head=nnx.to_pure_dict(target.params)["head"])
    return UncompiledStep(compare, (model.params, output, logits, batch), inputs.size)


def _measuring(
    spec: RunSpec, mesh: Mesh, target: Model, model: Model
) -> tuple[Callable, Callable, dict[str, jax.ShapeDtypeStruct]]:
    """Returns the teacher's pass over held-out windows, the students', and a block's shapes."""
    length = spec.data.sequence_length
    none = np.zeros((0, length), np.int32)
    context = contexts.Context(
        schema.CORPUS, none, none, none.astype(np.float32), none[:, 0], start=None
    )
    batch = _batch(spec, mesh, measurement.rows_at_once(spec, length, mesh))
    return *measurement.compiled_passes(spec, target, model, context, mesh), batch


def _decode(spec: RunSpec, mesh: Mesh) -> UncompiledStep:
    """Returns the decoding of all held-out prompts at once, on one chip."""
    settings = spec.evaluation
    target, draft = (
        nnx.eval_shape(lambda build=build: build(nnx.Rngs(0)).unrolled())
        for build in _builders(spec)
    )
    prompts, tokens = (settings.documents, settings.prompt_tokens), settings.generated_tokens
    decoding = speculative.prepare(
        target, draft, np.zeros(prompts, np.int32), max_tokens=tokens, gamma=GAMMA, stop=0
    )
    run = functools.partial(
        decoding_loop.run, decoding.plan, decoding.graphs, stream=decoding.stream
    )
    chip = SingleDeviceSharding(mesh.devices.flat[0])
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=chip), decoding.arrays
    )
    return UncompiledStep(jax.jit(run), shapes, settings.documents * (GAMMA + 1), rounds=True)


_BUILDERS = {
    STUDENT: _student_step,
    TEACHER: _teacher_step,
    "evaluate_teacher": _teacher_pass,
    "evaluate_students": _student_pass,
    DECODE: _decode,
}
NAMES = tuple(_BUILDERS)
