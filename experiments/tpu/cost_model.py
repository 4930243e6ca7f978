"""Costs of a compiled program for each device: matrix products, memory traffic, collectives.

XLA's own analysis counts the body of a loop once; this one counts it as often as it runs. The text
of a program is the partitioned one, so every number is of one device.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from experiments.tpu import hlo, loop_counts, memory_traffic

_FREE = (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("opt-barrier", "domain", "partition-id", "replica-id"),
)
_CALLS = ("to_apply", "calls", "branch_computations", "true_computation", "false_computation")
# Bytes that each of n devices of a ring sends for a byte of its operand.
_SENT = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: n - 1,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
}
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_WINDOW = re.compile(r"window=\{([^}]*)\}")


class Collective(NamedTuple):
    """All collectives of one kind.

    Attributes:
      runs: their number.
      size: bytes of their operands.
      sent: bytes that a device sends around a ring, as JAX's "scaling book" counts them. Of n
        devices, each sends (n-1)/n of the result of all-gather and of the operand of
        reduce-scatter and all-to-all, and twice that for all-reduce.
    """

    runs: int = 0
    size: float = 0
    sent: float = 0


@dataclasses.dataclass(frozen=True)
class Costs:
    """Costs of a program or a part of it, for one device.

    Attributes:
      flops: multiplications and additions of matrix products and convolutions. Those inside custom
        calls, as GPUs have them, are not counted.
      traffic: bytes that instructions read from and write to main memory (see memory_traffic).
      collectives: by kind.
      bounded: the number of loops that may end before their counter does; they count in full.
      unknown: the cost of one run of the body, for each loop without a counter. `flops` and the
        other totals have it once.
    """

    flops: float = 0
    traffic: float = 0
    collectives: Mapping[str, Collective] = dataclasses.field(default_factory=dict)
    bounded: int = 0
    unknown: tuple["Costs", ...] = ()

    def plus(self, other: "Costs", times: int = 1) -> "Costs":
        """Returns the sum of these costs and `other`, run `times` times."""
        collectives = dict(self.collectives)
        for kind, each in other.collectives.items() if times else ():
            pairs = zip(collectives.get(kind, Collective()), each, strict=True)
            collectives[kind] = Collective(*(total + part * times for total, part in pairs))
        return Costs(
            self.flops + other.flops * times,
            self.traffic + other.traffic * times,
            dict(sorted(collectives.items())),
            self.bounded + other.bounded,
            self.unknown + other.unknown,
        )

    @property
    def sent(self) -> float:
        """Returns the bytes that all collectives send."""
        return sum(each.sent for each in self.collectives.values())


def estimate(text: str) -> Costs:
    """Returns the costs of a program, from the text of `jax.stages.Compiled.as_text`.

    Raises:
      ValueError: the text is no compiled program, or has groups of devices of an unknown form.
    """
    entry, devices = hlo.parse(text)

    @functools.cache
    def total(computation: hlo.Computation) -> Costs:
        return functools.reduce(Costs.plus, map(costs, computation.instructions), Costs())

    def costs(instruction: hlo.Instruction) -> Costs:
        opcode = instruction.opcode
        if opcode == "while":
            (body,) = map(total, instruction.called("body"))
            count, early = loop_counts.trips(instruction)
            if count is None:
                return dataclasses.replace(body, unknown=(body,))
            return Costs(bounded=int(early)).plus(body, count)
        is_async_call = opcode.endswith("-start") and instruction.called("calls")
        if opcode in ("call", "conditional") or is_async_call:
            branches = [total(branch) for key in _CALLS for branch in instruction.called(key)]
            return max(branches, key=lambda branch: (branch.flops, branch.traffic))
        ends_async = opcode.endswith(("-done", "-update"))
        if opcode in _FREE or ends_async or "AllocateBuffer" in instruction.attributes:
            return Costs()
        return Costs(traffic=memory_traffic.count(instruction)).plus(_work(instruction, devices))

    return total(entry)


def _work(instruction: hlo.Instruction, devices: int, fused: bool = False) -> Costs:
    """Returns an instruction's products and collectives; for a fusion those inside it."""
    if instruction.opcode == "fusion":
        (inner,) = instruction.called("calls")
        parts = (_work(each, devices, fused=True) for each in inner.instructions)
        return functools.reduce(Costs.plus, parts, Costs())
    kind = instruction.opcode.removesuffix("-start")
    if kind not in _SENT:
        return Costs(flops=_flops(instruction))
    if instruction.continues_async:
        return Costs()
    # A TPU runs a fused sum, of which each device keeps one part, as a reduce-scatter.
    if fused and {user.opcode for user in instruction.users} == {"dynamic-slice"}:
        kind = "reduce-scatter"
    size = sum(array.bytes for operand in instruction.operands for array in operand.arrays)
    sent = size * _SENT[kind](hlo.group_size(instruction.attributes, devices))
    return Costs(collectives={kind: Collective(1, size, sent)})


def _flops(instruction: hlo.Instruction) -> int:
    """Returns multiplications plus additions; 0 for an instruction that is no product.

    A TPU's program writes most matrix products as convolutions. Nothing is multiplied where a
    window lies over padding or between dilated elements.
    """
    if instruction.opcode not in ("dot", "convolution"):
        return 0
    (result,), left, right = instruction.arrays, *(x.arrays[0] for x in instruction.operands)
    if instruction.opcode == "dot":
        summed = [left.sizes[axis] for axis in instruction.numbers("lhs_contracting_dims")]
        return 2 * result.elements * math.prod(summed)
    labels = _LABELS.search(instruction.attributes).groups()
    image, kernel, output = (
        dict(zip(names, array.sizes, strict=True))
        for names, array in zip(labels, (left, right, result), strict=True)
    )
    window = _WINDOW.search(instruction.attributes)
    fields = dict(part.split("=") for part in window[1].split()) if window else {}
    products = 2 * output["b"] * output["f"] * kernel["i"]
    for axis, name in enumerate(sorted(filter(str.isdigit, labels[0]))):
        # Padding before and after the axis is written as 1_2.
        numbers = {key: int(x.split("x")[axis].split("_")[0]) for key, x in fields.items()}
        stride, padding = numbers.get("stride", 1), numbers.get("pad", 0)
        input_dilation, window_dilation = numbers.get("lhs_dilate", 1), numbers.get("rhs_dilate", 1)
        starts = np.arange(output[name]) * stride - padding
        places = starts + np.arange(numbers.get("size", 1))[:, None] * window_dilation
        inside = (places >= 0) & (places % input_dilation == 0)
        products *= int(np.sum(inside & (places // input_dilation < image[name])))
    return products
