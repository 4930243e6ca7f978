"""XLA's text of a compiled program, read: its computations, their instructions, the arrays of a
type."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

_ARRAY = re.compile(r"\b(pred|[a-z]+\d\w*)\[([\d,<=]*)\](\{[^{}]*\})?")
_HEAD = re.compile(r"(ENTRY )?%(\S+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%(\S+) = ")
_COMMENT = re.compile(r"/\*.*?\*/")
_NAME = re.compile(r"%([\w.\-]+)")
_SPACE = re.compile(r"S\((\d+)\)")
_LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=")
_AXES = re.compile(r"replica_groups=mesh\[(.*?)\](?:, device_ids=[^{]*)? ?\{(.*?)\}")
_AXIS = re.compile(r"'([^']+)'(?::\(\d+\)(\d+))?")
_BEGINS, _ENDS = "AsyncCollectiveStart", "AsyncCollectiveDone"
_DEVICES = re.compile(r"(?:num_partitions|replica_count)=(\d+)")


@dataclasses.dataclass(frozen=True)
class Array:
    """`space` is where it lies: 0 is the device's main memory (HBM), 1 a TPU's vector memory."""

    sizes: tuple[int, ...]
    bits: int
    space: int = 0

    @property
    def elements(self) -> int:
        return math.prod(self.sizes)

    @property
    def bytes(self) -> int:
        """Without what a layout pads."""
        return -(-self.elements * self.bits // 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line. `operands` are names; `literal` is what stands in the parentheses; `attributes`
    what follows them."""

    name: str
    opcode: str
    type: str
    literal: str
    attributes: str

    @property
    def operands(self) -> list[str]:
        return _NAME.findall(self.literal)

    @property
    def arrays(self) -> list[Array]:
        """Of its result, tuples taken apart."""
        return list(arrays(self.type))

    def called(self, attribute: str) -> list[str]:
        """The computations that `calls`, `body` or another attribute names."""
        found = re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%[\w.\-]+)", self.attributes)
        return _NAME.findall(found[1]) if found else []

    def numbers(self, attribute: str) -> list[int]:
        """Of an attribute such as `lhs_contracting_dims={0,1}` or `index=3`."""
        found = re.search(rf"\b{attribute}=\{{?([\d,]*)", self.attributes)
        return [int(n) for n in found[1].split(",") if n] if found else []


@dataclasses.dataclass(frozen=True)
class Computation:
    """`instructions` by name, operands before their users."""

    name: str
    root: str
    instructions: Mapping[str, Instruction]

    def users(self, name: str) -> Iterator[Instruction]:
        return (user for user in self.instructions.values() if name in user.operands)

    @property
    def parameters(self) -> list[str]:
        """Names, in order."""
        found = {
            int(each.literal): each.name
            for each in self.instructions.values()
            if each.opcode == "parameter"
        }
        return [found[i] for i in sorted(found)]


@dataclasses.dataclass(frozen=True)
class Program:
    """`devices` is how many run it together."""

    entry: str
    computations: Mapping[str, Computation]
    devices: int

    def called(self, fusion: Instruction) -> Computation:
        """What a fusion consists of."""
        (name,) = fusion.called("calls")
        return self.computations[name]


def arrays(text: str) -> Iterator[Array]:
    """Every array that a text names, such as f32[8]{0} and (bf16[2,8], pred[])."""
    for kind, sizes, layout in _ARRAY.findall(text):
        space = _SPACE.search(layout)
        bits = re.search(r"\d+", kind)
        yield Array(
            tuple(int(n.lstrip("<=")) for n in sizes.split(",") if n),
            int(bits[0]) if bits else 8,
            int(space[1]) if space else 0,
        )


def parse(text: str) -> Program:
    """Reads what `jax.stages.Compiled.as_text` gives. Raises ValueError if it is no scheduled
    program."""
    computations, entry, name, root, made = {}, None, None, None, {}
    for line in _COMMENT.sub("", text).splitlines():
        if name is None:
            if head := _HEAD.match(line):
                name, root, made = head[2], None, {}
                entry = name if head[1] else entry
        elif line.startswith("}"):
            computations[name], name = Computation(name, root, made), None
        elif found := _INSTRUCTION.match(line):
            instruction = _instruction(found[2], line[found.end() :])
            made[instruction.name] = instruction
            root = instruction.name if found[1] else root
    if entry is None:
        raise ValueError("this text is no compiled program: it has no ENTRY computation")
    devices = math.prod(int(n) for n in _DEVICES.findall(text.split("\n", 1)[0]))
    return Program(entry, computations, devices)


def _instruction(name, rest):
    kind, rest = _balanced(rest) if rest.startswith("(") else rest.split(" ", 1)
    opcode, rest = rest.strip().split("(", 1)
    literal, attributes = _balanced("(" + rest)
    return Instruction(name, opcode, kind, literal[1:-1], attributes)


def _balanced(text):
    """The text up to the parenthesis that closes its first one, and what follows."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if not depth:
            return text[: place + 1], text[place + 1 :]
    raise ValueError(f"a parenthesis is not closed in {text[:60]!r}")


def group_size(instruction: Instruction, devices: int) -> int:
    """How many devices a collective runs over; its groups may be written in XLA's three ways, or
    not at all for all.

    Raises ValueError for a fourth.
    """
    attributes = instruction.attributes
    if found := _LISTED.search(attributes):
        return found[1].count(",") + 1
    if found := _IOTA.search(attributes):
        return int(found[1].split(",")[-1])
    if found := _AXES.search(attributes):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", found[1]))
        return math.prod(int(part or sizes[axis]) for axis, part in _AXIS.findall(found[2]))
    if found := re.search(r"replica_groups=(?!\{\})\S*", attributes):
        raise ValueError(
            f"a compiled program has groups of devices in a form that is not known: {found[0]}"
        )
    return devices


def begins(made: Instruction) -> bool:
    """Whether it begins a collective that runs beside other fusions, on TPUs."""
    return _BEGINS in made.attributes


def continues(fused: Computation, made: Instruction) -> bool:
    """Whether it stands in a fusion for a collective that an earlier one began: a TPU names it in
    each beside it."""
    if _ENDS in made.attributes:
        return True
    users = list(fused.users(made.name))
    beside = "async_collective_fusion_config" in made.attributes
    return any(_ENDS in user.attributes for user in users) or (
        beside and not any(map(begins, users))
    )
