"""Trip counts of the loops of a compiled program, as far as its text shows them."""

import re

from experiments.tpu.hlo import Instruction

_KNOWN = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_STATE = ("state",)
_SAME = ("copy", "bitcast", "convert", "reshape")


def trips(loop: Instruction) -> tuple[int | None, bool]:
    """Returns (the number of runs of a `while` loop's body, whether the loop may end earlier).

    The number is XLA's own note, or follows from a counter that goes up by a constant to a
    constant. It is an upper bound if the condition depends on more than the counter, and None if
    it depends on no counter.
    """
    if match := _KNOWN.search(loop.attributes):
        return int(match[1]), False
    (condition,), (body,) = loop.called("condition"), loop.called("body")

    def element(state, index, arguments):
        """Returns the value at a place of a state, which may be no tuple."""
        return _value(state.operands[index], arguments) if state.opcode == "tuple" else None

    def constant(value):
        """Returns a number, also one in the state that the body only passes on."""
        match value:
            case (_, index) if element(body.root, index, [_STATE]) == value:
                return element(loop.operands[0], index, [])
        return value

    def bound(part):
        match part:
            case ("compare", (_, counter), limit):
                match element(body.root, counter, [_STATE]):
                    case ("add", *terms) if (*_STATE, counter) in terms:
                        terms.remove((*_STATE, counter))
                        first = element(loop.operands[0], counter, [])
                        match first, constant(terms[0]), constant(limit):
                            case int(), int(step), int(last) if step > 0:
                                return max(0, -(-(last - first) // step))
        return None

    parts, bounds = [_value(condition.root, [_STATE])], []
    while parts:
        match parts.pop():
            case ("and", left, right):
                parts += [left, right]
            case part:
                bounds.append(bound(part))
    counts = [count for count in bounds if count is not None]
    return min(counts, default=None), len(counts) < len(bounds)


def _value(instruction: Instruction, arguments: list):
    """Returns what an instruction computes, as far as it matters for counters.

    That is a number, a place ("state", i) of a loop's state, an operation on such values such as
    ("add", x, y), or None. `arguments` are the values of the computation's parameters.
    """
    opcode, operands, literal = instruction.opcode, instruction.operands, instruction.literal

    def values():
        return [_value(operand, arguments) for operand in operands]

    if opcode == "constant":
        return int(literal) if re.fullmatch(r"-?\d+", literal) else None
    if opcode == "parameter":
        return arguments[int(literal)] if int(literal) < len(arguments) else None
    if opcode in _SAME:
        return values()[0]
    if opcode == "get-tuple-element":
        return (*_STATE, *instruction.numbers("index")) if values() == [_STATE] else None
    if opcode in ("fusion", "call"):
        (called,) = instruction.called("calls") or instruction.called("to_apply")
        return _value(called.root, values())
    less = opcode == "compare" and "direction=LT" in instruction.attributes
    return (opcode, *values()) if less or opcode in ("add", "and") else None
