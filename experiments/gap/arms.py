"""The students of a study: cross-entropy's and KL's under each change, trained side by side on one teacher pass."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from experiments.gap import causes, formulas
from jaxdiv import models
from jaxdiv.models.decoder import project
from jaxdiv.training import students
from jaxdiv.training.state import Model, TrainState, initial_state
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
    return [Arm(training, loss, change) for training, change in changes.items() for loss in formulas.LOSSES]


@dataclasses.dataclass(frozen=True)
class OwnHead:
    """Students that train a head, as `Model` has those that take the teacher's: `params` are its and the student's."""

    student: Model
    params: Any = None

    def with_params(self, params: Any) -> "OwnHead":
        return OwnHead(self.student, params)

    def __call__(self, tokens: jax.Array, teacher: models.TeacherOutput) -> jax.Array:
        features = self.student.with_params(self.params["student"]).module().features(tokens, teacher)
        return project(features, self.params["head"], teacher.vocab_size)


@dataclasses.dataclass(frozen=True)
class Trainer:
    """What all arms share.

    Attributes:
      config: the run's.
      teacher: whose parameters arms that train it or its head start from.
      pupils: the untrained students, [S, ...], or their shapes.
      padding: the token that fills rows up.
    """

    config: Mapping
    teacher: Model
    pupils: Model
    padding: int

    def beginning(self, arms: Sequence[Arm], mesh: Mesh) -> TrainState:
        """All arms start from the same students."""
        return initial_state([self._params(arm) for arm in arms], [self._optimizer(arm) for arm in arms], mesh=mesh)

    def step(self, arms: Sequence[Arm], mesh: Mesh) -> Callable:
        """As `make_step`."""

        def objectives(numbers, params, batch, lessons):
            return [self._objective(arms[i], own, batch, lessons) for i, own in zip(numbers, params, strict=True)]

        return make_step(
            teach=self._teach({arm.change.sees for arm in arms}),
            objectives=objectives,
            together=lambda _: False,
            optimizers=[self._optimizer(arm) for arm in arms],
            mesh=mesh,
        )

    def drafter(self, learns: str) -> Model | OwnHead:
        """What drafts with the parameters of an arm that `learns` so, but for a teacher of its own."""
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
        return {"student": own, learns: jax.tree.map(lambda x: jnp.broadcast_to(x, (seeds, *x.shape)), more)}

    def _optimizer(self, arm):
        made, clip_value = make_optimizer(self.settings(arm), self.config["student"]["steps"]), arm.change.clip_value
        return optax.chain(optax.clip(clip_value), made) if clip_value else made

    def _teach(self, seen):
        """(teacher's parameters, inputs) -> what is seen to (what students read, the teacher's logits)."""
        pass_of = students.teach(self.config, self.teacher)

        def lesson(params, inputs):
            output = pass_of(params, inputs)
            found = {causes.OWN: (output, output.logits)}
            if causes.OTHER_LAYER in seen:
                module = self.teacher.with_params(params).module()
                hidden, _ = module.run_layers(module.embed(inputs), 0, self._other_layer())
                found[causes.OTHER_LAYER] = dataclasses.replace(output, hidden=hidden), output.logits
            if causes.PADDED in seen:
                padded = pass_of(params, self._padded(inputs))
                found[causes.PADDED] = padded, padded.logits
            return found

        return lesson

    def _other_layer(self):
        exit_layer = self.config["student"]["exit_layer"]
        return exit_layer + 1 if exit_layer < self.config["teacher"]["depth"] else exit_layer - 1

    def _padded(self, inputs):
        """Rows that end after a quarter, a half, three quarters, not at all, and so on."""
        rows, length = inputs.shape
        kept = length * (jnp.arange(rows)[:, None] % 4 + 1) // 4
        return jnp.where(jnp.arange(length) < kept, inputs, self.padding)

    def _objective(self, arm, own, batch, lessons):
        change, inputs, weights = arm.change, batch["inputs"], batch["weights"]
        output, target = lessons.get(change.sees, lessons[causes.OWN])
        if change.sees == causes.PADDED:
            inputs = self._padded(inputs)
        elif change.sees == causes.OTHER_ROW:
            output = dataclasses.replace(output, hidden=jnp.roll(output.hidden, 1, axis=0))
        elif change.sees == causes.NEXT:
            target, weights = jnp.roll(target, -1, axis=1), weights.at[:, -1].set(0)
        elif change.sees == causes.TOP_CLASS:
            target = _sure_of(jnp.argmax(target, axis=-1), output.vocab_size)
        elif change.sees == causes.LABELS:
            target = _sure_of(batch["labels"], output.vocab_size)
        if change.learns == causes.TEACHER:
            output = students.teach(self.config, self.teacher)(own[causes.TEACHER], inputs)
            own, target = own["student"], output.logits
        logits = self.drafter(change.learns).with_params(own)(inputs, output)
        return change.reduce(change.formula(arm.loss)(logits, target), weights, output.vocab_size)


def _sure_of(classes, vocab_size):
    """Logits [B, L, V] of a teacher that is certain of a class."""
    return jnp.log(jax.nn.one_hot(classes, vocab_size))
