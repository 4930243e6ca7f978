"""The tables of a sweep: differences, ranks and claims against what is worked by hand, and reports
that claim no more."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest

from experiments.sweep import claims, comparisons, ranking, report, stored_sums
from experiments.sweep.cells import Cell
from experiments.sweep.plan import SweepPlan
from jaxdiv import statistics
from jaxdiv.evaluation.measurement import Key, Measurement, Sums
from jaxdiv.schema import UNTRAINED

KEY = Key("corpus", "acceptance", 1.0)
TAU = Key("generated", "tau", 1.0, 4)
LOSSES = ("kl", "tv", "jsd")


def test_a_family_is_corrected_as_by_hand():
    """Holm on .01, .03, .04: .01 is below .05/3, .03 not below .05/2, where it ends."""
    values, p_values = (2.1701, 2.5758, -2.0537), (0.03, 0.01, 0.04)  # of a normal distribution
    family, rows = [], [{} for _ in values]
    for value, p_value in zip(values, p_values, strict=True):
        endless = statistics.Estimate(value, 0.0, 0.0, ((1.0, 10**9),), p_value)
        family.append((endless, np.full(3, value)))
    comparisons.add_corrected(rows, family)
    np.testing.assert_allclose([row["p_value"] for row in rows], [0.06, 0.03, 0.06])
    assert [row["verdict"] for row in rows] == ["not shown", "real", "not shown"]
    halves = [row["difference_high"] - row["difference"] for row in rows]
    # Of levels 1 - .05/2 and 1 - .05/3.
    np.testing.assert_allclose(halves, [2.2414, 2.3940, 2.2414], rtol=1e-3)


def measured(rates, *, seed=0, seeds=3, diverged=(), keys=(KEY, TAU)):
    """Measures 12 documents, on which losses are accepted at `rates` but for noise that they partly
    share."""
    draw, every = np.random.default_rng(seed), {**rates, UNTRAINED: 0.3}
    count = np.full((seeds, 12), 100.0)
    shared = draw.normal(scale=5, size=(seeds, 1)) + draw.normal(scale=5, size=(1, 12))
    losses = {loss: [s for s in range(seeds) if (loss, s) not in diverged] for loss in every}
    sums = {}
    for loss, rate in every.items():
        numerator = (100 * rate + shared + draw.normal(scale=0.3, size=(seeds, 12)))[losses[loss]]
        for key in keys if losses[loss] else ():
            sums[loss, key] = Sums(numerator, count[losses[loss]], count[0])
    return Measurement(losses, sums)


BASE, OTHER = (Cell(f"student {name}", "t", "corpus", 1.0) for name in "ab")
ON_POLICY = dataclasses.replace(BASE, context="student")
CELLS = {
    BASE: measured({"kl": 0.7, "tv": 0.75, "jsd": 0.7}),
    OTHER: measured({"kl": 0.6, "tv": 0.66, "jsd": 0.6}, seed=1),
}
EQUAL = dict.fromkeys(LOSSES, 0.7)


def comparison_table(cells):
    return comparisons.table(cells, dict.fromkeys(itertools.product(cells, LOSSES), 0.01))


def test_differences_are_paired_and_corrected_over_cells():
    table = comparison_table(CELLS)
    family = table[table["measure"].eq("acceptance") & table["p_value"].notna()]
    pairs = list(itertools.product(CELLS, ("tv", "jsd")))
    names = [(cell.name, loss) for cell, loss in pairs]
    assert list(zip(family["cell"], family["loss"], strict=True)) == names
    raw = []
    for cell, loss in pairs:
        pair = [CELLS[cell].sums[name, KEY] for name in (loss, "kl")]
        sides = [side for sums in pair for side in (sums.numerator, sums.denominator)]
        raw.append(statistics.paired_difference(*sides))
    np.testing.assert_allclose(family["difference"], [one.value for one in raw])
    holm = statistics.holm([one.p_value for one in raw])
    np.testing.assert_allclose(family["p_value"], holm)
    assert list(family["verdict"]) == ["real", "not shown", "real", "not shown"]
    assert set(table[table["loss"].eq(UNTRAINED)]["verdict"]) == {"floor"}


def test_ranks_of_a_clear_winner_and_of_equals():
    ranks = {row["loss"]: row for row in ranking.rank(CELLS.values(), KEY)}
    intervals = {loss: (row["rank_low"], row["rank_high"]) for loss, row in ranks.items()}
    assert intervals == {"tv": (1, 1), "kl": (2, 3), "jsd": (2, 3)}
    assert ranks["tv"]["difference"] == pytest.approx(0.055, abs=0.003)
    for row in ranking.rank([measured({**EQUAL, "rkl": 0.7})], KEY):
        assert row["rank_high"] - row["rank_low"] >= 2
    assert ranking.rank(CELLS.values(), TAU)[0]["gamma"] == 4
    # A lone document, as of a speed's one number.
    lone = ranking.rank_intervals(np.array([[1.0, 1.1], [0.0, 0.1]]), np.zeros((2, 2, 1)))
    assert lone == ([1, 2], [1, 2])


@pytest.mark.parametrize(
    ("means", "seeds_move"),
    [
        (np.arange(4), 1.0),  # a noise's size apart
        (np.concatenate([np.arange(10) - 30, np.arange(7) / 1000]), 0.1),  # the best ones lie close
    ],
)
def test_rank_intervals_cover_the_true_rank(means, seeds_move):
    """Students share what a seed and a document do to all of them."""
    draw, covered, count = np.random.default_rng(0), [], len(means)
    for _ in range(150):
        noise = draw.normal(scale=3, size=(count, 30)) + draw.normal(scale=30, size=30)
        by_document = noise / 30
        by_seed = draw.normal(scale=seeds_move, size=(count, 3)) + draw.normal(scale=9, size=3)
        values = means[:, None] + by_document.sum(axis=1, keepdims=True) + by_seed
        influence = by_document - by_document.mean(axis=1, keepdims=True)
        influence = influence[:, None].repeat(3, axis=1)
        low, high = np.array(ranking.rank_intervals(values, influence, draws=400))
        ranks = np.arange(count, 0, -1)
        covered.append((low <= ranks) & (ranks <= high))
    assert np.mean(covered, axis=0).min() > 0.93


def test_what_cells_share_does_not_average_out():
    once, twice = (ranking.rank([CELLS[BASE]] * count, KEY) for count in (1, 2))
    for one, other in zip(once, twice, strict=True):
        assert {**one, "cells": 2} == pytest.approx(other, nan_ok=True)


def test_a_loss_with_a_diverged_student_has_no_rank():
    rates = {"kl": 0.6, "tv": 0.66, "jsd": 0.6}
    cells = {BASE: CELLS[BASE], OTHER: measured(rates, diverged=[("jsd", 1)])}
    assert {row["loss"] for row in ranking.rank(cells.values(), KEY)} == {"kl", "tv"}
    table = comparison_table(cells).set_index(["cell", "loss", "measure"])
    assert np.isfinite(table.loc[(OTHER.name, "jsd", "acceptance")]["difference"])


def results(cells, offered=0, seeds=3):
    losses = [loss for loss in next(iter(cells.values())).losses if loss != UNTRAINED]
    config = {"losses": ",".join(losses), "seeds": seeds}
    sweep = {"rates": (0.001, 0.01)}
    tables = comparison_table(cells), ranking.table(cells.values()), claims.table({})
    return report.SweepResults(
        SweepPlan(None, config, sweep, tuple(cells), (), offered), *tables, entropies={"t": 2.0}
    )


def test_tables_name_a_winner_that_is_shown(tmp_path):
    shown = results(CELLS, offered=9)
    finding = "tv is first. Shown to be better than kl: tv; worse than kl: none."
    assert report.finding(shown) == finding
    printed = report.markdown(shown)
    assert "| `tv` | 1 | 71." in printed
    assert "a part of the study: 3 of 9 losses. " in printed
    assert "by Holm over all 4 comparisons" in printed
    assert "over test documents and seeds;" in printed
    assert "at an end of those tried: kl 0.01, tv 0.01, jsd 0.01 (student a, student b)." in printed
    report.write(tmp_path, shown)
    for name in ("differences", "differences-dark", "ranks", "ranks-dark"):
        assert (tmp_path / f"choice_{name}.png").stat().st_size > 10_000


def test_tables_name_no_winner_of_equals():
    equal = results({BASE: measured(EQUAL)})
    able = ", ".join(equal.ranked()["loss"])  # by luck in some order
    finding = f"No loss is shown to be the best; {able} can be first. "
    assert report.finding(equal).startswith(finding)
    assert not {"part of the study", "diverged"} & set(report.markdown(equal).split())


def test_one_seed_speaks_for_its_own_students_alone():
    one = results({BASE: measured({"kl": 0.7, "tv": 0.75, "jsd": 0.6}, seeds=1)}, seeds=1)
    assert report.finding(one) == (
        "Among these students tv is first. Among them better than kl: tv; worse than kl: jsd."
    )
    assert "over test documents;" in report.markdown(one)


@pytest.mark.parametrize(
    ("diverged", "ranked", "pictures"),
    [
        # Cells still compare the seeds that both have.
        ([("kl", 1)], ["tv", "jsd"], {"differences", "ranks"}),
        ([("kl", seed) for seed in range(3)], ["tv", "jsd"], {"ranks"}),
        ([(loss, 0) for loss in LOSSES], [], {"differences"}),
        ([(loss, seed) for loss in LOSSES for seed in range(3)], [], set()),
    ],
)
def test_losses_with_diverged_students_are_named(tmp_path, diverged, ranked, pictures):
    some = results({BASE: measured({"kl": 0.6, "tv": 0.66, "jsd": 0.6}, diverged=diverged)})
    assert list(some.ranked()["loss"]) == ranked
    expected = "Nothing was compared with kl." if ranked else "No loss is ranked"
    assert expected in report.finding(some)
    left = ", ".join(loss for loss in LOSSES if loss not in ranked)
    assert f"Not ranked, as students diverged: {left}. " in report.markdown(some)
    report.write(tmp_path, some)
    drawn = {f"choice_{name}{ending}" for name in pictures for ending in ("", "-dark")}
    assert {path.stem for path in tmp_path.glob("*.png")} == drawn


def test_tables_have_a_column_of_every_temperature_and_of_what_was_decoded():
    decoded = Key("generated", "decoded_tau", 1.0, 4)
    cold = Key("corpus", "acceptance", 0.3)
    keys = (cold, KEY, TAU, Key("corpus", "acceptance_exact_match", 1.0))
    rates = {"kl": 0.6, "tv": 0.66}
    shown = results(
        {BASE: measured(rates, keys=(*keys, decoded)), OTHER: measured(rates, keys=keys)}
    )
    head, _, best, *_ = report.markdown(shown).split("\n\n")[1].splitlines()
    assert head.endswith("| verdict | T=0.3 | τ γ=4 T=1 | decoded τ γ=4 T=1 |")
    assert best.endswith("| +0.06* | +0.06* |")


def test_sums_are_read_as_written_or_refused(tmp_path):
    path, uncompared = tmp_path / "sums.npz", Key("generated", "tau", 1.0, 3)
    cell = CELLS[BASE]
    sums = {**cell.sums, ("kl", uncompared): cell.sums["kl", KEY]}
    stored_sums.write(path, Measurement(cell.losses, sums))
    read = stored_sums.read(path)
    assert read.losses == cell.losses
    assert set(read.sums) == set(cell.sums)
    numerators = (part.sums["tv", TAU].numerator for part in (read, cell))
    np.testing.assert_array_equal(*numerators)
    path.write_bytes(path.read_bytes()[:-40])
    message = r"sums.npz is not what was written.*delete it, and the sweep measures again"
    with pytest.raises(ValueError, match=message):
        stored_sums.read(path)


def claim_cell(*, diverged=(), **rates):
    """Measures losses by (tokens a call, acceptance); `diverged` ones have one student less."""
    wiggle, sums = 1 + 0.01 * np.arange(-7, 8).reshape(3, 5), {}
    for loss, both in rates.items():
        for key, rate in zip((Key("generated", "tau", 1.0, 8), KEY), both, strict=True):
            sums[loss, key] = Sums(100 * rate * wiggle, np.full((3, 5), 100.0), np.full(5, 100))
    seeds = {loss: [1, 2] if loss in diverged else [0, 1, 2] for loss in rates}
    return Measurement(seeds, sums)


def claim_table(cells):
    return claims.table(cells).set_index(["loss", "than", "trained_on", "measure"])


def test_claims_are_ratios_of_means_over_cells():
    rates = {"skl": (3.0, 0.72), "rkl": (2.0, 0.6)}
    cells = {
        BASE: claim_cell(kl=(3.0, 0.8), nla=(3.3, 0.8), **rates),
        ON_POLICY: claim_cell(kl=(4.5, 0.8), nla=(4.2, 0.8), **rates),
    }
    table = claim_table(cells)
    nla = table.loc[("nla", "kl", "", "tau")]
    assert nla["change"] == pytest.approx((3.3 + 4.2) / (3.0 + 4.5) - 1, abs=1e-9)
    assert nla["verdict"] == "not shown"
    kl = table.loc[("kl", "kl", "student", "tau")]
    assert (kl["cells"], kl["change"], kl["verdict"]) == (1, pytest.approx(0.5), "holds")
    skl, worse = table.loc[("skl", "kl", "", "acceptance")], pytest.approx(-0.1)
    assert (skl["cells"], skl["change"], skl["verdict"]) == (2, worse, "the opposite")
    assert table.loc[("skl", "rkl", "", "acceptance")]["verdict"] == "holds"
    assert (table["change_low"] <= table["change"]).all()
    assert (table["change"] <= table["change_high"]).all()


def test_claims_compare_only_what_was_measured():
    rates = {"kl": (3.0, 0.8), "nla": (3.3, 0.8), "skl": (3.0, 0.7)}
    assert claims.table({}).empty
    assert claims.table({ON_POLICY: claim_cell(ce=(1.0, 0.5))}).empty
    diverged = claim_cell(**rates, diverged=("nla",))
    table = claim_table({BASE: claim_cell(**rates), ON_POLICY: diverged})
    assert table.loc[("nla", "kl", "", "tau")]["cells"] == 1
    assert table.loc[("skl", "kl", "", "acceptance")]["cells"] == 2


def test_the_table_has_a_row_a_claim(tmp_path):
    table = claims.table({BASE: claim_cell(kl=(3.0, 0.8), nla=(3.3, 0.8), skl=(3.0, 0.72))})
    claimed = dataclasses.replace(results(CELLS), claims=table)
    report.write(tmp_path, claimed)
    assert len(pd.read_csv(tmp_path / report.CLAIMS)) == 2
    assert "| nla over kl | LK losses, 2602.23881 |" in report.markdown(claimed)
    printed = claims.study_table(table)
    assert [len(row) for row in printed.rows] == [len(printed.heads)] * 2
    row = printed.rows[0]
    assert (row[0], row[3]) == ("nla over kl", "τ γ=8 T=1")
    assert row[5].startswith("+10.00 [")
