"""What a run in the smoke size must have written."""

import collections
import csv
import itertools

from jaxdiv import schema
from tests import runs

CONTEXTS = ("corpus", "generated", "generated_greedy")
MEASURES = {"acceptance", "acceptance_greedy_draft", "greedy_match", "difference"}
OF_OWN_TEXT = {"tau", "tau_greedy_draft", "tau_iid", "acceptance_at"}
# One seed of two losses in one context.
SHORT = [
    runs.SMOKE,
    "--config.losses=kl,tv",
    "--config.seeds=1",
    "--config.evaluation.contexts=generated",
]


def read(folder):
    with open(folder / "results.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def check_whole(folder, *, losses=("ce", "kl", "tv"), seeds=("0", "1", "all"), contexts=CONTEXTS):
    """Every row that the config asks for is there, once, with a value its measure can have."""
    rows = read(folder)
    assert tuple(rows[0]) == schema.COLUMNS
    assert len({tuple(row.values())[:6] for row in rows}) == len(rows)
    of = collections.defaultdict(set)
    for row in rows:
        of[row["loss"], row["seed"], row["context"]].add(
            (row["measure"], row["temperature"], row["gamma"])
        )
    for key in itertools.product((*losses, "untrained"), seeds, contexts):
        expected = MEASURES | (OF_OWN_TEXT if key[2] != "corpus" else set())
        expected -= {"difference"} if key[0] == losses[0] else set()
        assert {measure for measure, *_ in of[key]} == expected
        others = set().union(*(found for other, found in of.items() if other[2] == key[2]))
        assert of[key] == {found for found in others if found[0] in expected}
    for row in rows:
        value, least = float(row["value"]), 1.0 if row["measure"].startswith("tau") else 0.0
        assert int(row["n"]) > 0
        if row["measure"] == "difference":
            assert -1 <= value <= 1
        else:
            assert least <= value <= (9.0 if least else 1.0)


def check_short(folder):
    check_whole(folder, losses=("kl", "tv"), seeds=("0", "all"), contexts=("generated",))
