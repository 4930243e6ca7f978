"""A Llama-style decoder that can stop at any layer, start at any layer, and keep a cache."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxdiv.models import meshes, rotary
from jaxdiv.models.draft_vocabulary import DraftVocabulary
from jaxdiv.models.layers import (
    Activations,
    Block,
    DecoderOptions,
    LayerCache,
    Layout,
    at_least_float32,
    empty_cache,
    layout,
    multiply,
)
from jaxdiv.models.rotary import Rotary

TokenIds = Int[Array | np.ndarray, "B L"]
Cache = tuple[LayerCache, ...]  # one entry a layer

_GEMM_OUTPUTS = jax.checkpoint_policies.dots_with_no_batch_dims_saveable


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TeacherOutput:
    """Outputs of one teacher pass, shared by all students.

    Attributes:
      features: [B, L, D] after the final norm, what the head multiplies; None without a pass.
      hidden: [B, L, D] after the exit layer, before any further norm; None without an exit layer.
      head: [D, P], the output matrix.
      vocab_size: V <= P, the number of tokens; the head's other columns are padding.
      normalizer: [B, L] float32, the log-sum-exp of all tokens' logits over the distillation
        temperature, which a cache of teacher outputs holds; None from a pass.
    """

    features: Any
    hidden: Any
    head: Any
    vocab_size: int = dataclasses.field(metadata={"static": True})
    normalizer: Any = None

    @property
    def logits(self) -> Float[Array, "B L V"]:
        """Computes the logits in float32; nothing is cached."""
        return project(self.features, self.head, self.vocab_size)

    def restrict(self, vocabulary: DraftVocabulary | None) -> "TeacherOutput":
        """Returns this as students of a draft vocabulary need it, with a head of K tokens.

        Whoever uses it several times saves the cutting of the head.
        """
        if vocabulary is None:
            return self
        head = vocabulary.columns(self.head)
        return dataclasses.replace(self, head=head, vocab_size=vocabulary.size)


class Decoder(nnx.Module):
    """RMSNorm, rotary positions, grouped-query attention and a gated MLP: a Llama, or another
    family by its options.

    Parameters are float32, and those of the layers are stacked on a first axis. Activations have
    the options' type; norms, softmax and logits are computed in float32.

    Args:
      options: sizes and numerics.
      rngs: of the initial parameters.
    """

    def __init__(self, options: DecoderOptions, *, rngs: nnx.Rngs):
        width, rows = options.width, options.padded_vocabulary or options.vocab_size
        self.options, self.dtype = options, options.dtype
        self.vocab_size, self.depth = options.vocab_size, options.depth
        self.kv_heads, self.head_width = options.kv_heads, options.head_width
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), (rows, width)) * width**-0.5)
        make_layers = nnx.vmap(lambda key: Block(options, rngs=nnx.Rngs(key)))
        self.layers = make_layers(jax.random.split(rngs.params(), self.depth))
        self.norm = nnx.RMSNorm(width, epsilon=options.norm_epsilon, dtype=self.dtype, rngs=rngs)
        if not options.tied_head:
            self.head = nnx.Param(jax.random.normal(rngs.params(), (width, rows)) * width**-0.5)

    def __call__(self, tokens: TokenIds, *, exit_layer: int | None = None) -> TeacherOutput:
        """Returns every position's features and, with `exit_layer` in 1..depth, its hidden state
        after that many layers."""
        features, states = self.states(tokens, () if exit_layer is None else (exit_layer,))
        return self.output(features=features, hidden=states.get(exit_layer))

    def states(
        self, tokens: TokenIds, layers: Sequence[int]
    ) -> tuple[Activations, dict[int, Activations]]:
        """Returns every position's features, and its hidden states after some layers.

        `layers` are ascending, each in 1..depth.
        """
        for layer in layers:
            if not 1 <= layer <= self.depth:
                raise ValueError(
                    f"`exit_layer` must be in 1..{self.depth}, the decoder's depth, got {layer}"
                )
        hidden, states = self.embed(tokens), {}
        for start, stop in itertools.pairwise((0, *layers, self.depth)):
            hidden, _ = self.run_layers(hidden, start, stop)
            states[stop] = hidden
        return self.norm(hidden), {layer: states[layer] for layer in layers}

    def output(
        self, features: Activations | None = None, hidden: Activations | None = None
    ) -> TeacherOutput:
        """Returns these with the head, which is all that a student needs to draft."""
        return TeacherOutput(features, hidden, self.head_matrix, self.vocab_size)

    @property
    def head_matrix(self) -> Float[Array, "D P"]:
        """The output matrix: the head, or the transposed embedding."""
        return self.embedding[...].T if self.options.tied_head else self.head[...]

    def embed(self, tokens: TokenIds) -> Activations:
        embedding = meshes.gather_width(self.embedding[...], self.dtype)
        rows = jnp.take(embedding, tokens, axis=0).astype(self.dtype)
        if self.options.embedding_scale != 1:
            rows = rows * jnp.asarray(self.options.embedding_scale, self.dtype)
        return meshes.shard_rows(rows)

    def run_layers(
        self,
        hidden: Activations,
        start: int,
        stop: int,
        *,
        cache: Cache | None = None,
        **where: Array | None,
    ) -> tuple[Activations, Cache | None]:
        """Runs layers `start` to `stop` (excluded).

        Args:
          hidden: [B, L, D], the input of layer `start`.
          start, stop: 0 <= start <= stop <= depth, static.
          cache: from `init_cache`, long enough for all slots.
          **where: `positions`, `slots` and `visible` as of `layers.layout`.

        Returns:
          hidden [B, L, D], and the cache with new entries for these layers, or None.
        """
        if not 0 <= start <= stop <= self.depth:
            raise ValueError(
                f"`start` and `stop` must be in order in 0..{self.depth}, got {start} and {stop}"
            )
        entries = [None] * self.depth if cache is None else list(cache)
        windows = self.options.layer_windows
        kinds = sorted(set(windows))
        layouts = [
            layout(hidden, self._rotary(window), window=window, cache=entries[0], **where)
            for window in kinds
        ]
        if cache is None and not isinstance(self.layers, nnx.List):
            numbers = np.array([kinds.index(window) for window in windows[start:stop]])
            return self._scan_layers(hidden, start, stop, layouts, numbers), None
        for i in range(start, stop):
            tokens = layouts[kinds.index(windows[i])]
            hidden, entries[i] = self._layer(i)(hidden, tokens, entries[i])
        return hidden, None if cache is None else tuple(entries)

    def _rotary(self, window: int) -> Rotary:
        """Returns the rotary positions of layers with this window."""
        options = self.options
        if window and options.window_rope_base:
            return Rotary(options.head_width, options.window_rope_base)
        rule = rotary.parse(options.rope_scaling, options.head_width)
        return Rotary(options.head_width, options.rope_base, rule)

    def _scan_layers(
        self,
        hidden: Activations,
        start: int,
        stop: int,
        layouts: Sequence[Layout],
        numbers: np.ndarray,
    ) -> Activations:
        """Runs layers without a cache; `numbers` [n] say which layout each of them has."""
        graphdef, params = nnx.split(self.layers)
        several = len(layouts) > 1
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *layouts) if several else layouts[0]

        # The gradient keeps only the outputs of the GEMMs: everything between them is cheaper to
        # compute again.
        @functools.partial(jax.checkpoint, policy=_GEMM_OUTPUTS, prevent_cse=False)
        def body(hidden, layer):
            layer, number = layer
            tokens = jax.tree.map(lambda x: x[number], stacked) if several else stacked
            layer = nnx.merge(graphdef, meshes.gather_layer(layer, self.dtype))
            return meshes.shard_rows(layer(meshes.shard_rows(hidden), tokens)[0]), None

        layers = jax.tree.map(lambda x: x[start:stop], params)
        return jax.lax.scan(body, hidden, (layers, numbers if several else None))[0]

    def _layer(self, i: int) -> Block:
        if isinstance(self.layers, nnx.List):
            return self.layers[i]
        graphdef, params = nnx.split(self.layers)
        return nnx.merge(graphdef, jax.tree.map(lambda x: x[i], params))

    def unrolled(self) -> "Decoder":
        """Returns the same decoder with the layers' parameters apart instead of stacked, and a head
        of its own.

        A loop that decodes token by token reads them in place; of stacked parameters it would copy
        each layer's slice at every token.
        """
        copy = nnx.merge(*nnx.split(self))
        copy.layers = nnx.List([self._layer(i) for i in range(self.depth)])
        if self.options.tied_head:
            # XLA on a CPU would transpose the embedding at every token.
            copy.options = dataclasses.replace(self.options, tied_head=False)
            copy.head = nnx.Param(jax.lax.optimization_barrier(self.head_matrix))
        return copy

    def init_cache(self, batch: int, length: int) -> Cache:
        """Returns an empty cache for `batch` sequences of at most `length` tokens."""
        return tuple(
            empty_cache(batch, self.kv_heads, length, self.head_width, self.dtype)
            for _ in range(self.depth)
        )

    def logits(self, hidden: Activations) -> Float[Array, "B L V"]:
        """Applies final norm and head; float32."""
        return project(self.norm(hidden), self.head_matrix, self.vocab_size)


def project(
    features: Activations, head: Float[Array, "D P"], vocab_size: int
) -> Float[Array, "B L V"]:
    """Multiplies normed features by the head's first V columns, and returns float32 at least.

    The head is cast to the features' type.
    """
    head = jax.lax.slice_in_dim(head, 0, vocab_size, axis=1)
    return multiply(
        features,
        head.astype(features.dtype),
        preferred_element_type=at_least_float32(features.dtype),
    )
