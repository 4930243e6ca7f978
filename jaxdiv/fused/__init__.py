"""Heads and divergences fused: chunks of tokens go from hidden states to values and gradients."""

from jaxdiv.fused.heads import Head
from jaxdiv.fused.linear import HeadOptions, linear_divergence, linear_divergences

__all__ = ["Head", "HeadOptions", "linear_divergence", "linear_divergences"]
