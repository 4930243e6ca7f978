"""The students of a study: cross-entropy's and KL's under each change, trained side by side on one
teacher pass."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from experiments.gap import causes, formulas
from experiments.gap.lessons import Lessons
from jaxdiv import models
from jaxdiv.models.decoder import project
from jaxdiv.training.state import Model, TrainState
from jaxdiv.training.step import make_optimizer, make_step


@dataclasses.dataclass(frozen=True)
class Arm:
    """The students of one loss under one change, which `training` names."""

    training: str
    loss: str
    change: causes.Change

    @property
    def text(self) -> str:
        """Its name in curves."""
        return name(self.training, self.loss)


def name(training: str, loss: str) -> str:
    """Of the arm of `loss` under the change that is called `training`."""
    return f"{training}:{loss}"


def of(found: Sequence[causes.Cause]) -> list[Arm]:
    """Both losses of each change of `found`, the baseline's first."""
    changes = {cause.training: cause.change for cause in found}
    return [
        Arm(training, loss, change)
        for training, change in changes.items()
        for loss in formulas.LOSSES
    ]


@dataclasses.dataclass(frozen=True)
class OwnHead:
    """Students that train a head, as `Model` has those that take the teacher's: `params` are its
    and the student's."""

    student: Model
    params: Any = None

    def with_params(self, params: Any) -> "OwnHead":
        return OwnHead(self.student, params)

    def __call__(self, tokens: jax.Array, teacher: models.TeacherOutput) -> jax.Array:
        features = (
            self.student.with_params(self.params["student"]).module().features(tokens, teacher)
        )
        return project(features, self.params["head"], teacher.vocab_size)


@dataclasses.dataclass(frozen=True)
class Trainer:
    """What all arms share.

    Attributes:
      lessons: the teacher's, whose parameters arms that train it or its head start from.
      pupils: the untrained students, [S, ...], or their shapes.
    """

    lessons: Lessons
    pupils: Model

    @property
    def config(self) -> Mapping:
        return self.lessons.config

    @property
    def teacher(self) -> Model:
        return self.lessons.teacher

    def beginning(self, arms: Sequence[Arm], mesh: Mesh) -> TrainState:
        """All arms start from the same students."""
        return TrainState.create(
            [self._params(arm) for arm in arms], [self._optimizer(arm) for arm in arms], mesh=mesh
        )

    def step(self, arms: Sequence[Arm], mesh: Mesh) -> Callable:
        """As `make_step`."""

        def objectives(numbers, params, batch, passes):
            return [
                self._objective(arms[i], own, batch, passes)
                for i, own in zip(numbers, params, strict=True)
            ]

        return make_step(
            teacher_forward=self.lessons.teach({arm.change.sees for arm in arms}),
            objectives=objectives,
            fuse_losses=lambda _: False,
            optimizers=[self._optimizer(arm) for arm in arms],
            mesh=mesh,
        )

    def drafter(self, learns: str) -> Model | OwnHead:
        """What drafts with the parameters of an arm that `learns` so, but for a teacher of its
        own."""
        return OwnHead(self.pupils) if learns == causes.HEAD else self.pupils

    def settings(self, arm: Arm) -> dict[str, Any]:
        """Of the arm's optimizer, as `config.student.optimizer` has them."""
        settings = {**self.config["student"]["optimizer"], **arm.change.optimizer}
        return {**settings, "learning_rate": arm.change.rate * settings["learning_rate"]}

    def _params(self, arm):
        own, learns = self.pupils.params, arm.change.learns
        if learns == causes.STUDENT:
            return own
        more = self.teacher.params if learns == causes.TEACHER else self.teacher.module().head[...]
        seeds = self.config["seeds"]
        return {
            "student": own,
            learns: jax.tree.map(lambda x: jnp.broadcast_to(x, (seeds, *x.shape)), more),
        }

    def _optimizer(self, arm):
        made, clip_value = (
            make_optimizer(self.settings(arm), self.config["student"]["steps"]),
            arm.change.clip_value,
        )
        return optax.chain(optax.clip(clip_value), made) if clip_value else made

    def _objective(self, arm, own, batch, passes):
        change = arm.change
        if change.learns == causes.TEACHER:
            passes, own = (
                self.lessons.teach({change.sees})(own[causes.TEACHER], batch["inputs"]),
                own["student"],
            )
        lesson = self.lessons.of(change.sees, passes, batch)
        logits = self.drafter(change.learns).with_params(own)(lesson.inputs, lesson.output)
        values = change.formula(arm.loss)(logits, lesson.target)
        return change.reduce(values, lesson.weights, lesson.output.vocab_size)
