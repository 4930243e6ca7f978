"""Values of each cell, loss and measure, with paired differences to the reference: choose.csv."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from experiments.sweep.cells import FACTOR_COLUMNS, Cell
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
# An estimate of a difference, and the difference of each seed.
Difference = tuple[statistics.Estimate, np.ndarray]


def table(
    measured: Mapping[Cell, Measurement], rates: Mapping[tuple[Cell, str], float]
) -> pd.DataFrame:
    """Returns choose.csv.

    Differences, p-values and verdicts are corrected by Holm over all losses and cells of one
    measure, temperature and gamma: a reader of that table looks for its best entries.

    Args:
      measured: measurements of cells.
      rates: (cell, loss) to learning rate.
    """
    rows, families = [], {}
    for cell, measurement in measured.items():
        for estimate in estimates.rows([measurement]):
            if estimate["seed"] != POOLED or estimate["measure"] == DIFFERENCE:
                continue
            loss = estimate["loss"]
            row = {"cell": cell.name, **cell.columns(), **estimate, "verdict": ""}
            row["learning_rate"] = rates.get((cell, loss), math.nan)
            rows.append(row)
            if loss in (UNTRAINED, REFERENCE):
                row["verdict"] = verdicts.FLOOR if loss == UNTRAINED else verdicts.REFERENCE
                continue
            key = Key(*(estimate[field.name] for field in dataclasses.fields(Key)))
            if (difference := _difference(measurement, loss, key)) is not None:
                family = families.setdefault((key.measure, key.temperature, key.gamma), [])
                family.append((row, difference))
    for family in families.values():
        add_corrected(*zip(*family, strict=True))
    return frame_of(rows, COLUMNS)


def frame_of(rows: Iterable[Mapping], columns: Sequence[str]) -> pd.DataFrame:
    """Returns the frame of rows, blank where a row lacks a column."""
    frame = pd.DataFrame(list(rows)).reindex(columns=list(columns))
    return frame.astype(dict.fromkeys(_NUMBERS, "float64"))


def add_corrected(rows: Sequence[dict], family: Sequence[Difference]) -> None:
    """Adds to each row the columns of its difference: value and interval, p-value and verdict,
    corrected by Holm over the family."""
    p_values = [estimate.p_value for estimate, _ in family]
    levels, corrected = statistics.holm_levels(p_values), statistics.holm(p_values)
    for row, (estimate, by_seed), level, p_value in zip(
        rows, family, levels, corrected, strict=True
    ):
        ends = estimate.at_level(level)
        row["difference"], row["p_value"] = ends.value, p_value
        row["difference_low"], row["difference_high"] = ends.low, ends.high
        row["verdict"] = verdicts.verdict(ends.value, ends.low, ends.high, by_seed)


def _difference(measurement: Measurement, loss: str, key: Key) -> Difference | None:
    """Returns the difference to the reference over the seeds that both have; None if there are
    none."""
    pair = (loss, REFERENCE)
    seeds = [measurement.losses.get(name, []) for name in pair]
    both = [seed for seed in seeds[0] if seed in seeds[1]]
    if not both or any((name, key) not in measurement.sums for name in pair):
        return None
    sides, ratios = [], []
    for name, order in zip(pair, seeds, strict=True):
        sums, index = measurement.sums[name, key], [order.index(seed) for seed in both]
        sides += [sums.numerator[index], sums.denominator[index]]
        ratios.append(statistics.ratios(*sides[-2:])[0])
    return statistics.paired_difference(*sides), np.subtract(*ratios)
