"""The rules for values of a run's config, and how the specs of `jaxdiv.runs.specs` declare keys.

A key is a field of a spec whose metadata are its default, rule and meaning.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from jaxdiv import schema

TEXTS, IMAGES = "text", schema.IMAGES
# Who writes the text that students are trained on: the data's authors, the teacher, or each student
# itself.
TRAINING_CONTEXTS = (CORPUS, TEACHER_TEXT, STUDENT_TEXT) = (schema.CORPUS, "teacher", "student")
# Whether a run's folder has a copy of a teacher that it takes over; and what type that has.
COPIES = (AUTO, COPY, REFER) = ("auto", "yes", "no")
STORED = "stored"
REST = -1  # size of a mesh axis: all devices that the other axes leave
DECODER_SIZES = ("depth", "width", "heads", "kv_heads", "mlp_width")
Spec = TypeVar("Spec")


class KeyRule(NamedTuple):
    """The values that a key may have: a phrase for messages, and the test itself."""

    allowed: str
    holds: Callable[[Any], bool]


class ConfigKey(NamedTuple):
    """One key of a run's config; `parse` turns the config's value into the spec's."""

    default: Any
    rule: KeyRule
    meaning: str
    parse: Callable[[Any], Any] = lambda value: value


def key(*parts: Any, compare: bool = True) -> Any:
    """Declares a field of a spec as a key, by the parts of its `ConfigKey`."""
    return dataclasses.field(metadata={"key": ConfigKey(*parts)}, compare=compare)


def keys_of(spec: type) -> dict[str, Any]:
    """Returns the ConfigKey of each field of a spec that is one, and a dict for each inner spec.

    The metadata of an inner spec's field are defaults of its own.
    """
    keys: dict[str, Any] = {}
    for field in dataclasses.fields(spec):
        if dataclasses.is_dataclass(field.type):
            inner = keys[field.name] = keys_of(field.type)
            for name, default in field.metadata.items():
                inner[name] = inner[name]._replace(default=default)
        elif field.metadata:
            keys[field.name] = field.metadata["key"]
    return keys


def read(spec: type[Spec], config: Mapping, **values: Any) -> Spec:
    """Builds a spec from `values` and, for its other fields, from its part of a checked config."""
    for field in dataclasses.fields(spec):
        if field.name not in values:
            value, is_spec = config[field.name], dataclasses.is_dataclass(field.type)
            parse = functools.partial(read, field.type) if is_spec else field.metadata["key"].parse
            values[field.name] = parse(value)
    return spec(**values)


def names_in(text: str) -> tuple[str, ...]:
    """Returns the names of a comma-separated list."""
    return tuple(part.strip() for part in text.split(","))


def check_value(name: str, rule: KeyRule, value: Any) -> None:
    """Raises ValueError with the name, its value and what is allowed, unless the rule holds."""
    try:
        holds = rule.holds(value)
    except TypeError:
        holds = False
    if not holds:
        raise ValueError(f"{name} must be {rule.allowed}, got {value!r}")


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def whole(low: int, high: float = math.inf) -> KeyRule:
    """Returns the rule for whole numbers in low..high."""
    text = f"of at least {low}" if high == math.inf else f"in {low}..{high}"
    return KeyRule(
        f"a whole number {text}",
        lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high,
    )


def one_of(*names: str) -> KeyRule:
    """Returns the rule for one of some names."""
    return KeyRule("one of " + ", ".join(name or "empty" for name in names), lambda v: v in names)


def some_of(names: tuple[str, ...]) -> KeyRule:
    """Returns the rule for a comma-separated list of some names."""

    def holds(value):
        parts = names_in(value) if isinstance(value, str) else ("",)
        return len(set(parts)) == len(parts) and set(parts) <= set(names)

    return KeyRule(f"different ones of {','.join(names)}, separated by commas", holds)


POSITIVE = KeyRule("a finite number above 0", lambda v: _is_number(v) and v > 0)
NOT_NEGATIVE = KeyRule("a finite number of at least 0", lambda v: _is_number(v) and v >= 0)
FRACTION = KeyRule("a number in [0, 1]", lambda v: _is_number(v) and 0 <= v <= 1)
DECAY = KeyRule("a number in [0, 1)", lambda v: _is_number(v) and 0 <= v < 1)
TEMPERATURES = KeyRule(
    "different finite numbers of at least 0 (greedy), separated by commas",
    lambda v: 0 < len(v) == len(set(v)) and all(_is_number(t) and t >= 0 for t in v),
)
SWITCH = KeyRule("True or False", lambda v: isinstance(v, bool))
TEXT = KeyRule("text", lambda v: isinstance(v, str))
NAME = KeyRule("text that is not empty", lambda v: isinstance(v, str) and v.strip() != "")
DEVICES = KeyRule(
    f"a whole number of at least 1, or {REST} for all devices that the others leave",
    lambda v: v == REST or whole(1).holds(v),
)
