"""Which rank a loss can have: by the mean over cells of its measure, and all that makes that
uncertain."""

from collections.abc import Iterable, Mapping

import numpy as np

from experiments.sweep import comparing
from experiments.sweep.plan import REFERENCE
from jaxdiv import statistics
from jaxdiv.evaluation.measurement import Key, Measurement, Sums
from jaxdiv.schema import UNTRAINED

DRAWS = 20_000


def rows(cells: Mapping[str, Measurement], key: Key) -> list[dict]:
    """A row a loss, the best first: its mean difference to the reference, corrected over losses,
    and its ranks.

    The cells are those of the grid and no sample of others: their mean is taken as it is. What they
      share, test
    documents and seeds, with these the order of the data, stays paired: it does not average out
      over cells. A loss that
    lost a student in a cell has no row; without the reference's there are no differences.

    Args:
      cells: name to what was measured.
      key: of the measure.
    """
    having = [
        measured for measured in cells.values() if any(key == known for _, known in measured.sums)
    ]
    every = dict.fromkeys(
        loss for measured in having for loss in measured.losses if loss != UNTRAINED
    )
    losses = [loss for loss in every if all(_whole(measured, loss) for measured in having)]
    if not losses:
        return []
    found = {loss: mean(measured.sums[loss, key] for measured in having) for loss in losses}
    low, high = rank_intervals(*(np.stack(parts) for parts in zip(*found.values(), strict=True)))
    made = [
        {
            "loss": loss,
            "measure": key.measure,
            "temperature": key.temperature,
            "gamma": key.gamma,
            "cells": len(having),
            "rank_low": low[i],
            "rank_high": high[i],
            "value": float(np.mean(found[loss][0])),
            **_compared(found, loss),
        }
        for i, loss in enumerate(losses)
    ]
    comparing.correct([row for row in made if row["estimate"] is not None])
    made.sort(key=lambda row: -row["value"])
    return [
        {"rank": i + 1, **{k: v for k, v in row.items() if k not in ("estimate", "by_seed")}}
        for i, row in enumerate(made)
    ]


def rank_intervals(
    values: np.ndarray, influence: np.ndarray, *, level: float = 0.95, draws: int = DRAWS
) -> tuple[list[int], list[int]]:
    """Which ranks [L] each of L losses can have, from 1 for the highest: least and greatest, each
    loss by itself.

    A loss ranks behind those that lie above it by more than chance, and before those that lie below
      it so: of its
    differences to all others, each in units of its own median size, the largest stays within one
    bound at `level`. Percentiles of ranks that are drawn around the means would count the noise
    twice, and miss the best of losses that lie close.

    The noise of all losses' means is drawn at once. Documents move them together, as they were seen
    to. Seeds are too few to tell which losses they move together: what they do to all alike moves
    none past another, and the rest is noise of each loss's own. Both are Student's t. A lone
    document or seed does not vary.

    Source: Mogstad, Romano, Shaikh and Wilhelm 2024, Inference for Ranks, Review of Economic
      Studies.

    Args:
      values: [L, S], of each seed.
      influence: [L, S, K], of each document, as `statistics.ratios` has it.
      level: confidence.
      draws: how many.
    """
    draw, means = np.random.default_rng(0), values.mean(axis=1)
    noise = _of_documents(draw, draws, influence.mean(axis=1)) + _of_seeds(draw, draws, values)
    low, high = [], []
    for mean, own in zip(means, noise.T, strict=True):
        reach = _reach(np.abs(noise - own[:, None]), level)
        low.append(1 + int(np.sum(means - mean > reach)))
        high.append(len(means) - int(np.sum(mean - means > reach)))
    return low, high


def _reach(sizes, level):
    """[L], which all of one loss's differences to the others, of `sizes` [draws, L], stay within
    together."""
    units = np.median(sizes, axis=0)
    scaled = np.divide(sizes, units, out=np.zeros_like(sizes), where=units > 0)
    return np.quantile(scaled.max(axis=1), level) * units


def _of_documents(draw, draws, influence):
    """Noise [draws, L] of losses' means, which documents move by `influence` [L, K]: a joint
    Student's t."""
    losses, count = influence.shape
    if count == 1:
        return np.zeros((draws, losses))
    normal = draw.normal(size=(draws, count)) @ influence.T * np.sqrt(count / (count - 1))
    return normal / np.sqrt(draw.chisquare(count - 1, size=(draws, 1)) / (count - 1))


def _of_seeds(draw, draws, values):
    """Noise [draws, L] of losses' means over seeds, of [L, S]: what no seed does to all losses
    alike."""
    losses, count = values.shape
    if count == 1 or losses == 1:
        return np.zeros((draws, losses))
    own = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0) + values.mean()
    variance = (own**2).sum(axis=1) / (count - 1) * losses / (losses - 1)
    return draw.standard_t(count - 1, size=(draws, losses)) * np.sqrt(variance / count)


def mean(parts: Iterable[Sums]) -> tuple[np.ndarray, np.ndarray]:
    """Means over cells of each seed's ratio [S] and of the documents' influence [S, K], of one
    loss's sums by cell."""
    ratios = [statistics.ratios(sums.numerator, sums.denominator) for sums in parts]
    return tuple(np.mean(part, axis=0) for part in zip(*ratios, strict=True))


def _whole(measured, loss):
    """Whether no student of `loss` is lost, where any loss has one of each seed."""
    return len(measured.losses[loss]) == max(map(len, measured.losses.values()))


def _compared(found, loss):
    if loss == REFERENCE or REFERENCE not in found:
        return {
            "estimate": None,
            "by_seed": (),
            "verdict": "reference" if loss == REFERENCE else "",
        }
    values, influence = (
        ours - theirs for ours, theirs in zip(found[loss], found[REFERENCE], strict=True)
    )
    return {"estimate": statistics.estimate(values, influence), "by_seed": values}
