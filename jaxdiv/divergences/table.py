"""The registry as a Markdown table for the docs: python -m jaxdiv.divergences.table"""

from jaxdiv.divergences.entry import Entry
from jaxdiv.divergences.registry import ENTRIES

_HEADINGS = ("text", "function", "formula", "range", "symmetric", "T factor", "source")
_FACTORS = {0: "1", 1: "T", 2: "T²"}


def markdown() -> str:
    """Returns one row a loss, in the registry's order, with parameters at their defaults."""
    lines = [_line(_HEADINGS), _line("---" for _ in _HEADINGS)]
    return "\n".join([*lines, *(_line(_cells(name, entry)) for name, entry in ENTRIES.items())])


def _cells(name: str, entry: Entry):
    parameters = ", ".join(f"{key}={value:g}" for key, value in entry.defaults.items())
    text = entry.aliases[0] if entry.aliases else name
    powers = entry.parts[1] if entry.parts else (entry.temperature_power,)
    factors = " and ".join(_FACTORS[power] for power in powers)
    text = f"`{text}({parameters})`" if parameters else f"`{text}`"
    return text, f"`{name}`", entry.formula, entry.range, entry.symmetric, factors, entry.source


def _line(cells):
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print(markdown())
