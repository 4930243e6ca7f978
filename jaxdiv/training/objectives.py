"""What training makes small: a loss's mean over a batch, from what stands before the logits."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

import jaxdiv
from jaxdiv import models, reductions
from jaxdiv.fused import chunks
from jaxdiv.models import meshes
from jaxdiv.training.state import Model


class TeacherOutputs(NamedTuple):
    """What students share of a batch.

    Attributes:
      output: the teacher's, that students read.
      target: the teacher as losses take it: (logits [B, L, V], None), or (features [B, L, D], head
        [D, P]).
    """

    output: models.TeacherOutput
    target: tuple[Array, Array | None]

    @property
    def is_dense(self) -> bool:
        """Whether all of the teacher's logits are there."""
        return self.target[1] is None


def teacher_outputs(output: models.TeacherOutput) -> TeacherOutputs:
    """The teacher's logits are made here, once for all students, unless they take more than a chunk
    of them may."""
    size = 4 * math.prod(output.features.shape[:-1]) * output.vocab_size
    return TeacherOutputs(
        output, (output.logits, None) if size <= chunks.LEAST_MEMORY else features_and_head(output)
    )


def features_and_head(output: models.TeacherOutput) -> tuple[Array, Array]:
    """Features and head, in one type."""
    return output.features, output.head.astype(output.features.dtype)


def of_students(
    model: Model, losses: Sequence[str | jaxdiv.Loss], *, temperature: float
) -> Callable:
    """The losses' means as `make_step` takes them, of students of `model` under a `TeacherOutputs`."""

    def objectives(numbers, params, batch, shared):
        def student(params):
            student = model.with_params(params).module()
            features = student.features(batch["inputs"], shared.output)
            return features, student.head(shared.output).astype(features.dtype)

        chosen, pupils = [losses[i] for i in numbers], [student(own) for own in params]
        known = {"vocab_size": shared.output.vocab_size, "temperature": temperature}
        return means(chosen, pupils, batch, shared.target, **known)

    return objectives


def means(
    losses: Sequence[str | jaxdiv.Loss],
    students: Sequence[tuple[Array, Array]],
    batch: Mapping[str, Array],
    teacher: tuple[Any, Any] = (None, None),
    *,
    vocab_size: int,
    temperature: float = 1.0,
) -> tuple[Array, ...]:
    """Each student's mean over the batch's tokens by their weights, 0 where all are 0.

    Args:
      losses: each student's.
      students: (features [B, L, D], head [D, P]) each.
      batch: labels and weights [B, L].
      teacher: as `TeacherOutputs.target`.
      vocab_size: V <= P, the classes that there are.
      temperature: of the losses.
    """
    weights = reductions.mean(batch["weights"], jnp.sum(batch["weights"]))
    features, heads = zip(*students, strict=True)
    values, _ = jaxdiv.linear_divergences(
        losses,
        features,
        heads,
        *teacher,
        labels=batch["labels"],
        weights=weights,
        temperature=temperature,
        vocab_size=vocab_size,
        tokens_over=meshes.row_axes(),
    )
    return tuple(jnp.sum(value) for value in values)
