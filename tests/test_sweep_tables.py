"""What a sweep finds: differences and ranks against what is worked by hand, and tables that claim
no more."""

import dataclasses
import itertools

import numpy as np
import pytest

from experiments.sweep import comparing, ranking, report, sums
from jaxdiv import statistics
from jaxdiv.evaluation.measurement import Key, Measurement, Sums
from jaxdiv.schema import UNTRAINED

KEY = Key("corpus", "acceptance", 1.0)
TAU = Key("generated", "tau", 1.0, 4)


def estimate(value):
    """Of variance 1, known as if from no end of data."""
    made = statistics.Estimate(value, 0.0, 0.0, ((1.0, 10**9),), 0.0)
    p_value = {2.5758: 0.01, 2.1701: 0.03, -2.0537: 0.04}[value]  # a normal distribution's
    return dataclasses.replace(made, p_value=p_value)


def test_a_family_is_corrected_as_by_hand():
    """Holm on .01, .03, .04: .01 is below .05/3, .03 not below .05/2, where it ends."""
    family = [
        {"estimate": estimate(value), "by_seed": [value] * 3} for value in (2.1701, 2.5758, -2.0537)
    ]
    comparing.correct(family)
    np.testing.assert_allclose([row["p_value"] for row in family], [0.06, 0.03, 0.06])
    assert [row["verdict"] for row in family] == ["not shown", "real", "not shown"]
    halves = [row["difference_high"] - row["difference"] for row in family]
    np.testing.assert_allclose(
        halves, [2.2414, 2.3940, 2.2414], rtol=1e-3
    )  # of 1 - .05/2 and 1 - .05/3


def measured(rates, *, seed=0, seeds=3, lost=(), keys=(KEY, TAU)):
    """Of 12 documents, losses accepted at `rates` but for noise that they partly share."""
    draw, every = np.random.default_rng(seed), {**rates, UNTRAINED: 0.3}
    count = np.full((seeds, 12), 100.0)
    shared = draw.normal(scale=5, size=(seeds, 1)) + draw.normal(scale=5, size=(1, 12))
    losses = {loss: [s for s in range(seeds) if (loss, s) not in lost] for loss in every}
    made = {}
    for loss, rate in every.items():
        numerator = (100 * rate + shared + draw.normal(scale=0.3, size=(seeds, 12)))[losses[loss]]
        for key in keys if losses[loss] else ():
            made[loss, key] = Sums(numerator, count[losses[loss]], count[0])
    return Measurement(losses, made)


CELLS = {
    "a": measured({"kl": 0.7, "tv": 0.75, "jsd": 0.7}),
    "b": measured({"kl": 0.6, "tv": 0.66, "jsd": 0.6}, seed=1),
}


def told(cells):
    """The first cell is the base, the others have another student each."""
    base = {"teacher": "t", "training_context": "corpus", "temperature_of_training": 1.0}
    made = {}
    for cell, loss in itertools.product(cells, next(iter(cells.values())).losses):
        rate = {} if loss == UNTRAINED else {"learning_rate": 0.01}
        made[cell, loss] = {**base, "student": f"student {cell}", **rate}
    return made


def test_differences_are_paired_and_corrected_over_all_cells_of_a_measure():
    rows = comparing.rows(CELLS, told(CELLS))
    family = [row for row in rows if row["measure"] == "acceptance" and "p_value" in row]
    assert [(row["cell"], row["loss"]) for row in family] == [
        ("a", "tv"),
        ("a", "jsd"),
        ("b", "tv"),
        ("b", "jsd"),
    ]
    raw = []
    for row in family:
        ours, theirs = (CELLS[row["cell"]].sums[loss, KEY] for loss in (row["loss"], "kl"))
        sides = (ours.numerator, ours.denominator, theirs.numerator, theirs.denominator)
        raw.append(statistics.paired_difference(*sides))
    np.testing.assert_allclose([row["difference"] for row in family], [one.value for one in raw])
    np.testing.assert_allclose(
        [row["p_value"] for row in family], statistics.holm([one.p_value for one in raw])
    )
    assert [row["verdict"] for row in family] == ["real", "not shown", "real", "not shown"]
    assert {row["verdict"] for row in rows if row["loss"] == UNTRAINED} == {"floor"}


def test_ranks_of_a_clear_winner_and_of_equals():
    ranks = {row["loss"]: row for row in ranking.rows(CELLS, KEY)}
    assert {loss: (row["rank_low"], row["rank_high"]) for loss, row in ranks.items()} == {
        "tv": (1, 1),
        "kl": (2, 3),
        "jsd": (2, 3),
    }
    assert ranks["tv"]["difference"] == pytest.approx(0.055, abs=0.003)
    equal = {"c": measured(dict.fromkeys(("kl", "tv", "jsd", "rkl"), 0.7))}
    for row in ranking.rows(equal, KEY):
        assert row["rank_high"] - row["rank_low"] >= 2
    assert ranking.rows(CELLS, TAU)[0]["gamma"] == 4
    lone = ranking.rank_intervals(
        np.array([[1.0, 1.1], [0.0, 0.1]]), np.zeros((2, 2, 1))
    )  # as of a speed's one number
    assert lone == ([1, 2], [1, 2])


@pytest.mark.parametrize(
    ("means", "seeds_move"),
    [
        (np.arange(4), 1.0),  # a noise's size apart
        (np.concatenate([np.arange(10) - 30, np.arange(7) / 1000]), 0.1),  # the best ones lie close
    ],
)
def test_rank_intervals_cover_the_true_rank_of_every_loss(means, seeds_move):
    """Students share what a seed and a document do to all of them."""
    draw, covered, count = np.random.default_rng(0), [], len(means)
    for _ in range(150):
        of_documents = (
            draw.normal(scale=3, size=(count, 30)) + draw.normal(scale=30, size=30)
        ) / 30
        of_seeds = draw.normal(scale=seeds_move, size=(count, 3)) + draw.normal(scale=9, size=3)
        values = means[:, None] + of_documents.sum(axis=1, keepdims=True) + of_seeds
        influence = (of_documents - of_documents.mean(axis=1, keepdims=True))[:, None].repeat(
            3, axis=1
        )
        low, high = np.array(ranking.rank_intervals(values, influence, draws=400))
        ranks = np.arange(count, 0, -1)
        covered.append((low <= ranks) & (ranks <= high))
    assert np.mean(covered, axis=0).min() > 0.93


def test_what_cells_share_does_not_average_out():
    once, twice = (ranking.rows(dict.fromkeys(names, CELLS["a"]), KEY) for names in ("a", "ab"))
    for one, other in zip(once, twice, strict=True):
        assert {**one, "cells": 2} == pytest.approx(other, nan_ok=True)


def test_a_loss_that_lost_a_student_has_no_rank():
    cells = {"a": CELLS["a"], "b": measured({"kl": 0.6, "tv": 0.66, "jsd": 0.6}, lost=[("jsd", 1)])}
    assert {row["loss"] for row in ranking.rows(cells, KEY)} == {"kl", "tv"}
    rows = comparing.rows(cells, told(cells))
    assert np.isfinite(
        next(row for row in rows if row["cell"] == "b" and row["loss"] == "jsd")["difference"]
    )


def found(cells, part="", seeds=3):
    keys = dict.fromkeys(key for one in cells.values() for _, key in one.sums)
    every = next(iter(cells.values())).losses
    return report.make(
        comparing.rows(cells, told(cells)),
        [row for key in keys for row in ranking.rows(cells, key)],
        losses=[loss for loss in every if loss != UNTRAINED],
        seeds=seeds,
        rates=(0.001, 0.01),
        base=told(cells)["a", UNTRAINED],
        entropies={"t": 2.0},
        part=part,
    )


def test_tables_name_no_winner_that_is_not_shown(tmp_path):
    shown = found(CELLS, part="2 of 9 cells")
    assert (
        report.finding(shown) == "tv is first. Shown to be better than kl: tv; worse than kl: none."
    )
    printed = report.markdown(shown)
    assert "| `tv` | 1 | 71." in printed
    assert "a part of the study: 2 of 9 cells" in printed
    assert "by Holm over all 4 comparisons" in printed
    assert "over test documents and seeds;" in printed
    assert "at an end of those tried: kl 0.01, tv 0.01, jsd 0.01 (student a, student b)." in printed
    equal = found({"a": measured(dict.fromkeys(("kl", "tv", "jsd"), 0.7))})
    able = ", ".join(equal.ranked()["loss"])  # by luck in some order
    assert report.finding(equal).startswith(
        f"No loss is shown to be the best; {able} can be first. "
    )
    assert not {"part of the study", "lost"} & set(report.markdown(equal).split())
    report.write(tmp_path, shown)
    for name in (
        "choice_differences",
        "choice_differences-dark",
        "choice_ranks",
        "choice_ranks-dark",
    ):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_one_seed_speaks_for_its_own_students_alone():
    one = found({"a": measured({"kl": 0.7, "tv": 0.75, "jsd": 0.6}, seeds=1)}, seeds=1)
    assert report.finding(one) == (
        "Among these students tv is first. Among them better than kl: tv; worse than kl: jsd."
    )
    assert "over test documents;" in report.markdown(one)


@pytest.mark.parametrize(
    ("lost", "ranked", "pictures"),
    [
        (
            [("kl", 1)],
            ["tv", "jsd"],
            {"differences", "ranks"},
        ),  # cells still compare the seeds that both have
        ([("kl", seed) for seed in range(3)], ["tv", "jsd"], {"ranks"}),
        ([(loss, 0) for loss in ("kl", "tv", "jsd")], [], {"differences"}),
        ([(loss, seed) for loss in ("kl", "tv", "jsd") for seed in range(3)], [], set()),
    ],
)
def test_losses_that_lost_students_are_named(tmp_path, lost, ranked, pictures):
    some = found({"a": measured({"kl": 0.6, "tv": 0.66, "jsd": 0.6}, lost=lost)})
    assert list(some.ranked()["loss"]) == ranked
    finding = report.finding(some)
    assert ("Nothing was compared with kl." if ranked else "No loss is ranked") in finding
    left = ", ".join(loss for loss in ("kl", "tv", "jsd") if loss not in ranked)
    assert f"Not ranked, as students were lost: {left}. " in report.markdown(some)
    report.write(tmp_path, some)
    drawn = {f"choice_{name}{ending}" for name in pictures for ending in ("", "-dark")}
    assert {path.stem for path in tmp_path.glob("*.png")} == drawn


def test_tables_have_a_column_of_every_temperature_and_of_what_was_decoded():
    decoded = Key("generated", "decoded_tau", 1.0, 4)
    keys = (
        Key("corpus", "acceptance", 0.3),
        KEY,
        TAU,
        Key("corpus", "acceptance_exact_match", 1.0),
    )
    rates = {"kl": 0.6, "tv": 0.66}
    shown = found({"a": measured(rates, keys=(*keys, decoded)), "b": measured(rates, keys=keys)})
    head, _, best, *_ = report.markdown(shown).split("\n\n")[1].splitlines()
    assert head.endswith("| verdict | T=0.3 | τ γ=4 T=1 | decoded τ γ=4 T=1 |")
    assert best.endswith("| +0.06* | +0.06* |")


def test_sums_are_read_as_written_or_refused(tmp_path):
    path, more = tmp_path / "sums.npz", Key("generated", "tau", 1.0, 3)
    written = Measurement(
        CELLS["a"].losses, {**CELLS["a"].sums, ("kl", more): CELLS["a"].sums["kl", KEY]}
    )
    sums.write(path, written)
    back = sums.read(path)
    assert back.losses == written.losses
    assert set(back.sums) == set(CELLS["a"].sums)  # without what is not compared
    np.testing.assert_array_equal(
        back.sums["tv", TAU].numerator, CELLS["a"].sums["tv", TAU].numerator
    )
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(
        ValueError,
        match=r"sums.npz is not what was written.*delete it, and the sweep measures again",
    ):
        sums.read(path)
