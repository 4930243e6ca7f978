"""Costs of a compiled program for each device: matrix products, memory traffic, collectives.

XLA's own analysis counts the body of a loop once; this one counts it as often as it runs. The text
of a program is the partitioned one, so every number is of one device.
"""

import dataclasses
import functools
from collections.abc import Mapping

from experiments.tpu import hlo, loop_counts, matrix_products, memory_traffic

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


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind.

    Attributes:
      count: the number of runs.
      size: bytes of their operands.
      sent: bytes that a device sends around a ring, as JAX's "scaling book" counts them. Of n
        devices, each sends (n-1)/n of the result of all-gather and of the operand of
        reduce-scatter and all-to-all, and twice that for all-reduce.
    """

    count: int = 0
    size: float = 0
    sent: float = 0

    def plus(self, other: "Collective", times: int = 1) -> "Collective":
        return Collective(
            self.count + other.count * times,
            self.size + other.size * times,
            self.sent + other.sent * times,
        )


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
            collectives[kind] = collectives.get(kind, Collective()).plus(each, times)
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
    module = hlo.parse(text)

    @functools.cache
    def total(name: str) -> Costs:
        computation, costs = module.computations[name], Costs()
        for instruction in computation.instructions.values():
            costs = costs.plus(instruction_costs(computation, instruction))
        return costs

    def instruction_costs(computation, instruction):
        opcode, attributes = instruction.opcode, instruction.attributes
        if opcode == "while":
            body = total(instruction.called("body")[0])
            count, early = loop_counts.trips(module, computation, instruction)
            if count is None:
                return dataclasses.replace(body, unknown=(body,))
            return Costs(bounded=int(early)).plus(body, count)
        is_async_call = opcode.endswith("-start") and instruction.called("calls")
        if opcode in ("call", "conditional") or is_async_call:
            branches = [total(name) for key in _CALLS for name in instruction.called(key)]
            return max(branches, key=lambda costs: (costs.flops, costs.traffic))
        ends_async = opcode.endswith(("-done", "-update"))
        if opcode in _FREE or ends_async or "AllocateBuffer" in attributes:
            return Costs()
        traffic = memory_traffic.count(module, computation, instruction)
        return Costs(traffic=traffic).plus(_work(module, computation, instruction))

    return total(module.entry)


def _work(
    module: hlo.Module,
    computation: hlo.Computation,
    instruction: hlo.Instruction,
    fused: bool = False,
) -> Costs:
    """Returns an instruction's products and collectives; for a fusion those inside it."""
    if instruction.opcode == "fusion":
        inner, costs = module.fused(instruction), Costs()
        for each in inner.instructions.values():
            costs = costs.plus(_work(module, inner, each, fused=True))
        return costs
    kind = instruction.opcode.removesuffix("-start")
    if kind not in _SENT:
        return Costs(flops=matrix_products.flops(computation, instruction))
    if hlo.continues_async(computation, instruction):
        return Costs()
    # A TPU runs a fused sum, of which each device keeps one part, as a reduce-scatter.
    if fused and {user.opcode for user in computation.users(instruction.name)} == {"dynamic-slice"}:
        kind = "reduce-scatter"
    operands = computation.operand_arrays(instruction)
    size = sum(array.bytes for arrays in operands for array in arrays)
    sent = size * _SENT[kind](hlo.group_size(instruction, module.devices))
    return Costs(collectives={kind: Collective(1, size, sent)})
