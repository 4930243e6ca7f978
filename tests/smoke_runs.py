"""Checks of the results that a run in the smoke size must have written."""

import collections
import csv
import itertools

from jaxdiv import schema
from tests import runs

CONTEXTS = ("corpus", "generated", "generated_greedy")
MEASURES = {"acceptance", "acceptance_greedy_draft", "greedy_match", "difference"}
OF_TEACHER_TEXT = {"tau", "tau_greedy_draft", "tau_iid", "acceptance_at"}
# One seed of two losses in one context.
SHORT = [
    runs.SMOKE,
    "--config.losses=kl,tv",
    "--config.seeds=1",
    "--config.evaluation.contexts=generated",
]


def read(folder):
    """Reads the rows of results.csv as dictionaries of text."""
    with open(folder / "results.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def check_whole(folder, *, losses=("ce", "kl", "tv"), seeds=("0", "1", "all"), contexts=CONTEXTS):
    """Checks that every row that the config asks for is there once, with a possible value."""
    rows = read(folder)
    assert tuple(rows[0]) == schema.COLUMNS
    assert len({tuple(row.values())[:6] for row in rows}) == len(rows)
    keys = collections.defaultdict(set)
    for row in rows:
        key = (row["measure"], row["temperature"], row["gamma"])
        keys[row["loss"], row["seed"], row["context"]].add(key)
        value, least = float(row["value"]), 1.0 if row["measure"].startswith("tau") else 0.0
        assert int(row["n"]) > 0
        if row["measure"] == "difference":
            assert -1 <= value <= 1
        else:
            assert least <= value <= (9.0 if least else 1.0)
    for loss, seed, context in itertools.product((*losses, "untrained"), seeds, contexts):
        expected = MEASURES | (OF_TEACHER_TEXT if context != "corpus" else set())
        expected -= {"difference"} if loss == losses[0] else set()
        group = keys[loss, seed, context]
        assert {measure for measure, *_ in group} == expected
        of_context = set().union(*(keys[key] for key in list(keys) if key[2] == context))
        assert group == {key for key in of_context if key[0] in expected}


def check_short(folder):
    check_whole(folder, losses=("kl", "tv"), seeds=("0", "all"), contexts=("generated",))
