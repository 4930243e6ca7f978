"""The parts of a Llama-style layer: RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

Activations = Float[Array, "B L D"]


class LayerCache(NamedTuple):
    """One layer's keys and values, sequence by sequence and head by head.

    Batch and heads are one axis, as in the products that read it: apart, XLA copies the cache at
      every write.
    """

    keys: Float[Array, "B*G T H"]
    values: Float[Array, "B*G T H"]


class Layout(NamedTuple):
    """Where the tokens of one pass stand, which is the same for all its layers (b is B or 1)."""

    slots: Int[Array, "b L"]
    cos: Float[Array, "b 1 L H"]
    sin: Float[Array, "b 1 L H"]
    visible: Bool[Array, "b 1 1 L T"]


def layout(
    positions: Int[Array | np.ndarray, "b L"],
    *,
    head_width: int,
    rope_base: float,
    slots: Int[Array, "b L"] | None = None,
    visible: Bool[Array, "b L T"] | None = None,
) -> Layout:
    """Rotations and mask of tokens at `positions`.

    Args:
      positions: [b, L], the position of each token in its own sequence.
      head_width: even.
      rope_base: base of the geometric series of wavelengths (RoFormer, arXiv 2104.09864, section
        3.2.2).
      slots: [b, L], consecutive, where the tokens' keys stand in a cache, which has them all; None
        for their positions.
      visible: [b, L, T], what each token sees, of a cache or of the pass; None for itself and those
        before it in the pass.
    """
    positions = jnp.asarray(positions)
    frequencies = rope_base ** (-jnp.arange(0, head_width, 2, dtype=jnp.float32) / head_width)
    angles = positions.astype(jnp.float32)[:, None, :, None] * frequencies[None, None, None, :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if visible is None:
        visible = jnp.tri(positions.shape[1], dtype=bool)[None]
    return Layout(
        slots=positions if slots is None else slots,
        cos=jnp.concatenate([cos, cos], axis=-1),
        sin=jnp.concatenate([-sin, sin], axis=-1),
        visible=visible[:, None, None],
    )


def cached_layout(
    positions: Int[Array, "B L"],
    cache: LayerCache,
    *,
    slots: Int[Array, "b L"] | None = None,
    visible: Bool[Array, "b L T"] | None = None,
    **rotary,
) -> Layout:
    """`layout` for tokens that see the slots of `cache`: without `visible`, each those up to its
    position."""
    if visible is None:
        visible = jnp.arange(cache.keys.shape[1])[None, None, :] <= positions[:, :, None]
    return layout(positions, slots=slots, visible=visible, **rotary)


def empty_cache(batch: int, kv_heads: int, length: int, head_width: int, dtype) -> LayerCache:
    """A layer's cache for `batch` sequences of at most `length` tokens."""
    empty = jnp.zeros((batch * kv_heads, length, head_width), dtype)
    return LayerCache(empty, empty)


def rotate(
    x: Float[Array, "B N L H"], cos: Float[Array, "b 1 L H"], sin: Float[Array, "b 1 L H"]
) -> Float[Array, "B N L H"]:
    """Rotary positions: components i and i + H/2 of a head form the plane that angle i turns."""
    y = x.astype(at_least_float32(x.dtype))
    return (y * cos + jnp.roll(y, x.shape[-1] // 2, axis=-1) * sin).astype(x.dtype)


def attend(
    query: Float[Array, "B N L H"],
    keys: Float[Array, "BG T H"],
    values: Float[Array, "BG T H"],
    visible: Bool[Array, "b 1 1 L T"],
) -> Float[Array, "B N L H"]:
    """Scaled dot-product attention; query head n reads key head n // (N/G). The softmax is in
    float32 at least."""
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
    """The type of what must be more exact than activations."""
    return jnp.promote_types(dtype, jnp.float32)


def rms_norm(width: int, epsilon: float, dtype, rngs: nnx.Rngs) -> nnx.RMSNorm:
    return nnx.RMSNorm(width, epsilon=epsilon, dtype=dtype, rngs=rngs)


def linear(inputs: int, outputs: int, dtype, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(inputs, outputs, use_bias=False, dtype=dtype, rngs=rngs, dot_general=_product)


def _product(x, matrix, _, **options):
    return multiply(x, matrix, **options)


def multiply(
    x: Float[Array, "*B D"], matrix: Float[Array, "D E"], preferred_element_type=None, **options
) -> Float[Array, "*B E"]:
    """Their product; options as of `jax.lax.dot_general`."""
    D = x.shape[-1]
    if x.size != D or D < 2 or D % 2:
        return jnp.einsum(
            "...d,de->...e", x, matrix, preferred_element_type=preferred_element_type, **options
        )
    # For a lone row XLA on a CPU reads a matrix with one core, but a batch of two with two.
    parts = x.reshape(2, D // 2), matrix.reshape(2, D // 2, -1)
    halves = jnp.einsum(
        "hd,hde->he", *parts, preferred_element_type=at_least_float32(x.dtype), **options
    )
    return (
        (halves[0] + halves[1]).astype(preferred_element_type or x.dtype).reshape(*x.shape[:-1], -1)
    )


class Attention(nnx.Module):
    """Grouped-query attention (arXiv 2305.13245) with rotary positions; one GEMM makes q, k and
    v."""

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
        turned, values = jnp.split(qkv, [self.heads + self.kv_heads], axis=1)
        query, keys = jnp.split(rotate(turned, layout.cos, layout.sin), [self.heads], axis=1)
        if cache is None:
            keys, values = (part.reshape(-1, L, self.head_width) for part in (keys, values))
        else:
            cache = _write(cache, keys, values, layout.slots)
            keys, values = cache
        mixed = attend(query, keys, values, layout.visible)
        return self.out(mixed.swapaxes(1, 2).reshape(B, L, D)), cache


_FEW_ROWS = 8


def _write(cache, keys, values, slots):
    """Puts the tokens' keys and values [B, G, L, H] in their slots [B, L], consecutive ones.

    On a CPU slices of a few rows are written in place, where a scatter takes another layout and two
    copies.
    """
    B, G, _, H = keys.shape

    def put(held, new):
        if B > _FEW_ROWS:
            apart = held.reshape(B, G, -1, H)
            return (
                apart.at[jnp.arange(B)[:, None], :, slots]
                .set(new.swapaxes(1, 2))
                .reshape(held.shape)
            )
        for row in range(B):
            held = jax.lax.dynamic_update_slice(held, new[row], (row * G, slots[row, 0], 0))
        return held

    return LayerCache(put(cache.keys, keys), put(cache.values, values))


def check_heads(width: int, heads: int, kv_heads: int) -> None:
    """Raises ValueError if the heads can't share the width, or the query heads the key heads."""
    if heads < 1 or width % heads or (width // heads) % 2:
        raise ValueError(f"`heads` must divide the width {width} into even parts, got {heads}")
    if kv_heads < 1 or heads % kv_heads:
        raise ValueError(f"`kv_heads` must divide `heads` = {heads}, got {kv_heads}")


class SwiGLU(nnx.Module):
    """down(silu(gate(x)) * up(x)) (arXiv 2002.05202, equation 6); one GEMM makes gate and up."""

    def __init__(self, *, width: int, mlp_width: int, dtype, rngs: nnx.Rngs):
        self.gate_up = linear(width, 2 * mlp_width, dtype, rngs)
        self.down = linear(mlp_width, width, dtype, rngs)

    def __call__(self, x: Activations) -> Activations:
        gate, up = jnp.split(self.gate_up(x), 2, axis=-1)
        return self.down(nnx.silu(gate) * up)


class Block(nnx.Module):
    """One pre-norm layer of the decoder."""

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        kv_heads: int,
        mlp_width: int,
        norm_epsilon: float,
        dtype,
        rngs: nnx.Rngs,
    ):
        self.attention_norm = rms_norm(width, norm_epsilon, dtype, rngs)
        self.attention = Attention(
            width=width, heads=heads, kv_heads=kv_heads, dtype=dtype, rngs=rngs
        )
        self.mlp_norm = rms_norm(width, norm_epsilon, dtype, rngs)
        self.mlp = SwiGLU(width=width, mlp_width=mlp_width, dtype=dtype, rngs=rngs)

    def __call__(
        self, hidden: Activations, layout: Layout, cache: LayerCache | None = None
    ) -> tuple[Activations, LayerCache | None]:
        mixed, cache = self.attention(self.attention_norm(hidden), layout, cache)
        hidden = hidden + mixed
        return hidden + self.mlp(self.mlp_norm(hidden)), cache
