"""What students read and learn from: the teacher's pass, rightly or as a mistake has it."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from experiments.gap import causes
from jaxdiv import models
from jaxdiv.training import students
from jaxdiv.training.state import Model


@dataclasses.dataclass(frozen=True)
class Lesson:
    """A batch as a student has it.

    Attributes:
      inputs: tokens [B, L].
      output: what the student reads of the teacher.
      target: logits [B, L, V] that it learns from.
      weights: of the tokens, [B, L].
    """

    inputs: jax.Array
    output: models.TeacherOutput
    target: jax.Array
    weights: jax.Array


# What is seen to what students read and the logits that they learn from, made once for all of them.
Passes = Mapping[str, tuple[models.TeacherOutput, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Lessons:
    """The teacher's passes over a batch, and each student's view of them.

    Attributes:
      config: the run's.
      teacher: the one that teaches.
      padding: the token that fills rows up.
    """

    config: Mapping
    teacher: Model
    padding: int

    def teach(self, seen: set[str]) -> Callable:
        """(teacher's parameters, inputs) -> the passes that students who see what `seen` names
        need."""
        pass_of = students.teacher_forward(self.config, self.teacher)

        def passes(params, inputs):
            own = pass_of(params, inputs)
            made = {causes.OWN: (own, own.logits)}
            if causes.OTHER_LAYER in seen:
                module = self.teacher.with_params(params).module()
                hidden, _ = module.run_layers(module.embed(inputs), 0, self._other_layer())
                made[causes.OTHER_LAYER] = dataclasses.replace(own, hidden=hidden), own.logits
            if causes.PADDED in seen:
                padded = pass_of(params, self._padded(inputs))
                made[causes.PADDED] = padded, padded.logits
            return made

        return passes

    def of(self, sees: str, passes: Passes, batch: Mapping[str, jax.Array]) -> Lesson:
        """The lesson of a student that `sees` so."""
        inputs = self._padded(batch["inputs"]) if sees == causes.PADDED else batch["inputs"]
        lesson = Lesson(inputs, *passes.get(sees, passes[causes.OWN]), batch["weights"])
        return _MISTAKES[sees](lesson, batch["labels"]) if sees in _MISTAKES else lesson

    def _other_layer(self):
        exit_layer = self.config["student"]["exit_layer"]
        return exit_layer + 1 if exit_layer < self.config["teacher"]["depth"] else exit_layer - 1

    def _padded(self, inputs):
        """Rows that end after a quarter, a half, three quarters, not at all, and so on."""
        rows, length = inputs.shape
        kept = length * (jnp.arange(rows)[:, None] % 4 + 1) // 4
        return jnp.where(jnp.arange(length)[None] < kept, inputs, self.padding)


def _of_the_next_token(lesson, _):
    weights = lesson.weights.at[:, -1].set(0)
    return dataclasses.replace(lesson, target=jnp.roll(lesson.target, -1, axis=1), weights=weights)


def _of_another_row(lesson, _):
    """Rows without weight are no sequences: they fill a batch up to the number of devices."""
    rows = jnp.sum(jnp.any(lesson.weights > 0, axis=1))
    hidden = lesson.output.hidden[(jnp.arange(len(lesson.weights)) - 1) % rows]
    return dataclasses.replace(lesson, output=dataclasses.replace(lesson.output, hidden=hidden))


def _of_the_top_class(lesson, _):
    return _sure_of(jnp.argmax(lesson.target, axis=-1), lesson)


def _of_labels(lesson, labels):
    return _sure_of(labels, lesson)


def _sure_of(classes, lesson):
    """A teacher that is certain of a class."""
    return dataclasses.replace(
        lesson, target=jnp.log(jax.nn.one_hot(classes, lesson.output.vocab_size))
    )


_MISTAKES = {
    causes.NEXT: _of_the_next_token,
    causes.OTHER_ROW: _of_another_row,
    causes.TOP_CLASS: _of_the_top_class,
    causes.LABELS: _of_labels,
}
