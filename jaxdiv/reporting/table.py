"""The table of losses: best first, the untrained floor last, every difference with what it is worth."""

import math
from collections.abc import Callable, Mapping

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from jaxdiv.reporting import results

TEMPERATURE, GAMMA = 1.0, 4
SUMMARY_COLUMNS = (
    "loss", "temperature", "gamma", "acceptance", "acceptance_low", "acceptance_high", "greedy_draft", "greedy_match",
    "tau", "tau_greedy", "difference", "difference_low", "difference_high", "by_seed", "verdict",
)  # fmt: skip
_DASH = "–"
_CAPTION = "±: 95% interval, for differences corrected by Holm. τ: tokens a target call, on its own text."
_STYLES = {"real": "bold", "reference": "bold cyan", "floor": "dim"}


def summary(frame: pd.DataFrame, *, context: str) -> pd.DataFrame:
    """One row a loss, best acceptance first, the untrained student last.

    Args:
      frame: results.
      context: where acceptance was measured. Tokens a target call always stem from the teacher's own text.

    Returns:
      Columns `SUMMARY_COLUMNS`: fractions, tokens a target call, the per-seed differences as a tuple, and a verdict:
      `reference`, `real`, `not shown`, `these students only`, `floor`, or blank where nothing was compared. The
      temperature and gamma are the measured ones nearest to 1 and 4.

    Raises:
      ValueError: no acceptance was measured on `context`.
    """
    if context not in results.contexts(frame):
        raise ValueError(f"no acceptance was measured on `{context}`; known: {', '.join(results.contexts(frame))}")
    temperature = headline_temperature(frame, context)
    ranked = results.select(frame, measure="acceptance", context=context, temperature=temperature)
    ranked = ranked.assign(last=ranked["loss"].eq(results.UNTRAINED))
    ranked = ranked.sort_values(["last", "value"], ascending=[True, False], kind="stable")
    rows = [_row(frame, loss, context, temperature) for loss in ranked["loss"]]
    return pd.DataFrame(rows, columns=list(SUMMARY_COLUMNS))


def headline_temperature(frame: pd.DataFrame, context: str) -> float:
    """The temperature that losses are ranked at: the measured one nearest to 1."""
    measured = results.select(frame, measure="acceptance", context=context)["temperature"]
    return results.nearest(measured, TEMPERATURE)


def rich_table(frame: pd.DataFrame, *, context: str | None = None) -> Table:
    """The summary for a terminal of 100 columns; in percent, differences in points."""
    rows = summary(frame, context=context or results.contexts(frame)[0])
    made = Table(
        title=title(frame, context), caption=_CAPTION, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    made.caption_justify = made.title_justify = "left"
    for name, options in headers(rows, results.reference(frame)).items():
        made.add_column(Text(name), **options)
    for row in rows.itertuples():
        style = "dim" if row.verdict == "floor" else ""
        made.add_row(*cells(row), style=style)
    return made


def markdown(frame: pd.DataFrame, *, context: str | None = None) -> str:
    """The summary as a Markdown table, for a README."""
    rows = summary(frame, context=context or results.contexts(frame)[0])
    names = [" ".join(name.split()) for name in headers(rows, results.reference(frame))]
    lines = [names, ["---", *["---:"] * (len(names) - 2), "---"]]
    for row in rows.itertuples():
        lines.append([_code(row.loss), *(cell.plain for cell in cells(row)[1:])])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def headers(rows: pd.DataFrame, reference: str | None) -> dict[str, dict]:
    """Headers with the options of their column; only names of losses and lists of seeds may wrap."""
    compared = reference if reference and len(reference) <= 12 else "reference"
    gamma = f"τ γ={rows['gamma'].iloc[0]:g}" if rows["gamma"].notna().any() else "τ"
    number = {"justify": "right", "no_wrap": True}
    return {
        "\nloss": {"overflow": "fold", "min_width": 9},
        f"accepted\nT={rows['temperature'].iloc[0]:g}, %": number,
        "greedy\ndraft": number,
        "greedy\nmatch": number,
        f"{gamma}\nT=1": number,
        f"{gamma}\nT=0": number,
        f"against {compared}\npoints": number,
        "\nby seed": {"min_width": 5},
        "\nverdict": {"no_wrap": True},
    }


def cells(row) -> list[Text]:
    """A row of the summary as it is printed, a cell for each of `headers`."""
    difference = math.nan if row.verdict in ("floor", "reference") else row.difference
    style = _STYLES.get(row.verdict, "")
    if row.verdict == "real":
        style = "bold green" if row.difference > 0 else "bold magenta"
    return [
        Text(row.loss, style=style),
        Text(percent(row.acceptance, row.acceptance_low, row.acceptance_high)),
        Text(percent(row.greedy_draft)),
        Text(percent(row.greedy_match)),
        Text(tokens(row.tau)),
        Text(tokens(row.tau_greedy)),
        Text(points(difference, row.difference_low, row.difference_high)),
        Text("" if math.isnan(difference) else seeds(row.by_seed)),
        Text(row.verdict, style=style),
    ]


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


def percent(value: float, low: float = math.nan, high: float = math.nan) -> str:
    """`77.0 ±0.6`; the longer half of the interval where it is uneven, nothing where there is none."""
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


def _row(frame, loss, context, temperature):
    at = {"context": context, "temperature": temperature}
    own = results.select(frame, loss=loss, measure="tau")
    gamma = results.nearest(own["gamma"], GAMMA)
    calls = {t: own[own["temperature"].eq(t) & own["gamma"].eq(gamma)] for t in (TEMPERATURE, 0.0)}
    accepted = _one(results.select(frame, loss=loss, measure="acceptance", **at))
    difference = _one(results.select(frame, loss=loss, measure="difference", **at))
    by_seed = tuple(results.select(frame, loss=loss, measure="difference", seed=None, **at)["value"])
    return {
        "loss": loss,
        "temperature": temperature,
        "gamma": gamma,
        **{f"acceptance{end}": accepted[name] for end, name in _ENDS.items()},
        "greedy_draft": _one(results.select(frame, loss=loss, measure="acceptance_greedy_draft", **at))["value"],
        "greedy_match": _one(results.select(frame, loss=loss, measure="greedy_match", context=context))["value"],
        "tau": _one(calls[TEMPERATURE])["value"],
        "tau_greedy": _one(calls[0.0])["value"],
        **{f"difference{end}": difference[name] for end, name in _ENDS.items()},
        "by_seed": by_seed,
        "verdict": _verdict(frame, loss, difference, by_seed),
    }


_ENDS = {"": "value", "_low": "low", "_high": "high"}
_NOTHING: Mapping[str, float] = {"value": math.nan, "low": math.nan, "high": math.nan}


def _one(rows):
    return _NOTHING if rows.empty else rows.iloc[0]


def _verdict(frame, loss, difference, by_seed):
    if loss == results.UNTRAINED:
        return "floor"
    if loss == results.reference(frame):
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


def _code(name):
    """A name as code in a table cell; a backtick or bar in it must not end either."""
    safe = name.replace("|", "\\|").replace("\n", " ")
    return f"`` {safe} ``" if "`" in safe else f"`{safe}`"
