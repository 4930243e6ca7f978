"""Operations of matrix products; a TPU's program writes most of them as convolutions."""

import math
import re

import numpy as np

from experiments.tpu.hlo import Computation, Instruction

_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_WINDOW = re.compile(r"window=\{([^}]*)\}")


def flops(computation: Computation, instruction: Instruction) -> int:
    """Returns multiplications plus additions; 0 for an instruction that is no product."""
    if instruction.opcode not in ("dot", "convolution"):
        return 0
    operands = [arrays[0] for arrays in computation.operand_arrays(instruction)]
    result = instruction.arrays[0]
    if instruction.opcode == "dot":
        summed = [operands[0].sizes[axis] for axis in instruction.numbers("lhs_contracting_dims")]
        return 2 * result.elements * math.prod(summed)
    labels = _LABELS.search(instruction.attributes).groups()
    image, kernel, output = (
        dict(zip(names, array.sizes, strict=True))
        for names, array in zip(labels, (*operands, result), strict=True)
    )
    spatial = sorted(name for name in labels[0] if name.isdigit())
    products = [
        _window_products(instruction, axis, inputs=image[name], outputs=output[name])
        for axis, name in enumerate(spatial)
    ]
    return 2 * output["b"] * output["f"] * kernel["i"] * math.prod(products)


def _window_products(instruction: Instruction, axis: int, *, inputs: int, outputs: int) -> int:
    """Counts the pairs of an output and a window's element that meet an input, along one axis.

    Nothing is multiplied where a window lies over padding or between dilated elements.
    """
    match = _WINDOW.search(instruction.attributes)
    fields = dict(part.split("=") for part in match[1].split()) if match else {}

    def number(name, default):
        # Padding before and after the axis is written as 1_2.
        return int(fields[name].split("x")[axis].split("_")[0]) if name in fields else default

    size, stride, padding = number("size", 1), number("stride", 1), number("pad", 0)
    input_dilation, window_dilation = number("lhs_dilate", 1), number("rhs_dilate", 1)
    starts, products = np.arange(outputs) * stride - padding, 0
    for element in range(size):
        place = starts + element * window_dilation
        inside = (place >= 0) & (place % input_dilation == 0) & (place // input_dilation < inputs)
        products += int(inside.sum())
    return products
