"""Heads: the last matrix of a model, and the steps from its product to logits."""

import dataclasses
import functools
import math
import numbers

import jax
import jax.numpy as jnp


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["matrix", "bias"],
    meta_fields=["scale", "soft_cap"],
)
@dataclasses.dataclass(frozen=True)
class Head:
    """Computes cap(scale · (hidden @ matrix + bias)), with cap(z) = soft_cap · tanh(z / soft_cap).

    Attributes:
      matrix: [D, V]; the transposed embedding if the head is tied.
      bias: [V] or None; -inf is a class that does not exist, such as padding of the vocabulary.
      scale: factor of the logits, as in Cohere's models.
      soft_cap: bound of the logits, as in Gemma 2 (arXiv 2408.00118, section 2), or None.

    Raises:
      ValueError: if `scale` or `soft_cap` is not a plain finite number above 0.
    """

    matrix: jax.Array
    bias: jax.Array | None = None
    scale: float = 1.0
    soft_cap: float | None = None

    def __post_init__(self):
        for name, value in (("scale", self.scale), ("soft_cap", self.soft_cap)):
            if name == "soft_cap" and value is None:
                continue
            if not isinstance(value, numbers.Real) or isinstance(value, bool):
                raise ValueError(
                    f"`{name}` of a head must be a plain number, got {type(value).__name__}."
                )
            if not 0 < value < math.inf:
                raise ValueError(f"`{name}` of a head must be finite and above 0, got {value}.")

    def product(self, hidden: jax.Array) -> jax.Array:
        """Multiplies hidden [C, D] by the matrix, [C, V] in float32 at least."""
        return matmul(hidden, self.matrix, "cd,dv->cv")

    def logits(self, product: jax.Array, bias: jax.Array | None) -> jax.Array:
        """Applies bias, scale and soft cap to a product [C, V]."""
        z = product if bias is None else product + bias.astype(product.dtype)[None]
        z = z if self.scale == 1 else self.scale * z
        if self.soft_cap is None:
            return z
        return jnp.where(jnp.isneginf(z), z, self.soft_cap * jnp.tanh(z / self.soft_cap))


def matmul(a: jax.Array, b: jax.Array, axes: str) -> jax.Array:
    """Computes einsum(axes, a, b) with sums in float32 at least."""
    dtype = jnp.promote_types(jnp.result_type(a, b), jnp.float32)
    return jnp.einsum(axes, a, b, preferred_element_type=dtype)
