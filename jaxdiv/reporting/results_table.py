"""The table of losses: best first, the untrained floor last, every difference with what it is
worth."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from jaxdiv.reporting import results

TEMPERATURE, GAMMA = 1.0, 4
SUMMARY_COLUMNS = (
    "loss", "temperature", "gamma", "acceptance", "acceptance_low", "acceptance_high", "greedy_draft", "greedy_match",
    "accuracy", "tau", "tau_greedy", "difference", "difference_low", "difference_high", "by_seed", "verdict",
)  # fmt: skip
_DASH = "–"
_CAPTION = "±: 95% interval, for differences corrected by Holm."
_TAU_CAPTION = " τ: tokens a target call, on its own text."
_STYLES = {"real": "bold", "reference": "bold cyan", "floor": "dim"}


def summary(frame: pd.DataFrame, *, context: str) -> pd.DataFrame:
    """One row a loss, best acceptance first, the untrained student last.

    Args:
      frame: results.
      context: where acceptance was measured. Tokens a target call always stem from the teacher's
        own text.

    Returns:
      Columns `SUMMARY_COLUMNS`: fractions, tokens a target call, the per-seed differences as a
        tuple, and a verdict:
      `reference`, `real`, `not shown`, `these students only`, `floor`, or blank where nothing was
      compared. The temperature and gamma are the measured ones nearest to 1 and 4.

    Raises:
      ValueError: no acceptance was measured on `context`.
    """
    if context not in results.contexts(frame):
        raise ValueError(
            f"no acceptance was measured on `{context}`; known: {', '.join(results.contexts(frame))}"
        )
    temperature = headline_temperature(frame, context)
    ranked = results.select(frame, measure="acceptance", context=context, temperature=temperature)
    ranked = ranked.assign(last=ranked["loss"].eq(results.UNTRAINED))
    ranked = ranked.sort_values(["last", "value"], ascending=[True, False], kind="stable")
    own, reference = dict(list(frame.groupby("loss"))), results.reference(frame)
    rows = [_row(own[loss], loss, context, temperature, reference) for loss in ranked["loss"]]
    return pd.DataFrame(rows, columns=list(SUMMARY_COLUMNS))


def headline_temperature(frame: pd.DataFrame, context: str) -> float:
    """The temperature that losses are ranked at: the measured one nearest to 1."""
    measured = results.select(frame, measure="acceptance", context=context)["temperature"]
    return results.nearest(measured, TEMPERATURE)


def rich_table(frame: pd.DataFrame, *, context: str | None = None) -> Table:
    """The summary for a terminal of 100 columns; in percent, differences in points."""
    rows = summary(frame, context=context or results.contexts(frame)[0])
    shown = columns(rows, results.reference(frame))
    caption = _CAPTION + (_TAU_CAPTION if {"tau", "tau_greedy"} & set(shown) else "")
    made = Table(
        title=title(frame, context),
        caption=caption,
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    made.caption_justify = made.title_justify = "left"
    for column in shown.values():
        made.add_column(Text(column.header), **column.options)
    for verdict, *cells in zip(
        rows["verdict"], *(column.cells for column in shown.values()), strict=True
    ):
        made.add_row(*cells, style="dim" if verdict == "floor" else "")
    return made


def markdown(frame: pd.DataFrame, *, context: str | None = None) -> str:
    """The summary as a Markdown table, for a README."""
    rows = summary(frame, context=context or results.contexts(frame)[0])
    _, *others = columns(rows, results.reference(frame)).values()
    heads = ["loss", *(" ".join(column.header.split()) for column in others)]
    right = [i for i, column in enumerate(others, 1) if column.options.get("justify") == "right"]
    made = zip(rows["loss"], *(column.cells for column in others), strict=True)
    return in_markdown(
        heads, ([code(loss), *(cell.plain for cell in cells)] for loss, *cells in made), right
    )


def in_markdown(
    heads: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()
) -> str:
    """Cells as a Markdown table, the columns of numbers `right` set to the right."""
    right = set(right)
    lines = [heads, ["---:" if i in right else "---" for i in range(len(heads))], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of the table: its header, of two lines, a cell for each row, and how rich lays it
    out."""

    header: str
    cells: Sequence[Text]
    options: Mapping[str, object]


def columns(rows: pd.DataFrame, reference: str | None) -> dict[str, Column]:
    """The summary as it is printed; a column of which nothing was measured is left out.

    Only names of losses and lists of seeds may wrap.
    """
    compared = reference if reference and len(reference) <= 12 else "reference"
    gamma = f"τ γ={rows['gamma'].iloc[0]:g}" if rows["gamma"].notna().any() else "τ"
    number, cells = (
        {"justify": "right", "no_wrap": True},
        [_cells(row) for row in rows.itertuples()],
    )
    heads = {
        "loss": ("\nloss", {"overflow": "fold", "min_width": 9}),
        "acceptance": (f"accepted\nT={rows['temperature'].iloc[0]:g}, %", number),
        "greedy_draft": ("greedy\ndraft", number),
        "greedy_match": ("greedy\nmatch", number),
        "accuracy": ("\naccuracy", number),
        "tau": (f"{gamma}\nT=1", number),
        "tau_greedy": (f"{gamma}\nT=0", number),
        "difference": (f"against {compared}\npoints", number),
        "by_seed": ("\nby seed", {"min_width": 5, "justify": "right"}),
        "verdict": ("\nverdict", {"no_wrap": True}),
    }
    made = {
        name: Column(head, [row[name] for row in cells], options)
        for name, (head, options) in heads.items()
    }
    return {
        name: made[name]
        for name in made
        if any(cell.plain not in ("", _DASH) for cell in made[name].cells)
    }


def _cells(row):
    difference = math.nan if row.verdict in ("floor", "reference") else row.difference
    style = _STYLES.get(row.verdict, "")
    if row.verdict == "real":
        style = "bold green" if row.difference > 0 else "bold magenta"
    return {
        "loss": Text(row.loss, style=style),
        "acceptance": Text(percent(row.acceptance, row.acceptance_low, row.acceptance_high)),
        "greedy_draft": Text(percent(row.greedy_draft)),
        "greedy_match": Text(percent(row.greedy_match)),
        "accuracy": Text(percent(row.accuracy)),
        "tau": Text(tokens(row.tau)),
        "tau_greedy": Text(tokens(row.tau_greedy)),
        "difference": Text(points(difference, row.difference_low, row.difference_high)),
        "by_seed": Text("" if math.isnan(difference) else seeds(row.by_seed)),
        "verdict": Text(row.verdict, style=style),
    }


def title(frame: pd.DataFrame, context: str | None = None) -> str:
    """What the table shows, in one line."""
    context = context or results.contexts(frame)[0]
    temperature = headline_temperature(frame, context)
    return f"Acceptance of sampled drafts at temperature {temperature:g}, {describe(context)}"


def describe(context: str) -> str:
    """A context in words."""
    words = {
        "corpus": "on held-out documents",
        "generated": "on the teacher's own text, sampled at temperature 1",
        "generated_greedy": "on the teacher's own text, greedy",
        "images": "on held-out images",
    }
    return words.get(context, f"on {context}")


def side(row) -> int:
    """1 or −1 where a row of the summary lies above or below the reference, in general or of these
    students; else 0."""
    apart = (row.difference_low > 0) - (row.difference_high < 0)
    few = row.verdict == results.FEW_SEEDS and abs(row.difference) > results.ROUNDING
    return int(apart) if few or row.verdict == "real" else 0


def percent(value: float, low: float = math.nan, high: float = math.nan) -> str:
    """`77.0 ±0.6`; the longer half of the interval where it is uneven, nothing where there is
    none."""
    return _number(100 * value, ".1f") + _half(100 * value, 100 * low, 100 * high, ".1f")


def points(value: float, low: float = math.nan, high: float = math.nan) -> str:
    """A difference in percentage points: `+1.21 ±0.19`."""
    return _signed(100 * value, 2) + _half(100 * value, 100 * low, 100 * high, ".2f")


def seeds(by_seed: tuple[float, ...]) -> str:
    """The difference of each seed in points: `+1.21 +1.13 +1.30`."""
    return " ".join(_signed(100 * value, 2) for value in by_seed)


def tokens(value: float) -> str:
    """Tokens a target call: `2.61`."""
    return _number(value, ".2f")


def form(measure: str) -> Callable[[float, float, float], str]:
    """How a measure's value and interval are printed: tokens, points or percent."""
    if measure.startswith("tau") or measure in ("decoded_tau", "speed_up"):
        return lambda value, low, high: tokens(value) + _half(value, low, high, ".2f")
    return points if measure == "difference" else percent


def _row(own, loss, context, temperature, reference):
    """The summary of one loss, of its `own` rows."""
    at = {"context": context, "temperature": temperature}
    calls = results.select(own, measure="tau")
    gamma = results.nearest(calls["gamma"], GAMMA)
    calls = {
        t: calls[calls["temperature"].eq(t) & calls["gamma"].eq(gamma)] for t in (TEMPERATURE, 0.0)
    }
    accepted = _one(results.select(own, measure="acceptance", **at))
    difference = _one(results.select(own, measure="difference", **at))
    by_seed = tuple(results.select(own, measure="difference", seed=None, **at)["value"])
    return {
        "loss": loss,
        "temperature": temperature,
        "gamma": gamma,
        **{f"acceptance{end}": accepted[name] for end, name in _ENDS.items()},
        "greedy_draft": _one(results.select(own, measure="acceptance_greedy_draft", **at))["value"],
        "greedy_match": _one(results.select(own, measure="greedy_match", context=context))["value"],
        "accuracy": _one(results.select(own, measure="accuracy", context=context))["value"],
        "tau": _one(calls[TEMPERATURE])["value"],
        "tau_greedy": _one(calls[0.0])["value"],
        **{f"difference{end}": difference[name] for end, name in _ENDS.items()},
        "by_seed": by_seed,
        "verdict": _verdict(loss, reference, difference, by_seed),
    }


_ENDS = {"": "value", "_low": "low", "_high": "high"}
_NOTHING: Mapping[str, float] = {"value": math.nan, "low": math.nan, "high": math.nan}


def _one(rows):
    return _NOTHING if rows.empty else rows.iloc[0]


def _verdict(loss, reference, difference, by_seed):
    if loss == results.UNTRAINED:
        return "floor"
    if loss == reference:
        return "reference"
    if math.isnan(difference["value"]):
        return ""
    return results.verdict(difference["value"], difference["low"], difference["high"], by_seed)


def _number(value, form):
    return _DASH if math.isnan(value) else format(value, form)


def _signed(value, digits):
    rounded = round(value, digits) + 0.0  # no -0.00
    return _number(rounded, f"+.{digits}f").replace("-", "−")


def _half(value, low, high, form):
    half = max(value - low, high - value)
    return "" if not math.isfinite(half) else f" ±{half:{form}}"


def code(name: str) -> str:
    """A name as code in a table cell; a backtick or bar in it must not end either."""
    safe = name.replace("|", "\\|").replace("\n", " ")
    return f"`` {safe} ``" if "`" in safe else f"`{safe}`"
