"""The cells of a sweep: a base, one factor changed at a time, and cells that are named besides."""

import dataclasses
import fnmatch
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from jaxdiv.runs import config_keys

FACTORS = ("student", "teacher", "context", "temperature")
FACTOR_COLUMNS = ("student", "teacher", "training_context", "temperature_of_training")
_LEVEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.]*")  # may be part of a folder's name
_NUMBERS = config_keys.KeyRule(
    # Six digits of them name folders.
    "finite numbers above 0, separated by commas, which differ within six digits",
    lambda v: (
        len(v) > 0
        and all(map(config_keys.POSITIVE.holds, v))
        and len({f"{x:g}" for x in v}) == len(v)
    ),
)
_RULES = {
    "base": config_keys.NAME,
    "extra": config_keys.TEXT,
    "contexts": config_keys.NAME,
    "temperatures": _NUMBERS,
    "decoded": config_keys.TEXT,
    "rates": _NUMBERS,
    "tuning_steps": config_keys.whole(1),
}
# Keys of `config.student` and `config.teacher` that may differ. Students' steps and batches don't,
# so that all students are trained on the same tokens.
_MAY_DIFFER = {
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

    def columns(self) -> dict[str, Any]:
        """Returns the factors by their columns in choose.csv."""
        return dict(zip(FACTOR_COLUMNS, dataclasses.astuple(self), strict=True))


def read(sweep: Mapping) -> tuple[Cell, ...]:
    """Returns the cells that `config.sweep` asks for, the base first.

    Raises:
      ValueError: a key is missing, unknown or has a wrong value, or a cell has an unknown level.
    """
    _check(sweep)
    levels = {
        "student": tuple(sweep["students"]),
        "teacher": tuple(sweep["teachers"]),
        "context": names(sweep["contexts"]),
        "temperature": {f"T{value:g}": value for value in sweep["temperatures"]},
    }
    base = _parse("base", sweep["base"], levels)
    varied = [
        dataclasses.replace(base, **{factor: level})
        for factor in FACTORS
        for level in (levels[factor].values() if factor == "temperature" else levels[factor])
    ]
    extra = [_parse("extra", name, levels) for name in names(sweep["extra"])]
    return tuple(dict.fromkeys([base, *varied, *extra]))


def select(cells: Sequence[Cell], globs: Iterable[str], flag: str) -> tuple[Cell, ...]:
    """Returns the cells that a glob matches. Raises ValueError, which names `flag`, for a glob that
    matches none."""
    by_name, selected = {cell.name: cell for cell in cells}, set()
    for glob in globs:
        matching = fnmatch.filter(by_name, glob.strip())
        if not matching:
            raise ValueError(f"{flag}: {glob!r} is none of {', '.join(by_name)}")
        selected |= set(matching)
    return tuple(cell for name, cell in by_name.items() if name in selected)


def names(text: str) -> list[str]:
    """Returns the names of a list separated by commas, which may be empty."""
    return [name for name in config_keys.names_in(text) if name]


def _parse(key: str, text: str, levels: Mapping[str, Collection[str]]) -> Cell:
    parts = text.strip().split("-")
    if len(parts) != len(FACTORS) or any(
        part not in levels[factor] for part, factor in zip(parts, FACTORS, strict=True)
    ):
        choices = "; ".join(f"{factor} of {', '.join(levels[factor])}" for factor in FACTORS)
        raise ValueError(
            f"`config.sweep.{key}`: {text!r} must be STUDENT-TEACHER-CONTEXT-TEMPERATURE, {choices}"
        )
    return Cell(*parts[:-1], levels["temperature"][parts[-1]])


def _check(sweep: Any) -> None:
    keys = (*_RULES, *_MAY_DIFFER)
    _check_keys("config.sweep", sweep, keys, "is not a key of a sweep")
    for key in keys:
        if key not in sweep:
            raise ValueError(f"`config.sweep.{key}` is missing; see configs/choose.py")
    for key, rule in _RULES.items():
        config_keys.check_value(f"`config.sweep.{key}`", rule, sweep[key])
    for key, allowed in _MAY_DIFFER.items():
        prefix = f"config.sweep.{key}"
        _check_keys(prefix, sweep[key])
        for name, changes in sweep[key].items():
            if not _LEVEL.fullmatch(name):
                raise ValueError(
                    f"`{prefix}`: the name {name!r} must be of letters, digits, _, later also ."
                )
            _check_keys(f"{prefix}.{name}", changes, allowed, "can't differ between cells")
    for name in names(sweep["contexts"]):
        if name not in config_keys.TRAINING_CONTEXTS:
            contexts = ", ".join(config_keys.TRAINING_CONTEXTS)
            raise ValueError(f"`config.sweep.contexts`: {name!r} is none of {contexts}")


def _check_keys(name: str, value: Any, allowed: Sequence[str] = (), fault: str = "") -> None:
    """Raises ValueError unless `value` is a mapping with some keys, all of them `allowed` if that
    is not empty."""
    if not isinstance(value, Mapping) or not value:
        keys = ", ".join(allowed) or "names of your own"
        raise ValueError(f"`{name}` must say what it is, by {keys}; got {value!r}")
    for key in value:
        if allowed and key not in allowed:
            raise ValueError(f"`{name}.{key}` {fault}; known: {', '.join(allowed)}")
