"""Training objectives: each student's mean loss over a batch, from features and heads."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

import jaxdiv
from jaxdiv import models, reductions
from jaxdiv.fused import chunks
from jaxdiv.models import meshes
from jaxdiv.training.state import Model


class TeacherOutputs(NamedTuple):
    """Teacher outputs for one batch, shared by all students.

    Attributes:
      output: the teacher's pass, which students read.
      target: the teacher as losses take it: (logits [B, L, V], None), or (features [B, L, D], head
        [D, P]).
    """

    output: models.TeacherOutput
    target: tuple[Array, Array | None]

    @property
    def is_dense(self) -> bool:
        """True if the target is all of the teacher's logits."""
        return self.target[1] is None


def teacher_outputs(output: models.TeacherOutput) -> TeacherOutputs:
    """Returns outputs with all of the teacher's logits, unless they exceed the fused losses' chunk.

    The logits are computed here once for all students.
    """
    size = 4 * math.prod(output.features.shape[:-1]) * output.vocab_size
    is_small = size <= chunks.LEAST_MEMORY
    return TeacherOutputs(output, (output.logits, None) if is_small else features_and_head(output))


def features_and_head(
    output: models.TeacherOutput,
) -> tuple[Float[Array, "B L D"], Float[Array, "D P"]]:
    """Returns features and head in one type."""
    return output.features, output.head.astype(output.features.dtype)


def for_students(
    model: Model, losses: Sequence[str | jaxdiv.Loss], *, temperature: float
) -> Callable:
    """Returns the objectives of `make_step` for students of `model`, under `TeacherOutputs`."""

    def objectives(indices, params, batch, shared):
        def features_and_head(params):
            student = model.with_params(params).module()
            features = student.features(batch["inputs"], shared.output)
            return features, student.head(shared.output).astype(features.dtype)

        return means(
            [losses[i] for i in indices],
            [features_and_head(tree) for tree in params],
            batch,
            shared.target,
            vocab_size=shared.output.vocab_size,
            temperature=temperature,
        )

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
    """Computes each student's mean loss over the batch's tokens by their weights; 0 if all are 0.

    Args:
      losses: one per student.
      students: (features [B, L, D], head [D, P]) of each.
      batch: holds labels and weights [B, L].
      teacher: a target as in `TeacherOutputs`.
      vocab_size: V <= P, the number of classes; further columns are padding.
      temperature: divides the logits of both sides.

    Returns:
      A scalar in nats per student.
    """
    features, heads = zip(*students, strict=True)
    values, _ = jaxdiv.linear_divergences(
        losses,
        features,
        heads,
        *teacher,
        labels=batch["labels"],
        weights=reductions.mean(batch["weights"], jnp.sum(batch["weights"])),
        temperature=temperature,
        vocab_size=vocab_size,
        tokens_over=meshes.row_axes(),
    )
    return tuple(jnp.sum(value) for value in values)
