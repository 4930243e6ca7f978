"""Intervals against SciPy's tests, and their coverage by simulation."""

import functools

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from jaxdiv import statistics


def same(estimate, reference, level=0.95):
    """Compares an estimate with a t-test of SciPy."""
    low, high = reference.confidence_interval(level)
    assert_allclose([estimate.low, estimate.high], [low, high], rtol=1e-9)
    assert_allclose(estimate.p_value, reference.pvalue, rtol=1e-9)


def test_documents_alone_are_a_t_test():
    y = np.random.default_rng(0).normal(0.3, 1, size=(1, 12))
    reference = stats.ttest_1samp(y[0], 0)
    same(statistics.interval(y, np.ones(12)), reference)
    same(statistics.interval(5 * y, np.full(12, 5), level=0.8), reference, level=0.8)
    assert_allclose(statistics.interval(y, np.ones(12)).value, y.mean(), rtol=1e-12)


def test_seeds_alone_are_a_t_test():
    values, counts = np.array([0.71, 0.74, 0.69]), np.arange(1.0, 21)
    same(statistics.interval(values[:, None] * counts, counts), stats.ttest_1samp(values, 0))


def test_difference_over_documents_is_a_paired_t_test():
    a, b = np.random.default_rng(1).normal(size=(2, 1, 15))
    one = np.ones((1, 15))
    same(statistics.paired_difference(a, one, b, one), stats.ttest_rel(a[0], b[0]))


def test_pairing_removes_what_both_share():
    rng = np.random.default_rng(2)
    counts = rng.integers(50, 500, size=40)
    a = counts * (0.7 + 0.05 * rng.normal(size=(3, 1)) + 0.1 * rng.normal(size=40))
    b = a - 0.02 * counts
    estimate = statistics.paired_difference(a, counts, b, counts)
    assert_allclose([estimate.low, estimate.high], 0.02, rtol=1e-9)
    assert statistics.interval(a, counts).standard_error > 0.02


def test_ratio_agrees_with_the_bootstrap():
    """Tests a ratio whose sums and counts both vary by document, as tokens a call."""
    rng = np.random.default_rng(3)
    calls = rng.integers(40, 400, size=300).astype(float)
    tokens = calls * (2.5 + 0.5 * rng.normal(size=300)) + 20
    draws = rng.integers(0, 300, size=(20_000, 300))
    ratios = tokens[draws].sum(axis=1) / calls[draws].sum(axis=1)
    estimate = statistics.interval(tokens[None], calls)
    assert_allclose(estimate.value, tokens.sum() / calls.sum(), rtol=1e-12)
    assert_allclose(estimate.standard_error, ratios.std(), rtol=0.02)


def population(rng, *, seeds=3, documents=60, by_seed=0.02, by_document=0.08, noise=0.0):
    """Draws sums and counts of a two-way model around .7, documents of very different lengths."""
    counts = rng.lognormal(5, 0.7, size=documents).round()
    values = 0.7 + by_seed * rng.normal(size=(seeds, 1)) + by_document * rng.normal(size=documents)
    return counts * (values + noise * rng.normal(size=(seeds, documents))), counts


def pairs(rng, *, gain, by_seed, by_document, noise):
    """Draws two measures of the same seeds and documents whose means differ by `gain`."""
    shared, counts = population(rng)
    gains = gain + by_seed * rng.normal(size=(3, 1)) + by_document * rng.normal(size=60)
    gains = gains + noise * rng.normal(size=(3, 60))
    return shared + counts * gains, counts, shared, counts


def coverage(draw, estimate, truth, repeats=1500):
    estimates = [estimate(*draw()) for _ in range(repeats)]
    return np.mean([e.low <= truth <= e.high for e in estimates])


@pytest.mark.parametrize(
    ("by_seed", "by_document", "noise"),
    [(0.01, 0.08, 0.01), (0.02, 0.08, 0.03), (0.03, 0.02, 0.02), (0, 0.08, 0.04)],
)
def test_intervals_cover_the_truth(by_seed, by_document, noise):
    rng = np.random.default_rng(4)
    kind = {"by_seed": by_seed, "by_document": by_document, "noise": noise}
    assert 0.915 < coverage(lambda: population(rng, **kind), statistics.interval, 0.7) < 0.985


@pytest.mark.parametrize("by_seed", [0.002, 0.01, 0.03])
def test_tails_are_heavy_enough_for_holm(by_seed):
    """Tests a level of .995, as of the first of ten comparisons, with three seeds."""
    rng = np.random.default_rng(11)
    interval = functools.partial(statistics.interval, level=0.995)

    def draw():
        return population(rng, by_seed=by_seed, by_document=0.03, noise=0.03)

    assert 1 - coverage(draw, interval, 0.7, repeats=4000) < 0.008


def test_documents_alone_do_not_cover_where_seeds_differ():
    rng = np.random.default_rng(5)

    def over_documents(sums, counts):
        return statistics.interval(sums.mean(axis=0, keepdims=True), counts)

    def draw():
        return population(rng, by_document=0.03, noise=0.03)

    assert coverage(draw, over_documents, 0.7) < 0.75


def test_differences_cover_the_truth():
    rng, kind = np.random.default_rng(6), {"by_seed": 0.004, "by_document": 0.02, "noise": 0.01}

    def draw():
        return pairs(rng, gain=0.01, **kind)

    assert 0.93 < coverage(draw, statistics.paired_difference, 0.01) < 0.985


def test_log_ratios_cover_the_truth_and_are_odd():
    rng, kind = np.random.default_rng(8), {"by_seed": 0.01, "by_document": 0.05, "noise": 0.02}

    def draw():
        return pairs(rng, gain=0.3, **kind)

    assert 0.93 < coverage(draw, statistics.paired_log_ratio, np.log(1.0 / 0.7)) < 0.985
    a, counts, b, _ = draw()
    forward = statistics.paired_log_ratio(a, counts, b, counts)
    back = statistics.paired_log_ratio(b, counts, a, counts)
    assert_allclose([forward.value, forward.low], [-back.value, -back.high], rtol=1e-9)
    never = statistics.paired_log_ratio(a, counts, np.zeros_like(b), counts)
    assert never.value == np.inf
    assert np.isnan(never.low)


SMALL = {"by_seed": 0.03, "by_document": 0.02, "noise": 0.01}


def test_runs_stand_in_place_of_their_seeds():
    rng = np.random.default_rng(7)
    sums, counts = population(rng, seeds=6, documents=30, **SMALL)
    estimate = statistics.interval(sums, counts, runs=["a", "b", "c"] * 2)
    means = statistics.interval((sums[:3] + sums[3:]) / 2, counts)
    for field in ("value", "low", "high", "sources", "p_value"):
        assert_allclose(getattr(estimate, field), getattr(means, field), rtol=1e-9)
    assert statistics.interval(sums, counts, runs=["a"] * 6) == statistics.interval(sums, counts)
    assert [df for _, df in estimate.sources] == [29, 2]
    assert [df for _, df in statistics.interval(sums, counts).sources] == [29, 5]


def test_documents_that_count_nothing_are_dropped():
    rng = np.random.default_rng(8)
    sums, counts = population(rng, seeds=2, documents=10, **SMALL)
    padded = [np.concatenate([x, np.zeros((*x.shape[:-1], 5))], axis=-1) for x in (sums, counts)]
    assert statistics.interval(*padded) == statistics.interval(sums, counts)
    difference = statistics.paired_difference(*padded, 2 * padded[0], padded[1])
    assert difference == statistics.paired_difference(sums, counts, 2 * sums, counts)


def test_too_few_data_give_nan():
    one_document = statistics.interval(np.ones((3, 1)), np.full(1, 2.0))
    assert one_document.value == 0.5
    assert np.isnan([one_document.low, one_document.high, one_document.p_value]).all()
    assert np.isnan(statistics.interval(np.zeros((2, 4)), np.zeros(4)).value)


def test_no_variance_is_a_point():
    counts = np.array([[1.0, 2, 3], [4, 5, 6]])
    nothing = statistics.paired_difference(counts, counts, counts, counts)
    assert (nothing.low, nothing.value, nothing.high, nothing.p_value) == (0, 0, 0, 1)
    all_accepted = statistics.interval(counts, counts)
    assert (all_accepted.low, all_accepted.high, all_accepted.p_value) == (1, 1, 0)


def test_interval_is_clipped_to_the_range():
    estimate = statistics.interval(np.array([[0.0, 1, 1, 1]]), np.ones(4), bounds=(0.0, 1.0))
    assert estimate.high == 1
    assert estimate.at_level(0.99).high == 1
    assert statistics.interval(np.array([[0.0, 1, 1, 1]]), np.ones(4)).high > 1


def test_wider_level_is_the_interval_at_that_level():
    rng = np.random.default_rng(9)
    sums, counts = population(rng, documents=9, by_seed=0.1, by_document=0.1)
    expected = statistics.interval(sums, counts, level=0.999)
    assert statistics.interval(sums, counts).at_level(0.999) == expected


def test_holm_on_an_example_worked_by_hand():
    # .01 x 4, .02 x 3, then .03 x 2 and .04 x 1; the last may not fall below the one before.
    adjusted = statistics.holm([0.04, 0.01, 0.03, 0.02])
    assert_allclose(adjusted, [0.06, 0.04, 0.06, 0.06], rtol=1e-12)
    assert_array_equal(statistics.holm([0.9, 0.6]), [1, 1])


def test_holms_levels_exclude_0_exactly_when_it_rejects():
    rng = np.random.default_rng(10)
    shifts = np.array([0, 0.002, 0.004, 0.006, 0.01, 0.02])
    rejected = 0
    for _ in range(200):
        samples = rng.normal(shifts[:, None, None], 0.02, size=(6, 1, 40))
        estimates = [statistics.interval(sample, np.ones(40)) for sample in samples]
        p_values = [estimate.p_value for estimate in estimates]
        levels = statistics.holm_levels(p_values)
        widened = [e.at_level(level) for e, level in zip(estimates, levels, strict=True)]
        excludes = [e.low > 0 or e.high < 0 for e in widened]
        assert_array_equal(excludes, statistics.holm(p_values) < 0.05)
        assert (levels >= 0.95).all()
        rejected += sum(excludes)
    assert 200 < rejected < 1000


def test_holms_levels_step_down_and_stop():
    levels = statistics.holm_levels([0.3, 0.001, 0.02, 0.04])
    assert_allclose(1 - levels, [0.05 / 3, 0.05 / 4, 0.05 / 3, 0.05 / 3], rtol=1e-9)
    assert statistics.holm_levels([0.03]) == pytest.approx([0.95])


REFUSED = {
    r"`sums` must be \[seeds, documents\].*got \(4,\) and \(4,\)": (
        lambda x: statistics.interval(x[0], x[0])
    ),
    r"got \(2, 4\) and \(3,\)": lambda x: statistics.interval(x, np.ones(3)),
    r"one shape, got \(2, 4\) and \(1, 4\)": (
        lambda x: statistics.paired_difference(x, x, x[:1], x[:1])
    ),
    "one label for each of 2 seeds, got 1": lambda x: statistics.interval(x, x, runs=["a"]),
    r"`level` must be in \(0, 1\), got 95": lambda x: statistics.interval(x, x, level=95),
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_input_is_refused(message):
    with pytest.raises(ValueError, match=message):
        REFUSED[message](np.ones((2, 4)))
