"""Tokens a chunk at a time: how many, and which."""

import math

import jax
import jax.numpy as jnp

LEAST_MEMORY = 2**26  # bytes
LOGITS = 3  # arrays [chunk, V] that live at once: both sides' logits and the student's gradient


def size(tokens: int, classes: int, width: int, memory: int | None = None) -> int:
    """Tokens of a chunk whose logits take `memory` bytes, a multiple of 8, at most all.

    Args:
      tokens: N.
      classes: V.
      width: D of the student's hidden states.
      memory: bytes; None for half of what the head's own float32 gradient takes, but 64 MiB at
        least: a chunk reads and writes that gradient once, so that chunks must grow with it to keep
          the arithmetic ahead of the memory.
    """
    memory = max(LEAST_MEMORY, 2 * width * classes) if memory is None else memory
    most = max(8, memory // (4 * LOGITS * classes) // 8 * 8)
    if tokens <= most:
        return tokens
    # As many chunks, but of one size.
    return min(most, -(-math.ceil(tokens / math.ceil(tokens / most)) // 8) * 8)


def begin(number: jax.Array, chunk: int, tokens: int) -> tuple[jax.Array, jax.Array]:
    """A chunk's first token, and which of its tokens [chunk] no earlier one had: the last chunk may
    go back."""
    first = jnp.minimum(number * chunk, tokens - chunk)
    return first, first + jnp.arange(chunk) >= number * chunk


def cut(tree, first, chunk: int):
    """The chunk of every array [N, ...] of a tree."""
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, chunk), tree)


def put(whole, pieces, first):
    """Trees of arrays [N, ...] with a chunk's pieces in their place."""
    return jax.tree.map(
        lambda x, piece: jax.lax.dynamic_update_slice_in_dim(x, piece, first, axis=0), whole, pieces
    )
