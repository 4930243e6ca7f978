"""The students: every loss and seed trained side by side on one teacher pass, and restored one by
one."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jaxdiv import models
from jaxdiv.runs import config as run_config
from jaxdiv.runs import config_keys, progress, sharding
from jaxdiv.runs.checkpoints import Checkpoints
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import loop, objectives, on_policy, run_data, teacher_sources
from jaxdiv.training.run_data import RunData, TextData
from jaxdiv.training.state import Model, TrainState, population, population_shapes
from jaxdiv.training.step import for_each_seed, make_optimizer, make_step


def seeds(config: Mapping) -> list[int]:
    """The seeds of the initial values of each loss's students."""
    return [config["seed"] + i for i in range(config["seeds"])]


def teacher_forward(config: Mapping, teacher: Model) -> Callable:
    """(teacher's parameters, inputs [B, L]) -> the TeacherOutput that this config's students
    read."""
    exit_layer = (
        config["student"]["exit_layer"] if config["student"]["kind"] == "kangaroo" else None
    )
    return lambda params, inputs: teacher.with_params(params)(inputs, exit_layer=exit_layer)


def builder(
    config: Mapping, vocab_size: int
) -> Callable[[nnx.Rngs], models.Student | models.ClassifierStudent]:
    """Makes an untrained student of the run's config."""
    return lambda rngs: models.build_student(
        config["student"], run_config.teacher(config), vocab_size, rngs
    )


def untrained(config: Mapping, vocab_size: int, mesh: Mesh | None = None) -> Model:
    """The students as they are before their first step, spread over `mesh`."""
    return population(builder(config, vocab_size), seeds(config), mesh)


def teacher_outputs(config: Mapping, teacher: Model) -> Callable:
    """(teacher's parameters, inputs [B, L]) -> the `TeacherOutputs` that all students share."""
    pass_of = teacher_forward(config, teacher)
    return lambda params, inputs: objectives.teacher_outputs(pass_of(params, inputs))


def initial_state(config: Mapping, students: Model, mesh: Mesh | None = None) -> TrainState:
    """The state, spread over `mesh`, in which every loss of the config starts from `students`, of
    `untrained`."""
    losses = run_config.losses(config)
    return TrainState.create([students.params] * len(losses), _optimizers(config), mesh=mesh)


def step(
    config: Mapping,
    students: Model,
    teach: Callable,
    write: Callable | None = None,
    *,
    mesh: Mesh | None = None,
) -> Callable:
    """The training step of all students of the config.

    Args:
      config: the run's.
      students: of `untrained`, or their shapes.
      teach: the teacher's pass, of `teacher_outputs`.
      write: of `on_policy.writer`.
      mesh: as `make_step` has it.
    """
    losses, temperature = run_config.losses(config), config["temperature"]
    return make_step(
        teacher_forward=teach,
        objectives=objectives.of_students(students, losses, temperature=temperature),
        fuse_losses=lambda shared: not shared.is_dense,
        optimizers=_optimizers(config),
        write=write,
        batch_per_student=config["data"]["context"] == config_keys.STUDENT_TEXT,
        mesh=mesh,
    )


def _optimizers(config):
    """One for each loss."""
    return [make_optimizer(own, config["student"]["steps"]) for own in _settings(config)]


def _settings(config):
    return [
        {**config["student"]["optimizer"], "learning_rate": rate}
        for rate in run_config.learning_rates(config)
    ]


def train(
    config: Mapping, workdir: Workdir, corpus: RunData, teacher: Model, **watched: Any
) -> None:
    """Trains every loss's students, or goes on with them; the folder's last checkpoint holds them
    then.

    `watched` is what `loop.run_stage` takes of `profile` and `also`.
    """
    losses, mesh = run_config.losses(config), sharding.make(config)
    rows = sharding.Rows(mesh, config["student"]["batch_size"])
    vocab_size = corpus.vocab_size
    students = population_shapes(builder(config, vocab_size), config["seeds"], mesh)
    teach_all = teacher_outputs(config, teacher)
    write = None
    if isinstance(corpus, TextData):
        write = on_policy.writer(config, teacher, students, corpus.tokenizer.end_of_text)
    held_out = run_data.validation_batch(config, corpus, mesh)
    rejected = objectives.of_students(students, ["tv"], temperature=1.0)

    @functools.partial(sharding.jit, mesh=mesh)
    def held_out_acceptance(groups, teacher_params, batch):
        shared = teach_all(teacher_params, batch["inputs"])
        tv = [
            for_each_seed(lambda own: rejected([0], [own], batch, shared)[0], group, mesh)
            for group in groups
        ]
        return sharding.everywhere(1 - jnp.stack(tv), mesh)

    @functools.partial(sharding.jit, mesh=mesh)
    def taught_finite(teacher_params, batch):
        target = teach_all(teacher_params, batch["inputs"]).target
        finite = [jnp.isfinite(part).all() for part in jax.tree.leaves(target)]
        return sharding.everywhere(jnp.stack(finite).all(), mesh)

    def report_diverged(number, alive, batch):
        if not taught_finite(teacher.params, batch):
            kept = workdir.save_batch(number, rows.whole(batch))
            raise ValueError(
                f"what the teacher says is not finite at step {number}, whose batch is kept in {kept}; give another "
                f"teacher, or `config.dtype` float32"
            )
        dead = [
            f"{losses[i].text} (seed {seeds(config)[j]})"
            for i, j in zip(*np.nonzero(~alive), strict=True)
        ]
        progress.log(
            f"not finite by step {number}, frozen and left out: {', '.join(dead)}", style="red"
        )

    loop.run_stage(
        config,
        workdir,
        stage="student",
        folder=workdir.students,
        names=tuple(loss.text for loss in losses),
        seeds=seeds(config),
        optimizers=_settings(config),
        mesh=mesh,
        begin=lambda: initial_state(config, untrained(config, vocab_size, mesh), mesh),
        step=step(config, students, teach_all, write, mesh=mesh),
        teacher=teacher.params,
        batches=run_data.batches(config, "student", corpus, mesh),
        measure=lambda state: {
            "acceptance": np.asarray(held_out_acceptance(state.params, teacher.params, held_out))
        },
        report_diverged=report_diverged,
        **watched,
    )


def restore(
    config: Mapping, workdir: Workdir, vocab_size: int, loss: str, mesh: Mesh | None = None
) -> tuple[Model, np.ndarray]:
    """(the students of one loss, stacked on their seeds; which of them are alive, bool [S]); reads
    no other loss's.

    Both lie spread over `mesh`.

    Raises:
      ValueError: the run has no such loss.
      FileNotFoundError: training did not end.
    """
    names = [known.text for known in run_config.losses(config)]
    if loss not in names:
        raise ValueError(
            f"{workdir.root} has no students of loss {loss!r}; it has {', '.join(names)}"
        )
    mesh = mesh or sharding.alone()
    index, shapes = (
        names.index(loss),
        population_shapes(builder(config, vocab_size), config["seeds"], mesh),
    )
    alive = jax.ShapeDtypeStruct((config["seeds"],), jnp.bool_)
    target = {
        "params": {index: shapes.params},
        "alive": {index: sharding.shapes(alive, mesh, stacked=False)},
    }
    with Checkpoints(workdir.students, read_only=True) as checkpoints:
        restored, _ = checkpoints.restore(target, step=config["student"]["steps"])
    return shapes.with_params(restored["params"][index]), np.asarray(restored["alive"][index])


def restore_one(path: str, loss: str, seed: int) -> Model:
    """One student of a finished run, by its loss as the config has it and its seed.

    Raises:
      ValueError: the run has no such student, or it turned non-finite in training.
      FileNotFoundError: `path` is no run's folder, or its training did not end.
    """
    workdir = Workdir(path)
    config = workdir.config()
    if seed not in seeds(config):
        raise ValueError(f"{path} has no seed {seed}; it has {', '.join(map(str, seeds(config)))}")
    students, alive = restore(config, workdir, teacher_sources.vocab_size(workdir), loss)
    index = seeds(config).index(seed)
    if not alive[index]:
        raise ValueError(
            f"the student of loss {loss!r} and seed {seed} in {path} turned non-finite in training"
        )
    return students.student(index)
