"""The head's product and the divergence together, a chunk of tokens at a time."""

from jaxdiv.fused.heads import Head
from jaxdiv.fused.linear import linear_divergence, linear_divergences

__all__ = ["Head", "linear_divergence", "linear_divergences"]
