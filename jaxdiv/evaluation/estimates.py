"""From sums over documents to results: each seed's estimate, the pooled one, and differences
between losses."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from jaxdiv import acceptance, statistics
from jaxdiv.evaluation.measurement import Measurement
from jaxdiv.schema import POOLED, UNTRAINED

_TOKENS_A_CALL = ("tau", "tau_greedy_draft", "decoded_tau")


@dataclasses.dataclass(frozen=True)
class _Group:
    """One loss's students in all runs, for one key.

    Attributes:
      numerator, denominator: [S, K].
      seeds, runs: [S], of each student.
      tokens: run to the tokens measured in it.
    """

    numerator: np.ndarray
    denominator: np.ndarray
    seeds: np.ndarray
    runs: np.ndarray
    tokens: Mapping[int, int]

    def take(self, keep):
        return _Group(
            self.numerator[keep],
            self.denominator[keep],
            self.seeds[keep],
            self.runs[keep],
            self.tokens,
        )

    def students(self):
        return list(zip(self.runs.tolist(), self.seeds.tolist(), strict=True))

    def count(self):
        return sum(self.tokens[run] for run in np.unique(self.runs))


def rows(runs: Sequence[Measurement]) -> list[Mapping]:
    """The results' rows of one run, or of several pooled.

    A seed's row pools the runs that have that seed. The pooled rows' intervals carry documents and,
    crossed with them, seeds, or runs where there are several. Differences are to `ce`, or else the
    first loss, by students of the same run and seed on the same documents; the pooled ones'
    intervals are Holm-corrected over the losses compared at that context and temperature.

    Raises:
      ValueError: the runs were measured on different documents.
    """
    made = []
    for key in dict.fromkeys(key for run in runs for _, key in run.sums):
        groups = {loss: _group(runs, loss, key) for loss in _losses(runs, key)}
        for loss, group in groups.items():
            made += [_row(loss, key, **found) for found in _estimates(key, group)]
        if key.measure == "acceptance":
            made += _differences(key, groups)
    return made


def _losses(runs, key):
    """Those that all runs have; a loss of some would stand beside averages over other students."""
    every = dict.fromkeys(loss for run in runs for loss in run.losses)
    return [loss for loss in every if len(_having(runs, loss, key)) == len(runs)]


def _having(runs, loss, key):
    return [
        (i, run.losses[loss], run.sums[loss, key])
        for i, run in enumerate(runs)
        if (loss, key) in run.sums
    ]


def _group(runs, loss, key):
    found = _having(runs, loss, key)
    if len({sums.numerator.shape[1] for _, _, sums in found}) > 1:
        raise ValueError(
            "runs measured on different documents can't be pooled; measure each by itself"
        )
    return _Group(
        numerator=np.concatenate([sums.numerator for _, _, sums in found]),
        denominator=np.concatenate([sums.denominator for _, _, sums in found]),
        seeds=np.array([seed for _, seeds, _ in found for seed in seeds]),
        runs=np.array([i for i, seeds, _ in found for _ in seeds]),
        tokens={i: int(sums.tokens.sum()) for i, _, sums in found},
    )


def _estimates(key, group):
    for seed in np.unique(group.seeds):
        part = group.take(group.seeds == seed)
        yield {"seed": int(seed), "estimate": _ratio(key, part), "tokens": part.count()}
    yield {"seed": POOLED, "estimate": _ratio(key, group), "tokens": group.count()}


def _ratio(key, group):
    if key.measure in _TOKENS_A_CALL:
        bounds = (1.0, 1.0 + key.gamma)
    else:
        bounds = (0.0, math.inf if key.measure == "speed_up" else 1.0)
    estimate = statistics.interval(
        group.numerator, group.denominator, runs=group.runs, bounds=bounds
    )
    if key.measure != "tau_iid":
        return estimate
    # Measured is the mean acceptance; the formula is monotone in it, so its interval maps end by
    # end.
    ends = np.array([estimate.value, estimate.low, estimate.high])
    value, low, high = np.asarray(acceptance.tokens_per_call_iid(ends, key.gamma)).tolist()
    return dataclasses.replace(estimate, value=value, low=low, high=high)


def _differences(key, groups):
    key = dataclasses.replace(key, measure="difference")
    trained = [loss for loss in groups if loss != UNTRAINED]
    if not trained:
        return []
    reference = groups["ce" if "ce" in trained else trained[0]]
    found = {
        loss: _paired(group, reference) for loss, group in groups.items() if group is not reference
    }
    pooled = {loss: _difference(*pair) for loss, pair in found.items() if pair[0].students()}
    family = [loss for loss in pooled if loss != UNTRAINED]  # nobody asks whether training helped
    levels = dict(
        zip(family, statistics.holm_levels([pooled[loss].p_value for loss in family]), strict=True)
    )
    made = []
    for loss, estimate in pooled.items():
        ours, theirs = found[loss]
        for seed in np.unique(ours.seeds):
            keep = ours.seeds == seed
            part = ours.take(keep)
            made.append(
                _row(
                    loss,
                    key,
                    seed=int(seed),
                    estimate=_difference(part, theirs.take(keep)),
                    tokens=part.count(),
                )
            )
        if loss in levels:
            estimate = estimate.at_level(levels[loss])
        made.append(_row(loss, key, seed=POOLED, estimate=estimate, tokens=ours.count()))
    return made


def _paired(group, reference):
    """The students that both have, in one order."""
    ours, theirs = group.students(), reference.students()
    both = [student for student in ours if student in theirs]
    return group.take([ours.index(s) for s in both]), reference.take(
        [theirs.index(s) for s in both]
    )


def _difference(ours, theirs):
    return statistics.paired_difference(
        ours.numerator, ours.denominator, theirs.numerator, theirs.denominator, runs=ours.runs
    )


def _row(loss, key, *, seed, estimate, tokens):
    return {
        "loss": loss,
        "seed": seed,
        **dataclasses.asdict(key),
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "n": tokens,
    }
