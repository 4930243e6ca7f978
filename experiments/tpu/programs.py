"""What a run compiles, each by its name, with the shapes of its arguments: for chips that may not
be there."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdiv import speculative
from jaxdiv.evaluation import contexts, measurement
from jaxdiv.models import meshes
from jaxdiv.runs import config as run_config
from jaxdiv.runs import sharding
from jaxdiv.speculative import decoding_loop
from jaxdiv.training import on_policy, students, teacher, teacher_sources
from jaxdiv.training.state import Model, population_shapes

STUDENT, TEACHER, EVALUATE_TEACHER, EVALUATE_STUDENTS, DECODE = NAMES = (
    *("student", "teacher"),  # as the config's keys
    *("evaluate_teacher", "evaluate_students", "decode"),
)
GAMMA = 4  # drafts a round


@dataclasses.dataclass(frozen=True)
class Step:
    """What a run calls.

    Attributes:
      run: the jitted function.
      shapes: of its arguments.
      predictions: positions of a call that logits are made for, N.
      rounds: whether it is a loop without a known end, of which one round is looked at.
    """

    run: Callable
    shapes: tuple
    predictions: int
    rounds: bool = False


def known(config: Mapping) -> tuple[str, ...]:
    """The names of a run's steps; a teacher that is taken over is not trained."""
    return tuple(name for name in NAMES if name != TEACHER or not config["teacher"]["checkpoint"])


def of(config: Mapping, mesh: Mesh, names: Iterable[str] | None = None) -> dict[str, Step]:
    """Those of `known` that are named, or all, their arguments where a run on the mesh has them."""
    run = _Run.of(config, mesh)
    return {name: _MAKERS[name](run) for name in (names or known(config))}


@dataclasses.dataclass(frozen=True)
class _Run:
    """Shapes of a run's models: the teacher as it is trained and as students read it, and the
    students."""

    config: Mapping
    mesh: Mesh
    guide: Model
    frozen: Model
    pupils: Model

    @classmethod
    def of(cls, config, mesh):
        vocab_size = config["data"]["vocabulary"]
        guide = population_shapes(teacher_sources.builder(config, vocab_size), 1, mesh)
        pupils = population_shapes(students.builder(config, vocab_size), config["seeds"], mesh)
        single = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), guide.params)
        frozen = guide.with_params(sharding.shapes(single, mesh, stacked=False))
        return cls(config, mesh, guide, frozen, pupils)


def _student(run):
    write = on_policy.writer(run.config, run.frozen, run.pupils, end_of_text=0)
    lesson = students.teacher_outputs(run.config, run.frozen)
    learn = students.step(run.config, run.pupils, lesson, write, mesh=run.mesh)
    return _training(run, STUDENT, learn, _begun(run, students, run.pupils), run.frozen.params)


def _teacher(run):
    train = teacher.step(run.config, run.guide, mesh=run.mesh)
    return _training(run, TEACHER, train, _begun(run, teacher, run.guide), None)


def _begun(run, stage, model):
    begin = functools.partial(stage.initial_state, run.config, mesh=run.mesh)
    shapes = jax.eval_shape(lambda params: begin(model.with_params(params)), model.params)
    return sharding.shapes(shapes, run.mesh)


def _training(run, stage, step, state, params):
    rows, length = run.config[stage]["batch_size"], run.config["data"]["sequence_length"]
    return Step(step, (state, params, _batch(sharding.Rows(run.mesh, rows), length)), rows * length)


def _batch(rows, length):
    types = {"inputs": jnp.int32, "labels": jnp.int32, "weights": jnp.float32}
    shape, where = (rows.padded, length), rows.sharding
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=where) for name, dtype in types.items()
    }


def _evaluate_teacher(run):
    """Of a block of held-out windows."""
    pass_of, _, batch = _evaluation(run)
    return Step(pass_of, (run.frozen.params, batch["inputs"]), _positions(run))


def _evaluate_students(run):
    """Of one loss, on such a block."""
    pass_of, part_of, batch = _evaluation(run)
    shared = _shared(
        jax.eval_shape(pass_of, run.frozen.params, batch["inputs"]), run.frozen, run.mesh
    )
    return Step(part_of, (run.pupils.params, *shared, batch), _positions(run))


def _evaluation(run):
    """The teacher's pass, what students make of it, and a batch."""
    length, how = run.config["data"]["sequence_length"], run.config["evaluation"]
    nothing = np.zeros((0, length), np.int32)
    context = contexts.Context(
        "corpus", nothing, nothing, nothing.astype(np.float32), nothing[:, 0], start=None
    )
    passes = measurement.compiled_passes(
        run.config,
        run.frozen,
        run.pupils,
        context,
        run.mesh,
        rules=run_config.rules(how["rules"]),
        temperatures=how["temperatures"],
    )
    return *passes, _batch(sharding.Rows(run.mesh, _rows(run)), length)


def _rows(run):
    return measurement.rows_at_once(run.config, run.config["data"]["sequence_length"], run.mesh)


def _positions(run):
    return _rows(run) * run.config["data"]["sequence_length"]


def _shared(made, guide, mesh):
    """Where the teacher's pass leaves what it makes: by rows, but for its head."""
    rows = NamedSharding(mesh, PartitionSpec(meshes.ROWS))
    output, logits = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), made
    )
    return dataclasses.replace(output, head=nnx.to_pure_dict(guide.params)["head"]), logits


def _decode(run):
    """Of the beginnings of all held-out documents at once, on one chip."""
    vocab_size, how = run.config["data"]["vocabulary"], run.config["evaluation"]
    builds = (
        teacher_sources.builder(run.config, vocab_size),
        students.builder(run.config, vocab_size),
    )
    target, draft = (
        nnx.eval_shape(lambda build=build: build(nnx.Rngs(0)).unrolled()) for build in builds
    )
    prompts = np.zeros((how["documents"], how["prompt_tokens"]), np.int32)
    asked = speculative.prepare(
        target, draft, prompts, max_tokens=how["generated_tokens"], gamma=GAMMA, stop=0
    )
    decode = jax.jit(
        functools.partial(decoding_loop.run, asked.plan, asked.graphs, stream=asked.stream)
    )
    here = jax.sharding.SingleDeviceSharding(run.mesh.devices.flat[0])
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), asked.arrays
    )
    return Step(decode, shapes, how["documents"] * (GAMMA + 1), rounds=True)


_MAKERS = dict(
    zip(NAMES, (_student, _teacher, _evaluate_teacher, _evaluate_students, _decode), strict=True)
)


def of_all_logits(config: Mapping, step: Step, mesh: Mesh) -> set[int]:
    """How many elements an array of a chip's logits has: of one student or of all seeds, of classes
    padded or not."""
    rows, tensor = math.prod(mesh.shape[axis] for axis in meshes.ROWS), mesh.shape["tensor"]
    classes = {config["data"]["vocabulary"], config["teacher"]["padded_vocabulary"]} - {0}
    predictions = step.predictions if step.rounds else -(-step.predictions // rows)
    return {
        k * predictions * count // n
        for k in (1, config["seeds"])
        for count in classes
        for n in (1, tensor)
    }
