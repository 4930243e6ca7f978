"""What others report beside what a sweep shows: ratios worked by hand, what can't be compared, the
table."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from experiments.sweep import claims, report
from experiments.sweep import claims_table as reporting
from experiments.sweep.grid import Cell
from jaxdiv.evaluation.measurement import Key, Measurement, Sums

BASE = Cell("adapter", "sharp", "corpus", 1.0)
OWN = dataclasses.replace(BASE, context="student")
SAMPLED, ACCEPTANCE = Key("generated", "tau", 1.0, 8), Key("corpus", "acceptance", 1.0)
SEEDS = [0, 1, 2]


def sums(rate):
    wiggle = 1 + 0.01 * np.arange(-7, 8).reshape(3, 5)
    return Sums(100 * rate * wiggle, np.full((3, 5), 100.0), np.full(5, 100))


def measured(*, lost=(), **rates):
    """Of each loss (tokens a call, acceptance); `lost` losses have one student less."""
    keys = SAMPLED, ACCEPTANCE
    found = {
        (loss, key): sums(rate)
        for loss, both in rates.items()
        for key, rate in zip(keys, both, strict=True)
    }
    seeds = {loss: SEEDS[1:] if loss in lost else SEEDS for loss in rates}
    return Measurement(seeds, found)


def table(cells):
    frame = pd.DataFrame(claims.rows(cells), columns=list(reporting.COLUMNS))
    return frame.set_index(["loss", "than", "trained_on", "measure"])


def test_changes_are_ratios_of_means_over_the_cells():
    cells = {
        BASE: measured(kl=(3.0, 0.8), nla=(3.3, 0.8), skl=(3.0, 0.72), rkl=(2.0, 0.6)),
        OWN: measured(kl=(4.5, 0.8), nla=(4.2, 0.8), skl=(3.0, 0.72), rkl=(2.0, 0.6)),
    }
    found = table(cells)
    assert found.loc[("nla", "kl", "", "tau")]["change"] == pytest.approx(
        (3.3 + 4.2) / (3.0 + 4.5) - 1, abs=1e-9
    )
    assert found.loc[("nla", "kl", "", "tau")]["verdict"] == "not shown"
    own = found.loc[("kl", "kl", "student", "tau")]
    assert (own["cells"], own["change"], own["verdict"]) == (1, pytest.approx(0.5), "holds")
    worse = found.loc[("skl", "kl", "", "acceptance")]
    assert (worse["cells"], worse["change"], worse["verdict"]) == (
        2,
        pytest.approx(-0.1),
        "the opposite",
    )
    assert found.loc[("skl", "rkl", "", "acceptance")]["verdict"] == "holds"
    assert (found["change_low"] <= found["change"]).all()
    assert (found["change"] <= found["change_high"]).all()


def test_what_was_not_measured_or_lost_a_student_is_not_compared():
    whole = {"kl": (3.0, 0.8), "nla": (3.3, 0.8), "skl": (3.0, 0.7)}
    assert claims.rows({}) == []
    assert claims.rows({OWN: measured(ce=(1.0, 0.5))}) == []
    found = table({BASE: measured(**whole), OWN: measured(**whole, lost=("nla",))})
    assert found.loc[("nla", "kl", "", "tau")]["cells"] == 1
    assert found.loc[("skl", "kl", "", "acceptance")]["cells"] == 2


def test_the_table_has_a_row_a_claim(tmp_path):
    claimed = claims.rows({BASE: measured(kl=(3.0, 0.8), nla=(3.3, 0.8), skl=(3.0, 0.72))})
    rest = {"seeds": 3, "rates": (0.1,), "base": {}, "entropies": {}, "part": ""}
    found = report.make([], [], claimed, losses=("kl", "nla", "skl"), **rest)
    report.write(tmp_path, found)
    assert len(pd.read_csv(tmp_path / report.CLAIMS)) == 2
    assert "| nla over kl | LK losses, 2602.23881 |" in report.markdown(found)
    rows = list(reporting.rows(found.claims))
    assert [len(row) for row in rows] == [len(reporting.HEADING)] * 2
    assert rows[0][0] == "nla over kl"
    assert rows[0][3] == "τ γ=8 T=1"
    assert rows[0][5].startswith("+10.00 [")
