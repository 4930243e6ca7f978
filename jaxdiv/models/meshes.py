"""Shardings of rows and parameters on the mesh of `jax.sharding.use_abstract_mesh`.

Without a mesh, or with one device on its row axes, these functions change nothing.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

AXES = ("student", "data", "fsdp", "tensor")
# Axes that the rows of a batch are sharded over; parameters are sharded over the last of them.
ROWS = ("data", "fsdp")


def row_axes() -> tuple[str, ...]:
    """Returns the axes that rows are sharded over; none if they have one device in all."""
    sizes = jax.sharding.get_abstract_mesh().shape
    return ROWS if math.prod(sizes.get(axis, 1) for axis in ROWS) > 1 else ()


def shard_rows(x: jax.Array) -> jax.Array:
    """Constrains activations [B, ...] to be sharded by rows."""
    return jax.lax.with_sharding_constraint(x, P(ROWS)) if row_axes() else x


def gather_width(embedding: jax.Array, dtype: Any) -> jax.Array:
    """Constrains an embedding [V, D] for look-up: each device has the whole width of its tokens."""
    if not row_axes():
        return embedding
    return jax.lax.with_sharding_constraint(_narrow(embedding, dtype), P("tensor"))


def gather_layer(params: Any, dtype: Any) -> Any:
    """Constrains a layer's parameters to be whole on every device while the layer runs.

    Matrices travel in `dtype`, the type that the layer computes in, or in a narrower one of theirs.
    """
    if not row_axes():
        return params
    cast = jax.tree.map(lambda x: _narrow(x, dtype) if x.ndim > 1 else x, params)
    return jax.lax.with_sharding_constraint(cast, jax.tree.map(lambda x: P(), cast))


def _narrow(x: jax.Array, dtype: Any) -> jax.Array:
    """Casts to `dtype` unless that is wider."""
    return x.astype(dtype) if jnp.dtype(dtype).itemsize < x.dtype.itemsize else x
