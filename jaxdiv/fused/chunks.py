"""Chunks of tokens: their size and their place."""

import math

import jax
import jax.numpy as jnp

LEAST_MEMORY = 2**26  # bytes
# Each chunk reads the heads once a product, which takes less time than the product from about this
# many tokens on, whatever D and V are: a TPU v5e does 241 operations while it reads a byte.
LEAST_TOKENS = 256
# Arrays [chunk, V] that exist at once: both sides' logits and the student's gradient.
LOGITS = 3


def size(tokens: int, classes: int, width: int, memory: int | None = None) -> int:
    """Returns how many tokens a chunk has if its logits take `memory` bytes; a multiple of 8, or N.

    Args:
      tokens: N.
      classes: V.
      width: D of the student's hidden states.
      memory: bytes; None for half of the head's float32 gradient, but 64 MiB and 256 tokens at
        least. Each chunk reads and writes that gradient once, so that chunks must grow with it to
        stay bound by arithmetic.
    """
    least = 8 if memory else LEAST_TOKENS
    memory = memory or max(LEAST_MEMORY, 2 * width * classes)
    most = max(least, memory // (4 * LOGITS * classes) // 8 * 8)
    if tokens <= most:
        return tokens
    # The same number of chunks, all of one size.
    return min(most, -(-math.ceil(tokens / math.ceil(tokens / most)) // 8) * 8)


def begin(number: jax.Array, chunk: int, tokens: int) -> tuple[jax.Array, jax.Array]:
    """Returns a chunk's first token, and which of its tokens [chunk] no earlier chunk had.

    The last chunk may begin before the end of the one before it.
    """
    first = jnp.minimum(number * chunk, tokens - chunk)
    return first, first + jnp.arange(chunk) >= number * chunk


def cut(tree, first, chunk: int):
    """Slices the chunk out of every array [N, ...] of a tree."""
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, chunk), tree)


def put(whole, pieces, first):
    """Writes a chunk's pieces to their place in a tree of arrays [N, ...]."""
    return jax.tree.map(
        lambda x, piece: jax.lax.dynamic_update_slice_in_dim(x, piece, first, axis=0), whole, pieces
    )
