"""Measures as readers see them: meaning, format, and columns in the table of losses.

To add a measure to the report, add one entry to `MEASURES`, under its name from `jaxdiv.schema`.
The page then explains it and prints all of its numbers. For a column in the table of losses, on
the terminal, in Markdown and on the page, add one to `COLUMNS` too.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxdiv import schema
from jaxdiv.reporting import formats


class Measure(NamedTuple):
    """A measure's meaning, as HTML, and the function that prints a value or value, low and high."""

    meaning: str
    format: Callable[..., str] = formats.percent


class Column(NamedTuple):
    """A column in the table of losses.

    Its heading, of two lines, may hold {temperature}, at which losses are ranked, and {gamma}.
    """

    measure: str
    heading: str
    temperature: float | str
    interval: bool = False  # whether cells show the interval too


_GREEDY_DRAFT = schema.ACCEPTANCE_BY_RULE[schema.GREEDY_DRAFT]
MEASURES: Mapping[str, Measure] = {
    schema.ACCEPTANCE: Measure(
        "Σ min(p, q): the chance that a draft sampled from the student is accepted by rejection "
        "sampling."
    ),
    _GREEDY_DRAFT: Measure(
        "p(argmax q): the chance that the teacher samples the student's likeliest token."
    ),
    schema.ACCEPTANCE_BY_RULE[schema.EXACT_MATCH]: Measure(
        "Σ p·q: the chance that a sample of the student equals a sample of the teacher."
    ),
    schema.ACCEPTANCE_BY_RULE[schema.TYPICAL]: Measure(
        "How often p(argmax q) exceeds a threshold that falls with the teacher's entropy: Medusa's "
        "typical acceptance, which is lossy."
    ),
    schema.GREEDY_MATCH: Measure("How often teacher and student have the same likeliest token."),
    schema.ACCURACY: Measure("How often the student's likeliest class is the image's own."),
    schema.DIFFERENCE: Measure(
        "Acceptance minus that of the reference, on the same contexts and seeds. The intervals of "
        "a table are widened together, by Holm, so that the chance of even one false finding among "
        "its losses stays below 5%.",
        formats.points,
    ),
    schema.TAU: Measure(
        "Tokens per target call, τ, with γ sampled drafts a round: what lossless decoding of this "
        "text would give, exact in expectation, by a renewal recursion over the teacher's own "
        "text.",
        formats.tokens,
    ),
    schema.DECODED_TAU: Measure(
        "The same by decoding: tokens of all texts over the target calls begun before their last "
        "token. The texts are not those of <code>tau</code> but others after the same prompts.",
        formats.tokens,
    ),
    schema.SPEED_UP: Measure(
        "Tokens a second of speculative over plain decoding, all prompts as one batch; of the "
        "machine that measured it, without an interval.",
        formats.tokens,
    ),
    schema.TAU_GREEDY_DRAFT: Measure("<code>tau</code> with greedy drafts.", formats.tokens),
    schema.TAU_IID: Measure(
        "(1 − α<sup>γ+1</sup>)/(1 − α), which takes every position's chance to be the mean one "
        "(Leviathan et al., 2023); for comparison only.",
        formats.tokens,
    ),
    schema.ACCEPTANCE_AT: Measure(
        "Rounds whose draft at this position is accepted, over all rounds, as decoding would count "
        "them; of rounds whose drafts all lie inside the text."
    ),
}
# Temperatures: that at which losses are ranked; whatever was measured.
RANKED, ANY = "ranked", "any"
COLUMNS: Mapping[str, Column] = {
    "acceptance": Column(schema.ACCEPTANCE, "accepted\nT={temperature:g}, %", RANKED, True),
    "greedy_draft": Column(_GREEDY_DRAFT, "greedy\ndraft", RANKED),
    "greedy_match": Column(schema.GREEDY_MATCH, "greedy\nmatch", ANY),
    "accuracy": Column(schema.ACCURACY, "\naccuracy", ANY),
    "tau": Column(schema.TAU, "τ γ={gamma:g}\nT=1", 1.0),
    "tau_greedy": Column(schema.TAU, "τ γ={gamma:g}\nT=0", 0.0),
}
_CONTEXTS: Mapping[str, str] = {
    schema.CORPUS: "on held-out documents",
    schema.GENERATED: "on the teacher's own text, sampled at temperature 1",
    schema.GENERATED_GREEDY: "on the teacher's own text, greedy",
    schema.IMAGES: "on held-out images",
}


def entry(name: str) -> Measure:
    """Returns a measure's entry; one without an entry is printed in percent."""
    return MEASURES.get(name, Measure(""))


def context_phrase(context: str) -> str:
    """Returns a context in words, such as `on held-out images`."""
    return _CONTEXTS.get(context, f"on {context}")
