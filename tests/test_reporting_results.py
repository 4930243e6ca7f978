"""A written results.csv keeps its numbers; a difference is called what its numbers bear."""

import math

import numpy as np
import pandas as pd
import pytest

from jaxdiv import schema
from jaxdiv.reporting import results, verdicts
from tests import reporting_cases as cases


def test_csv_keeps_every_bit(tmp_path):
    frame = cases.frame(
        rename={"tv": "jsd(beta=0.3)", "kl": "nan", "rkl": '0.5*kl + 0.5*tv, "odd"'}
    )
    results.write_csv(frame, tmp_path / "results.csv")
    pd.testing.assert_frame_equal(
        results.read_csv(tmp_path / "results.csv"), frame, check_exact=True
    )


def test_csv_is_tidy(tmp_path):
    pooled = ("ce", "all", "generated", "tau", 1.0, 4, 2.5, 2.25, 2.75, 800)
    single = ("ce", 1, "corpus", "greedy_match", 0.25)
    names = schema.COLUMNS
    rows = [dict(zip(names, row, strict=False)) for row in (pooled, (*single, None, 0.1))]
    results.write_csv(results.table(rows), tmp_path / "results.csv")
    assert (tmp_path / "results.csv").read_text().splitlines() == [
        "loss,seed,context,measure,temperature,gamma,value,low,high,n",
        "ce,all,generated,tau,1,4,2.5,2.25,2.75,800",
        "ce,1,corpus,greedy_match,0.25,,0.1,,,",
    ]


def test_failed_write_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "results.csv"
    results.write_csv(cases.frame(losses=("ce",)), path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="missing: n"):
        results.write_csv(cases.frame().drop(columns="n"), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["results.csv"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("loss,seed\nce,all\n", "missing: context, measure"),
        (",".join([*schema.COLUMNS, "more"]) + "\n", "unknown: more"),
        (",".join(reversed(schema.COLUMNS)) + "\n", "in this order"),
        (",".join(schema.COLUMNS) + "\nce,all,corpus,tau,1,4,many,,,\n", "many"),
        ("", "No columns"),
    ],
)
def test_bad_file_is_named(tmp_path, text, message):
    path = tmp_path / "results.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"results.csv.*{message}"):
        results.read_csv(path)


@pytest.mark.parametrize(
    ("value", "low", "high", "by_seed", "expected"),
    [
        (0.01, 0.005, 0.015, (0.01, 0.012, 0.008), "real"),
        (-0.01, -0.015, -0.005, (-0.01, -0.012, -0.008), "real"),
        (0.01, -0.001, 0.021, (0.01, 0.012, 0.008), "not shown"),
        (0.01, 0.005, 0.015, (0.02, 0.03, -0.02), "not shown"),
        (0.01, 0.005, 0.015, (0.02, 0.01, 0.0), "not shown"),
        (0.01, 0.005, 0.015, (0.01, 0.012), "these students only"),
        (0.01, 0.005, 0.015, (0.01, 0.012, math.nan), "these students only"),
        (0.01, math.nan, math.nan, (0.01, 0.012, 0.008), "not shown"),
        (3e-8, 1e-8, 5e-8, (2e-8, 3e-8, 4e-8), "not shown"),
    ],
)
def test_verdict(value, low, high, by_seed, expected):
    assert verdicts.verdict(value, low, high, by_seed) == expected


@pytest.mark.parametrize(
    ("losses", "left_out", "expected"),
    [
        ("kl ce tv untrained", "", "ce"),
        ("kl tv untrained", "", "kl"),
        ("tv", "", "tv"),
        ("untrained", "", None),
        ("ce tv", "difference", None),
    ],
)
def test_reference(losses, left_out, expected):
    frame = cases.frame(losses=tuple(losses.split()))
    assert results.reference(frame[frame["measure"].ne(left_out)]) == expected


def test_select_leaves_out_what_is_not_a_number():
    frame = cases.frame(losses=("ce", "tv"))
    frame.loc[frame["loss"].eq("tv"), "value"] = np.nan
    assert results.losses(frame) == ("ce",)
    seeds = results.select(
        frame, seed=None, measure="acceptance", context="corpus", temperature=1.0
    )["seed"]
    assert list(seeds) == ["0", "1", "2"]


def test_contexts_come_in_their_own_order():
    frame = cases.frame(losses=("ce",))
    other = frame[frame["context"].eq("corpus")].assign(context="another")
    assert results.contexts(pd.concat([other, frame[::-1]])) == (*cases.CONTEXTS, "another")
