"""Parts of a Llama-style layer: RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

Activations = Float[Array, "B L D"]


def check_heads(width: int, heads: int, kv_heads: int) -> None:
    """Raises ValueError if the heads can't share the width, or the query heads the key heads."""
    if heads < 1 or width % heads or (width // heads) % 2:
        raise ValueError(f"`heads` must divide the width {width} into even parts, got {heads}")
    if kv_heads < 1 or heads % kv_heads:
        raise ValueError(f"`kv_heads` must divide `heads` = {heads}, got {kv_heads}")


@dataclasses.dataclass(frozen=True)
class DecoderOptions:
    """Sizes and numerics of a `Decoder`.

    Attributes:
      vocab_size: V, the number of tokens.
      depth, width, heads, kv_heads, mlp_width: sizes of layers.
      padded_vocabulary: P, rows of the embedding and columns of the head; logits are computed of
        the first V alone. 0 for V.
      rope_base: of the rotary positions.
      norm_epsilon: of every RMSNorm.
      dtype: of activations.

    Raises:
      ValueError: `heads` does not divide `width` into even parts, `kv_heads` does not divide
        `heads`, or `padded_vocabulary` is neither 0 nor `vocab_size` at least.
    """

    vocab_size: int
    depth: int
    width: int
    heads: int
    kv_heads: int
    mlp_width: int
    padded_vocabulary: int = 0
    rope_base: float = 10000.0
    norm_epsilon: float = 1e-5
    dtype: Any = jnp.float32

    def __post_init__(self):
        object.__setattr__(self, "dtype", jnp.dtype(self.dtype))
        check_heads(self.width, self.heads, self.kv_heads)
        if self.padded_vocabulary and self.padded_vocabulary < self.vocab_size:
            raise ValueError(
                f"`padded_vocabulary` must be 0 or at least the {self.vocab_size} tokens there "
                f"are, got {self.padded_vocabulary}"
            )

    @property
    def head_width(self) -> int:
        return self.width // self.heads


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
    *,
    head_width: int,
    rope_base: float,
    cache: LayerCache | None = None,
    positions: Int[Array, "b L"] | None = None,
    slots: Int[Array, "b L"] | None = None,
    visible: Bool[Array, "b L T"] | None = None,
) -> Layout:
    """Computes rotations and mask of a pass's tokens, whose activations are `hidden`.

    Args:
      hidden: [B, L, D].
      head_width: even.
      rope_base: base of the geometric series of wavelengths (RoFormer, arXiv 2104.09864, section
        3.2.2).
      cache: with T slots, if the pass reads one.
      positions: [B, L] or [1, L], each token's position in its sequence; None for 0..L-1.
      slots: [B, L], consecutive, the tokens' places in the cache; None for their positions.
      visible: [B, L, T] or [1, L, T], the slots of the cache, or the tokens of the pass, that each
        token sees; None for those up to its position. To roll back, pass earlier positions.
    """
    if positions is None:
        positions = jnp.arange(hidden.shape[1])[None]
    if cache is not None:
        positions = jnp.broadcast_to(positions, hidden.shape[:2])
    frequencies = rope_base ** (-jnp.arange(0, head_width, 2, dtype=jnp.float32) / head_width)
    angles = positions.astype(jnp.float32)[:, None, :, None] * frequencies[None, None, None, :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if visible is None:
        if cache is None:
            visible = jnp.tri(positions.shape[1], dtype=bool)[None]
        else:
            visible = jnp.arange(cache.keys.shape[1])[None, None, :] <= positions[:, :, None]
    return Layout(
        slots=positions if slots is None else slots,
        cos=jnp.concatenate([cos, cos], axis=-1),
        sin=jnp.concatenate([-sin, sin], axis=-1),
        visible=visible[:, None, None],
    )


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
) -> Float[Array, "B N L H"]:
    """Computes scaled dot-product attention, with the softmax in float32 at least.

    Query head n reads key head n // (N/G).
    """
    B, N, L, H = query.shape
    BG, T, _ = keys.shape
    G = BG // B
    grouped = (query * H**-0.5).reshape(BG, N // G * L, H)
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


def linear(inputs: int, outputs: int, dtype, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(inputs, outputs, use_bias=False, dtype=dtype, rngs=rngs, dot_general=multiply)


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

    def __init__(self, *, width: int, heads: int, kv_heads: int, dtype, rngs: nnx.Rngs):
        check_heads(width, heads, kv_heads)
        self.heads, self.kv_heads, self.head_width = heads, kv_heads, width // heads
        self.qkv = linear(width, (heads + 2 * kv_heads) * self.head_width, dtype, rngs)
        self.out = linear(width, width, dtype, rngs)

    def __call__(
        self, x: Activations, layout: Layout, cache: LayerCache | None = None
    ) -> tuple[Activations, LayerCache | None]:
        B, L, D = x.shape
        qkv = self.qkv(x).reshape(B, L, -1, self.head_width).swapaxes(1, 2)
        query_keys, values = jnp.split(qkv, [self.heads + self.kv_heads], axis=1)
        query, keys = jnp.split(rotate(query_keys, layout.cos, layout.sin), [self.heads], axis=1)
        if cache is None:
            keys, values = (part.reshape(-1, L, self.head_width) for part in (keys, values))
        else:
            cache = _write(cache, keys, values, layout.slots)
            keys, values = cache
        mixed = attend(query, keys, values, layout.visible)
        return self.out(mixed.swapaxes(1, 2).reshape(B, L, D)), cache


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


class SwiGLU(nnx.Module):
    """Computes down(silu(gate(x)) * up(x)), gate and up by one GEMM (2002.05202, equation 6)."""

    def __init__(self, *, width: int, mlp_width: int, dtype, rngs: nnx.Rngs):
        self.gate_up = linear(width, 2 * mlp_width, dtype, rngs)
        self.down = linear(mlp_width, width, dtype, rngs)

    def __call__(self, x: Activations) -> Activations:
        gate, up = jnp.split(self.gate_up(x), 2, axis=-1)
        return self.down(nnx.silu(gate) * up)


class Block(nnx.Module):
    """One pre-norm layer of the decoder."""

    def __init__(self, options: DecoderOptions, *, rngs: nnx.Rngs):
        width, shared = options.width, {"dtype": options.dtype, "rngs": rngs}
        norm = functools.partial(nnx.RMSNorm, width, epsilon=options.norm_epsilon, **shared)
        self.attention_norm = norm()
        self.attention = Attention(
            width=width, heads=options.heads, kv_heads=options.kv_heads, **shared
        )
        self.mlp_norm = norm()
        self.mlp = SwiGLU(width=width, mlp_width=options.mlp_width, **shared)

    def __call__(
        self, hidden: Activations, layout: Layout, cache: LayerCache | None = None
    ) -> tuple[Activations, LayerCache | None]:
        mixed, cache = self.attention(self.attention_norm(hidden), layout, cache)
        hidden = hidden + mixed
        return hidden + self.mlp(self.mlp_norm(hidden)), cache
