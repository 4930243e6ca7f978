"""Papers' claims about losses and training contexts, beside what the sweep's cells show of them:
claims.csv."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import pandas as pd

from experiments.sweep import comparisons, ranking
from experiments.sweep.cells import Cell
from jaxdiv import statistics
from jaxdiv.evaluation.measurement import Key, Measurement, Sums
from jaxdiv.reporting import formats, verdicts
from jaxdiv.reporting.tables import Table
from jaxdiv.schema import ACCEPTANCE, CORPUS, GENERATED, GENERATED_GREEDY, TAU

COLUMNS = (
    "source", "reported", "loss", "than", "trained_on", "measure", "temperature", "gamma", "cells",
    "change", "change_low", "change_high", "p_value", "verdict",
)  # fmt: skip
NOTE = (
    "here: how much more is accepted, or how many more tokens a call, of means over the cells, "
    "with 95% intervals, corrected by Holm over these rows. holds: the interval lies above 0 and "
    "all seeds agree; the opposite: below."
)
_ACCEPTED = Key(CORPUS, ACCEPTANCE, 1.0)
_SAMPLED, _GREEDY = Key(GENERATED, TAU, 1.0, 8), Key(GENERATED_GREEDY, TAU, 0.0, 8)
_LK = "LK losses, 2602.23881"
_LK_SAMPLED = "up to 8–10% more; gpt-oss-120b +7.7%, Llama-3.3-70B +3.6%, 7 drafts"
_LK_GREEDY = "gpt-oss-120b +1.8%, Llama-3.3-70B +0.6%, 7 drafts"
_DISTILLSPEC = "DistillSpec, 2310.08461"
_ON_POLICY = "text of the draft's own is crucial; 10–45% faster than an undistilled draft"
_DISTILLM = "DistiLLM, 2402.03898"
_SKEW = "better than KL and reverse KL, by ROUGE-L"


@dataclasses.dataclass(frozen=True)
class Claim:
    """A paper's claim that a loss, or the text it is trained on, is better than another.

    Attributes:
      source: the paper.
      reported: its evidence.
      loss: of the students that are claimed to be better.
      than: the loss of the others.
      key: the measure by which they are compared here.
      context: training context of the first students, where the others are trained on the corpus;
        None if both are trained on the same, whichever it is.
    """

    source: str
    reported: str
    loss: str
    than: str
    key: Key
    context: str | None = None


CLAIMS = (
    Claim(_LK, _LK_SAMPLED, "nla", "kl", _SAMPLED),
    Claim(_LK, _LK_SAMPLED, "lk_hybrid", "kl", _SAMPLED),
    Claim(_LK, _LK_GREEDY, "nla", "kl", _GREEDY),
    Claim(_LK, _LK_GREEDY, "lk_hybrid", "kl", _GREEDY),
    Claim(_DISTILLSPEC, _ON_POLICY, "kl", "kl", _SAMPLED, context="student"),
    Claim(_DISTILLSPEC, _ON_POLICY, "tv", "tv", _SAMPLED, context="student"),
    Claim(_DISTILLSPEC, "text of the target's helps, too", "kl", "kl", _SAMPLED, context="teacher"),
    Claim(_DISTILLM, _SKEW, "skl", "kl", _ACCEPTED),
    Claim(_DISTILLM, _SKEW, "skl", "rkl", _ACCEPTED),
    Claim(_DISTILLM, _SKEW, "srkl", "kl", _ACCEPTED),
    Claim(_DISTILLM, _SKEW, "srkl", "rkl", _ACCEPTED),
)


def table(measured: Mapping[Cell, Measurement]) -> pd.DataFrame:
    """Returns claims.csv: how much more is accepted, as a fraction, for each claim that the cells
    can test, corrected by Holm over these claims.

    Ratios are of means over the cells, which share documents, seeds and, by teacher, its text.
    """
    seeds = max(
        (seeds for measurement in measured.values() for seeds in measurement.losses.values()),
        key=len,
        default=(),
    )
    rows, family = [], []
    for claim in CLAIMS:
        pairs = [_pair(claim, cell, measured, seeds) for cell in measured]
        if pairs := [pair for pair in pairs if pair is not None]:
            better, other = (ranking.mean(side) for side in zip(*pairs, strict=True))
            logarithm = statistics.estimate(*statistics.log_ratio(*better, *other))
            family.append((logarithm, better[0] - other[0]))
            row = {**vars(claim), **vars(claim.key), "cells": len(pairs)}
            rows.append({**row, "trained_on": claim.context or ""})
    comparisons.add_corrected(rows, family)
    for row in rows:
        for end in ("", "_low", "_high"):
            row[f"change{end}"] = math.expm1(row[f"difference{end}"])
        if row["verdict"] == verdicts.REAL:
            row["verdict"] = "holds" if row["change"] > 0 else "the opposite"
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _pair(
    claim: Claim, cell: Cell, measured: Mapping[Cell, Measurement], seeds: Sequence[int]
) -> tuple[Sums, Sums] | None:
    """Returns the sums of both sides of the claim in a cell; None if one was not measured or has
    not all of `seeds`."""
    other = cell if claim.context is None else dataclasses.replace(cell, context=CORPUS)
    if claim.context not in (None, cell.context) or other not in measured:
        return None
    sides = ((measured[cell], claim.loss), (measured[other], claim.than))
    if any(
        (loss, claim.key) not in measurement.sums or measurement.losses[loss] != seeds
        for measurement, loss in sides
    ):
        return None
    return tuple(measurement.sums[loss, claim.key] for measurement, loss in sides)


def study_table(frame: pd.DataFrame) -> Table:
    """Returns the table of claims.csv."""
    rows = []
    for row in frame.itertuples():
        claim = f"{row.loss} over {row.than}"
        if row.trained_on:
            claim = f"{row.loss} on the {row.trained_on}'s text over {row.than} on the corpus"
        measure = f"accepted T={row.temperature:g}"
        if row.measure == TAU:
            measure = f"τ γ={row.gamma:g} T={row.temperature:g}"
        change, low, high = map(formats.points, (row.change, row.change_low, row.change_high))
        change = f"{change} [{low}, {high}]"
        rows.append(
            [claim, row.source, row.reported, measure, f"{row.cells:g}", change, row.verdict]
        )
    heads = ["claim", "source", "reported", "measured by", "cells", "here, %", "verdict"]
    return Table(heads, rows, "What papers report", NOTE, left=(0, 1, 2, 3, 6), code=False)
