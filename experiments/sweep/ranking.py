"""The ranks that a loss can have by its mean over cells, with all that makes that uncertain."""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from experiments.sweep import comparisons
from experiments.sweep.plan import REFERENCE
from jaxdiv import statistics
from jaxdiv.evaluation.measurement import Key, Measurement, Sums
from jaxdiv.reporting import verdicts
from jaxdiv.schema import UNTRAINED

COLUMNS = (
    "measure", "temperature", "gamma", "rank", "rank_low", "rank_high", "loss", "cells", "value",
    "difference", "difference_low", "difference_high", "p_value", "verdict",
)  # fmt: skip
DRAWS = 20_000


def table(measured: Mapping[str, Measurement]) -> pd.DataFrame:
    """Returns ranks.csv, of every measure."""
    keys = dict.fromkeys(key for cell in measured.values() for _, key in cell.sums)
    rows = [row for key in keys for row in rank(measured, key)]
    return comparisons.frame_of(rows, COLUMNS)


def rank(measured: Mapping[str, Measurement], key: Key) -> list[dict]:
    """Returns a row a loss, the best first: its mean difference to the reference, corrected over
    losses, and its ranks.

    The cells are those of the config and no sample of others: their mean is taken as it is. What
    they share stays paired, since it does not average out over cells: test documents, seeds, and
    with these the order of the data. A loss with a diverged student in a cell has no row; without a
    row of the reference there are no differences.

    Args:
      measured: name of a cell to its measurement.
      key: of the measure.
    """
    cells = [cell for cell in measured.values() if any(key == other for _, other in cell.sums)]
    losses = [
        loss
        for loss in dict.fromkeys(loss for cell in cells for loss in cell.losses)
        if loss != UNTRAINED
        # Some loss of each cell is taken to have students of all seeds.
        and all(len(cell.losses[loss]) == max(map(len, cell.losses.values())) for cell in cells)
    ]
    if not losses:
        return []
    means = {loss: mean(cell.sums[loss, key] for cell in cells) for loss in losses}
    low, high = rank_intervals(*(np.stack(parts) for parts in zip(*means.values(), strict=True)))
    table = [
        {
            "loss": loss,
            "measure": key.measure,
            "temperature": key.temperature,
            "gamma": key.gamma,
            "cells": len(cells),
            "rank_low": low[i],
            "rank_high": high[i],
            "value": float(np.mean(means[loss][0])),
            "verdict": verdicts.REFERENCE if loss == REFERENCE else "",
        }
        for i, loss in enumerate(losses)
    ]
    if REFERENCE in means:
        compared = [row for row in table if row["loss"] != REFERENCE]
        family, (reference, reference_influence) = [], means[REFERENCE]
        for values, influence in (means[row["loss"]] for row in compared):
            values, influence = values - reference, influence - reference_influence
            family.append((statistics.estimate(values, influence), values))
        for row, columns in zip(compared, comparisons.correct(family), strict=True):
            row.update(columns)
    table.sort(key=lambda row: -row["value"])
    return [{"rank": i + 1, **row} for i, row in enumerate(table)]


def mean(parts: Iterable[Sums]) -> tuple[np.ndarray, np.ndarray]:
    """Computes means over cells of each seed's ratio [S] and of the documents' influence [S, K],
    from one loss's sums by cell."""
    ratios = [statistics.ratios(sums.numerator, sums.denominator) for sums in parts]
    return tuple(np.mean(part, axis=0) for part in zip(*ratios, strict=True))


def rank_intervals(
    values: np.ndarray, influence: np.ndarray, *, level: float = 0.95, draws: int = DRAWS
) -> tuple[list[int], list[int]]:
    """Computes the ranks that each of L losses can have, from 1 for the highest.

    A loss ranks behind those that lie above it by more than chance, and before those that lie below
    it by more than chance: its differences to all others, each in units of its own median size, are
    held against one bound, which the largest of them stays within at `level`. Percentiles of ranks
    that are drawn around the means would count the noise twice, and miss the best of losses that
    lie close.

    The noise of all losses' means is drawn at once. Documents move losses together, as measured.
    Seeds are too few to tell which losses they move together: what they do to all alike changes no
    rank, and the rest is independent noise of each loss. Both are Student's t. A lone document or
    seed does not vary.

    Source: Mogstad, Romano, Shaikh and Wilhelm 2024, Inference for Ranks, Review of Economic
      Studies.

    Args:
      values: [L, S], of each seed.
      influence: [L, S, K], of each document, as `statistics.ratios` has it.
      level: confidence.
      draws: how many.

    Returns:
      The least and the greatest rank of each loss, each loss by itself.
    """
    generator, means = np.random.default_rng(0), values.mean(axis=1)
    noise = _document_noise(generator, draws, influence.mean(axis=1))
    noise += _seed_noise(generator, draws, values)
    low, high = [], []
    for value, drawn in zip(means, noise.T, strict=True):
        sizes = np.abs(noise - drawn[:, None])
        units = np.median(sizes, axis=0)
        scaled = np.divide(sizes, units, out=np.zeros_like(sizes), where=units > 0)
        bounds = np.quantile(scaled.max(axis=1), level) * units
        low.append(1 + int(np.sum(means - value > bounds)))
        high.append(len(means) - int(np.sum(value - means > bounds)))
    return low, high


def _document_noise(
    generator: np.random.Generator, draws: int, influence: np.ndarray
) -> np.ndarray:
    """Draws noise [draws, L] of losses' means, which documents move by `influence` [L, K], from a
    joint Student's t."""
    losses, count = influence.shape
    if count == 1:
        return np.zeros((draws, losses))
    normal = generator.normal(size=(draws, count)) @ influence.T * np.sqrt(count / (count - 1))
    return normal / np.sqrt(generator.chisquare(count - 1, size=(draws, 1)) / (count - 1))


def _seed_noise(generator: np.random.Generator, draws: int, values: np.ndarray) -> np.ndarray:
    """Draws noise [draws, L] of losses' means over the seeds of `values` [L, S]: what no seed does
    to all losses alike."""
    losses, count = values.shape
    if count == 1 or losses == 1:
        return np.zeros((draws, losses))
    residuals = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0) + values.mean()
    variance = (residuals**2).sum(axis=1) / (count - 1) * losses / (losses - 1)
    return generator.standard_t(count - 1, size=(draws, losses)) * np.sqrt(variance / count)
