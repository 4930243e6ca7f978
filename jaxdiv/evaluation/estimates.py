"""Results from sums over documents: each seed's estimate, the pooled one, and differences."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jaxdiv import acceptance, schema, statistics
from jaxdiv.evaluation.measurement import Key, Measurement
from jaxdiv.schema import POOLED, UNTRAINED
from jaxdiv.statistics import Estimate


@dataclasses.dataclass(frozen=True)
class _Group:
    """One loss's students in all runs, for one key.

    Attributes:
      numerator, denominator: [S, K], as in `Sums`.
      seeds, runs: [S], each student's seed and the index of its run.
      tokens: the number of tokens measured in each run.
    """

    numerator: Float[np.ndarray, "S K"]
    denominator: Float[np.ndarray, "S K"]
    seeds: Int[np.ndarray, " S"]
    runs: Int[np.ndarray, " S"]
    tokens: Mapping[int, int]

    def take(self, index: np.ndarray | list[int]) -> "_Group":
        arrays = (self.numerator, self.denominator, self.seeds, self.runs)
        return _Group(*(array[index] for array in arrays), self.tokens)

    def by_seed(self) -> Iterator[tuple[int, "_Group"]]:
        for seed in np.unique(self.seeds):
            yield int(seed), self.take(self.seeds == seed)

    def students(self) -> list[tuple[int, int]]:
        return list(zip(self.runs.tolist(), self.seeds.tolist(), strict=True))

    def count(self) -> int:
        return sum(self.tokens[run] for run in np.unique(self.runs))


def rows(runs: Sequence[Measurement]) -> list[Mapping]:
    """Returns the rows of results.csv for one run, or for several pooled.

    A seed's row pools the runs that have that seed. The pooled rows' intervals cover documents and,
    crossed with them, seeds, or runs if there are several. Differences are to `ce`, or else the
    first loss, by students of the same run and seed on the same documents; the pooled ones'
    intervals are Holm-corrected over the losses compared in that context at that temperature.

    Raises:
      ValueError: the runs were measured on different documents.
    """
    results = []
    losses = dict.fromkeys(loss for run in runs for loss in run.losses)
    for key in dict.fromkeys(key for run in runs for _, key in run.sums):
        # A loss that some runs lack would be compared with averages over other students.
        groups = {
            loss: _group(runs, loss, key)
            for loss in losses
            if all((loss, key) in run.sums for run in runs)
        }
        for loss, group in groups.items():
            for seed, part in (*group.by_seed(), (POOLED, group)):
                results.append(_row(loss, key, seed, _ratio(key, part), part.count()))
        if key.measure == schema.ACCEPTANCE:
            results += _differences(key, groups)
    return results


def _group(runs: Sequence[Measurement], loss: str, key: Key) -> _Group:
    sums = [run.sums[loss, key] for run in runs]
    if len({s.numerator.shape[1] for s in sums}) > 1:
        raise ValueError(
            "runs measured on different documents can't be pooled; measure each by itself"
        )
    seeds = [(i, seed) for i, run in enumerate(runs) for seed in run.losses[loss]]
    return _Group(
        numerator=np.concatenate([s.numerator for s in sums]),
        denominator=np.concatenate([s.denominator for s in sums]),
        seeds=np.array([seed for _, seed in seeds]),
        runs=np.array([i for i, _ in seeds]),
        tokens={i: int(s.tokens.sum()) for i, s in enumerate(sums)},
    )


def _ratio(key: Key, group: _Group) -> Estimate:
    if key.measure in schema.TOKENS_PER_CALL:
        bounds = (1.0, 1.0 + key.gamma)
    else:
        bounds = (0.0, math.inf if key.measure == schema.SPEED_UP else 1.0)
    estimate = statistics.interval(
        group.numerator, group.denominator, runs=group.runs, bounds=bounds
    )
    if key.measure != schema.TAU_IID:
        return estimate
    # The measured value is mean acceptance. The formula is monotone in it, so that the interval
    # maps end by end.
    ends = np.array([estimate.value, estimate.low, estimate.high])
    value, low, high = np.asarray(acceptance.tokens_per_call_iid(ends, key.gamma)).tolist()
    return dataclasses.replace(estimate, value=value, low=low, high=high)


def _differences(key: Key, groups: Mapping[str, _Group]) -> list[dict[str, Any]]:
    """Returns rows of acceptance minus that of the reference loss."""
    trained = [loss for loss in groups if loss != UNTRAINED]
    if not trained:
        return []
    reference = groups["ce" if "ce" in trained else trained[0]]
    pairs = {loss: _pair(group, reference) for loss, group in groups.items()}
    pairs = {
        loss: pair
        for loss, pair in pairs.items()
        if groups[loss] is not reference and pair[0].students()
    }
    pooled = {loss: _difference(*pair) for loss, pair in pairs.items()}
    # Whether training helped is no question, so that untrained students are not corrected for.
    family = [loss for loss in pooled if loss != UNTRAINED]
    p_values = [pooled[loss].p_value for loss in family]
    levels = dict(zip(family, statistics.holm_levels(p_values), strict=True))
    key, results = dataclasses.replace(key, measure=schema.DIFFERENCE), []
    for loss, (group, other) in pairs.items():
        for seed, part in group.by_seed():
            estimate = _difference(part, other.take(group.seeds == seed))
            results.append(_row(loss, key, seed, estimate, part.count()))
        estimate = pooled[loss].at_level(levels[loss]) if loss in levels else pooled[loss]
        results.append(_row(loss, key, POOLED, estimate, group.count()))
    return results


def _pair(group: _Group, reference: _Group) -> tuple[_Group, _Group]:
    """Returns the students that both groups have, in one order."""
    students, others = group.students(), reference.students()
    common = [student for student in students if student in others]
    return (
        group.take([students.index(student) for student in common]),
        reference.take([others.index(student) for student in common]),
    )


def _difference(group: _Group, reference: _Group) -> Estimate:
    return statistics.paired_difference(
        group.numerator,
        group.denominator,
        reference.numerator,
        reference.denominator,
        runs=group.runs,
    )


def _row(loss: str, key: Key, seed: int | str, estimate: Estimate, tokens: int) -> dict[str, Any]:
    bounds = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return {"loss": loss, "seed": seed, **dataclasses.asdict(key), **bounds, "n": tokens}
