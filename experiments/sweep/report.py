"""The report of a sweep: choose.csv, ranks.csv, claims.csv, their tables and pictures."""

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any

import pandas as pd

from experiments.common import study_report
from experiments.sweep import claims, pictures
from experiments.sweep.plan import REFERENCE, SweepPlan
from jaxdiv import files
from jaxdiv.reporting import formats, style, verdicts
from jaxdiv.reporting.tables import Table
from jaxdiv.schema import ACCEPTANCE, DECODED_TAU, HEADLINE_TEMPERATURE, TAU, UNTRAINED

FILES = FILE, RANKS, CLAIMS = "choose.csv", "ranks.csv", "claims.csv"
# Measures with a column beside the headline's, and its heading.
_OTHERS = {
    ACCEPTANCE: "T={temperature:g}",
    TAU: "τ γ={gamma:g} T={temperature:g}",
    DECODED_TAU: "decoded τ γ={gamma:g} T={temperature:g}",
}
_REAL = "*"


@dataclasses.dataclass(frozen=True)
class SweepResults:
    """The results of a sweep, or of some of its cells.

    Attributes:
      plan: the sweep.
      frame: choose.csv.
      ranks: ranks.csv.
      claims: claims.csv.
      entropies: of the teachers on the documents measured, nats a token.
    """

    plan: SweepPlan
    frame: pd.DataFrame
    ranks: pd.DataFrame
    claims: pd.DataFrame
    entropies: Mapping[str, float]

    @property
    def seeds(self) -> int:
        return self.plan.config["seeds"]

    @property
    def sources(self) -> str:
        """The sources of noise that intervals cover, in words."""
        return "test documents and seeds" if self.seeds > 1 else "test documents"

    def headline(self) -> pd.DataFrame:
        """Returns the rows of the measure that ranks losses."""
        return _headline(self.frame)

    def ranked(self) -> pd.DataFrame:
        """Returns the ranks by that measure, the best first."""
        return _headline(self.ranks)


def _headline(frame):
    is_headline = frame["measure"].eq(ACCEPTANCE) & frame["temperature"].eq(HEADLINE_TEMPERATURE)
    return frame[is_headline & frame["gamma"].isna()]


def write(folder: str | os.PathLike, results: SweepResults) -> None:
    """Writes choose.csv, ranks.csv, claims.csv and the pictures that have something to show, light
    and dark, to `folder`."""
    headline, ranked, figures = results.headline(), results.ranked(), {}
    if headline["difference"].notna().any():
        figures["choice_differences"] = functools.partial(
            pictures.differences, headline, ranked, results.plan.cells[0].columns()
        )
    if len(ranked):
        figures["choice_ranks"] = functools.partial(pictures.ranks, ranked, results.sources)
    frames = {FILE: results.frame, RANKS: results.ranks, CLAIMS: results.claims}
    themes = {"": style.LIGHT, "-dark": style.DARK}
    study_report.write(files.path_of(folder), frames, figures, themes)


def finding(results: SweepResults) -> str:
    """Returns two sentences: which losses can be the best, and which are shown to differ from the
    reference."""
    ranked, few = results.ranked(), results.seeds < verdicts.ENOUGH_SEEDS
    if ranked.empty:
        return "No loss is ranked: each has students that diverged."
    first = ranked[ranked["rank_low"].eq(1)]
    names = ", ".join(first["loss"])
    best = f"{'no' if few else 'No'} loss is shown to be the best; {names} can be first"
    if len(first) == 1 and first["rank_high"].iloc[0] == 1:
        best = f"{names} is first"
    best = f"{'Among these students ' * few}{best}."
    if ranked["difference"].isna().all():
        return f"{best} Nothing was compared with {REFERENCE}."
    ends = ranked[["verdict", "difference", "difference_low", "difference_high"]]
    sides = pd.Series([verdicts.side(*row) for row in ends.itertuples(index=False)], ranked.index)
    better, worse = (", ".join(ranked.loc[sides.eq(side), "loss"]) or "none" for side in (1, -1))
    return (
        f"{best} {'Among them' if few else 'Shown to be'} better than {REFERENCE}: {better}; "
        f"worse than {REFERENCE}: {worse}."
    )


def notes(results: SweepResults) -> str:
    """Returns how to read the tables."""
    plan, cells = results.plan, results.frame["cell"].nunique()
    counts = [(cells, len(plan.cells), "cells"), (len(plan.losses), plan.offered, "losses")]
    part = ", ".join(f"{some} of {every} {noun}" for some, every, noun in counts if some < every)
    family = int(results.headline()["p_value"].notna().sum())
    entropies = ", ".join(f"{name} {value:.2f}" for name, value in results.entropies.items())
    ranked = set(results.ranked()["loss"])
    unranked = ", ".join(loss for loss in plan.losses if loss not in ranked)
    part = f"This is a part of the study: {part}. " if part else ""
    if unranked:
        part += f"Not ranked, as students diverged: {unranked}. "
    return (
        f"{part}Rank, accepted, against {REFERENCE}: acceptance of sampled drafts on "
        f"held-out documents at temperature {HEADLINE_TEMPERATURE:g}, mean over the cells. Ranks: "
        f"95% intervals, each by itself, over {results.sources}; ±: 95%, corrected by Holm over "
        "the losses. The other columns are differences of means over the cells that were measured "
        f"so, acceptance in points. {_REAL}: real by its own column's correction; nothing corrects "
        f"for looking at several columns. In the table of cells, by Holm over all {family} "
        "comparisons of losses and cells. Learning rates at an end of those tried: "
        f"{_rates_at_ends(results)}. Teachers' entropy, nats a token: {entropies}."
    )


def _rates_at_ends(results: SweepResults) -> str:
    """Lists (loss, rate) by student; students with the same ones share an entry."""
    rates = results.plan.sweep["rates"]
    ends = {f"{rate:g}" for rate in (min(rates), max(rates))}
    students_by_rates = {}
    tuned = results.frame.drop_duplicates(["student", "loss"])
    for student, rows in tuned.groupby("student", sort=False):
        pairs = zip(rows["loss"], map("{:g}".format, rows["learning_rate"]), strict=True)
        words = ", ".join(f"{loss} {rate}" for loss, rate in pairs if rate in ends)
        students_by_rates.setdefault(words, []).append(student)
    entries = [
        f"{words} ({', '.join(students)})" for words, students in students_by_rates.items() if words
    ]
    return "; ".join(entries) or "none"


def tables(results: SweepResults) -> list[Table]:
    """Returns ranks, differences by cell and, if there are any, what papers report."""
    study_tables = [_rank_table(results), _cell_table(results)]
    if len(results.claims):
        study_tables.append(claims.study_table(results.claims))
    return study_tables


def markdown(results: SweepResults) -> str:
    """Returns the tables in Markdown, with the finding and the notes."""
    ranks, by_cell, *reported = (table.markdown() for table in tables(results))
    parts = [f"{finding(results)}\n", ranks, f"{by_cell}\n{notes(results)}\n"]
    return "\n".join(parts + [f"{table}\n{claims.NOTE}\n" for table in reported])


def _rank_table(results: SweepResults) -> Table:
    """Returns a row a loss, with a column for each further measure."""
    others, keys = {}, ["measure", "temperature", "gamma"]
    for key, rows in results.ranks.groupby(keys, sort=False, dropna=False):
        measure, temperature, gamma = key
        if measure in _OTHERS and key[:2] != (ACCEPTANCE, HEADLINE_TEMPERATURE):
            heading = _OTHERS[measure].format(temperature=temperature, gamma=gamma)
            others[heading] = rows.set_index("loss")
    heads = ["loss", "rank", "accepted, %", f"against {REFERENCE}, points", "verdict", *others]
    table = [
        [
            row.loss,
            "–".join(f"{rank:g}" for rank in dict.fromkeys([row.rank_low, row.rank_high])),
            formats.percent(row.value),
            formats.points(row.difference, row.difference_low, row.difference_high),
            row.verdict,
            *(_short_difference(rows, row.loss) for rows in others.values()),
        ]
        for row in results.ranked().itertuples()
    ]
    return Table(heads, table, "Which loss?", fold=dict.fromkeys(range(len(heads)), 7))


def _cell_table(results: SweepResults) -> Table:
    """Returns a row a loss but the reference, with a column for each cell."""
    headline = results.headline().set_index(["loss", "cell"])
    losses = dict.fromkeys([*results.ranked()["loss"], *headline.index.get_level_values(0)])
    cells = list(results.frame["cell"].unique())
    table = [
        [loss, *(_short_difference(headline, (loss, cell)) for cell in cells)]
        for loss in losses
        if loss not in (REFERENCE, UNTRAINED)
    ]
    fold = dict.fromkeys(range(len(cells) + 1), 7)
    return Table(["loss", *cells], table, "Differences by cell, points", fold=fold)


def _short_difference(rows: pd.DataFrame, key: Any) -> str:
    """Returns the difference of the row at `key`, in points for acceptance, marked if real; a dash
    if there is no row."""
    if key not in rows.index:
        return formats.DASH
    row = rows.loc[key]
    scale = 1 if row["measure"] == ACCEPTANCE else 100
    mark = _REAL if row["verdict"] == verdicts.REAL else ""
    return formats.points(row["difference"] / scale) + mark
