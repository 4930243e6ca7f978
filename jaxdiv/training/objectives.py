"""Training objectives: each student's mean loss over a batch, from features and heads."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

import jaxdiv
from jaxdiv import models, reductions, targets
from jaxdiv.fused import chunks
from jaxdiv.models import meshes
from jaxdiv.training.state import Model


class TeacherOutputs(NamedTuple):
    """Teacher outputs for one batch, shared by all students.

    Attributes:
      output: the teacher's pass, which students read; its head is of the draft vocabulary's tokens.
      target: the teacher as losses take it: (logits [B, L, V], None), or (features [B, L, D], head
        [D, P]). Under a draft vocabulary it is a `targets.Restricted` of one of these, with K
        classes.
    """

    output: models.TeacherOutput
    target: tuple[Array | targets.Restricted, Array | None]

    @property
    def is_dense(self) -> bool:
        """True if the target is all of the logits that students are compared with."""
        return self.target[1] is None


def teacher_outputs(
    output: models.TeacherOutput,
    vocabulary: models.DraftVocabulary | None = None,
    *,
    temperature: float | None = None,
) -> TeacherOutputs:
    """Returns outputs with all logits of the teacher, unless they exceed the fused losses' chunk.

    The logits are computed here once for all students.

    Args:
      output: the teacher's pass.
      vocabulary: the tokens that students can draft; None for all.
      temperature: that of losses which need the true probabilities of these tokens; None if none
        does.
    """
    visible = output.restrict(vocabulary)
    size = 4 * math.prod(output.features.shape[:-1]) * visible.vocab_size
    is_small = size <= chunks.LEAST_MEMORY
    logits, head = (visible.logits, None) if is_small else features_and_head(visible)
    if vocabulary is not None:
        sums = None if temperature is None else normalizer(output, temperature)
        logits = targets.Restricted(logits, sums, temperature or 1.0)
    return TeacherOutputs(visible, (logits, head))


def normalizer(output: models.TeacherOutput, temperature: float) -> Float[Array, "B L"]:
    """Returns the log-sum-exp of all logits over `temperature`, chunk by chunk, or the cached one.

    A cached one must be of this temperature.
    """
    if output.normalizer is not None:
        return output.normalizer

    def log_sum_exp(logits, _):
        return jax.nn.logsumexp(logits[:, : output.vocab_size] / temperature, axis=-1)

    features, head = features_and_head(output)
    (values,), _ = jaxdiv.linear_divergences(
        [log_sum_exp], [features], [head], tokens_over=meshes.row_axes()
    )
    return values


def features_and_head(
    output: models.TeacherOutput,
) -> tuple[Float[Array, "B L D"], Float[Array, "D P"]]:
    """Returns features and head in one type."""
    return output.features, output.head.astype(output.features.dtype)


def for_students(
    model: Model, losses: Sequence[str | jaxdiv.Loss], *, temperature: float
) -> Callable:
    """Returns the objectives of `make_step` for students of `model`, under `TeacherOutputs`."""
    vocabulary = model.module().vocabulary

    def objectives(indices, params, batch, shared):
        def features_and_head(params):
            student = model.with_params(params).module()
            features = student.features(batch["inputs"], shared.output)
            return features, student.head(shared.output).astype(features.dtype)

        if vocabulary is not None:
            batch = {**batch, "labels": vocabulary.classes(batch["labels"])}
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
