"""The ranks that a loss can have by its mean over cells, with all that makes that uncertain."""

import dataclasses
from collections.abc import Collection, Iterable

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


def table(cells: Collection[Measurement]) -> pd.DataFrame:
    """Returns ranks.csv, of every measure."""
    keys = dict.fromkeys(key for cell in cells for _, key in cell.sums)
    return comparisons.frame_of((row for key in keys for row in rank(cells, key)), COLUMNS)


def rank(cells: Iterable[Measurement], key: Key) -> list[dict]:
    """Returns a row a loss, the best first: its mean difference to the reference, corrected over
    losses, and its ranks.

    The cells are those of the config and no sample of others: their mean is taken as it is. What
    they share stays paired, since it does not average out over cells: test documents, seeds, and
    with these the order of the data. A loss with a diverged student in a cell has no row; without a
    row of the reference there are no differences.

    Args:
      cells: measurements of cells.
      key: of the measure.
    """
    cells = [cell for cell in cells if any(key == other for _, other in cell.sums)]
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
    low, high = rank_intervals(*map(np.stack, zip(*means.values(), strict=True)))
    rows = {
        loss: {
            **dataclasses.asdict(key),
            "loss": loss,
            "cells": len(cells),
            "rank_low": low[i],
            "rank_high": high[i],
            "value": float(np.mean(means[loss][0])),
            "verdict": verdicts.REFERENCE if loss == REFERENCE else "",
        }
        for i, loss in enumerate(losses)
    }
    if REFERENCE in means:
        compared, family = [loss for loss in losses if loss != REFERENCE], []
        for loss in compared:
            values, influence = map(np.subtract, means[loss], means[REFERENCE])
            family.append((statistics.estimate(values, influence), values))
        comparisons.add_corrected([rows[loss] for loss in compared], family)
    table = sorted(rows.values(), key=lambda row: -row["value"])
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
    means, noise = values.mean(axis=1), _noise(values, influence.mean(axis=1), draws)
    low, high = [], []
    for value, drawn in zip(means, noise.T, strict=True):
        sizes = np.abs(noise - drawn[:, None])
        units = np.median(sizes, axis=0)
        scaled = np.divide(sizes, units, out=np.zeros_like(sizes), where=units > 0)
        bounds = np.quantile(scaled.max(axis=1), level) * units
        low.append(1 + int(np.sum(means - value > bounds)))
        high.append(len(means) - int(np.sum(value - means > bounds)))
    return low, high


def _noise(values: np.ndarray, influence: np.ndarray, draws: int) -> np.ndarray:
    """Draws noise [draws, L] of losses' means: what documents do by `influence` [L, K], a joint
    Student's t, and what no seed of `values` [L, S] does to all losses alike."""
    generator = np.random.default_rng(0)
    losses, documents = influence.shape
    seeds = values.shape[1]
    noise = np.zeros((draws, losses))
    if documents > 1:
        factor = np.sqrt(documents / (documents - 1))
        normal = generator.normal(size=(draws, documents)) @ influence.T * factor
        df = documents - 1
        noise += normal / np.sqrt(generator.chisquare(df, size=(draws, 1)) / df)
    if seeds > 1 and losses > 1:
        residuals = values - values.mean(axis=1, keepdims=True)
        residuals = residuals - values.mean(axis=0) + values.mean()
        variance = (residuals**2).sum(axis=1) / (seeds - 1) * losses / (losses - 1)
        noise += generator.standard_t(seeds - 1, size=noise.shape) * np.sqrt(variance / seeds)
    return noise
