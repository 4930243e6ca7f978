"""The study of which loss to train with: choose.csv, ranks.csv, claims.csv, their tables and
pictures."""

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from experiments.sweep import claims_table, pictures
from jaxdiv import files, schema
from jaxdiv.reporting import formats, style, verdicts

COLUMNS = (
    "cell", *pictures.FACTORS, "loss", "learning_rate", "measure", "temperature", "gamma", "value", "low",
    "high", "difference", "difference_low", "difference_high", "p_value", "verdict", "n",
)  # fmt: skip
RANK_COLUMNS = (
    "measure", "temperature", "gamma", "rank", "rank_low", "rank_high", "loss", "cells", "value", "difference",
    "difference_low", "difference_high", "p_value", "verdict",
)  # fmt: skip
FILES = FILE, RANKS, CLAIMS = "choose.csv", "ranks.csv", "claims.csv"
HEADLINE = (
    "acceptance",
    schema.HEADLINE_TEMPERATURE,
    math.nan,
)  # the measure that ranks losses, its temperature and gamma
_KEY = ["measure", "temperature", "gamma"]
# What tables have a column of beside it, and how that is called.
_OTHERS = {
    "acceptance": "T={temperature:g}",
    "tau": "τ γ={gamma:g} T={temperature:g}",
    "decoded_tau": "decoded τ γ={gamma:g} T={temperature:g}",
}
_DASH, _REAL = "–", "*"


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a study found.

    Attributes:
      frame: columns `COLUMNS`.
      ranks: columns `RANK_COLUMNS`, of every measure.
      claims: columns `claims.COLUMNS`.
      losses: those trained, the first of which the differences are to.
      seeds: of each loss in a cell.
      rates: the learning rates that were tried.
      base: the cell from which the others depart, by the columns `choice_pictures.FACTORS`.
      entropies: of the teachers on the documents measured, nats a token.
      part: which part of the study was measured, in words; empty for all of it.
    """

    frame: pd.DataFrame
    ranks: pd.DataFrame
    claims: pd.DataFrame
    losses: Sequence[str]
    seeds: int
    rates: Sequence[float]
    base: Mapping[str, object]
    entropies: Mapping[str, float]
    part: str

    @property
    def reference(self) -> str:
        return self.losses[0]

    @property
    def sources(self) -> str:
        """What intervals are over."""
        return "test documents and seeds" if self.seeds > 1 else "test documents"

    def ranked(self) -> pd.DataFrame:
        """The ranks by the headline measure, the best first."""
        return _at(self.ranks, *HEADLINE)


def make(
    rows: Iterable[Mapping],
    ranks: Iterable[Mapping],
    claimed: Iterable[Mapping] = (),
    **others: Any,
) -> Choice:
    """Of rows that are mappings, where what one leaves out is blank; `others` are `Choice`'s other
    attributes."""
    frame = pd.DataFrame(list(rows)).reindex(columns=list(COLUMNS))
    ranked = pd.DataFrame(list(ranks)).reindex(columns=list(RANK_COLUMNS))
    number = dict.fromkeys(
        ("temperature", "gamma", "difference", "difference_low", "difference_high"), "float64"
    )
    claimed = pd.DataFrame(list(claimed), columns=list(claims_table.COLUMNS))
    return Choice(frame.astype(number), ranked.astype(number), claimed, **others)


def write(folder: str | os.PathLike, found: Choice) -> None:
    """Writes choose.csv, ranks.csv, claims.csv and, of what there is, the pictures, light and dark,
    into `folder`."""
    folder = files.path_of(folder)
    for name, frame in ((FILE, found.frame), (RANKS, found.ranks), (CLAIMS, found.claims)):
        files.write_text(folder / name, frame.to_csv(index=False, lineterminator="\n"))
    for ending, theme in {"": style.LIGHT, "-dark": style.DARK}.items():
        with matplotlib.rc_context(style.rc(theme)):
            for name, figure in _drawn(found, theme):
                with files.replacing(folder / f"choice_{name}{ending}.png") as temporary:
                    temporary.write_bytes(style.png(figure))


def _drawn(found, theme):
    """(name, picture) of each that has something to show."""
    headline, ranked = _at(found.frame, *HEADLINE), found.ranked()
    if headline["difference"].notna().any():
        yield (
            "differences",
            pictures.differences(headline, ranked, found.reference, found.base, theme),
        )
    if len(ranked):
        yield "ranks", pictures.ranks(ranked, found.reference, found.sources, theme)


def finding(found: Choice) -> str:
    """Which losses can be the best, and which are shown to differ from the reference, in two
    sentences."""
    ranked, few = found.ranked(), found.seeds < verdicts.ENOUGH_SEEDS
    if ranked.empty:
        return "No loss is ranked: each lost students."
    first = ranked[ranked["rank_low"].eq(1)]
    names = ", ".join(first["loss"])
    one = len(first) == 1 and first["rank_high"].iloc[0] == 1
    best = (
        f"{names} is first"
        if one
        else f"{'no' if few else 'No'} loss is shown to be the best; {names} can be first"
    )
    return f"{'Among these students ' * few}{best}. {_against(ranked, found.reference, few)}"


def _against(ranked, reference, few):
    if ranked["difference"].isna().all():
        return f"Nothing was compared with {reference}."
    columns = ["verdict", "difference", "difference_low", "difference_high"]
    sides = ranked[columns].apply(lambda row: verdicts.side(*row), axis=1)
    shown = [
        f"{words} {reference}: {', '.join(ranked.loc[sides.eq(sign), 'loss']) or 'none'}"
        for words, sign in (("better than", 1), ("worse than", -1))
    ]
    return f"{'Among them' if few else 'Shown to be'} {'; '.join(shown)}."


def notes(found: Choice) -> str:
    """How the tables are to be read."""
    headline = _at(found.frame, *HEADLINE)
    family = int(headline["p_value"].notna().sum())
    entropies = ", ".join(f"{name} {value:.2f}" for name, value in found.entropies.items())
    part = f"This is a part of the study: {found.part}. " if found.part else ""
    ranked = set(found.ranked()["loss"])
    lost = ", ".join(loss for loss in found.losses if loss not in ranked)
    return (
        f"{part}{f'Not ranked, as students were lost: {lost}. ' if lost else ''}"
        f"Rank, accepted, against {found.reference}: acceptance of sampled drafts on held-out documents at "
        f"temperature {HEADLINE[1]:g}, mean over the cells. Ranks: 95% intervals, each by itself, over "
        f"{found.sources}; ±: 95%, corrected by Holm over the losses. The other columns are differences of means over "
        f"the cells that were measured so, acceptance in points. {_REAL}: real by its own column's correction; nothing "
        f"corrects for looking at several columns. In the table of cells, by Holm over all {family} comparisons of "
        f"losses and cells. Learning rates at an end of those tried: {_at_ends(found)}. "
        f"Teachers' entropy, nats a token: {entropies}."
    )


def _at_ends(found):
    """(loss, rate) by student; students with the same ones are told together."""
    ends, told = {f"{end:g}" for end in (min(found.rates), max(found.rates))}, {}
    for student, own in found.frame.drop_duplicates(["student", "loss"]).groupby(
        "student", sort=False
    ):
        rates = [
            (loss, f"{rate:g}")
            for loss, rate in zip(own["loss"], own["learning_rate"], strict=True)
        ]
        told.setdefault(
            ", ".join(f"{loss} {rate}" for loss, rate in rates if rate in ends), []
        ).append(student)
    return (
        "; ".join(f"{words} ({', '.join(students)})" for words, students in told.items() if words)
        or "none"
    )


def rich_tables(found: Choice) -> list[Table]:
    """Ranks, differences by cell, and what others report, for a terminal."""
    tables = [
        _rich(_of_ranks(found), "Which loss?"),
        _rich(_of_cells(found), "Differences by cell, points"),
    ]
    if len(found.claims):
        tables.append(
            _rich(
                [claims_table.HEADING, *claims_table.rows(found.claims)],
                "What others report",
                claims_table.NOTE,
            )
        )
    return tables


def markdown(found: Choice) -> str:
    """The same in Markdown, with what was found and how to read it."""
    tables = "\n".join(_markdown(rows) for rows in (_of_ranks(found), _of_cells(found)))
    told = f"{finding(found)}\n\n{tables}\n{notes(found)}\n"
    if len(found.claims):
        told += f"\n{formats.in_markdown(claims_table.HEADING, claims_table.rows(found.claims), (4, 5))}\n{claims_table.NOTE}\n"
    return told


def _of_ranks(found):
    """Heading, then a row a loss."""
    others = _others(found.ranks)
    yield ["loss", "rank", "accepted, %", f"against {found.reference}, points", "verdict", *others]
    for row in found.ranked().itertuples():
        yield [
            row.loss,
            _span(row.rank_low, row.rank_high),
            formats.percent(row.value),
            formats.points(row.difference, row.difference_low, row.difference_high),
            row.verdict,
            *(
                _short(other.loc[row.loss]) if row.loss in other.index else _DASH
                for other in others.values()
            ),
        ]


def _others(ranks):
    """Heading to rows by loss, of every measure that has a column beside the headline's."""
    made = {}
    for (measure, temperature, gamma), rows in ranks.groupby(_KEY, sort=False, dropna=False):
        if measure in _OTHERS and (measure, temperature) != HEADLINE[:2]:
            made[_OTHERS[measure].format(temperature=temperature, gamma=gamma)] = rows.set_index(
                "loss"
            )
    return made


def _of_cells(found):
    headline = _at(found.frame, *HEADLINE).set_index(["loss", "cell"])
    cells = list(found.frame["cell"].unique())
    yield ["loss", *cells]
    for loss in dict.fromkeys([*found.ranked()["loss"], *headline.index.get_level_values(0)]):
        if loss not in (found.reference, schema.UNTRAINED):
            yield [
                loss,
                *(
                    _short(headline.loc[loss, c]) if (loss, c) in headline.index else _DASH
                    for c in cells
                ),
            ]


def _span(low, high):
    """`1–4`, or `1`."""
    return f"{low:g}" if low == high else f"{low:g}–{high:g}"


def _short(row):
    """A difference, in points where it is one of acceptance."""
    words = formats.points(row["difference"] / (1 if row["measure"] == "acceptance" else 100))
    return words + (_REAL if row["verdict"] == "real" else "")


def _at(frame, measure, temperature, gamma):
    same = frame["gamma"].isna() if math.isnan(gamma) else frame["gamma"].eq(gamma)
    return frame[frame["measure"].eq(measure) & frame["temperature"].eq(temperature) & same]


def _rich(rows, title, caption=None):
    heads, *rows = rows
    made = Table(
        title=title, caption=caption, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    made.title_justify = made.caption_justify = "left"
    for i, name in enumerate(heads):
        made.add_column(Text(name), justify="right" if i else "left", overflow="fold", min_width=7)
    for row in rows:
        made.add_row(*map(Text, row))
    return made


def _markdown(rows):
    heads, *rows = rows
    return formats.in_markdown(
        heads, ([formats.code(loss), *others] for loss, *others in rows), range(1, len(heads))
    )
