"""Bytes that an instruction of a compiled program reads from and writes to main memory.

A fusion is one instruction: what is inside it stays in registers and caches. A slice counts as what
  it takes out of an
operand, and an update in place as what it changes; the rest is counted whole, as if nothing were
ever found in a cache. Arrays that XLA itself keeps in another memory, as in a TPU's vector memory,
count nothing.
"""

from experiments.tpu import hlo
from experiments.tpu.hlo import Array, Computation, Instruction, Program

# What takes its first operand's place, and which operand says what changes.
_IN_PLACE = {"dynamic-update-slice": 1, "scatter": 2}
_SLICES = ("dynamic-slice", "slice", "gather")


def of(program: Program, computation: Computation, made: Instruction) -> int:
    """Bytes, read and written."""
    return _read(program, computation, made) + _written(program, computation, made)


def _read(program, computation, made):
    total = 0
    for name in set(made.operands):
        whole = _bytes(computation.instructions[name].arrays)
        total += min(whole, _touched(program, made, name, whole))
    return total


def _bytes(arrays: list[Array]) -> int:
    return sum(array.bytes for array in arrays if not array.space)


def _touched(program, user, name, whole):
    """Bytes that an instruction reads of an operand, `whole` if it reads all."""
    places = [place for place, operand in enumerate(user.operands) if operand == name]
    opcode = user.opcode.removesuffix("-start")
    if opcode in _IN_PLACE and places == [0]:
        return 0
    if opcode in _SLICES and places == [0]:
        return sum(array.bytes for array in _results(user))
    if opcode != "fusion":
        return whole
    inner = program.called(user)
    return sum(_within(program, inner, inner.parameters[place], whole) for place in places)


def _within(program, fused, name, whole):
    """Bytes that a fusion reads of what `name` in it stands for."""
    if name == fused.root:
        return whole
    read = 0
    for user in fused.users(name):
        if user.opcode == "bitcast" or (
            user.opcode == "fusion" and _is_parameter(program.called(user))
        ):
            read += _within(program, fused, user.name, whole)
        elif user.opcode != "tuple" and not hlo.continues(fused, user):
            read += _touched(program, user, name, whole)
    return min(read, whole)


def _is_parameter(fused):
    """Whether a fusion gives its operand as it is."""
    made = fused.instructions[fused.root]
    while made.opcode == "bitcast":
        made = fused.instructions[made.operands[0]]
    return made.opcode == "parameter"


def _results(made):
    """The arrays that an instruction makes; one that only starts names its operands beside them."""
    arrays, given = made.arrays, len(made.operands)
    if made.opcode == "copy-start":
        return arrays[:1]
    if made.opcode.endswith("-start") and len(arrays) >= 2 * given:
        return arrays[given : 2 * given]
    return arrays


def _written(program, computation, made):
    arrays, changed = _results(made), _changed(program, computation, made)
    if len(changed) != len(arrays):
        return _bytes(arrays)
    pairs = zip(arrays, changed, strict=True)
    return sum(
        min(array.bytes, array.bytes if part is None else part)
        for array, part in pairs
        if not array.space
    )


def _changed(program, computation, made) -> list[int | None]:
    """For each array of a result the bytes that are new where it takes an operand's place, None
    where it takes none."""
    opcode = made.opcode.removesuffix("-start")
    if opcode in _IN_PLACE:
        return [
            sum(
                array.bytes
                for array in computation.instructions[made.operands[_IN_PLACE[opcode]]].arrays
            )
        ]
    if opcode == "parameter":
        return [0]
    if opcode in ("bitcast", "tuple"):
        parts = [
            _changed(program, computation, computation.instructions[operand])
            for operand in made.operands
        ]
        return [part for each in parts for part in each]
    if opcode == "fusion":
        inner = program.called(made)
        # An operand that alone is the result is copied; beside others it stays where it is.
        return (
            [None]
            if _is_parameter(inner)
            else _changed(program, inner, inner.instructions[inner.root])
        )
    fresh = [None] * len(_results(made))
    if hlo.continues(computation, made):
        return [0] * len(fresh)
    return (
        [0, *fresh[1:]] if hlo.begins(made) else fresh
    )  # what begins a collective passes its operand on
