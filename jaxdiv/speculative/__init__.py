"""Lossless speculative decoding in one jit: a draft proposes, the target verifies."""

from jaxdiv.speculative.arguments import Sampling
from jaxdiv.speculative.decode_batch import LOOKUP, Decoded, Decoding, decode, prepare
from jaxdiv.speculative.decoding_loop import BONUS, CORRECTED, DRAFTED, Counts
from jaxdiv.speculative.rules import RULES
from jaxdiv.speculative.trees import Tree, chain, parse

__all__ = [
    "BONUS",
    "CORRECTED",
    "DRAFTED",
    "LOOKUP",
    "RULES",
    "Counts",
    "Decoded",
    "Decoding",
    "Sampling",
    "Tree",
    "chain",
    "decode",
    "parse",
    "prepare",
]
