"""The cells of a sweep: a base, one factor changed at a time, and those that are named besides."""

import dataclasses
import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxdiv.runs import config_keys
from jaxdiv.runs.config_keys import TRAINING_CONTEXTS

FACTORS = ("student", "teacher", "context", "temperature")
_LEVEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.]*")  # of a folder's name
_POSITIVE_ONES = config_keys.KeyRule(
    "finite numbers above 0, by commas, which differ within six digits",  # which name folders
    lambda v: (
        len(v) > 0
        and all(map(config_keys.POSITIVE.holds, v))
        and len({f"{x:g}" for x in v}) == len(v)
    ),
)
_SCHEMA = {
    "base": config_keys.NAME,
    "extra": config_keys.TEXT,
    "contexts": config_keys.NAME,
    "temperatures": _POSITIVE_ONES,
    "decoded": config_keys.TEXT,
    "rates": _POSITIVE_ONES,
    "tuning_steps": config_keys.whole(1),
}
# What makes a student or a teacher; all cells have the same steps and batches of students, so the
# same tokens.
_CHANGES = {
    "students": ("kind", "exit_layer", *config_keys.DECODER_SIZES),
    "teachers": ("checkpoint", "steps", *config_keys.DECODER_SIZES),
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training of all losses: names of `config.sweep.students` and `teachers`, `data.context`,
    `temperature`."""

    student: str
    teacher: str
    context: str
    temperature: float

    @property
    def name(self) -> str:
        return f"{self.student}-{self.teacher}-{self.context}-T{self.temperature:g}"


def read(sweep: Mapping) -> tuple[Cell, ...]:
    """The cells that `config.sweep` asks for, the base first.

    Raises:
      ValueError: a key is missing, unknown or has a wrong value, or a cell is none of the levels.
    """
    _check(sweep)
    levels = _levels(sweep)
    base = _parse("base", sweep["base"], levels)
    varied = [
        dataclasses.replace(base, **{factor: level})
        for factor in FACTORS
        for level in levels[factor]
    ]
    extra = [_parse("extra", name, levels) for name in _names(sweep["extra"])]
    return tuple(dict.fromkeys([base, *varied, *extra]))


def cut(cells: Sequence[Cell], globs: Iterable[str], flag: str) -> tuple[Cell, ...]:
    """Those of `cells` that a glob matches. Raises ValueError, which names `flag`, for a glob that
    matches none."""
    kept = set()
    for glob in globs:
        found = fnmatch.filter([cell.name for cell in cells], glob.strip())
        if not found:
            raise ValueError(
                f"{flag}: {glob!r} is none of {', '.join(cell.name for cell in cells)}"
            )
        kept |= set(found)
    return tuple(cell for cell in cells if cell.name in kept)


def decoded(sweep: Mapping, cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """The cells that are decoded, too."""
    return cut(cells, _names(sweep["decoded"]), "`config.sweep.decoded`")


def _levels(sweep) -> dict[str, Sequence[Any]]:
    return {
        "student": tuple(sweep["students"]),
        "teacher": tuple(sweep["teachers"]),
        "context": _names(sweep["contexts"]),
        "temperature": tuple(sweep["temperatures"]),
    }


def _names(text):
    return [name.strip() for name in text.split(",") if name.strip()]


def _parse(key, text, levels):
    parts = text.strip().split("-")
    known = {f"T{value:g}": value for value in levels["temperature"]}
    names = [*(levels[factor] for factor in FACTORS[:-1]), known]
    if len(parts) != len(names) or any(
        part not in allowed for part, allowed in zip(parts, names, strict=True)
    ):
        each = "; ".join(
            f"{factor} of {', '.join(own)}" for factor, own in zip(FACTORS, names, strict=True)
        )
        raise ValueError(
            f"`config.sweep.{key}`: {text!r} must be STUDENT-TEACHER-CONTEXT-TEMPERATURE, {each}"
        )
    return Cell(*parts[:-1], known[parts[-1]])


def _check(sweep):
    _check_mapping("config.sweep", sweep, [*_SCHEMA, *_CHANGES])
    for key in sweep:
        if key not in _SCHEMA and key not in _CHANGES:
            raise ValueError(
                f"`config.sweep.{key}` is not a key of a sweep; known: {', '.join([*_SCHEMA, *_CHANGES])}"
            )
    for key in (*_SCHEMA, *_CHANGES):
        if key not in sweep:
            raise ValueError(f"`config.sweep.{key}` is missing; see configs/choose.py")
    for key, rule in _SCHEMA.items():
        config_keys.check_value(f"`config.sweep.{key}`", rule, sweep[key])
    for key, known in _CHANGES.items():
        _check_changes(key, sweep[key], known)
    for name in _names(sweep["contexts"]):
        if name not in TRAINING_CONTEXTS:
            raise ValueError(
                f"`config.sweep.contexts`: {name!r} is none of {', '.join(TRAINING_CONTEXTS)}"
            )


def _check_mapping(name, value, known):
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"`{name}` must say what it is, by {', '.join(known)}; got {value!r}")


def _check_changes(key, changes, known):
    _check_mapping(f"config.sweep.{key}", changes, ["names of your own"])
    for name, own in changes.items():
        if not _LEVEL.fullmatch(name):
            raise ValueError(
                f"`config.sweep.{key}`: the name {name!r} must be of letters, digits, _, later also ."
            )
        _check_mapping(f"config.sweep.{key}.{name}", own, known)
        for changed_key in own:
            if changed_key not in known:
                raise ValueError(
                    f"`config.sweep.{key}.{name}.{changed_key}` can't differ between cells; known: {', '.join(known)}"
                )
