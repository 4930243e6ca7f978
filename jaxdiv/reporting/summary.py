"""The results summarized once, for tables, headline, pictures and page."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd

from jaxdiv import schema
from jaxdiv.reporting import measures, results, verdicts


class Number(NamedTuple):
    """A value with its 95% interval; NaN where there is none."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan


@dataclasses.dataclass(frozen=True)
class LossRow:
    """One loss in one context."""

    loss: str
    verdict: str  # one of `verdicts`
    numbers: Mapping[str, Number]  # by the name of a column in `measures`
    difference: Number  # acceptance minus the reference's
    by_seed: tuple[float, ...]  # that difference of each seed

    @property
    def side(self) -> int:
        """1 or -1 for a loss shown to be above or below the reference, else 0."""
        return verdicts.side(self.verdict, *self.difference)

    @property
    def special(self) -> bool:
        """True for the reference and for the untrained student."""
        return self.verdict in (verdicts.REFERENCE, verdicts.FLOOR)

    @property
    def compared(self) -> bool:
        return not self.special and not math.isnan(self.difference.value)


@dataclasses.dataclass(frozen=True)
class ContextSummary:
    """All losses in one context, at the measured temperature and gamma nearest to the defaults."""

    context: str
    reference: str | None  # the loss that differences are to
    temperature: float
    gamma: float  # of tokens per target call, which always stem from the teacher's own text
    rows: tuple[LossRow, ...]  # best acceptance first, the untrained student last

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
    """A run's results."""

    frame: pd.DataFrame  # results.csv
    curves: pd.DataFrame  # columns step, loss, seed, metric, value; may be empty
    contexts: Mapping[str, ContextSummary]  # the first is the one that headlines speak of

    @property
    def headline(self) -> ContextSummary:
        return next(iter(self.contexts.values()))

    @functools.cached_property
    def missing(self) -> tuple[str, ...]:
        """Names of the students that were trained and have no result."""
        measured = results.select(self.frame, seed=None, measure=schema.ACCEPTANCE)
        losses, names = results.losses(self.frame), []
        for loss, rows in self.curves.groupby("loss", sort=False):
            seeds = set(measured.loc[measured["loss"].eq(loss), "seed"])
            absent = sorted(set(rows["seed"].astype(str)) - seeds)
            names += [f"{loss}, seed {seed}" for seed in absent] if loss in losses else [loss]
        return tuple(names)


def summarize(frame: pd.DataFrame, curves: pd.DataFrame | None = None) -> Summary:
    """Summarizes results and training curves.

    Raises:
      ValueError: the results have other columns, or no acceptance of all seeds pooled.
    """
    results.check(frame)
    names, reference = results.contexts(frame), results.reference(frame)
    if not names:
        raise ValueError(
            "a report needs at least one row of `acceptance` with seed `all`; measure the run again"
        )
    if curves is None:
        curves = pd.DataFrame(columns=["step", "loss", "seed", "metric", "value"])
    return Summary(frame, curves, {name: _context(frame, name, reference) for name in names})


def _context(frame: pd.DataFrame, context: str, reference: str | None) -> ContextSummary:
    accepted = results.select(frame, measure=schema.ACCEPTANCE, context=context)
    temperature = results.nearest(accepted["temperature"], schema.HEADLINE_TEMPERATURE)
    gammas = results.select(frame, measure=schema.TAU)["gamma"]
    gamma = results.nearest(gammas, schema.HEADLINE_GAMMA)
    accepted = accepted[accepted["temperature"].eq(temperature)]
    accepted = accepted.assign(last=accepted["loss"].eq(schema.UNTRAINED))
    ranked = accepted.sort_values(["last", "value"], ascending=[True, False], kind="stable")
    table = ContextSummary(context, reference, temperature, gamma, ())
    by_loss = dict(list(frame.groupby("loss")))
    rows = tuple(_row(by_loss[loss], loss, table) for loss in ranked["loss"])
    return dataclasses.replace(table, rows=rows)


def _row(frame: pd.DataFrame, loss: str, table: ContextSummary) -> LossRow:
    """Summarizes the results of one loss."""
    at = {"context": table.context, "temperature": table.temperature}
    difference = number(frame, measure=schema.DIFFERENCE, **at)
    by_seed = tuple(results.select(frame, seed=None, measure=schema.DIFFERENCE, **at)["value"])
    if loss == schema.UNTRAINED:
        verdict = verdicts.FLOOR
    elif loss == table.reference:
        verdict = verdicts.REFERENCE
    elif math.isnan(difference.value):
        verdict = verdicts.UNCOMPARED
    else:
        verdict = verdicts.verdict(*difference, by_seed)
    numbers = {}
    for name, column in measures.COLUMNS.items():
        if column.measure in schema.TOKENS_PER_CALL:
            values = {"temperature": column.temperature, "gamma": table.gamma}
        else:
            values = at if column.temperature == measures.RANKED else {"context": table.context}
        numbers[name] = number(frame, measure=column.measure, **values)
    return LossRow(loss, verdict, numbers, difference, by_seed)


def number(frame: pd.DataFrame, **values) -> Number:
    """Returns the first pooled number of the rows whose columns equal `values`."""
    rows = results.select(frame, **values)
    return Number(*rows[["value", "low", "high"]].iloc[0]) if len(rows) else Number()
