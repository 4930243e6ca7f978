"""Parts of a decoder's layer: RMSNorm, rotary positions, grouped-query attention, a gated MLP."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxdiv.models import rotary
from jaxdiv.models.rotary import Rotary

Activations = Float[Array, "B L D"]


BIASES = ("", "qkv", "qkvo")
ACTIVATIONS = {"silu": nnx.silu, "gelu_tanh": functools.partial(nnx.gelu, approximate=True)}


def check_heads(width: int, heads: int, kv_heads: int, head_width: int = 0) -> None:
    """Raises ValueError if the heads can't share the width, or the query heads the key heads.

    With a `head_width` of their own they need not share the width.
    """
    if head_width % 2:
        raise ValueError(f"`head_width` must be even, got {head_width}")
    if heads < 1 or (not head_width and (width % heads or (width // heads) % 2)):
        raise ValueError(f"`heads` must divide the width {width} into even parts, got {heads}")
    if kv_heads < 1 or heads % kv_heads:
        raise ValueError(f"`kv_heads` must divide `heads` = {heads}, got {kv_heads}")


@dataclasses.dataclass(frozen=True)
class AttentionOptions:
    """The part of `DecoderOptions` that attention has, with the same meanings."""

    width: int
    heads: int
    kv_heads: int
    head_width: int = 0
    attention_bias: str = ""
    query_key_norm: bool = False
    query_scale: float = 0.0
    norm_epsilon: float = 1e-5
    dtype: Any = jnp.float32

    def __post_init__(self):
        check_heads(self.width, self.heads, self.kv_heads, self.head_width)
        object.__setattr__(self, "dtype", jnp.dtype(self.dtype))
        object.__setattr__(self, "head_width", self.head_width or self.width // self.heads)


@dataclasses.dataclass(frozen=True)
class DecoderOptions:
    """Sizes and numerics of a `Decoder`. What a family of models has beyond Llama's is an option.

    Attributes:
      vocab_size: V, the number of tokens.
      depth, width, heads, kv_heads, mlp_width: sizes of layers.
      head_width: of each attention head; 0 for width / heads.
      padded_vocabulary: P, rows of the embedding and columns of the head; logits are computed of
        the first V alone. 0 for V.
      tied_head: whether the head is the transposed embedding.
      rope_base: of the rotary positions.
      rope_scaling: the rule by which they are scaled, as `rotary.parse` reads it.
      windows: how many last tokens each layer sees, as a list such as `512,512,0` that repeats over
        the layers; 0 for all. Empty if all layers see all.
      window_rope_base: base of plain rotary positions in layers with a window; 0 for those of the
        others.
      attention_bias: which products of attention have a bias, one of `BIASES`.
      mlp_bias: whether the products of the MLP have one.
      query_key_norm: whether queries and keys have a norm over each head.
      post_norms: whether attention and MLP have a norm after them, too.
      activation: of the MLP's gate, a name in `ACTIVATIONS`.
      query_scale: factor of attention scores; 0 for head_width^-½.
      embedding_scale: factor of the embedding's rows.
      norm_epsilon: of every RMSNorm.
      dtype: of activations.

    Raises:
      ValueError: the sizes don't fit each other, or an option has no such value.
    """

    vocab_size: int
    depth: int
    width: int
    heads: int
    kv_heads: int
    mlp_width: int
    head_width: int = 0
    padded_vocabulary: int = 0
    tied_head: bool = False
    rope_base: float = 10000.0
    rope_scaling: str = ""
    windows: str = ""
    window_rope_base: float = 0.0
    attention_bias: str = ""
    mlp_bias: bool = False
    query_key_norm: bool = False
    post_norms: bool = False
    activation: str = "silu"
    query_scale: float = 0.0
    embedding_scale: float = 1.0
    norm_epsilon: float = 1e-5
    dtype: Any = jnp.float32

    def __post_init__(self):
        check_heads(self.width, self.heads, self.kv_heads, self.head_width)
        object.__setattr__(self, "dtype", jnp.dtype(self.dtype))
        object.__setattr__(self, "head_width", self.head_width or self.width // self.heads)
        if self.padded_vocabulary and self.padded_vocabulary < self.vocab_size:
            raise ValueError(
                f"`padded_vocabulary` must be 0 or at least the {self.vocab_size} tokens there "
                f"are, got {self.padded_vocabulary}"
            )
        for name, allowed in (("attention_bias", BIASES), ("activation", ACTIVATIONS)):
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, got {value!r}")
        rotary.parse(self.rope_scaling, self.head_width)
        if not all(part.strip().isdecimal() for part in self.windows.split(",") if self.windows):
            raise ValueError(
                f"`windows` must be whole numbers, separated by commas, got {self.windows!r}"
            )

    @property
    def attention(self) -> "AttentionOptions":
        """The options of each layer's attention."""
        fields = (field.name for field in dataclasses.fields(AttentionOptions))
        return AttentionOptions(**{name: getattr(self, name) for name in fields})

    @property
    def layer_windows(self) -> tuple[int, ...]:
        """The window of each layer, 0 for none."""
        pattern = [int(part) for part in self.windows.split(",")] if self.windows else [0]
        return tuple(pattern[i % len(pattern)] for i in range(self.depth))


# What families have beyond the sizes and numerics of every decoder.
FAMILY_OPTIONS = (
    *("head_width", "tied_head", "rope_scaling", "windows", "window_rope_base"),
    *("attention_bias", "mlp_bias", "query_key_norm", "post_norms", "activation"),
    *("query_scale", "embedding_scale"),
)


class LayerCache(NamedTuple):
    """One layer's keys and values, sequence by sequence and head by head.

    Batch and heads are one axis, as in the products that read it: with two axes XLA copies the
    cache at every write.
    """

    keys: Float[Array, "B*G T H"]
    values: Float[Array, "B*G T H"]


class Layout(NamedTuple):
    """Positions and visibility of one pass's tokens, the same for all layers (b is B or 1)."""

    slots: Int[Array, "b L"]
    cos: Float[Array, "b 1 L H"]
    sin: Float[Array, "b 1 L H"]
    visible: Bool[Array, "b 1 1 L T"]


def layout(
    hidden: Activations,
    turns: Rotary,
    *,
    window: int = 0,
    cache: LayerCache | None = None,
    positions: Int[Array, "b L"] | None = None,
    slots: Int[Array, "b L"] | None = None,
    visible: Bool[Array, "b L T"] | None = None,
    slot_positions: Int[Array, "b T"] | None = None,
) -> Layout:
    """Computes rotations and mask of a pass's tokens, whose activations are `hidden`.

    Args:
      hidden: [B, L, D].
      turns: the rotary positions.
      window: last positions that a token sees, its own included; 0 for all.
      cache: with T slots, if the pass reads one.
      positions: [B, L] or [1, L], each token's position in its sequence; None for 0..L-1.
      slots: [B, L], consecutive, the tokens' places in the cache; None for their positions.
      visible: [B, L, T] or [1, L, T], the slots of the cache, or the tokens of the pass, that each
        token sees; None for those up to its position. To roll back, pass earlier positions.
      slot_positions: [B, T] or [1, T], the position of each of them; None for its place.
    """
    if positions is None:
        positions = jnp.arange(hidden.shape[1])[None]
    if cache is not None:
        positions = jnp.broadcast_to(positions, hidden.shape[:2])
    if visible is None:
        if cache is None:
            visible = jnp.tri(positions.shape[1], dtype=bool)[None]
        else:
            visible = jnp.arange(cache.keys.shape[1])[None, None, :] <= positions[:, :, None]
    if window:
        if slot_positions is None:
            slot_positions = positions if cache is None else jnp.arange(visible.shape[-1])[None]
        visible &= positions[:, :, None] - slot_positions[:, None, :] < window
    cos, sin = turns.rotations(positions)
    slots = positions if slots is None else slots
    return Layout(slots=slots, cos=cos, sin=sin, visible=visible[:, None, None])


def empty_cache(batch: int, kv_heads: int, length: int, head_width: int, dtype) -> LayerCache:
    """Returns a layer's empty cache for `batch` sequences of at most `length` tokens."""
    empty = jnp.zeros((batch * kv_heads, length, head_width), dtype)
    return LayerCache(empty, empty)


def rotate(
    x: Float[Array, "B N L H"], cos: Float[Array, "b 1 L H"], sin: Float[Array, "b 1 L H"]
) -> Float[Array, "B N L H"]:
    """Applies rotary positions: angle i turns the plane of a head's components i and i + H/2."""
    y = x.astype(at_least_float32(x.dtype))
    return (y * cos + jnp.roll(y, x.shape[-1] // 2, axis=-1) * sin).astype(x.dtype)


def attend(
    query: Float[Array, "B N L H"],
    keys: Float[Array, "BG T H"],
    values: Float[Array, "BG T H"],
    visible: Bool[Array, "b 1 1 L T"],
    scale: float,
) -> Float[Array, "B N L H"]:
    """Computes scaled dot-product attention, with the softmax in float32 at least.

    Query head n reads key head n // (N/G).
    """
    B, N, L, H = query.shape
    BG, T, _ = keys.shape
    G = BG // B
    grouped = (query * scale).reshape(BG, N // G * L, H)
    scores = jnp.einsum(
        "gmh,gth->gmt", grouped, keys, preferred_element_type=at_least_float32(keys.dtype)
    )
    scores = jnp.where(visible, scores.reshape(B, G, N // G, L, T), -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1)
    weights = weights.astype(values.dtype).reshape(BG, N // G * L, T)
    return jnp.einsum("gmt,gth->gmh", weights, values).reshape(B, N, L, H)


def at_least_float32(dtype) -> jnp.dtype:
    """Returns the type of sums and norms, which must be more exact than activations."""
    return jnp.promote_types(dtype, jnp.float32)


def linear(inputs: int, outputs: int, dtype, rngs: nnx.Rngs, *, bias: bool = False) -> nnx.Linear:
    return nnx.Linear(inputs, outputs, use_bias=bias, dtype=dtype, rngs=rngs, dot_general=multiply)


def multiply(
    x: Float[Array, "*B D"],
    matrix: Float[Array, "D E"],
    dimension_numbers: Any = None,
    *,
    preferred_element_type: Any = None,
    **options: Any,
) -> Float[Array, "*B E"]:
    """Returns x @ matrix. Arguments are those of `jax.lax.dot_general`, as `nnx.Linear` passes
    them; the dimension numbers are not read."""
    D = x.shape[-1]
    if x.size != D or D < 2 or D % 2:
        return jnp.einsum(
            "...d,de->...e", x, matrix, preferred_element_type=preferred_element_type, **options
        )
    # XLA on a CPU multiplies a single row by a matrix on one core, but a batch of two on two.
    parts = x.reshape(2, D // 2), matrix.reshape(2, D // 2, -1)
    halves = jnp.einsum(
        "hd,hde->he", *parts, preferred_element_type=at_least_float32(x.dtype), **options
    )
    return (
        (halves[0] + halves[1]).astype(preferred_element_type or x.dtype).reshape(*x.shape[:-1], -1)
    )


class Attention(nnx.Module):
    """Grouped-query attention (arXiv 2305.13245) with rotary positions, q, k and v by one GEMM."""

    def __init__(self, options: AttentionOptions, *, rngs: nnx.Rngs):
        width, head_width, dtype = options.width, options.head_width, options.dtype
        self.options, self.heads, self.kv_heads = options, options.heads, options.kv_heads
        self.head_width = head_width
        outputs = (self.heads + 2 * self.kv_heads) * head_width
        self.qkv = linear(width, outputs, dtype, rngs, bias="qkv" in options.attention_bias)
        inputs, bias = self.heads * head_width, options.attention_bias == "qkvo"
        self.out = linear(inputs, width, dtype, rngs, bias=bias)
        if options.query_key_norm:
            norm = {"epsilon": options.norm_epsilon, "dtype": dtype, "rngs": rngs}
            self.query_norm = nnx.RMSNorm(head_width, **norm)
            self.key_norm = nnx.RMSNorm(head_width, **norm)

    def __call__(
        self, x: Activations, layout: Layout, cache: LayerCache | None = None
    ) -> tuple[Activations, LayerCache | None]:
        B, L, _ = x.shape
        qkv = self.qkv(x).reshape(B, L, -1, self.head_width).swapaxes(1, 2)
        query_keys, values = jnp.split(qkv, [self.heads + self.kv_heads], axis=1)
        if self.options.query_key_norm:
            query, keys = jnp.split(query_keys, [self.heads], axis=1)
            parts = self.query_norm(query), self.key_norm(keys)
            query_keys = jnp.concatenate(parts, axis=1)
        query, keys = jnp.split(rotate(query_keys, layout.cos, layout.sin), [self.heads], axis=1)
        if cache is None:
            keys, values = (part.reshape(-1, L, self.head_width) for part in (keys, values))
        else:
            cache = _write(cache, keys, values, layout.slots)
            keys, values = cache
        scale = self.options.query_scale or self.head_width**-0.5
        mixed = attend(query, keys, values, layout.visible, scale)
        return self.out(mixed.swapaxes(1, 2).reshape(B, L, -1)), cache


_FEW_ROWS = 8


def _write(
    cache: LayerCache,
    keys: Float[Array, "B G L H"],
    values: Float[Array, "B G L H"],
    slots: Int[Array, "B L"],
) -> LayerCache:
    """Writes the tokens' keys and values to their slots, which are consecutive."""
    B, G, _, H = keys.shape

    def put(array, new):
        if B > _FEW_ROWS:
            by_row = array.reshape(B, G, -1, H)
            by_row = by_row.at[jnp.arange(B)[:, None], :, slots].set(new.swapaxes(1, 2))
            return by_row.reshape(array.shape)
        # On a CPU, XLA updates these slices in place; a scatter would take another layout and two
        # copies of the cache.
        for row in range(B):
            array = jax.lax.dynamic_update_slice(array, new[row], (row * G, slots[row, 0], 0))
        return array

    return LayerCache(put(cache.keys, keys), put(cache.values, values))


class GatedMLP(nnx.Module):
    """Computes down(activation(gate(x)) * up(x)), gate and up by one GEMM (2002.05202, equation 6:
    with silu it is SwiGLU)."""

    def __init__(self, options: DecoderOptions, *, rngs: nnx.Rngs):
        shared = {"dtype": options.dtype, "rngs": rngs, "bias": options.mlp_bias}
        self.activation = options.activation
        self.gate_up = linear(options.width, 2 * options.mlp_width, **shared)
        self.down = linear(options.mlp_width, options.width, **shared)

    def __call__(self, x: Activations) -> Activations:
        gate, up = jnp.split(self.gate_up(x), 2, axis=-1)
        return self.down(ACTIVATIONS[self.activation](gate) * up)


class Block(nnx.Module):
    """One pre-norm layer of the decoder."""

    def __init__(self, options: DecoderOptions, *, rngs: nnx.Rngs):
        width, shared = options.width, {"dtype": options.dtype, "rngs": rngs}
        norm = functools.partial(nnx.RMSNorm, width, epsilon=options.norm_epsilon, **shared)
        self.post_norms = options.post_norms
        self.attention_norm = norm()
        self.attention = Attention(options.attention, rngs=rngs)
        self.mlp_norm = norm()
        self.mlp = GatedMLP(options, rngs=rngs)
        if self.post_norms:
            self.post_attention_norm, self.post_mlp_norm = norm(), norm()

    def __call__(
        self, hidden: Activations, layout: Layout, cache: LayerCache | None = None
    ) -> tuple[Activations, LayerCache | None]:
        mixed, cache = self.attention(self.attention_norm(hidden), layout, cache)
        hidden = hidden + (self.post_attention_norm(mixed) if self.post_norms else mixed)
        change = self.mlp(self.mlp_norm(hidden))
        return hidden + (self.post_mlp_norm(change) if self.post_norms else change), cache
