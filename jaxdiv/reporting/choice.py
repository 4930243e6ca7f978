"""The study of which loss to train with: choose.csv, ranks.csv, their tables and pictures."""

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib
import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from jaxdiv import files
from jaxdiv.reporting import choice_pictures, style, table

COLUMNS = (
    "cell", "student", "teacher", "context", "temperature_of_training", "loss", "learning_rate", "measure",
    "temperature", "gamma", "value", "low", "high", "difference", "difference_low", "difference_high", "p_value",
    "verdict", "n",
)  # fmt: skip
RANK_COLUMNS = (
    "measure", "temperature", "gamma", "rank", "rank_low", "rank_high", "loss", "cells", "value", "difference",
    "difference_low", "difference_high", "p_value", "verdict",
)  # fmt: skip
FILE, RANKS = "choose.csv", "ranks.csv"
HEADLINE = ("acceptance", 1.0, math.nan)  # the measure that ranks losses, its temperature and gamma
_OTHERS = {
    "T=0": ("acceptance", 0.0, math.nan),
    "T=0.5": ("acceptance", 0.5, math.nan),
    "T=2": ("acceptance", 2.0, math.nan),
    "τ γ=4 T=1": ("tau", 1.0, 4),
    "τ γ=8 T=1": ("tau", 1.0, 8),
    "τ γ=4 T=0": ("tau", 0.0, 4),
    "τ γ=8 T=0": ("tau", 0.0, 8),
}
_DASH, _REAL = "–", "*"


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a study found.

    Attributes:
      frame: columns `COLUMNS`.
      ranks: columns `RANK_COLUMNS`, of every measure.
      base: the cell from which the others depart, by the columns `choice_pictures.FACTORS`.
      entropies: of the teachers on the documents measured, nats a token.
      part: which part of the study was measured, in words; empty for all of it.
      reference: the loss that differences are to.
    """

    frame: pd.DataFrame
    ranks: pd.DataFrame
    base: Mapping[str, object]
    entropies: Mapping[str, float]
    part: str
    reference: str

    def ranked(self) -> pd.DataFrame:
        """The ranks by the headline measure, the best first."""
        return _at(self.ranks, *HEADLINE)


def make(rows: Iterable[Mapping], ranks: Iterable[Mapping], **others: Any) -> Choice:
    """Of rows that are mappings, where what one leaves out is blank; `others` are `Choice`'s other attributes."""
    frame = pd.DataFrame(list(rows)).reindex(columns=list(COLUMNS))
    ranked = pd.DataFrame(list(ranks)).reindex(columns=list(RANK_COLUMNS))
    number = dict.fromkeys(("temperature", "gamma", "difference", "difference_low", "difference_high"), "float64")
    return Choice(frame.astype(number), ranked.astype(number), **others)


def write(folder: str | os.PathLike, found: Choice) -> None:
    """Writes choose.csv, ranks.csv and the pictures, light and dark, into `folder`."""
    folder = files.path_of(folder)
    for name, frame in ((FILE, found.frame), (RANKS, found.ranks)):
        files.write_text(folder / name, frame.to_csv(index=False, lineterminator="\n"))
    headline = _at(found.frame, *HEADLINE)
    for ending, theme in {"": style.LIGHT, "-dark": style.DARK}.items():
        with matplotlib.rc_context(style.rc(theme)):
            drawn = {
                "differences": choice_pictures.differences(
                    headline, found.ranked(), found.reference, found.base, theme
                ),
                "ranks": choice_pictures.ranks(found.ranked(), found.reference, theme),
            }
            for name, figure in drawn.items():
                with files.replacing(folder / f"{name}{ending}.png") as temporary:
                    temporary.write_bytes(style.png(figure))


def finding(found: Choice) -> str:
    """Which losses can be the best, and which are shown to differ from the reference, in two sentences."""
    ranked = found.ranked()
    first = ranked[ranked["rank_low"].eq(1)]
    names = ", ".join(first["loss"])
    one = len(first) == 1 and first["rank_high"].iloc[0] == 1
    best = f"{names} is first" if one else f"No loss is shown to be the best; {names} can be first"
    real = ranked[ranked["verdict"].eq("real")]
    shown = [
        f"{words} {found.reference}: {', '.join(real.loc[sign * real['difference'] > 0, 'loss']) or 'none'}"
        for words, sign in (("better than", 1), ("worse than", -1))
    ]
    return f"{best}. Shown to be {'; '.join(shown)}."


def notes(found: Choice) -> str:
    """How the tables are to be read."""
    headline = _at(found.frame, *HEADLINE)
    family = int(headline["p_value"].notna().sum())
    entropies = ", ".join(f"{name} {value:.2f}" for name, value in found.entropies.items())
    part = f"This is a part of the study: {found.part}. " if found.part else ""
    return (
        f"{part}Rank, accepted, against {found.reference}: acceptance of sampled drafts on held-out documents at "
        f"temperature 1, mean over the cells. Ranks: 95% intervals, each by itself, over test documents and seeds; "
        f"±: 95%, corrected by Holm over the losses. The other columns are differences of means over the cells, "
        f"acceptance in points. {_REAL}: real by its own column's correction; nothing corrects for looking at several "
        f"columns. In the table of cells, by Holm over all {family} comparisons of losses and cells. "
        f"Teachers' entropy, nats a token: {entropies}."
    )


def rich_tables(found: Choice) -> list[Table]:
    """Ranks, and differences by cell, for a terminal."""
    return [_rich(_of_ranks(found), "Which loss?"), _rich(_of_cells(found), "Differences by cell, points")]


def markdown(found: Choice) -> str:
    """The same in Markdown, with what was found and how to read it."""
    tables = "\n".join(_markdown(rows) for rows in (_of_ranks(found), _of_cells(found)))
    return f"{finding(found)}\n\n{tables}\n{notes(found)}\n"


def _of_ranks(found):
    """Heading, then a row a loss."""
    others = {name: rows.set_index("loss") for name, key in _OTHERS.items() if len(rows := _at(found.ranks, *key))}
    yield ["loss", "rank", "accepted, %", f"against {found.reference}, points", "verdict", *others]
    for row in found.ranked().itertuples():
        yield [
            row.loss,
            ranks(row.rank_low, row.rank_high),
            table.percent(row.value),
            table.points(row.difference, row.difference_low, row.difference_high),
            row.verdict,
            *(_short(other.loc[row.loss]) if row.loss in other.index else _DASH for other in others.values()),
        ]


def _of_cells(found):
    headline = _at(found.frame, *HEADLINE).set_index(["loss", "cell"])
    cells = list(found.frame["cell"].unique())
    yield ["loss", *cells]
    for loss in dict.fromkeys([*found.ranked()["loss"], *headline.index.get_level_values(0)]):
        if loss not in (found.reference, "untrained"):
            yield [loss, *(_short(headline.loc[loss, c]) if (loss, c) in headline.index else _DASH for c in cells)]


def ranks(low: int, high: int) -> str:
    """`1–4`, or `1`."""
    return f"{low:g}" if low == high else f"{low:g}–{high:g}"


def _short(row):
    """A difference, in points where it is one of acceptance."""
    tokens = row["measure"].startswith("tau")
    words = table.points(row["difference"] / (100 if tokens else 1))
    return words + (_REAL if row["verdict"] == "real" else "")


def _at(frame, measure, temperature, gamma):
    same = frame["gamma"].isna() if math.isnan(gamma) else frame["gamma"].eq(gamma)
    return frame[frame["measure"].eq(measure) & frame["temperature"].eq(temperature) & same]


def _rich(rows, title):
    heads, *rows = rows
    made = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    made.title_justify = "left"
    for i, name in enumerate(heads):
        made.add_column(Text(name), justify="right" if i else "left", overflow="fold", min_width=7)
    for row in rows:
        made.add_row(*map(Text, row))
    return made


def _markdown(rows):
    heads, *rows = rows
    return table.in_markdown(heads, ([table.code(loss), *others] for loss, *others in rows), range(1, len(heads)))
