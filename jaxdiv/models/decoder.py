"""A Llama-style decoder that can stop at any layer, start at any layer, and keep a cache."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxdiv.models import meshes
from jaxdiv.models.layers import (
    Activations,
    Block,
    LayerCache,
    at_least_float32,
    cached_layout,
    check_heads,
    empty_cache,
    layout,
    multiply,
    rms_norm,
)

Tokens = Int[Array | np.ndarray, "B L"]
Cache = tuple[LayerCache, ...]  # one entry a layer

_GEMM_OUTPUTS = jax.checkpoint_policies.dots_with_no_batch_dims_saveable


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["features", "hidden", "head"],
    meta_fields=["vocab_size"],
)
@dataclasses.dataclass(frozen=True)
class TeacherOutput:
    """What one pass of the teacher hands to every student.

    Attributes:
      features: [B, L, D], normed, what the head multiplies; None if no pass was made.
      hidden: [B, L, D] after the exit layer, before any further norm; None if no exit layer was
        asked for.
      head: [D, P], the output matrix.
      vocab_size: V <= P, the tokens that there are.
    """

    features: Any
    hidden: Any
    head: Any
    vocab_size: int

    @property
    def logits(self) -> Float[Array, "B L V"]:
        """float32, made anew each time."""
        return project(self.features, self.head, self.vocab_size)


class Decoder(nnx.Module):
    """RMSNorm, rotary positions, grouped-query attention and SwiGLU, without biases, the head
    untied (Llama).

    Parameters are float32 and the layers' are stacked on a first axis; activations are of type
    `dtype`, while norms, softmax and logits are computed in float32. With `padded_vocabulary` the
    embedding and the head have rows and columns for so many tokens, P, of which only the first V
      exist: no logits are made of the others.

    Raises:
      ValueError: `heads` does not divide `width` into even parts, `kv_heads` does not divide
        `heads`, or `padded_vocabulary` is neither 0 nor `vocab_size` at least.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        padded_vocabulary: int = 0,
        depth: int,
        width: int,
        heads: int,
        kv_heads: int,
        mlp_width: int,
        rope_base: float = 10000.0,
        norm_epsilon: float = 1e-5,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_heads(width, heads, kv_heads)
        if padded_vocabulary and padded_vocabulary < vocab_size:
            raise ValueError(
                f"`padded_vocabulary` must be 0 or at least the {vocab_size} tokens there are, got {padded_vocabulary}"
            )
        rows = padded_vocabulary or vocab_size
        self.vocab_size = vocab_size
        self.depth, self.kv_heads, self.head_width = depth, kv_heads, width // heads
        self.rope_base, self.dtype = rope_base, jnp.dtype(dtype)
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), (rows, width)) * width**-0.5)

        @nnx.vmap
        def stack(key):
            return Block(
                width=width,
                heads=heads,
                kv_heads=kv_heads,
                mlp_width=mlp_width,
                norm_epsilon=norm_epsilon,
                dtype=self.dtype,
                rngs=nnx.Rngs(key),
            )

        self.layers = stack(jax.random.split(rngs.params(), depth))
        self.norm = rms_norm(width, norm_epsilon, self.dtype, rngs)
        self.head = nnx.Param(jax.random.normal(rngs.params(), (width, rows)) * width**-0.5)

    def __call__(self, tokens: Tokens, *, exit_layer: int | None = None) -> TeacherOutput:
        """Features of every position and, with `exit_layer` in 1..depth, the hidden state after so
        many layers."""
        if exit_layer is not None and not 1 <= exit_layer <= self.depth:
            raise ValueError(
                f"`exit_layer` must be in 1..{self.depth}, the decoder's depth, got {exit_layer}"
            )
        hidden = self.embed(tokens)
        exit_hidden = None
        if exit_layer is not None:
            hidden, _ = self.run_layers(hidden, 0, exit_layer)
            exit_hidden = hidden
        hidden, _ = self.run_layers(hidden, exit_layer or 0, self.depth)
        return self.output(features=self.norm(hidden), hidden=exit_hidden)

    def output(
        self, features: Activations | None = None, hidden: Activations | None = None
    ) -> TeacherOutput:
        """With the head; without features and hidden state all that a student needs to draft."""
        return TeacherOutput(features, hidden, self.head[...], self.vocab_size)

    def embed(self, tokens: Tokens) -> Activations:
        embedding = meshes.looked_up(self.embedding[...], self.dtype)
        return meshes.by_rows(jnp.take(embedding, tokens, axis=0).astype(self.dtype))

    def run_layers(
        self,
        hidden: Activations,
        start: int,
        stop: int,
        *,
        positions: Int[Array, "#B L"] | None = None,
        cache: Cache | None = None,
        slots: Int[Array, "#B L"] | None = None,
        visible: Bool[Array, "#B L T"] | None = None,
    ) -> tuple[Activations, Cache | None]:
        """Runs layers `start` to `stop` (excluded).

        Args:
          hidden: [B, L, D], the input of layer `start`.
          start, stop: 0 <= start <= stop <= depth, static.
          positions: [B, L] or [1, L], each token's position in its sequence; None for 0..L-1.
          cache: of `init_cache`, long enough for all of the slots.
          slots: [B, L], consecutive, where in the cache the tokens are written; None for their
            positions.
          visible: [B, L, T] or [1, L, T], the slots that each token sees; None for those up to its
            position, so that going back is only giving earlier positions.

        Returns:
          (hidden [B, L, D], the cache with the entries of these layers renewed, or None).
        """
        if not 0 <= start <= stop <= self.depth:
            raise ValueError(
                f"`start` and `stop` must be in order in 0..{self.depth}, got {start} and {stop}"
            )
        if positions is None:
            positions = jnp.arange(hidden.shape[1])[None]
        rotary = {"head_width": self.head_width, "rope_base": self.rope_base}
        if cache is None:
            return self._run(hidden, start, stop, layout(positions, **rotary)), None
        positions = jnp.broadcast_to(positions, hidden.shape[:2])
        where = cached_layout(positions, cache[0], slots=slots, visible=visible, **rotary)
        entries = list(cache)
        for i in range(start, stop):
            hidden, entries[i] = self._layer(i)(hidden, where, entries[i])
        return hidden, tuple(entries)

    def _run(self, hidden, start, stop, where):
        if isinstance(self.layers, nnx.List):
            for i in range(start, stop):
                hidden, _ = self._layer(i)(hidden, where)
            return hidden
        graphdef, params = nnx.split(self.layers)

        # Only the GEMMs' outputs are kept for the gradient: everything between them is cheaper to
        # make again.
        @functools.partial(jax.checkpoint, policy=_GEMM_OUTPUTS, prevent_cse=False)
        def body(hidden, layer):
            layer = nnx.merge(graphdef, meshes.gathered(layer, self.dtype))
            return meshes.by_rows(layer(meshes.by_rows(hidden), where)[0]), None

        return jax.lax.scan(body, hidden, jax.tree.map(lambda x: x[start:stop], params))[0]

    def _layer(self, i):
        if isinstance(self.layers, nnx.List):
            return self.layers[i]
        graphdef, params = nnx.split(self.layers)
        return nnx.merge(graphdef, jax.tree.map(lambda x: x[i], params))

    def unrolled(self) -> "Decoder":
        """The same decoder with each layer's parameters as arrays of their own.

        A loop that decodes token by token reads them in place, where it would copy each layer's
        slice out of the stacked ones at every token.
        """
        copy = nnx.merge(*nnx.split(self))
        copy.layers = nnx.List([self._layer(i) for i in range(self.depth)])
        return copy

    def init_cache(self, batch: int, length: int) -> Cache:
        """An empty cache for `batch` sequences of at most `length` tokens."""
        return tuple(
            empty_cache(batch, self.kv_heads, length, self.head_width, self.dtype)
            for _ in range(self.depth)
        )

    def logits(self, hidden: Activations) -> Float[Array, "B L V"]:
        """Final norm and head, float32."""
        return project(self.norm(hidden), self.head[...], self.vocab_size)


def project(
    features: Activations, head: Float[Array, "D P"], vocab_size: int
) -> Float[Array, "B L V"]:
    """Logits, in float32 at least, of features that are normed already; the head in their type,
    without its padding."""
    head = jax.lax.slice_in_dim(head, 0, vocab_size, axis=1)
    return multiply(
        features,
        head.astype(features.dtype),
        preferred_element_type=at_least_float32(features.dtype),
    )
