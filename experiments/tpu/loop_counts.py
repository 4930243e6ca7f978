"""How often the loops of a compiled program run, where its text tells."""

import re

from experiments.tpu.hlo import Computation, Instruction, Program

_KNOWN = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_STATE = "state"
_SAME = ("copy", "bitcast", "convert", "reshape")


def trips(program: Program, around: Computation, loop: Instruction) -> tuple[int | None, bool]:
    """(how often a `while` of `around` runs its body; whether it may end before).

    It is what XLA noted, or follows from a counter that goes up by a constant to a constant. Where
    the condition asks for more than the counter this is an upper bound; None where it asks for no
    counter.
    """
    if noted := _KNOWN.search(loop.attributes):
        return int(noted[1]), False
    condition, body = (program.computations[loop.called(name)[0]] for name in ("condition", "body"))
    asked = _all_of(_value(program, condition, condition.root, [(_STATE,)]))
    bounds = [_bound(program, around, loop, body, each) for each in asked]
    known = [bound for bound in bounds if bound is not None]
    return (min(known) if known else None), len(known) < len(bounds)


def _all_of(asked):
    """The parts of a conjunction."""
    if isinstance(asked, tuple) and asked[0] == "and":
        return [part for each in asked[1:] for part in _all_of(each)]
    return [asked]


def _bound(program, around, loop, body, asked):
    """How often one part of a condition lets a loop run, None if that is not known."""
    match asked:
        case ("compare", (_, counter), limit):
            start = _begins(program, around, loop, counter)
            limit = _fixed(program, around, loop, body, limit)
            step = _step(program, around, loop, body, counter)
            if None not in (start, limit, step) and step > 0:
                return max(0, -(-(limit - start) // step))
    return None


def _begins(program, around, loop, index):
    """What the loop starts with at a place of its state."""
    start = around.instructions[loop.operands[0]]
    if start.opcode != "tuple":
        return None
    value = _value(program, around, start.operands[index], [])
    return value if isinstance(value, int) else None


def _fixed(program, around, loop, body, value):
    """A value that the body only passes on, as it was before the loop."""
    match value:
        case int():
            return value
        case (_, index) if _next(program, body, index) == (_STATE, index):
            return _begins(program, around, loop, index)
    return None


def _step(program, around, loop, body, counter):
    match _next(program, body, counter):
        case ("add", (_, index), by) if index == counter:
            return _fixed(program, around, loop, body, by)
        case ("add", by, (_, index)) if index == counter:
            return _fixed(program, around, loop, body, by)
    return None


def _next(program, body, index):
    root = body.instructions[body.root]
    return (
        _value(program, body, root.operands[index], [(_STATE,)]) if root.opcode == "tuple" else None
    )


def _value(program, computation, name, given):
    """A number, a place ("state", i) of a loop's state, an operation on such values, or None.

    Args:
      program: the whole.
      computation, name: of the instruction.
      given: values of the computation's parameters.
    """
    instruction = computation.instructions[name]
    opcode = instruction.opcode

    def of(operand):
        return _value(program, computation, operand, given)

    if opcode == "constant":
        return int(instruction.literal) if re.fullmatch(r"-?\d+", instruction.literal) else None
    if opcode == "parameter":
        place = int(instruction.literal)
        return given[place] if place < len(given) else None
    if opcode in _SAME:
        return of(instruction.operands[0])
    if opcode == "get-tuple-element":
        whole = of(instruction.operands[0])
        return (_STATE, *instruction.numbers("index")) if whole == (_STATE,) else None
    if opcode in ("fusion", "call"):
        (called,) = instruction.called("calls") or instruction.called("to_apply")
        inner = program.computations[called]
        return _value(program, inner, inner.root, [of(operand) for operand in instruction.operands])
    if opcode in ("add", "and") or (
        opcode == "compare" and "direction=LT" in instruction.attributes
    ):
        return (opcode, *(of(operand) for operand in instruction.operands))
    return None
