"""What the axes of a mesh mean to models and losses, which see the one of
`jax.sharding.use_abstract_mesh`.

Without a mesh, or on one whose axes of rows have one device, nothing here does anything.
"""

import math
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

AXES = ("student", "data", "fsdp", "tensor")
ROWS = (
    "data",
    "fsdp",
)  # what the rows of a batch are spread over; parameters lie spread over the last


def rows() -> tuple[str, ...]:
    """The axes that rows are spread over."""
    sizes = jax.sharding.get_abstract_mesh().shape
    return ROWS if math.prod(sizes.get(axis, 1) for axis in ROWS) > 1 else ()


def by_rows(x: jax.Array) -> jax.Array:
    """Activations [B, ...], each device its own rows."""
    return jax.lax.with_sharding_constraint(x, P(ROWS)) if rows() else x


def looked_up(embedding: jax.Array, dtype: Any) -> jax.Array:
    """An embedding [V, D] whose rows are to be taken: each device has the whole width of its
    tokens."""
    return (
        jax.lax.with_sharding_constraint(embedding.astype(dtype), P("tensor"))
        if rows()
        else embedding
    )


def gathered(layer: Any, dtype: Any) -> Any:
    """A layer's parameters, whole on every device for as long as it runs; its matrices travel in
    the type it uses."""
    if not rows():
        return layer
    cast = jax.tree.map(lambda x: x.astype(dtype) if x.ndim > 1 else x, layer)
    return jax.lax.with_sharding_constraint(cast, jax.tree.map(lambda x: P(), cast))
