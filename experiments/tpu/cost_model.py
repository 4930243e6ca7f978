"""What a compiled program costs each device that runs it: matrix products, memory traffic,
collectives.

XLA's own analysis counts a loop's body once; here it counts as often as it runs. Read from the
program's text, which is the partitioned one: every number is of one device.
"""

import dataclasses
import functools
from collections.abc import Mapping

from experiments.tpu import hlo, loop_counts, matrix_products, memory_traffic

_FREE = (
    *(
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "after-all",
        "opt-barrier",
        "domain",
    ),
    *("partition-id", "replica-id"),
)
_RUN = ("to_apply", "calls", "branch_computations", "true_computation", "false_computation")
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
    """Of one kind.

    Attributes:
      count: how many are run.
      size: bytes of their operands.
      sent: bytes that a device sends if they go round a ring, as JAX's "scaling book" counts them:
        of n devices (n-1)/n of what all-gather gives and of what reduce-scatter and all-to-all
        take, twice that for all-reduce.
    """

    count: int = 0
    size: float = 0
    sent: float = 0

    def __add__(self, other: "Collective") -> "Collective":
        return Collective(self.count + other.count, self.size + other.size, self.sent + other.sent)

    def times(self, count: int) -> "Collective":
        return Collective(self.count * count, self.size * count, self.sent * count)


@dataclasses.dataclass(frozen=True)
class Costs:
    """Of one device.

    Attributes:
      flops: of matrix products and convolutions, a multiplication and an addition each counted.
        Those inside custom calls, as GPUs have them, are not seen.
      traffic: bytes read from and written to main memory, by instructions outside fusions; a slice
        that is read and an update in place count as what they touch, and arrays in a TPU's vector
        memory not at all.
      collectives: by kind.
      bounded: loops that may end before their counter does, but are counted as if they did not.
      unknown: of each loop that no counter ends, what one run of its body costs; `flops` and all
        above have it once.
    """

    flops: float = 0
    traffic: float = 0
    collectives: Mapping[str, Collective] = dataclasses.field(default_factory=dict)
    bounded: int = 0
    unknown: tuple["Costs", ...] = ()

    def __add__(self, other: "Costs") -> "Costs":
        kinds = {*self.collectives, *other.collectives}
        none = Collective()
        return Costs(
            self.flops + other.flops,
            self.traffic + other.traffic,
            {
                k: self.collectives.get(k, none) + other.collectives.get(k, none)
                for k in sorted(kinds)
            },
            self.bounded + other.bounded,
            self.unknown + other.unknown,
        )

    def times(self, count: int) -> "Costs":
        """Of so many runs."""
        collectives = {kind: each.times(count) for kind, each in self.collectives.items() if count}
        return Costs(
            self.flops * count, self.traffic * count, collectives, self.bounded, self.unknown
        )

    @property
    def sent(self) -> float:
        """Bytes of all collectives."""
        return sum(each.sent for each in self.collectives.values())


def of(text: str) -> Costs:
    """The costs of a program, given as `jax.stages.Compiled.as_text()`. Raises ValueError for
    another text."""
    program = hlo.parse(text)
    return _Reader(program).body(program.entry)


class _Reader:
    def __init__(self, program: hlo.Program):
        self.program = program
        self.body = functools.cache(self._body)

    def _body(self, name: str) -> Costs:
        computation = self.program.computations[name]
        return sum(
            (self._instruction(computation, each) for each in computation.instructions.values()),
            Costs(),
        )

    def _instruction(self, computation, made) -> Costs:
        if made.opcode == "while":
            return self._loop(computation, made)
        if made.opcode in ("call", "conditional") or (
            made.opcode.endswith("-start") and made.called("calls")
        ):
            runs = [self.body(name) for attribute in _RUN for name in made.called(attribute)]
            return max(runs, key=lambda costs: (costs.flops, costs.traffic))
        if (
            made.opcode in _FREE
            or made.opcode.endswith(("-done", "-update"))
            or "AllocateBuffer" in made.attributes
        ):
            return Costs()
        return Costs(traffic=memory_traffic.of(self.program, computation, made)) + self._computed(
            computation, made
        )

    def _loop(self, around, made) -> Costs:
        body = self.body(made.called("body")[0])
        count, early = loop_counts.trips(self.program, around, made)
        if count is None:
            return dataclasses.replace(body, unknown=(body,))
        runs = body.times(count)
        return dataclasses.replace(runs, bounded=runs.bounded + early)

    def _computed(self, computation, made, fused=False) -> Costs:
        """Products and collectives of an instruction, in a fusion those inside."""
        if made.opcode == "fusion":
            inner = self.program.called(made)
            return sum(
                (self._computed(inner, each, fused=True) for each in inner.instructions.values()),
                Costs(),
            )
        kind = made.opcode.removesuffix("-start")
        if kind not in _SENT:
            return Costs(flops=matrix_products.flops(computation, made))
        if hlo.continues(computation, made):
            return Costs()
        if fused and {user.opcode for user in computation.users(made.name)} == {"dynamic-slice"}:
            kind = "reduce-scatter"  # as which a TPU runs a sum of which each device keeps a part
        size = sum(
            array.bytes
            for operand in made.operands
            for array in computation.instructions[operand].arrays
        )
        sent = size * _SENT[kind](hlo.group_size(made, self.program.devices))
        return Costs(collectives={kind: Collective(1, size, sent)})
