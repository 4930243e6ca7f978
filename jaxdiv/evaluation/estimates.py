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
      students: the index of each student's run, and its seed.
      tokens: the number of tokens measured in each run.
    """

    numerator: Float[np.ndarray, "S K"]
    denominator: Float[np.ndarray, "S K"]
    students: list[tuple[int, int]]
    tokens: Sequence[int]

    def take(self, students: list[tuple[int, int]]) -> "_Group":
        index = [self.students.index(student) for student in students]
        return _Group(self.numerator[index], self.denominator[index], students, self.tokens)

    def by_seed(self) -> Iterator[tuple[int | str, "_Group"]]:
        """Yields the students of each seed, and all of them as `POOLED`."""
        for seed in sorted({seed for _, seed in self.students}):
            yield seed, self.take([student for student in self.students if student[1] == seed])
        yield POOLED, self

    @property
    def runs(self) -> Int[np.ndarray, " S"]:
        return np.array([run for run, _ in self.students])

    def row(self, loss: str, key: Key, seed: int | str, estimate: Estimate) -> dict[str, Any]:
        """Returns a row of results.csv."""
        bounds = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
        count = sum(self.tokens[run] for run in set(self.runs))
        return {"loss": loss, "seed": seed, **dataclasses.asdict(key), **bounds, "n": count}


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
            for seed, part in group.by_seed():
                results.append(part.row(loss, key, seed, _ratio(key, part)))
        if key.measure == schema.ACCEPTANCE:
            results += _differences(key, groups)
    return results


def _group(runs: Sequence[Measurement], loss: str, key: Key) -> _Group:
    sums = [run.sums[loss, key] for run in runs]
    if len({s.numerator.shape[1] for s in sums}) > 1:
        raise ValueError(
            "runs measured on different documents can't be pooled; measure each by itself"
        )
    return _Group(
        numerator=np.concatenate([s.numerator for s in sums]),
        denominator=np.concatenate([s.denominator for s in sums]),
        students=[(i, seed) for i, run in enumerate(runs) for seed in run.losses[loss]],
        tokens=[int(s.tokens.sum()) for s in sums],
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
    """Returns rows of acceptance minus that of the reference loss, over the students that both
    losses have."""
    trained = [loss for loss in groups if loss != UNTRAINED]
    if not trained:
        return []
    reference = groups["ce" if "ce" in trained else trained[0]]
    pairs, estimates = {}, {}
    for loss, group in groups.items():
        common = [student for student in group.students if student in reference.students]
        if group is reference or not common:
            continue
        pairs[loss] = group.take(common)
        for seed, part in pairs[loss].by_seed():
            other = reference.take(part.students)
            estimates[loss, seed] = statistics.paired_difference(
                part.numerator, part.denominator, other.numerator, other.denominator, runs=part.runs
            )
    # Whether training helped is no question, so that untrained students are not corrected for.
    family = [loss for loss in pairs if loss != UNTRAINED]
    levels = statistics.holm_levels([estimates[loss, POOLED].p_value for loss in family])
    for loss, level in zip(family, levels, strict=True):
        estimates[loss, POOLED] = estimates[loss, POOLED].at_level(level)
    key = dataclasses.replace(key, measure=schema.DIFFERENCE)
    return [
        part.row(loss, key, seed, estimates[loss, seed])
        for loss, group in pairs.items()
        for seed, part in group.by_seed()
    ]
