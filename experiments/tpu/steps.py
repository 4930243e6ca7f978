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
from jaxdiv.runs.specs import RunSpec, StageSpec
from jaxdiv.speculative import decoding_loop
from jaxdiv.training import on_policy, sharding, state, students, teacher
from jaxdiv.training.state import Model, population_shapes
from jaxdiv.training.step import initial_state

STUDENT, TEACHER, DECODE = "student", "teacher", "decode"
NAMES = (STUDENT, TEACHER, "evaluate_teacher", "evaluate_students", DECODE)
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
    builder = _Builder(spec, mesh)
    return {name: getattr(builder, name)() for name in (chosen or names(spec))}


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


class _Builder:
    """Builds each step of a run; a method has the name of its step."""

    def __init__(self, spec: RunSpec, mesh: Mesh):
        self._spec, self._mesh = spec, mesh
        self._vocab_size = spec.data.vocabulary
        self._length = spec.data.sequence_length
        builds = self._model_builders()
        self._trained_teacher = population_shapes(builds[0], 1, mesh)
        self._students = population_shapes(builds[1], len(spec.seeds), mesh)
        params = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), self._trained_teacher.params
        )
        # The teacher as students read it: one model, not stacked.
        self._teacher = self._trained_teacher.with_params(
            sharding.shapes(params, mesh, stacked=False)
        )

    def student(self) -> UncompiledStep:
        spec = self._spec
        write = on_policy.writer(spec.on_policy, self._teacher, self._students, end_of_text=0)
        outputs = students.teacher_outputs(self._students, self._teacher)
        step = students.step(spec, self._students, outputs, write, mesh=self._mesh)
        begin = self._initial_state(spec.student_stage, self._students)
        return self._training(spec.student_stage, step, begin, self._teacher.params)

    def teacher(self) -> UncompiledStep:
        stage = self._spec.teacher_stage
        step = teacher.step(stage, self._trained_teacher, mesh=self._mesh)
        begin = self._initial_state(stage, self._trained_teacher)
        return self._training(stage, step, begin, None)

    def evaluate_teacher(self) -> UncompiledStep:
        """Evaluates the teacher on a block of held-out windows."""
        teacher_pass, _, batch = self._evaluation()
        predictions = self._evaluated_rows() * self._length
        return UncompiledStep(teacher_pass, (self._teacher.params, batch["inputs"]), predictions)

    def evaluate_students(self) -> UncompiledStep:
        """Evaluates the students of one loss on such a block."""
        teacher_pass, student_pass, batch = self._evaluation()
        rows = NamedSharding(self._mesh, PartitionSpec(meshes.ROWS))
        # The teacher's pass leaves its results spread by rows, except for the head.
        output, logits = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows),
            jax.eval_shape(teacher_pass, self._teacher.params, batch["inputs"]),
        )
        output = dataclasses.replace(output, head=nnx.to_pure_dict(self._teacher.params)["head"])
        arguments = (self._students.params, output, logits, batch)
        return UncompiledStep(student_pass, arguments, self._evaluated_rows() * self._length)

    def decode(self) -> UncompiledStep:
        """Decodes after all held-out prompts at once, on one chip."""
        settings = self._spec.evaluation
        target, draft = (
            nnx.eval_shape(lambda build=build: build(nnx.Rngs(0)).unrolled())
            for build in self._model_builders()
        )
        prompts = np.zeros((settings.documents, settings.prompt_tokens), np.int32)
        tokens = settings.generated_tokens
        decoding = speculative.prepare(
            target, draft, prompts, max_tokens=tokens, gamma=GAMMA, stop=0
        )
        run = functools.partial(
            decoding_loop.run, decoding.plan, decoding.graphs, stream=decoding.stream
        )
        chip = SingleDeviceSharding(self._mesh.devices.flat[0])
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=chip), decoding.arrays
        )
        predictions = settings.documents * (GAMMA + 1)
        return UncompiledStep(jax.jit(run), shapes, predictions, rounds=True)

    def _model_builders(self):
        return (
            state.teacher_builder(self._spec.teacher, self._vocab_size),
            state.student_builder(self._spec, self._vocab_size),
        )

    def _initial_state(self, stage: StageSpec, model: Model):
        """Returns the shapes of a stage's state before its first step."""
        begin = functools.partial(initial_state, stage, mesh=self._mesh)
        shapes = jax.eval_shape(lambda params: begin(model.with_params(params)), model.params)
        return sharding.shapes(shapes, self._mesh)

    def _training(self, stage, step, begin, params):
        rows = stage.batch_size
        return UncompiledStep(step, (begin, params, self._batch(rows)), rows * self._length)

    def _batch(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        types = {"inputs": jnp.int32, "labels": jnp.int32, "weights": jnp.float32}
        rows = sharding.BatchSharding(self._mesh, rows)
        shape = (rows.padded_rows, self._length)
        return {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=rows.sharding)
            for name, dtype in types.items()
        }

    def _evaluation(self):
        """Returns the teacher's pass, the students' measurement of it, and a batch."""
        none = np.zeros((0, self._length), np.int32)
        context = contexts.Context(
            schema.CORPUS, none, none, none.astype(np.float32), none[:, 0], start=None
        )
        passes = measurement.compiled_passes(
            self._spec, self._teacher, self._students, context, self._mesh
        )
        return *passes, self._batch(self._evaluated_rows())

    def _evaluated_rows(self) -> int:
        return measurement.rows_at_once(self._spec, self._length, self._mesh)
