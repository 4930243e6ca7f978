"""The interface of students: what training, evaluation and decoding ask of them.

A new draft model is one file beside `kangaroo.py` with a `Drafter`, and one entry of
`builders.STUDENTS`.
"""

from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxdiv.models.decoder import Cache, Decoder, TeacherOutput, TokenIds, project
from jaxdiv.models.draft_vocabulary import DraftVocabulary
from jaxdiv.models.layers import Activations


class Student(nnx.Module):
    """A model that learns a teacher's distribution over its V classes.

    Features and head are apart, since the fused losses multiply them chunk by chunk.

    Attributes:
      exit_layer: the teacher's layer after which the student reads the hidden state; None if it
        reads none.
      vocab_size: V, if the head is the student's own; None if the teacher's counts.
      vocabulary: the tokens that the student can draft; None for all.
    """

    exit_layer: int | None = None
    vocab_size: int | None = None
    vocabulary: DraftVocabulary | None = None

    def restrict(self, vocabulary: DraftVocabulary) -> None:
        """Lets an untrained student draft the tokens of `vocabulary` alone."""
        self.vocabulary = vocabulary

    def features(self, inputs: Any, teacher: TeacherOutput) -> Activations:
        """Returns [B, L, D], what the head multiplies; `inputs` are the teacher's."""
        raise NotImplementedError

    def head(self, teacher: TeacherOutput) -> Float[Array, "D P"]:
        """Returns the output matrix, whose first V columns are classes; [D, K] of a draft
        vocabulary."""
        raise NotImplementedError

    def logits(self, features: Activations, teacher: TeacherOutput) -> Float[Array, "B L V"]:
        """Returns the product of features and head, in float32 at least.

        Tokens outside a draft vocabulary have -inf, so that whoever measures or decodes sees all V.
        """
        if self.vocabulary is not None:
            logits = project(features, self.head(teacher), self.vocabulary.size)
            return self.vocabulary.scatter(logits)
        return project(features, self.head(teacher), self.vocab_size or teacher.vocab_size)

    def __call__(self, inputs: Any, teacher: TeacherOutput) -> Float[Array, "B L V"]:
        """Returns the logits of every position."""
        return self.logits(self.features(inputs, teacher), teacher)


class Drafter(Student):
    """A student that drafts text token by token, on a cache of its own."""

    def init_cache(self, batch: int, length: int) -> Cache:
        """Returns an empty cache for `batch` sequences of at most `length` tokens."""
        raise NotImplementedError

    def extend(
        self, tokens: TokenIds, hidden: Float[Array, "B L W"], cache: Cache, **where: jax.Array
    ) -> tuple[Activations, Cache]:
        """Reads more tokens of texts whose beginnings are in the cache.

        Args:
          tokens: [B, L].
          hidden: [B, L, W], the teacher's hidden states of these tokens after `exit_layer`.
          cache: from `init_cache`.
          **where: `positions`, `slots` and `visible` as of `layers.layout`.

        Returns:
          The tokens' features [B, L, D], and the cache with their entries.
        """
        raise NotImplementedError

    def unrolled(self) -> "Drafter":
        """Returns the drafter with its layers apart; see `Decoder.unrolled`."""
        return self

    def check_target(self, target: Decoder) -> None:
        """Raises ValueError if the drafter can't draft for `target`."""
        raise NotImplementedError


class DecoderStudent(Drafter):
    """A small decoder that drafts from the tokens alone and shares only the vocabulary.

    Under a draft vocabulary it still reads all tokens; its head is [D, K].
    """

    def __init__(self, decoder: Decoder):
        self.decoder, self.vocab_size = decoder, decoder.vocab_size

    def restrict(self, vocabulary: DraftVocabulary) -> None:
        """Cuts the initial head to the columns of `vocabulary`."""
        super().restrict(vocabulary)
        self.decoder.head = nnx.Param(vocabulary.columns(self.decoder.head[...]))

    def features(self, tokens: TokenIds, teacher: TeacherOutput) -> Activations:
        """Returns what the head multiplies; the teacher is not read."""
        return self.decoder(tokens).features

    def head(self, teacher: TeacherOutput) -> Float[Array, "D P"]:
        """Returns the student's own head."""
        return self.decoder.head_matrix

    def init_cache(self, batch: int, length: int) -> Cache:
        return self.decoder.init_cache(batch, length)

    def extend(
        self, tokens: TokenIds, hidden: Float[Array, "B L W"], cache: Cache, **where: jax.Array
    ) -> tuple[Activations, Cache]:
        """Extends the cache as `Drafter.extend` does; the teacher's hidden states are not read."""
        model = self.decoder
        states, cache = model.run_layers(model.embed(tokens), 0, model.depth, cache=cache, **where)
        return model.norm(states), cache

    def unrolled(self) -> "DecoderStudent":
        student = DecoderStudent(self.decoder.unrolled())
        student.vocabulary = self.vocabulary
        return student

    def check_target(self, target: Decoder) -> None:
        if self.vocab_size != target.vocab_size:
            raise ValueError(
                f"the draft has {self.vocab_size} tokens and the target {target.vocab_size}; both "
                "need one tokenizer."
            )
