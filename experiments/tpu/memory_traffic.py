"""Bytes that an instruction of a compiled program reads from and writes to main memory.

A fusion is one instruction: what is inside it stays in registers and caches. A slice counts as the
part that it takes of an operand, an update in place as the part that it changes. All else counts
whole, as if caches held nothing. Arrays that XLA keeps in another memory, such as a TPU's vector
memory, count nothing.
"""

from experiments.tpu.hlo import Array, Computation, Instruction

# Opcodes that take their first operand's place, and the operand that says what changes.
_IN_PLACE = {"dynamic-update-slice": 1, "scatter": 2}
_SLICES = ("dynamic-slice", "slice", "gather")


def count(instruction: Instruction) -> int:
    """Returns the bytes that an instruction reads and writes."""
    read = 0
    for operand in set(instruction.operands):
        whole = sum(array.bytes for array in operand.arrays if not array.space)
        read += min(whole, _read_by(instruction, operand, whole))
    results, changed = _results(instruction), _changed(instruction)
    if len(changed) != len(results):
        changed = [None] * len(results)
    pairs = [pair for pair in zip(results, changed, strict=True) if not pair[0].space]
    return read + sum(x.bytes if part is None else min(x.bytes, part) for x, part in pairs)


def _read_by(user: Instruction, operand: Instruction, whole: int) -> int:
    """Returns the bytes that an instruction reads of an operand; `whole` if it reads all.

    Inside a fusion these are what all users of the operand read together.
    """
    places = [place for place, each in enumerate(user.operands) if each is operand]
    opcode = user.opcode.removesuffix("-start")
    if opcode in _IN_PLACE and places == [0]:
        return 0
    if opcode in _SLICES and places == [0]:
        return sum(array.bytes for array in _results(user))
    if opcode != "fusion":
        return whole
    (fused,) = user.called("calls")
    return sum(_read_inside(fused, fused.parameters[place], whole) for place in places)


def _read_inside(fused: Computation, value: Instruction, whole: int) -> int:
    """Returns the bytes that a fusion reads of the array that `value` stands for inside it."""
    if value is fused.root:
        return whole
    read = 0
    for user in value.users:
        if user.opcode == "bitcast" or _passes_on(user):
            read += _read_inside(fused, user, whole)
        elif user.opcode != "tuple" and not user.continues_async:
            read += _read_by(user, value, whole)
    return min(read, whole)


def _passes_on(instruction: Instruction) -> bool:
    """Returns whether it is a fusion that passes its operand on unchanged."""
    if instruction.opcode != "fusion":
        return False
    value = instruction.called("calls")[0].root
    while value.opcode == "bitcast":
        (value,) = value.operands
    return value.opcode == "parameter"


def _results(instruction: Instruction) -> list[Array]:
    """Returns the arrays that an instruction makes.

    The type of an asynchronous start names its operands beside its results.
    """
    arrays, operands = instruction.arrays, len(instruction.operands)
    if instruction.opcode == "copy-start":
        return arrays[:1]
    if instruction.opcode.endswith("-start") and len(arrays) >= 2 * operands:
        return arrays[operands : 2 * operands]
    return arrays


def _changed(instruction: Instruction) -> list[int | None]:
    """Returns the bytes that are new in each array of a result.

    They are None for an array that takes no operand's place, and so is written whole.
    """
    opcode = instruction.opcode.removesuffix("-start")
    if opcode in _IN_PLACE:
        update = instruction.operands[_IN_PLACE[opcode]]
        return [sum(array.bytes for array in update.arrays)]
    if opcode == "parameter":
        return [0]
    if opcode in ("bitcast", "tuple"):
        return [part for operand in instruction.operands for part in _changed(operand)]
    if opcode == "fusion":
        # An operand that is the only result is copied; beside other results it stays in place.
        (fused,) = instruction.called("calls")
        return [None] if _passes_on(instruction) else _changed(fused.root)
    count = len(_results(instruction))
    if instruction.continues_async:
        return [0] * count
    # A fusion that starts a collective passes its operand on as its first result.
    return [0] * instruction.starts_async + [None] * (count - instruction.starts_async)
