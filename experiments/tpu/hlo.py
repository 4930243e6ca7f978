"""Reads XLA's text of a compiled program: computations, their instructions and array types."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

_ARRAY = re.compile(r"\b(pred|[a-z]+\d\w*)\[([\d,<=]*)\](\{[^{}]*\})?")
_MEMORY_SPACE = re.compile(r"S\((\d+)\)")
_COMPUTATION = re.compile(r"(ENTRY )?%(\S+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%(\S+) = ")
_NAME = re.compile(r"%([\w.\-]+)")
_ASYNC_START, _ASYNC_DONE = "AsyncCollectiveStart", "AsyncCollectiveDone"


@dataclasses.dataclass(frozen=True)
class Array:
    """The type of an array. `space` 0 is main memory (HBM), 1 a TPU's vector memory."""

    sizes: tuple[int, ...]
    bits: int
    space: int = 0

    @property
    def elements(self) -> int:
        return math.prod(self.sizes)

    @property
    def bytes(self) -> int:
        """Returns the size without the padding of a layout."""
        return -(-self.elements * self.bits // 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: without `%`.
      opcode: such as `dot`.
      type: of the result.
      literal: the text between the parentheses.
      attributes: the text after them.
    """

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
        """Returns the arrays of the result, a tuple's one by one."""
        return list(arrays(self.type))

    def called(self, attribute: str) -> list[str]:
        """Returns the names of the computations in `calls`, `body` or another attribute."""
        match = re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%[\w.\-]+)", self.attributes)
        return _NAME.findall(match[1]) if match else []

    def numbers(self, attribute: str) -> list[int]:
        """Returns the numbers of an attribute such as `lhs_contracting_dims={0,1}` or `index=3`."""
        match = re.search(rf"\b{attribute}=\{{?([\d,]*)", self.attributes)
        return [int(n) for n in match[1].split(",") if n] if match else []


@dataclasses.dataclass(frozen=True)
class Computation:
    """A sequence of instructions, by name; operands stand before their users."""

    root: Instruction
    instructions: Mapping[str, Instruction]

    def users(self, name: str) -> list[Instruction]:
        return [user for user in self.instructions.values() if name in user.operands]

    def operand_arrays(self, instruction: Instruction) -> list[list[Array]]:
        """Returns the arrays of each operand."""
        return [self.instructions[name].arrays for name in instruction.operands]

    @property
    def parameters(self) -> list[str]:
        """Returns the names of the parameters in their order."""
        parameters = [x for x in self.instructions.values() if x.opcode == "parameter"]
        return [x.name for x in sorted(parameters, key=lambda x: int(x.literal))]


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program; `devices` is the number of devices that run it together."""

    entry: str
    computations: Mapping[str, Computation]
    devices: int

    def fused(self, fusion: Instruction) -> Computation:
        """Returns the computation that a fusion consists of."""
        (name,) = fusion.called("calls")
        return self.computations[name]


def arrays(text: str) -> Iterator[Array]:
    """Yields every array type in a text, such as f32[8]{0} and (bf16[2,8], pred[])."""
    for kind, sizes, layout in _ARRAY.findall(text):
        space, bits = _MEMORY_SPACE.search(layout), re.search(r"\d+", kind)
        yield Array(
            tuple(int(n.lstrip("<=")) for n in sizes.split(",") if n),
            int(bits[0]) if bits else 8,
            int(space[1]) if space else 0,
        )


def parse(text: str) -> Module:
    """Parses the text of `jax.stages.Compiled.as_text`.

    Raises:
      ValueError: the text is no scheduled program.
    """
    computations, entry, name, root, instructions = {}, None, None, None, {}
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        if name is None:
            if match := _COMPUTATION.match(line):
                name, instructions = match[2], {}
                entry = name if match[1] else entry
        elif line.startswith("}"):
            computations[name], name = Computation(root, instructions), None
        elif match := _INSTRUCTION.match(line):
            instruction = _parse_instruction(match[2], line[match.end() :])
            instructions[instruction.name] = instruction
            root = instruction if match[1] else root
    if entry is None:
        raise ValueError("this text is no compiled program: it has no ENTRY computation")
    head = text.split("\n", 1)[0]
    counts = re.findall(r"(?:num_partitions|replica_count)=(\d+)", head)
    return Module(entry, computations, math.prod(map(int, counts)))


def _parse_instruction(name, rest):
    kind, rest = _split_parentheses(rest) if rest.startswith("(") else rest.split(" ", 1)
    opcode, rest = rest.strip().split("(", 1)
    literal, attributes = _split_parentheses("(" + rest)
    return Instruction(name, opcode, kind, literal[1:-1], attributes)


def _split_parentheses(text):
    """Splits a text after the parenthesis that closes its first one."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if not depth:
            return text[: place + 1], text[place + 1 :]
    raise ValueError(f"a parenthesis is not closed in {text[:60]!r}")


def group_size(instruction: Instruction, devices: int) -> int:
    """Returns how many of all `devices` a collective runs over.

    Raises:
      ValueError: its groups are in none of the three forms that XLA had when this was written.
    """
    attributes = instruction.attributes
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return match[1].count(",") + 1
    if match := re.search(r"replica_groups=\[([\d,]+)\]<=", attributes):
        return int(match[1].split(",")[-1])
    if match := re.search(
        r"replica_groups=mesh\[(.*?)\](?:, device_ids=[^{]*)? ?\{(.*?)\}", attributes
    ):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", match[1]))
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", match[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    if match := re.search(r"replica_groups=(?!\{\})\S*", attributes):
        raise ValueError(
            f"a compiled program has groups of devices in a form that is not known: {match[0]}"
        )
    return devices


def starts_async(instruction: Instruction) -> bool:
    """Returns whether it starts a collective that runs beside other fusions, as on TPUs."""
    return _ASYNC_START in instruction.attributes


def continues_async(fused: Computation, instruction: Instruction) -> bool:
    """Returns whether it stands for a collective that an earlier fusion started.

    A TPU's program names such a collective again in every fusion that runs beside it.
    """
    users = fused.users(instruction.name)
    if any(_ASYNC_DONE in x.attributes for x in (instruction, *users)):
        return True
    beside = "async_collective_fusion_config" in instruction.attributes
    return beside and not any(map(starts_async, users))
