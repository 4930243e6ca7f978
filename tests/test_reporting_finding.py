"""The headline of a report claims no more than the verdicts of its table."""

import re

import numpy as np
import pytest

from jaxdiv.reporting import finding
from jaxdiv.reporting.summary import summarize
from tests import reporting_cases as cases


def plain(html):
    return re.sub(r"<.*?>", "", html).replace("\N{NO-BREAK SPACE}", " ")


def sentences(frame):
    """Returns headline, sentences and groups of a frame's finding as plain text."""
    result = finding.find(summarize(frame))
    rest = " ".join(map(plain, result.sentences))
    return plain(result.headline), rest, [plain(line) for line in result.groups]


def unsettled(*losses, frame):
    """The frame with intervals of these losses' differences that hold 0."""
    frame = frame.copy()
    these = frame["measure"].eq("difference") & frame["loss"].isin(losses) & frame["seed"].eq("all")
    frame.loc[these, ["low", "high"]] = -0.01, 0.03
    return frame


def test_a_real_winner():
    frame = cases.frame()
    row = next(row for row in summarize(frame).headline.rows if row.loss == "tv")
    gain, low, high = (f"{100 * number:+.2f}" for number in row.difference)
    headline, rest, others = sentences(frame)
    assert headline == f"tv lies highest: {gain} ±0.21 points over ce."
    assert rest == (
        f"Of tv's sampled drafts {100 * row.numbers['acceptance'].value:.1f} ±0.6% are accepted at "
        f"temperature 1, on held-out documents. That is {gain} points against ce, corrected 95% "
        f"interval {low} to {high}: real, with one sign in all 3 seeds. Whether it beats nla was "
        "not tested: losses are compared with ce alone."
    )
    assert others == [
        "Really above ce: tv, nla, jsd, lk_hybrid, rkl and jeffreys.",
        "Really below ce: ce_data and ce_argmax.",
        "Not told apart from ce: kl.",
    ]


# Losses, seeds, the loss whose interval holds 0, and what headline and sentences say.
HEADLINES = [
    ("ce tv", 3, "tv", "No loss is shown to differ from ce.", "holds 0"),
    (
        "ce tv ce_argmax", 3, "tv", "No loss is shown to be accepted more than ce.",
        "the most of all. That is +1.",
    ),
    (
        "ce kl ce_argmax", 3, "kl", "No loss is shown to be accepted more than ce.",
        "on held-out documents, the most of all.",
    ),
    ("ce ce_argmax ce_data", 3, "", "ce is accepted most.", "Of ce's sampled drafts 77"),
    ("ce ce_argmax", 2, "", "Among these students ce is accepted most.", "77"),
    ("ce tv", 1, "", r"Among these students tv is accepted most: \+1.*", "1 seed can't"),
    (
        "ce tv", 1, "tv", "No loss is shown to differ from ce.",
        "1 seed can't speak for other students; 3 are needed",
    ),
    ("ce tv ce_argmax", 3, "", r"tv is accepted most: \+1.*", "one sign in all 3 seeds."),
    ("ce kl tv", 3, "", r"tv lies highest: \+1.*", "it beats kl was not tested: losses are"),
    ("ce tv nla", 2, "", r"Among these students tv lies highest: \+1.*", "beats nla was not"),
    ("kl tv", 3, "", r"tv is accepted most: \+1.* points over kl\.", "against kl"),
    (
        "tv untrained", 3, "", r"tv gets 7.* ±0\.6% of its drafts accepted\.",
        "nothing to compare",
    ),
    ("untrained", 3, "", "No trained student has a result.", ""),
]  # fmt: skip


@pytest.mark.parametrize(("losses", "seeds", "open_", "headline", "rest"), HEADLINES)
def test_headlines(losses, seeds, open_, headline, rest):
    frame = unsettled(open_, frame=cases.frame(losses=tuple(losses.split()), seeds=seeds))
    first, second, _ = sentences(frame)
    assert re.fullmatch(headline, first)
    assert rest in second


def test_the_highest_is_no_winner_where_its_difference_is_not_shown():
    headline, rest, others = sentences(
        unsettled("tv", frame=cases.frame(losses=("ce", "nla", "tv")))
    )
    assert re.match(r"nla is accepted more than ce: \+1\.\d\d ±0\.21 points\.", headline)
    assert "tv lies higher still. That is +1." in rest
    assert others == ["Really above ce: nla.", "Not told apart from ce: tv."]


def test_seeds_of_both_signs_and_mere_rounding_are_not_shown():
    frame = cases.frame(losses=("ce", "tv"))
    difference = frame["measure"].eq("difference")
    frame.loc[difference & frame["seed"].eq("1"), "value"] = -0.01
    assert "not shown, as the seeds differ in sign" in sentences(frame)[1]
    frame.loc[difference, ["value", "low", "high"]] = 5e-8, 4e-8, 6e-8
    assert "not shown, as it is no more than rounding" in sentences(frame)[1]


def test_without_differences_there_is_no_winner():
    frame = cases.frame(losses=("ce", "tv"))
    headline, rest, _ = sentences(frame[frame["measure"].ne("difference")])
    assert headline == "tv has the highest acceptance, but no differences were measured."
    assert "more than chance" in rest


@pytest.mark.parametrize("seed", range(20))
def test_no_headline_names_a_winner_that_the_table_does_not(seed):
    noise, losses = np.random.default_rng(seed), ("ce", "tv", "nla", "ce_argmax")
    frame = cases.frame(losses=losses, seeds=int(seed % 3 + 1))
    difference = frame["measure"].eq("difference")
    frame.loc[difference, "value"] += noise.normal(0, 0.01, difference.sum())
    frame["low"], frame["high"] = (
        frame["value"] + sign * noise.uniform(0, 0.03, len(frame)) for sign in (-1, 1)
    )
    verdicts = {row.loss: row.verdict for row in summarize(frame).headline.rows}
    won = re.match(r"(Among these students )?(\w+) (is accepted|lies highest)", sentences(frame)[0])
    if won and won[2] != "ce":
        assert verdicts[won[2]] == ("these students only" if won[1] else "real")


def test_long_and_hostile_names():
    name = "<b>x</b>" + "+0.5*jsd(beta=0.3)" * 20
    result = finding.find(summarize(cases.frame(losses=("ce", "tv"), rename={"tv": name})))
    assert result.headline.startswith("<code>&lt;b&gt;x&lt;/b&gt;+0.5*jsd")
    assert len(plain(result.headline)) < 120
