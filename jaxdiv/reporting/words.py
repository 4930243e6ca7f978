"""Words of pages: what each column, measure and verdict means, and how names and numbers are
written. All HTML."""

import math
from collections.abc import Iterable
from html import escape

from jaxdiv.reporting import results_table

_SHORT = 40  # letters of a name that a headline has room for

COLUMNS = {
    "loss": "The loss a student was trained with, as the config has it; <code>untrained</code> is the floor: "
    "a student as it was before its first step.",
    "seed": "The seed of a student's initial values, or <code>all</code> for the seeds together.",
    "context": "What the teacher and the students read: <code>corpus</code>, held-out documents; "
    "<code>generated</code>, text that the teacher sampled at temperature 1; <code>generated_greedy</code>, text of "
    "its likeliest tokens; <code>images</code>, held-out images, each a document of one prediction.",
    "measure": "What was measured; see below.",
    "temperature": "Of teacher and student alike; 0 is greedy. Blank where there is none.",
    "gamma": "Drafts a round, γ; for <code>acceptance_at</code> the position in the draft.",
    "value": "The number itself: a fraction, or tokens a target call. The tables of this page show fractions in "
    "percent and differences in percentage points.",
    "low, high": "95% interval over documents and seeds as crossed factors; ± in the tables is its longer half.",
    "n": "Tokens behind the number.",
}
MEASURES = {
    "acceptance": "Σ min(p, q): the chance that a draft sampled from the student is accepted by rejection sampling.",
    "acceptance_greedy_draft": "p(argmax q): the chance that the teacher samples the student's likeliest token.",
    "acceptance_exact_match": "Σ p·q: the chance that a sample of the student equals a sample of the teacher.",
    "acceptance_typical": "How often p(argmax q) exceeds a threshold that falls with the teacher's entropy: Medusa's "
    "typical acceptance, which is lossy.",
    "greedy_match": "How often teacher and student have the same likeliest token.",
    "accuracy": "How often the student's likeliest class is the image's own.",
    "difference": "Acceptance minus that of the reference, on the same contexts and seeds. The intervals of a table "
    "are widened together, by Holm, so that the chance of even one false finding among its losses stays below 5%.",
    "tau": "Tokens a target call, τ, with γ sampled drafts a round: what lossless decoding of this text would give, "
    "exact in expectation, by a renewal recursion over the teacher's own text.",
    "decoded_tau": "The same by decoding: tokens of all texts over the target calls begun before their last token. The "
    "texts are not those of <code>tau</code> but others after the same prompts.",
    "speed_up": "Tokens a second of speculative over plain decoding, all prompts as one batch; of the machine that "
    "measured it, without an interval.",
    "tau_greedy_draft": "<code>tau</code> with greedy drafts.",
    "tau_iid": "(1 − α<sup>γ+1</sup>)/(1 − α), which takes every position's chance to be the mean one (Leviathan et "
    "al., 2023); for comparison only.",
    "acceptance_at": "Rounds whose draft at this position is accepted, over all rounds, as decoding would count them; "
    "of rounds whose drafts all lie inside the text.",
}
_ACCEPTANCE = (
    "Acceptance is the share of a student's drafts that the teacher keeps, here by rejection sampling, which leaves "
    "the text the teacher's own: the higher, the fewer calls of the teacher a text takes."
)
_AGREEMENT = (
    "Acceptance reads as agreement: Σ min(p, q) over the classes is the chance that a class drawn from the student can "
    "pass for one drawn from the teacher, 100% where both give every class the same chance."
)


def acceptance(context: str) -> str:
    """What acceptance is, in a sentence."""
    return _AGREEMENT if context == "images" else _ACCEPTANCE


VERDICTS = (
    "A difference is <b>real</b> if its corrected interval excludes 0 and all seeds, three or more, have one sign; "
    "otherwise it is <b>not shown</b>. With fewer than three seeds it holds for <b>these students only</b>. Losses are "
    "compared with the reference, not with each other."
)


def name(loss: str, *, longest: int | None = None) -> str:
    """A loss's name as code, cut where it is longer than that."""
    cut = longest is not None and len(loss) > longest
    return f"<code>{escape(f'{loss[: longest - 1]}…' if cut else loss)}</code>"


def short(loss: str) -> str:
    """A loss's name as code, for headlines."""
    return name(loss, longest=_SHORT)


def names(losses: Iterable[str]) -> str:
    """Names as code: `a`, `b` and `c`."""
    *first, last = map(short, losses)
    return f"{', '.join(first)} and {last}" if first else last


def together(number: str) -> str:
    """A number and its interval on one line."""
    return number.replace(" ", "\N{NO-BREAK SPACE}")


def interval(low: float, high: float) -> str:
    """Of a difference, in points: `−0.77 to +1.83`; '' where there is none."""
    ends = (results_table.points(end) for end in (low, high))
    return together(" to ".join(ends)) if math.isfinite(low) and math.isfinite(high) else ""


def number_of(count: int, what: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{count}\N{NO-BREAK SPACE}{what}{'' if count == 1 else 's'}"
