"""The steps that a run compiles, with the shapes of their arguments, for absent chips too."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from jaxdiv import schema, speculative
from jaxdiv.evaluation import contexts, measurement
from jaxdiv.models import meshes
from jaxdiv.runs.specs import RunSpec
from jaxdiv.speculative import decoding_loop
from jaxdiv.training import on_policy, sharding, state, students, teacher
from jaxdiv.training.state import Model, population_shapes
from jaxdiv.training.step import initial_state

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
    classes = {spec.data.vocabulary, spec.teacher.padded_vocabulary} - {0}
    predictions = step.predictions if step.rounds else -(-step.predictions // rows)
    return {
        models * predictions * count // parts
        for models in (1, len(spec.seeds))
        for count in classes
        for parts in (1, tensor)
    }


def _builders(spec: RunSpec) -> tuple[Callable[[nnx.Rngs], nnx.Module], ...]:
    """Returns the functions that build an untrained teacher and student."""
    vocab_size = spec.data.vocabulary
    return state.teacher_builder(spec.teacher, vocab_size), state.student_builder(spec, vocab_size)


def _models(spec: RunSpec, mesh: Mesh) -> tuple[Model, Model]:
    """Returns shapes of the teacher as students read it, and of one loss's students, all seeds."""
    build_teacher, build_student = _builders(spec)
    target = population_shapes(build_teacher, 1, mesh)
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), target.params)
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


def _train(spec: RunSpec, mesh: Mesh, of_students: bool) -> UncompiledStep:
    """Returns the training step of the students, or of the teacher as a population of one."""
    if of_students:
        (target, model), stage = _models(spec, mesh), spec.student_stage
        write = on_policy.writer(spec.on_policy, target, model, end_of_text=0)
        outputs = students.teacher_outputs(model, target)
        step = students.step(spec, model, outputs, write, mesh=mesh)
        teacher_params = target.params
    else:
        stage, teacher_params = spec.teacher_stage, None
        model = population_shapes(_builders(spec)[0], 1, mesh)
        step = teacher.step(stage, model, mesh=mesh)
    begin = functools.partial(initial_state, stage, mesh=mesh)
    first = jax.eval_shape(lambda params: begin(model.with_params(params)), model.params)
    batch = _batch(spec, mesh, stage.batch_size)
    arguments = (sharding.shapes(first, mesh), teacher_params, batch)
    return UncompiledStep(step, arguments, stage.batch_size * spec.data.sequence_length)


def _evaluate(spec: RunSpec, mesh: Mesh, of_students: bool) -> UncompiledStep:
    """Returns the teacher's pass over a block of held-out windows, or one loss's students'."""
    (target, model), length = _models(spec, mesh), spec.data.sequence_length
    none = np.zeros((0, length), np.int32)
    context = contexts.Context(
        schema.CORPUS, none, none, none.astype(np.float32), none[:, 0], start=None
    )
    teacher_pass, student_pass = measurement.compiled_passes(spec, target, model, context, mesh)
    rows = measurement.rows_at_once(spec, length, mesh)
    batch = _batch(spec, mesh, rows)
    read = (target.params, batch["inputs"])
    if not of_students:
        return UncompiledStep(teacher_pass, read, rows * length)
    # The teacher's pass leaves its results spread by rows, except for the head.
    by_rows = NamedSharding(mesh, PartitionSpec(meshes.ROWS))
    output, logits = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=by_rows),
        jax.eval_shape(teacher_pass, *read),
    )
    output = dataclasses.replace(output, head=nnx.to_pure_dict(target.params)["head"])
    return UncompiledStep(student_pass, (model.params, output, logits, batch), rows * length)


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
    STUDENT: functools.partial(_train, of_students=True),
    TEACHER: functools.partial(_train, of_students=False),
    "evaluate_teacher": functools.partial(_evaluate, of_students=False),
    "evaluate_students": functools.partial(_evaluate, of_students=True),
    DECODE: _decode,
}
NAMES = tuple(_BUILDERS)
