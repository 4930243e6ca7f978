"""Values of each cell, loss and measure, with paired differences to the reference: choose.csv."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from experiments.sweep.cells import FACTOR_COLUMNS
from experiments.sweep.plan import REFERENCE
from jaxdiv import statistics
from jaxdiv.evaluation import estimates
from jaxdiv.evaluation.measurement import Key, Measurement
from jaxdiv.reporting import verdicts
from jaxdiv.schema import DIFFERENCE, POOLED, UNTRAINED

COLUMNS = (
    "cell", *FACTOR_COLUMNS, "loss", "learning_rate", "measure", "temperature", "gamma", "value",
    "low", "high", "difference", "difference_low", "difference_high", "p_value", "verdict", "n",
)  # fmt: skip
_NUMBERS = ("temperature", "gamma", "difference", "difference_low", "difference_high")
_VALUES = ("measure", "temperature", "gamma", "value", "low", "high", "n")
# An estimate of a difference, and the difference of each seed.
Difference = tuple[statistics.Estimate, np.ndarray]


def table(
    measured: Mapping[str, Measurement], labels: Mapping[tuple[str, str], Mapping]
) -> pd.DataFrame:
    """Returns choose.csv.

    Differences, p-values and verdicts are corrected by Holm over all losses and cells of one
    measure, temperature and gamma: a reader of that table looks for its best entries.

    Args:
      measured: name of a cell to its measurement.
      labels: (cell, loss) to the columns of their factors and learning rate.
    """
    rows, families = [], {}
    for cell, measurement in measured.items():
        for estimate in estimates.rows([measurement]):
            if estimate["seed"] != POOLED or estimate["measure"] == DIFFERENCE:
                continue
            loss, values = estimate["loss"], {name: estimate[name] for name in _VALUES}
            row = {"cell": cell, **labels[cell, loss], "loss": loss, **values, "verdict": ""}
            rows.append(row)
            if loss in (UNTRAINED, REFERENCE):
                row["verdict"] = verdicts.FLOOR if loss == UNTRAINED else verdicts.REFERENCE
                continue
            name, temperature, gamma = family = tuple(values[name] for name in _VALUES[:3])
            key = Key(estimate["context"], name, temperature, gamma)
            if (difference := _difference(measurement, loss, key)) is not None:
                families.setdefault(family, []).append((row, difference))
    for family in families.values():
        for (row, _), columns in zip(family, correct([pair[1] for pair in family]), strict=True):
            row.update(columns)
    return frame_of(rows, COLUMNS)


def frame_of(rows: Iterable[Mapping], columns: Sequence[str]) -> pd.DataFrame:
    """Returns the frame of rows, blank where a row lacks a column."""
    frame = pd.DataFrame(list(rows)).reindex(columns=list(columns))
    return frame.astype(dict.fromkeys(_NUMBERS, "float64"))


def correct(family: Sequence[Difference]) -> list[dict]:
    """Returns the columns of each difference: its value and interval, p-value and verdict,
    corrected by Holm over the family."""
    p_values = [estimate.p_value for estimate, _ in family]
    corrected = zip(
        family, statistics.holm_levels(p_values), statistics.holm(p_values), strict=True
    )
    table = []
    for (estimate, by_seed), level, p_value in corrected:
        ends = estimate.at_level(level)
        table.append(
            {
                "difference": ends.value,
                "difference_low": ends.low,
                "difference_high": ends.high,
                "p_value": p_value,
                "verdict": verdicts.verdict(ends.value, ends.low, ends.high, by_seed),
            }
        )
    return table


def _difference(measurement: Measurement, loss: str, key: Key) -> Difference | None:
    """Returns the difference to the reference over the seeds that both have; None if there are
    none."""
    pair = (loss, REFERENCE)
    if any((name, key) not in measurement.sums for name in pair):
        return None
    seeds = [measurement.losses[name] for name in pair]
    both = [seed for seed in seeds[0] if seed in seeds[1]]
    if not both:
        return None
    sides, ratios = [], []
    for name, order in zip(pair, seeds, strict=True):
        sums, index = measurement.sums[name, key], [order.index(seed) for seed in both]
        sides += [sums.numerator[index], sums.denominator[index]]
        ratios.append(statistics.ratios(*sides[-2:])[0])
    return statistics.paired_difference(*sides), np.subtract(*ratios)
