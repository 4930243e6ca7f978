"""Bytes that an instruction of a compiled program reads from and writes to main memory.

A fusion is one instruction: what is inside it stays in registers and caches. A slice counts as the
part that it takes of an operand, an update in place as the part that it changes. All else counts
whole, as if caches held nothing. Arrays that XLA keeps in another memory, such as a TPU's vector
memory, count nothing.
"""

from experiments.tpu import hlo
from experiments.tpu.hlo import Array, Computation, Instruction, Module

# Opcodes that take their first operand's place, and the operand that says what changes.
_IN_PLACE = {"dynamic-update-slice": 1, "scatter": 2}
_SLICES = ("dynamic-slice", "slice", "gather")


def count(module: Module, computation: Computation, instruction: Instruction) -> int:
    """Returns the bytes that an instruction reads and writes."""
    read = 0
    for name in set(instruction.operands):
        whole = _bytes(computation.instructions[name].arrays)
        read += min(whole, _read_by(module, instruction, name, whole))
    results, changed = _results(instruction), _changed(module, computation, instruction)
    if len(changed) != len(results):
        return read + _bytes(results)
    pairs = [pair for pair in zip(results, changed, strict=True) if not pair[0].space]
    return read + sum(x.bytes if part is None else min(x.bytes, part) for x, part in pairs)


def _bytes(arrays: list[Array]) -> int:
    return sum(array.bytes for array in arrays if not array.space)


def _read_by(module: Module, user: Instruction, name: str, whole: int) -> int:
    """Returns the bytes that an instruction reads of an operand; `whole` if it reads all."""
    places = [place for place, operand in enumerate(user.operands) if operand == name]
    opcode = user.opcode.removesuffix("-start")
    if opcode in _IN_PLACE and places == [0]:
        return 0
    if opcode in _SLICES and places == [0]:
        return sum(array.bytes for array in _results(user))
    if opcode != "fusion":
        return whole
    fused = module.fused(user)
    return sum(_read_inside(module, fused, fused.parameters[place], whole) for place in places)


def _read_inside(module: Module, fused: Computation, name: str, whole: int) -> int:
    """Returns the bytes that a fusion reads of the array that `name` stands for inside it."""
    if name == fused.root.name:
        return whole
    read = 0
    for user in fused.users(name):
        passes_on = user.opcode == "fusion" and _is_parameter(module.fused(user))
        if user.opcode == "bitcast" or passes_on:
            read += _read_inside(module, fused, user.name, whole)
        elif user.opcode != "tuple" and not hlo.continues_async(fused, user):
            read += _read_by(module, user, name, whole)
    return min(read, whole)


def _is_parameter(fused: Computation) -> bool:
    """Returns whether a fusion passes its operand on unchanged."""
    instruction = fused.root
    while instruction.opcode == "bitcast":
        instruction = fused.instructions[instruction.operands[0]]
    return instruction.opcode == "parameter"


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


def _changed(
    module: Module, computation: Computation, instruction: Instruction
) -> list[int | None]:
    """Returns the bytes that are new in each array of a result.

    They are None for an array that takes no operand's place, and so is written whole.
    """
    opcode = instruction.opcode.removesuffix("-start")
    if opcode in _IN_PLACE:
        update = computation.operand_arrays(instruction)[_IN_PLACE[opcode]]
        return [sum(array.bytes for array in update)]
    if opcode == "parameter":
        return [0]
    if opcode in ("bitcast", "tuple"):
        operands = [computation.instructions[name] for name in instruction.operands]
        return [part for x in operands for part in _changed(module, computation, x)]
    if opcode == "fusion":
        fused = module.fused(instruction)
        # An operand that is the only result is copied; beside other results it stays in place.
        return [None] if _is_parameter(fused) else _changed(module, fused, fused.root)
    new = [None] * len(_results(instruction))
    if hlo.continues_async(computation, instruction):
        return [0] * len(new)
    # A fusion that starts a collective passes its operand on as its first result.
    return [0, *new[1:]] if hlo.starts_async(instruction) else new
