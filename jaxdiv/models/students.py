"""The draft models. Each maps (tokens, the teacher's output) to logits over the teacher's
vocabulary.

A student has `features(tokens, teacher)` [B, L, D], `head(teacher)` [D, P], whose first V columns
are tokens, `logits(features, teacher)`, which multiplies the two, and `__call__`, which does it
all; `exit_layer` says which hidden state of the teacher it reads, None for none. `extend` makes the
features of the next tokens of a text whose beginning a cache holds.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxdiv.models.decoder import Cache, Decoder, TeacherOutput, Tokens, project
from jaxdiv.models.layers import (
    Activations,
    Attention,
    cached_layout,
    empty_cache,
    layout,
    rms_norm,
)


class KangarooAdapter(nnx.Module):
    """Norm, attention, residual and norm on the teacher's early hidden state, then the teacher's
    own head.

    Kangaroo (arXiv 2404.18911, section 3.2). Teacher and head are constants: no gradient reaches
    them.
    """

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        kv_heads: int,
        exit_layer: int,
        rope_base: float = 10000.0,
        norm_epsilon: float = 1e-5,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.exit_layer, self.rope_base, self.dtype = exit_layer, rope_base, jnp.dtype(dtype)
        self.attention_norm = rms_norm(width, norm_epsilon, self.dtype, rngs)
        self.attention = Attention(
            width=width, heads=heads, kv_heads=kv_heads, dtype=self.dtype, rngs=rngs
        )
        self.norm = rms_norm(width, norm_epsilon, self.dtype, rngs)

    def features(self, tokens: Tokens, teacher: TeacherOutput) -> Activations:
        """What the head multiplies; reads `teacher.hidden` alone."""
        if teacher.hidden is None:
            raise ValueError(
                f"the adapter reads the teacher's hidden state; run the teacher with exit_layer={self.exit_layer}"
            )
        hidden = jax.lax.stop_gradient(teacher.hidden)
        positions = jnp.arange(hidden.shape[1])[None]
        return self._adapt(hidden, layout(positions, **self._rotary()), None)[0]

    def init_cache(self, batch: int, length: int) -> Cache:
        """An empty cache for `batch` sequences of at most `length` tokens."""
        attention = self.attention
        return (empty_cache(batch, attention.kv_heads, length, attention.head_width, self.dtype),)

    def extend(
        self,
        tokens: Tokens,
        hidden: Float[Array, "B L W"],
        cache: Cache,
        *,
        positions: Int[Array, "B L"],
        **places,
    ) -> tuple[Activations, Cache]:
        """Features [B, L, D] of more tokens, and the cache with them; arguments as
        `Decoder.run_layers`.

        Args:
          tokens: not read.
          hidden: [B, L, W], the teacher's, of these tokens after the exit layer.
          cache: of `init_cache`.
          positions: [B, L].
          **places: `slots` and `visible`, where they don't follow from the positions.
        """
        where = cached_layout(positions, cache[0], **places, **self._rotary())
        features, entry = self._adapt(hidden, where, cache[0])
        return features, (entry,)

    def _adapt(self, hidden, where, entry):
        hidden = hidden.astype(self.dtype)
        mixed, entry = self.attention(self.attention_norm(hidden), where, entry)
        return self.norm(hidden + mixed), entry

    def _rotary(self):
        return {"head_width": self.attention.head_width, "rope_base": self.rope_base}

    def unrolled(self) -> "KangarooAdapter":
        """Itself; see `Decoder.unrolled`."""
        return self

    def head(self, teacher: TeacherOutput) -> Float[Array, "D P"]:
        return jax.lax.stop_gradient(teacher.head)

    def logits(self, features: Activations, teacher: TeacherOutput) -> Float[Array, "B L V"]:
        return project(features, self.head(teacher), teacher.vocab_size)

    def __call__(self, tokens: Tokens, teacher: TeacherOutput) -> Float[Array, "B L V"]:
        return self.logits(self.features(tokens, teacher), teacher)


class DecoderStudent(nnx.Module):
    """An independent small decoder; of the teacher it shares the vocabulary alone."""

    exit_layer = None

    def __init__(self, decoder: Decoder):
        self.decoder = decoder

    def features(self, tokens: Tokens, teacher: TeacherOutput) -> Activations:
        hidden, _ = self.decoder.run_layers(self.decoder.embed(tokens), 0, self.decoder.depth)
        return self.decoder.norm(hidden)

    def init_cache(self, batch: int, length: int) -> Cache:
        """An empty cache for `batch` sequences of at most `length` tokens."""
        return self.decoder.init_cache(batch, length)

    def extend(
        self,
        tokens: Tokens,
        hidden: Float[Array, "B L W"],
        cache: Cache,
        *,
        positions: Int[Array, "B L"],
        **places,
    ) -> tuple[Activations, Cache]:
        """As `KangarooAdapter.extend`, but reads `tokens` and not `hidden`."""
        decoder = self.decoder
        hidden, cache = decoder.run_layers(
            decoder.embed(tokens), 0, decoder.depth, positions=positions, cache=cache, **places
        )
        return decoder.norm(hidden), cache

    def unrolled(self) -> "DecoderStudent":
        """See `Decoder.unrolled`."""
        return DecoderStudent(self.decoder.unrolled())

    def head(self, teacher: TeacherOutput) -> Float[Array, "D P"]:
        return self.decoder.head[...]

    def logits(self, features: Activations, teacher: TeacherOutput) -> Float[Array, "B L V"]:
        return project(features, self.head(teacher), self.decoder.vocab_size)

    def __call__(self, tokens: Tokens, teacher: TeacherOutput) -> Float[Array, "B L V"]:
        return self.logits(self.features(tokens, teacher), teacher)


Student = KangarooAdapter | DecoderStudent
