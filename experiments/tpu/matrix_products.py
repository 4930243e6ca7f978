"""Operations of a compiled program's matrix products and convolutions, as which a TPU has its
products."""

import math
import re

import numpy as np

from experiments.tpu.hlo import Computation, Instruction

_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_WINDOW = re.compile(r"window=\{([^}]*)\}")


def flops(computation: Computation, made: Instruction) -> int:
    """A multiplication and an addition each counted; 0 for an instruction that multiplies no
    matrices."""
    if made.opcode == "dot":
        return _dot(computation, made)
    return _convolution(computation, made) if made.opcode == "convolution" else 0


def _dot(computation, made):
    left = computation.instructions[made.operands[0]].arrays[0]
    summed = math.prod(left.sizes[axis] for axis in made.numbers("lhs_contracting_dims"))
    return 2 * made.arrays[0].elements * summed


def _convolution(computation, made):
    """Where a window lies over padding or between dilated elements nothing is multiplied."""
    shapes = (
        *(computation.instructions[operand].arrays[0] for operand in made.operands),
        made.arrays[0],
    )
    labels = _LABELS.search(made.attributes).groups()
    image, kernel, result = (
        dict(zip(names, x.sizes, strict=True)) for names, x in zip(labels, shapes, strict=True)
    )
    spatial = [name for name in labels[0] if name.isdigit()]
    overlaps = [
        _overlaps(image[name], result[name], **window)
        for name, window in zip(sorted(spatial), _windows(made, len(spatial)), strict=True)
    ]
    return 2 * result["b"] * result["f"] * kernel["i"] * math.prod(overlaps)


def _windows(made, count):
    """The arguments of `_overlaps` for each spatial axis."""
    found = _WINDOW.search(made.attributes)
    told = dict(part.split("=") for part in found[1].split()) if found else {}

    def each(name, default):
        return told[name].split("x") if name in told else [default] * count

    columns = (
        each("size", 1),
        each("stride", 1),
        each("pad", "0_0"),
        each("lhs_dilate", 1),
        each("rhs_dilate", 1),
    )
    for size, stride, padding, spread, apart in zip(*columns, strict=True):
        yield {
            "size": int(size),
            "stride": int(stride),
            "before": int(padding.split("_")[0]),
            "spread": int(spread),
            "apart": int(apart),
        }


def _overlaps(inputs, outputs, *, size, stride, before, spread, apart):
    """Pairs of an output and a window's element that meet an element of the input, along one
    axis."""
    begins, pairs = np.arange(outputs) * stride - before, 0
    for place in range(size):
        met = begins + place * apart
        pairs += int(((met >= 0) & (met % spread == 0) & (met // spread < inputs)).sum())
    return pairs
