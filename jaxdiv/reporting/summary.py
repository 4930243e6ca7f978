"""The results summarized once, for the tables, the headline, the pictures and the page."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd

from jaxdiv import schema
from jaxdiv.reporting import measures, results, verdicts
from jaxdiv.reporting.measures import Column


class Number(NamedTuple):
    """A value with its 95% interval; NaN where there is none."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan


@dataclasses.dataclass(frozen=True)
class LossRow:
    """One loss in one context.

    Attributes:
      loss: its name.
      verdict: one of `verdicts`.
      numbers: a number for each column of `measures`, by the column's name.
      difference: acceptance minus the reference's.
      by_seed: that difference of each seed.
    """

    loss: str
    verdict: str
    numbers: Mapping[str, Number]
    difference: Number
    by_seed: tuple[float, ...]

    @property
    def side(self) -> int:
        """1 or -1 for a loss shown to be above or below the reference, else 0."""
        return verdicts.side(self.verdict, *self.difference)

    @property
    def compared(self) -> bool:
        """True where the difference is more than the reference's or the floor's own."""
        special = self.verdict in (verdicts.REFERENCE, verdicts.FLOOR)
        return not special and not math.isnan(self.difference.value)


@dataclasses.dataclass(frozen=True)
class ContextSummary:
    """All losses in one context.

    Attributes:
      context: its name.
      reference: the loss that differences are to, None without one.
      temperature, gamma: the measured ones nearest to the headline's; losses are ranked at this
        temperature. Tokens a target call always stem from the teacher's own text.
      rows: best acceptance first, the untrained student last.
    """

    context: str
    reference: str | None
    temperature: float
    gamma: float
    rows: tuple[LossRow, ...]

    @property
    def trained(self) -> tuple[LossRow, ...]:
        return tuple(row for row in self.rows if row.verdict != verdicts.FLOOR)

    @property
    def phrase(self) -> str:
        """The context in words, such as `on held-out images`."""
        return measures.context_phrase(self.context)

    @property
    def title(self) -> str:
        return f"Acceptance of sampled drafts at temperature {self.temperature:g}, {self.phrase}"


@dataclasses.dataclass(frozen=True)
class Summary:
    """A run's results.

    Attributes:
      frame: all of results.csv.
      curves: training curves, columns step, loss, seed, metric, value; may be empty.
      contexts: by name; the first is the one that headlines speak of.
    """

    frame: pd.DataFrame
    curves: pd.DataFrame
    contexts: Mapping[str, ContextSummary]

    @property
    def headline(self) -> ContextSummary:
        return next(iter(self.contexts.values()))

    @property
    def reference(self) -> str | None:
        return self.headline.reference

    @functools.cached_property
    def missing(self) -> tuple[str, ...]:
        """Names of the students that were trained and have no result."""
        measured = results.select(self.frame, seed=None, measure=schema.ACCEPTANCE)
        trained, names = results.losses(self.frame), []
        for loss, rows in self.curves.groupby("loss", sort=False):
            seeds = set(measured.loc[measured["loss"].eq(loss), "seed"])
            absent = sorted(set(rows["seed"].astype(str)) - seeds)
            names += [f"{loss}, seed {seed}" for seed in absent] if loss in trained else [loss]
        return tuple(names)


def summarize(frame: pd.DataFrame, curves: pd.DataFrame | None = None) -> Summary:
    """Summarizes results.

    Args:
      frame: columns `schema.COLUMNS`.
      curves: training curves, if there are any.

    Raises:
      ValueError: the results have other columns, or no acceptance of all seeds pooled.
    """
    results.check(frame)
    names = results.contexts(frame)
    if not names:
        raise ValueError(
            "a report needs at least one row of `acceptance` with seed `all`; measure the run again"
        )
    if curves is None:
        curves = pd.DataFrame(columns=["step", "loss", "seed", "metric", "value"])
    reference = results.reference(frame)
    return Summary(frame, curves, {name: _context(frame, name, reference) for name in names})


def _context(frame: pd.DataFrame, context: str, reference: str | None) -> ContextSummary:
    accepted = results.select(frame, measure=schema.ACCEPTANCE, context=context)
    temperature = results.nearest(accepted["temperature"], schema.HEADLINE_TEMPERATURE)
    gammas = results.select(frame, measure=schema.TAU)["gamma"]
    gamma = results.nearest(gammas, schema.HEADLINE_GAMMA)
    accepted = accepted[accepted["temperature"].eq(temperature)]
    accepted = accepted.assign(last=accepted["loss"].eq(schema.UNTRAINED))
    ranked = accepted.sort_values(["last", "value"], ascending=[True, False], kind="stable")
    summary = ContextSummary(context, reference, temperature, gamma, ())
    by_loss = dict(list(frame.groupby("loss")))
    rows = tuple(_row(by_loss[loss], loss, summary) for loss in ranked["loss"])
    return dataclasses.replace(summary, rows=rows)


def _row(rows: pd.DataFrame, loss: str, summary: ContextSummary) -> LossRow:
    at = {"context": summary.context, "temperature": summary.temperature}
    difference = number(rows, measure=schema.DIFFERENCE, **at)
    by_seed = tuple(results.select(rows, seed=None, measure=schema.DIFFERENCE, **at)["value"])
    numbers = {
        name: number(rows, measure=measure, **_place(measure, column, summary))
        for measure, entry in measures.MEASURES.items()
        for name, column in entry.columns.items()
    }
    return LossRow(loss, _verdict(loss, summary, difference, by_seed), numbers, difference, by_seed)


def _place(measure: str, column: Column, summary: ContextSummary) -> Mapping[str, object]:
    """Returns the columns of results.csv that pick the number of a table's column."""
    if measure in schema.TOKENS_PER_CALL:
        return {"temperature": column.temperature, "gamma": summary.gamma}
    if column.temperature == measures.ANY:
        return {"context": summary.context}
    ranked = column.temperature == measures.RANKED
    temperature = summary.temperature if ranked else column.temperature
    return {"context": summary.context, "temperature": temperature}


def _verdict(loss, summary, difference, by_seed):
    if loss == schema.UNTRAINED:
        return verdicts.FLOOR
    if loss == summary.reference:
        return verdicts.REFERENCE
    if math.isnan(difference.value):
        return verdicts.UNCOMPARED
    return verdicts.verdict(*difference, by_seed)


def number(frame: pd.DataFrame, **values) -> Number:
    """Returns the first pooled number of the rows whose columns equal `values`."""
    rows = results.select(frame, **values)
    return Number(*rows[["value", "low", "high"]].iloc[0]) if len(rows) else Number()
