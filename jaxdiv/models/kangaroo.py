"""Kangaroo's adapter (arXiv 2404.18911), a draft model on the target's first layers."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxdiv.models.decoder import Cache, Decoder, TeacherOutput, TokenIds
from jaxdiv.models.layers import (
    Activations,
    Attention,
    AttentionOptions,
    LayerCache,
    empty_cache,
    layout,
)
from jaxdiv.models.rotary import Rotary
from jaxdiv.models.student import Drafter


class KangarooAdapter(Drafter):
    """Norm, attention, residual and norm on the teacher's early hidden state, then its head.

    Section 3.2 of the paper. Hidden state and head are constants: no gradient reaches the teacher.
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
        self.attention_norm = nnx.RMSNorm(width, epsilon=norm_epsilon, dtype=self.dtype, rngs=rngs)
        options = AttentionOptions(width, heads, kv_heads, dtype=self.dtype)
        self.attention = Attention(options, rngs=rngs)
        self.norm = nnx.RMSNorm(width, epsilon=norm_epsilon, dtype=self.dtype, rngs=rngs)

    def features(self, tokens: TokenIds, teacher: TeacherOutput) -> Activations:
        """Returns what the head multiplies; reads `teacher.hidden` alone."""
        if teacher.hidden is None:
            raise ValueError(
                "the adapter reads the teacher's hidden state; run the teacher with "
                f"exit_layer={self.exit_layer}"
            )
        hidden = jax.lax.stop_gradient(teacher.hidden)
        return self._adapt(hidden)[0]

    def head(self, teacher: TeacherOutput) -> Float[Array, "D P"]:
        """Returns the teacher's head, or its columns of the draft vocabulary, as a constant."""
        head = jax.lax.stop_gradient(teacher.head)
        return head if self.vocabulary is None else self.vocabulary.columns(head)

    def init_cache(self, batch: int, length: int) -> Cache:
        attention = self.attention
        return (empty_cache(batch, attention.kv_heads, length, attention.head_width, self.dtype),)

    def extend(
        self, tokens: TokenIds, hidden: Float[Array, "B L W"], cache: Cache, **where: jax.Array
    ) -> tuple[Activations, Cache]:
        """Extends the cache as `Drafter.extend` does; `tokens` are not read."""
        features, entry = self._adapt(hidden, cache[0], **where)
        return features, (entry,)

    def _adapt(
        self,
        hidden: Float[Array, "B L D"],
        cache: LayerCache | None = None,
        **where: jax.Array,
    ) -> tuple[Activations, LayerCache | None]:
        hidden = hidden.astype(self.dtype)
        turns = Rotary(self.attention.head_width, self.rope_base)
        tokens = layout(hidden, turns, cache=cache, **where)
        mixed, cache = self.attention(self.attention_norm(hidden), tokens, cache)
        return self.norm(hidden + mixed), cache

    def check_target(self, target: Decoder) -> None:
        width, target_width = self.norm.num_features, target.options.width
        if width != target_width or self.exit_layer > target.depth:
            raise ValueError(
                f"the draft reads layer {self.exit_layer} of width {width}, but the target has "
                f"{target.depth} layers of width {target_width}; it is another model's."
            )
        if self.vocabulary is not None and self.vocabulary.vocab_size != target.vocab_size:
            raise ValueError(
                f"the draft vocabulary is of {self.vocabulary.vocab_size} tokens, but the target "
                f"has {target.vocab_size}; it is another model's."
            )
