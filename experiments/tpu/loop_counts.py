"""Trip counts of the loops of a compiled program, as far as its text shows them."""

import re

from experiments.tpu.hlo import Computation, Instruction, Module

_KNOWN = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_STATE = "state"
_SAME = ("copy", "bitcast", "convert", "reshape")


def trips(module: Module, around: Computation, loop: Instruction) -> tuple[int | None, bool]:
    """Returns (the number of runs of a loop's body, whether the loop may end earlier).

    The number is XLA's own note, or follows from a counter that goes up by a constant to a
    constant. It is an upper bound if the condition depends on more than the counter, and None if
    it depends on no counter.

    Args:
      module: the program.
      around: the computation that holds the loop.
      loop: a `while` instruction.
    """
    if match := _KNOWN.search(loop.attributes):
        return int(match[1]), False
    condition, body = (module.computations[loop.called(name)[0]] for name in ("condition", "body"))
    start = around.instructions[loop.operands[0]]

    def initial(index):
        """Returns the number with which the loop starts at a place of its state."""
        if start.opcode != "tuple":
            return None
        value = _value(module, around, start.operands[index], [])
        return value if isinstance(value, int) else None

    def updated(index):
        if body.root.opcode != "tuple":
            return None
        return _value(module, body, body.root.operands[index], [(_STATE,)])

    def constant(value):
        """Returns a number, also one in the state that the body only passes on."""
        match value:
            case int():
                return value
            case (_, index) if updated(index) == value:
                return initial(index)
        return None

    def bound(part):
        match part:
            case ("compare", (_, counter), limit):
                match updated(counter):
                    case ("add", *terms) if (_STATE, counter) in terms:
                        terms.remove((_STATE, counter))
                        first, step, last = initial(counter), constant(terms[0]), constant(limit)
                        if None not in (first, step, last) and step > 0:
                            return max(0, -(-(last - first) // step))
        return None

    parts = [_value(module, condition, condition.root.name, [(_STATE,)])]
    bounds = []
    while parts:
        match parts.pop():
            case ("and", left, right):
                parts += [left, right]
            case part:
                bounds.append(bound(part))
    counts = [count for count in bounds if count is not None]
    return (min(counts) if counts else None), len(counts) < len(bounds)


def _value(module: Module, computation: Computation, name: str, arguments: list):
    """Returns what an instruction computes, as far as it matters for counters.

    That is a number, a place ("state", i) of a loop's state, an operation on such values such as
    ("add", x, y), or None. `arguments` are the values of the computation's parameters.
    """
    instruction = computation.instructions[name]
    opcode, operands = instruction.opcode, instruction.operands

    def value(operand):
        return _value(module, computation, operand, arguments)

    if opcode == "constant":
        return int(instruction.literal) if re.fullmatch(r"-?\d+", instruction.literal) else None
    if opcode == "parameter":
        place = int(instruction.literal)
        return arguments[place] if place < len(arguments) else None
    if opcode in _SAME:
        return value(operands[0])
    if opcode == "get-tuple-element":
        return (_STATE, *instruction.numbers("index")) if value(operands[0]) == (_STATE,) else None
    if opcode in ("fusion", "call"):
        (called,) = instruction.called("calls") or instruction.called("to_apply")
        inner = module.computations[called]
        return _value(module, inner, inner.root.name, [value(operand) for operand in operands])
    less = opcode == "compare" and "direction=LT" in instruction.attributes
    if opcode in ("add", "and") or less:
        return (opcode, *(value(operand) for operand in operands))
    return None
