"""The table ranks losses, keeps its numbers beside the right names, and fits a terminal."""

import io
import re

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from jaxdiv.reporting import formats, loss_tables, results, tables
from jaxdiv.reporting.summary import summarize
from tests import reporting_cases as cases


@pytest.fixture(scope="module")
def frame():
    return cases.frame()


def printed(frame, width=100):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(loss_tables.acceptance(summarize(frame).headline).terminal())
    return console.export_text()


def markdown(frame):
    return loss_tables.acceptance(summarize(frame).headline).markdown()


def rows(frame, context="corpus"):
    return {row.loss: row for row in summarize(frame).contexts[context].rows}


def value(frame, **values):
    (number,) = results.select(frame, **values)["value"]
    return number


def test_best_first_and_floor_last(frame):
    ranked = rows(frame)
    assert list(ranked)[:2] == ["tv", "nla"]
    assert list(ranked)[-2:] == ["ce_argmax", "untrained"]
    accepted = [row.numbers["acceptance"].value for row in ranked.values()][:-1]
    assert accepted == sorted(accepted, reverse=True)


@pytest.mark.parametrize("context", cases.CONTEXTS)
def test_numbers_are_those_of_the_frame(frame, context):
    row = rows(frame, context)["jsd"]
    here = {"loss": "jsd", "context": context}
    at_1, of_jsd = {**here, "temperature": 1.0}, {"loss": "jsd", "measure": "tau", "gamma": 4}
    expected = {
        "acceptance": value(frame, measure="acceptance", **at_1),
        "greedy_draft": value(frame, measure="acceptance_greedy_draft", **at_1),
        "greedy_match": value(frame, measure="greedy_match", **here),
        "tau": value(frame, context="generated", **of_jsd),
        "tau_greedy": value(frame, context="generated_greedy", **of_jsd),
    }
    assert {name: row.numbers[name].value for name in expected} == expected
    assert row.difference.value == value(frame, measure="difference", **at_1)
    by_seed = results.select(frame, seed=None, measure="difference", **at_1)["value"]
    assert row.by_seed == tuple(by_seed)
    assert len(row.by_seed) == 3


def test_accuracy_stands_where_it_was_measured():
    frame = cases.frame(losses=("ce", "jsd"))
    right = frame[frame["measure"].eq("greedy_match") & frame["context"].eq("corpus")]
    right = right.assign(measure="accuracy", value=right["value"] / 2)
    both = pd.concat([frame, right])
    assert rows(both)["jsd"].numbers["accuracy"].value == value(right, loss="jsd")
    for text in (printed, markdown):
        assert "accuracy" in text(both)
        assert f"{100 * value(right, loss='jsd'):.1f}" in text(both)
        assert "accuracy" not in text(frame)


@pytest.mark.parametrize(
    ("seeds", "expected"), [(3, "real"), (2, "these students only"), (1, "these students only")]
)
def test_verdicts(seeds, expected):
    verdicts = {loss: row.verdict for loss, row in rows(cases.frame(seeds=seeds)).items()}
    assert verdicts["tv"] == verdicts["ce_argmax"] == expected
    assert verdicts["kl"] == (expected if seeds < 3 else "not shown")
    assert (verdicts["ce"], verdicts["untrained"]) == ("reference", "floor")
    assert set(verdicts.values()) <= {expected, "not shown", "reference", "floor"}


def test_failed_students():
    frame = cases.frame()
    frame.loc[frame["loss"].eq("rkl"), "value"] = np.nan
    frame.loc[frame["loss"].eq("tv") & frame["seed"].eq("1"), "value"] = np.nan
    assert "rkl" not in rows(frame)
    assert rows(frame)["tv"].verdict == "these students only"
    assert "nan" not in printed(frame)


def test_other_temperatures_and_gammas_take_the_nearest(frame):
    part = frame[~frame["temperature"].isin([0.5, 1.0]) | frame["measure"].eq("tau")]
    part = part[~part["gamma"].isin([3, 4, 5])]
    table = summarize(part).headline
    assert (table.temperature, table.gamma) == (0.25, 2)
    assert "at temperature 0.25" in printed(part)


@pytest.mark.parametrize(
    "kind", [{}, {"seeds": 1}, {"seeds": 6}, {"losses": ("tv",)}, {"losses": ("untrained",)}]
)
def test_terminal_table_fits(kind):
    text = printed(
        cases.frame(**kind, rename={"tv": "0.4*jsd(beta=0.3)+0.6*negative_log_acceptance"})
    )
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text


def test_terminal_shows_names_and_each_seed_as_they_are():
    frame = cases.frame(losses=("ce", "tv"), rename={"tv": "[red]x[/red]"})
    (line,) = re.findall(r"^ *\[red\]x\[/red\] .*$", printed(frame), flags=re.MULTILINE)
    assert " ".join(f"{100 * d:+.2f}" for d in rows(frame)["[red]x[/red]"].by_seed) in line


def test_markdown_is_one_table():
    frame = cases.frame(rename={"tv": "a|b", "kl": "c`d"})
    lines = markdown(frame).splitlines()
    cells = [re.split(r"(?<!\\)\|", line) for line in lines]
    assert len(lines) == 2 + len(cases.ACCEPTANCE)
    assert {len(row) for row in cells} == {11}
    assert cells[2][1] == " `a\\|b` "
    assert any(row[1] == " `` c`d `` " for row in cells)


def test_sums_are_apart_and_narrow_tables_fold_their_text():
    rows = [["kl", "1.5"], ["0.5*kl+0.5*tv", "22.0"], ["sum", "23.5"]]
    table = tables.Table(["loss", "ms"], rows, fold={0: 4}, sums=True, code=False)
    assert table.markdown().splitlines()[1:3] == ["| --- | ---: |", "| kl | 1.5 |"]
    console = Console(width=16, record=True, file=io.StringIO())
    console.print(table.terminal())
    lines = [line.split() for line in console.export_text().splitlines()][2:]
    assert lines[1:] == [["kl", "1.5"], ["0.5*kl+0", "22.0"], [".5*tv"], [], ["sum", "23.5"], []]


def test_tiny_differences_have_no_negative_zero():
    assert formats.points(-3e-8, -5e-8, -1e-8) == "+0.00 ±0.00"
    assert formats.points(-0.0115, -0.0135, -0.0105) == "−1.15 ±0.20"
