"""The draft models. Each maps (tokens, the teacher's output) to logits over the teacher's vocabulary.

A student has `features(tokens, teacher)` [B, L, D], `head(teacher)` [D, V], and `__call__`, which multiplies the
two; `exit_layer` says which hidden state of the teacher it reads, None for none.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxdiv.models.decoder import Decoder, TeacherOutput, Tokens, project
from jaxdiv.models.layers import Activations, Attention, layout, rms_norm


class KangarooAdapter(nnx.Module):
    """Norm, attention, residual and norm on the teacher's early hidden state, then the teacher's own head.

    Kangaroo (arXiv 2404.18911, section 3.2). Teacher and head are constants: no gradient reaches them.
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
        self.attention = Attention(width=width, heads=heads, kv_heads=kv_heads, dtype=self.dtype, rngs=rngs)
        self.norm = rms_norm(width, norm_epsilon, self.dtype, rngs)

    def features(self, tokens: Tokens, teacher: TeacherOutput) -> Activations:
        """What the head multiplies; reads `teacher.hidden` alone."""
        if teacher.hidden is None:
            raise ValueError(
                f"the adapter reads the teacher's hidden state; run the teacher with exit_layer={self.exit_layer}"
            )
        hidden = jax.lax.stop_gradient(teacher.hidden).astype(self.dtype)
        positions = jnp.arange(hidden.shape[1])[None]
        where = layout(positions, head_width=self.attention.head_width, rope_base=self.rope_base, slots=None)
        mixed, _ = self.attention(self.attention_norm(hidden), where)
        return self.norm(hidden + mixed)

    def head(self, teacher: TeacherOutput) -> Float[Array, "D V"]:
        return jax.lax.stop_gradient(teacher.head)

    def __call__(self, tokens: Tokens, teacher: TeacherOutput) -> Float[Array, "B L V"]:
        return project(self.features(tokens, teacher), self.head(teacher))


class DecoderStudent(nnx.Module):
    """An independent small decoder; of the teacher it shares the vocabulary alone."""

    exit_layer = None

    def __init__(self, decoder: Decoder):
        self.decoder = decoder

    def features(self, tokens: Tokens, teacher: TeacherOutput) -> Activations:
        hidden, _ = self.decoder.run_layers(self.decoder.embed(tokens), 0, self.decoder.depth)
        return self.decoder.norm(hidden)

    def head(self, teacher: TeacherOutput) -> Float[Array, "D V"]:
        return self.decoder.head[...]

    def __call__(self, tokens: Tokens, teacher: TeacherOutput) -> Float[Array, "B L V"]:
        return project(self.features(tokens, teacher), self.head(teacher))


Student = KangarooAdapter | DecoderStudent
