"""From sums to rows: pairing, the reference, the family of comparisons, pooling."""

import numpy as np
import pytest

from jaxdiv import statistics
from jaxdiv.evaluation import estimates
from jaxdiv.evaluation.measurement import Key, Measurement, Sums

ACCEPTANCE = Key("corpus", "acceptance", 1.0)
COUNTS = np.array([100.0, 80, 120, 60, 90])
RNG = np.random.default_rng(0)
HARD = RNG.normal(0.7, 0.05, size=5)  # by document


def run(shifts, *, seeds=(0, 1, 2), key=ACCEPTANCE, diverged=None):
    """One run whose losses accept `shifts` more than the documents' own share; `diverged`: the
    seeds of each loss that did."""
    losses, sums = {}, {}
    for loss, shift in shifts.items():
        finite = [seed for seed in seeds if seed not in (diverged or {}).get(loss, ())]
        noise = np.random.default_rng([7, *map(ord, loss)]).normal(0, 0.004, size=(len(seeds), 5))
        values = (HARD + shift + noise)[[seeds.index(seed) for seed in finite]]
        losses[loss] = finite
        sums[loss, key] = Sums(values * COUNTS, np.broadcast_to(COUNTS, values.shape), COUNTS)
    return Measurement(losses, sums)


def row(rows, loss, measure, seed="all"):
    (result,) = [r for r in rows if (r["loss"], r["measure"], r["seed"]) == (loss, measure, seed)]
    return result


def seeds_of(rows, loss, measure):
    return [r["seed"] for r in rows if (r["loss"], r["measure"]) == (loss, measure)]


def test_differences_are_paired_signed_and_corrected():
    measured = run({"kl": 0.02, "ce": 0.0, "tv": 0.04, "untrained": -0.2})
    rows = estimates.rows([measured])
    sums = {loss: measured.sums[loss, ACCEPTANCE] for loss in measured.losses}
    ce = sums.pop("ce")
    pairs = {
        loss: statistics.paired_difference(s.numerator, s.denominator, ce.numerator, ce.denominator)
        for loss, s in sums.items()
    }
    levels = statistics.holm_levels([pairs["kl"].p_value, pairs["tv"].p_value])
    assert max(levels) > 0.95
    for loss, level in zip(("kl", "tv", "untrained"), (*levels, 0.95), strict=True):
        expected, result = pairs[loss].at_level(level), row(rows, loss, "difference")
        np.testing.assert_allclose(
            [result[k] for k in ("value", "low", "high")],
            [expected.value, expected.low, expected.high],
        )
        by_seed = [row(rows, loss, "difference", seed)["value"] for seed in (0, 1, 2)]
        one = (sums[loss].numerator.sum(1) - ce.numerator.sum(1)) / COUNTS.sum()
        np.testing.assert_allclose(by_seed, one)
    assert row(rows, "tv", "difference")["value"] > 0.03
    assert row(rows, "untrained", "difference")["value"] < -0.19
    assert not seeds_of(rows, "ce", "difference")
    assert row(rows, "ce", "acceptance")["n"] == COUNTS.sum()


def test_without_ce_the_first_loss_is_the_reference():
    rows = estimates.rows([run({"tv": 0.0, "kl": 0.02, "untrained": -0.2})])
    assert {r["loss"] for r in rows if r["measure"] == "difference"} == {"kl", "untrained"}


def test_only_students_that_both_have_are_paired():
    measured = run({"ce": 0.0, "kl": 0.02}, diverged={"kl": [1]})
    measured.losses["tv"] = []  # all of them diverged
    rows = estimates.rows([measured])
    assert seeds_of(rows, "kl", "difference") == [0, 2, "all"]
    assert not [r for r in rows if r["loss"] == "tv"]


def test_runs_are_pooled_over_the_losses_that_all_have():
    first = run({"ce": 0.0, "kl": 0.02, "tv": 0.1})
    second = run({"ce": 0.01, "kl": 0.02}, seeds=(3, 4, 5))
    rows = estimates.rows([first, second])
    assert {r["loss"] for r in rows} == {"ce", "kl"}
    assert seeds_of(rows, "kl", "acceptance") == [*range(6), "all"]
    assert row(rows, "kl", "acceptance")["n"] == 2 * COUNTS.sum()
    sums = Sums(np.ones((1, 4)), np.ones((1, 4)), np.ones(4))
    with pytest.raises(ValueError, match="different documents can't be pooled"):
        estimates.rows([first, Measurement({"ce": [3]}, {("ce", ACCEPTANCE): sums})])


def test_tokens_a_call_stay_between_1_and_all_drafts_and_one():
    key = Key("generated", "tau", 1.0, gamma=2)
    calls = COUNTS / np.array([[1.1, 2.9, 3.0, 1.0, 2.0], [3.0, 1.2, 1.0, 2.9, 2.0]])
    sums = Sums(np.broadcast_to(COUNTS, calls.shape), calls, COUNTS)
    result = row(estimates.rows([Measurement({"ce": [0, 1]}, {("ce", key): sums})]), "ce", "tau")
    assert 1 <= result["low"] < result["value"] < result["high"] <= 3


def test_the_textbook_formula_is_of_the_mean_acceptance():
    key = Key("generated", "tau_iid", 1.0, gamma=3)
    measured = run({"ce": 0.0}, key=key)
    rows, sums = estimates.rows([measured]), measured.sums["ce", key]
    alpha = statistics.interval(sums.numerator, sums.denominator, bounds=(0.0, 1.0))
    for end in ("value", "low", "high"):
        a = getattr(alpha, end)
        np.testing.assert_allclose(row(rows, "ce", "tau_iid")[end], 1 + a + a**2 + a**3)
