"""The table ranks losses, keeps its numbers beside the right names, and fits a terminal."""

import io
import re

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from jaxdiv.reporting import results, results_table
from tests import reporting_cases as cases


@pytest.fixture(scope="module")
def frame():
    return cases.frame()


def printed(frame, width=100):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(results_table.rich_table(frame))
    return console.export_text()


def value(frame, **wanted):
    (found,) = results.select(frame, **wanted)["value"]
    return found


def test_best_first_and_floor_last(frame):
    ranked = results_table.summary(frame, context="corpus")
    assert tuple(ranked.columns) == results_table.SUMMARY_COLUMNS
    assert list(ranked["loss"])[:2] == ["tv", "nla"]
    assert list(ranked["loss"])[-2:] == ["ce_argmax", "untrained"]
    assert ranked["acceptance"][:-1].is_monotonic_decreasing


@pytest.mark.parametrize("context", cases.CONTEXTS)
def test_numbers_are_those_of_the_frame(frame, context):
    row = results_table.summary(frame, context=context).set_index("loss").loc["jsd"]
    at = {"loss": "jsd", "context": context, "temperature": 1.0}
    assert row["acceptance"] == value(frame, measure="acceptance", **at)
    assert row["greedy_draft"] == value(frame, measure="acceptance_greedy_draft", **at)
    assert row["greedy_match"] == value(frame, measure="greedy_match", loss="jsd", context=context)
    assert row["difference"] == value(frame, measure="difference", **at)
    assert row["tau"] == value(frame, measure="tau", loss="jsd", context="generated", gamma=4)
    assert row["tau_greedy"] == value(
        frame, measure="tau", loss="jsd", context="generated_greedy", gamma=4
    )
    assert row["by_seed"] == tuple(
        results.select(frame, seed=None, measure="difference", **at)["value"]
    )
    assert len(row["by_seed"]) == 3


def test_accuracy_stands_where_it_was_measured(frame):
    right = frame[frame["measure"].eq("greedy_match") & frame["context"].eq("corpus")].assign(
        measure="accuracy"
    )
    right["value"] /= 2
    both = pd.concat([frame, right])
    ranked = results_table.summary(both, context="corpus").set_index("loss")
    assert ranked.loc["jsd", "accuracy"] == value(right, loss="jsd")
    for made in (printed, results_table.markdown):
        assert "accuracy" in made(both)
        assert f"{100 * value(right, loss='jsd'):.1f}" in made(both)
        assert "accuracy" not in made(frame)


def test_verdicts(frame):
    verdicts = results_table.summary(frame, context="corpus").set_index("loss")["verdict"]
    assert verdicts["tv"] == verdicts["ce_argmax"] == "real"
    assert (verdicts["ce"], verdicts["kl"], verdicts["untrained"]) == (
        "reference",
        "not shown",
        "floor",
    )


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds(seeds):
    verdicts = set(results_table.summary(cases.frame(seeds=seeds), context="corpus")["verdict"])
    assert verdicts == {"reference", "floor", "these students only"}


def test_failed_students():
    frame = cases.frame()
    frame.loc[frame["loss"].eq("rkl"), "value"] = np.nan
    frame.loc[frame["loss"].eq("tv") & frame["seed"].eq("1"), "value"] = np.nan
    ranked = results_table.summary(frame, context="corpus").set_index("loss")
    assert "rkl" not in ranked.index
    assert ranked.loc["tv", "verdict"] == "these students only"
    assert "nan" not in printed(frame)


def test_other_temperatures_and_gammas_take_the_nearest(frame):
    part = frame[~frame["temperature"].isin([0.5, 1.0]) | frame["measure"].eq("tau")]
    part = part[~part["gamma"].isin([3, 4, 5])]
    ranked = results_table.summary(part, context="corpus")
    assert set(ranked["temperature"]) == {0.25}
    assert set(ranked["gamma"]) == {2}
    assert "at temperature 0.25" in printed(part)


def test_unknown_context_is_refused(frame):
    with pytest.raises(ValueError, match="`books`; known: corpus, generated, generated_greedy"):
        results_table.summary(frame, context="books")


@pytest.mark.parametrize(
    "kind", [{}, {"seeds": 1}, {"seeds": 6}, {"losses": ("tv",)}, {"losses": ("untrained",)}]
)
def test_terminal_table_fits(kind):
    text = printed(
        cases.frame(**kind, rename={"tv": "0.4*jsd(beta=0.3)+0.6*negative_log_acceptance"})
    )
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text


def test_terminal_shows_each_seed(frame):
    (line,) = re.findall(r"^ *tv .*$", printed(frame), flags=re.MULTILINE)
    by_seed = results_table.summary(frame, context="corpus").set_index("loss").loc["tv", "by_seed"]
    assert " ".join(f"{100 * d:+.2f}" for d in by_seed) in line


def test_names_are_not_markup():
    frame = cases.frame(losses=("ce", "tv"), rename={"tv": "[red]x[/red]"})
    assert "[red]x[/red]" in printed(frame)


def test_markdown_is_one_table():
    frame = cases.frame(rename={"tv": "a|b", "kl": "c`d"})
    lines = results_table.markdown(frame).splitlines()
    cells = [re.split(r"(?<!\\)\|", line) for line in lines]
    assert len(lines) == 2 + len(cases.ACCEPTANCE)
    assert {len(row) for row in cells} == {11}
    assert cells[2][1] == " `a\\|b` "
    assert any(row[1] == " `` c`d `` " for row in cells)


def test_tiny_differences_have_no_negative_zero():
    assert results_table.points(-3e-8, -5e-8, -1e-8) == "+0.00 ±0.00"
    assert results_table.points(-0.0115, -0.0135, -0.0105) == "−1.15 ±0.20"
