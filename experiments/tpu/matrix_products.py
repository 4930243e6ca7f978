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
    windows = _windows(instruction, len(spatial))
    products = [
        _window_products(image[name], output[name], *window)
        for name, window in zip(spatial, windows, strict=True)
    ]
    return 2 * output["b"] * output["f"] * kernel["i"] * math.prod(products)


def _windows(instruction: Instruction, count: int) -> list[tuple[int, ...]]:
    """Returns (size, stride, padding before, input dilation, window dilation) of each axis."""
    match = _WINDOW.search(instruction.attributes)
    fields = dict(part.split("=") for part in match[1].split()) if match else {}
    defaults = {"size": "1", "stride": "1", "pad": "0_0", "lhs_dilate": "1", "rhs_dilate": "1"}
    columns = []
    for name, default in defaults.items():
        texts = fields[name].split("x") if name in fields else [default] * count
        columns.append([int(text.split("_")[0]) for text in texts])
    return list(zip(*columns, strict=True))


def _window_products(
    inputs: int,
    outputs: int,
    size: int,
    stride: int,
    padding: int,
    input_dilation: int,
    window_dilation: int,
) -> int:
    """Counts the pairs of an output and a window's element that meet an input, along one axis.

    Nothing is multiplied where a window lies over padding or between dilated elements.
    """
    starts, products = np.arange(outputs) * stride - padding, 0
    for element in range(size):
        place = starts + element * window_dilation
        inside = (place >= 0) & (place % input_dilation == 0) & (place // input_dilation < inputs)
        products += int(inside.sum())
    return products
