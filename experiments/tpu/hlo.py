"""Reads XLA's text of a compiled program as a graph: instructions, their operands and arrays."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

_ARRAY = re.compile(r"\b(pred|[a-z]+\d\w*)\[([\d,<=]*)\](\{[^{}]*\})?")
_MEMORY_SPACE = re.compile(r"S\((\d+)\)")
_COMPUTATION = re.compile(r"(ENTRY )?%(\S+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%(\S+) = ")
_NAME = re.compile(r"%([\w.\-]+)")


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


@dataclasses.dataclass(eq=False)
class Instruction:
    """One line of a computation.

    Attributes:
      type: of the result.
      opcode: such as `dot`.
      literal: the text between the parentheses.
      attributes: the text after them.
      operands: the instructions that it reads.
      computations: those of the program, by name.
      users: the instructions that read it, in their order.
    """

    type: str
    opcode: str
    literal: str
    attributes: str
    # Their text would be the whole program's.
    operands: list["Instruction"] = dataclasses.field(repr=False)
    computations: Mapping[str, "Computation"] = dataclasses.field(repr=False)
    users: list["Instruction"] = dataclasses.field(default_factory=list, repr=False)

    @property
    def arrays(self) -> list[Array]:
        """Returns the arrays of the result, a tuple's one by one."""
        return list(arrays(self.type))

    def called(self, attribute: str) -> list["Computation"]:
        """Returns the computations that `calls`, `body` or another attribute names."""
        match = re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%[\w.\-]+)", self.attributes)
        return [self.computations[name] for name in _NAME.findall(match[1])] if match else []

    def numbers(self, attribute: str) -> list[int]:
        """Returns the numbers of an attribute such as `lhs_contracting_dims={0,1}` or `index=3`."""
        match = re.search(rf"\b{attribute}=\{{?([\d,]*)", self.attributes)
        return [int(n) for n in match[1].split(",") if n] if match else []

    @property
    def starts_async(self) -> bool:
        """Returns whether it starts a collective that runs beside other fusions, as on TPUs."""
        return "AsyncCollectiveStart" in self.attributes

    @property
    def continues_async(self) -> bool:
        """Returns whether it stands for a collective that an earlier fusion started.

        A TPU's program names such a collective again in every fusion that runs beside it.
        """
        if any("AsyncCollectiveDone" in x.attributes for x in (self, *self.users)):
            return True
        beside = "async_collective_fusion_config" in self.attributes
        return beside and not any(user.starts_async for user in self.users)


@dataclasses.dataclass(eq=False)
class Computation:
    """A sequence of instructions, in which operands stand before their users."""

    root: Instruction
    instructions: list[Instruction]

    @property
    def parameters(self) -> list[Instruction]:
        parameters = [x for x in self.instructions if x.opcode == "parameter"]
        return sorted(parameters, key=lambda x: int(x.literal))


def arrays(text: str) -> Iterator[Array]:
    """Yields every array type in a text, such as f32[8]{0} and (bf16[2,8], pred[])."""
    for kind, sizes, layout in _ARRAY.findall(text):
        space, bits = _MEMORY_SPACE.search(layout), re.search(r"\d+", kind)
        yield Array(
            tuple(int(n.lstrip("<=")) for n in sizes.split(",") if n),
            int(bits[0]) if bits else 8,
            int(space[1]) if space else 0,
        )


def parse(text: str) -> tuple[Computation, int]:
    """Parses the text of `jax.stages.Compiled.as_text`.

    Returns:
      The computation that the program begins with, and how many devices run it together.

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
            computations[name] = Computation(root, list(instructions.values()))
            name = None
        elif match := _INSTRUCTION.match(line):
            rest = line[match.end() :]
            kind, rest = _split_parentheses(rest) if rest[0] == "(" else rest.split(" ", 1)
            opcode, rest = rest.strip().split("(", 1)
            literal, attributes = _split_parentheses("(" + rest)
            operands = [instructions[operand] for operand in _NAME.findall(literal)]
            instruction = Instruction(
                kind, opcode, literal[1:-1], attributes, operands, computations
            )
            for operand in dict.fromkeys(operands):
                operand.users.append(instruction)
            instructions[match[2]] = instruction
            root = instruction if match[1] else root
    if entry is None:
        raise ValueError("this text is no compiled program: it has no ENTRY computation")
    head = text.split("\n", 1)[0]
    counts = re.findall(r"(?:num_partitions|replica_count)=(\d+)", head)
    return computations[entry], math.prod(map(int, counts))


def _split_parentheses(text: str) -> tuple[str, str]:
    """Splits a text after the parenthesis that closes its first one."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if not depth:
            return text[: place + 1], text[place + 1 :]
    raise ValueError(f"a parenthesis is not closed in {text[:60]!r}")


def group_size(attributes: str, devices: int) -> int:
    """Returns how many of all `devices` a collective with these attributes runs over.

    Raises:
      ValueError: its groups are in none of the three forms that XLA had when this was written.
    """
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
