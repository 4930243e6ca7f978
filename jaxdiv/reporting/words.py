"""What report.html says in words: the finding, and what each column and measure means. All of it is HTML."""

from collections.abc import Iterable
from html import escape

import pandas as pd

from jaxdiv.reporting import results, table

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
VERDICTS = (
    "A difference is <b>real</b> if its corrected interval excludes 0 and all seeds, three or more, have one sign; "
    "otherwise it is <b>not shown</b>. With fewer than three seeds it holds for <b>these students only</b>. Losses are "
    "compared with the reference, not with each other."
)


def finding(frame: pd.DataFrame) -> tuple[str, str]:
    """The best loss and by how much, in one sentence; then the other losses, sorted by what is known of them."""
    ranked = table.summary(frame, context=results.contexts(frame)[0])
    trained = ranked[ranked["verdict"].ne("floor")]
    if trained.empty:
        return "No trained student has a result.", ""
    reference, best = results.reference(frame), trained.iloc[0]
    accepted = _accepted(best)
    if best["loss"] == reference or reference is None:
        first = f"{accepted}; no other loss has more." if len(trained) > 1 else f"{accepted}."
    else:
        first = f"{accepted}: {_against(best, reference)}"
    return first, _others(trained, reference)


def name(loss: str) -> str:
    """A loss's name as code."""
    return f"<code>{escape(loss)}</code>"


def _accepted(best):
    percent = table.percent(best["acceptance"], best["acceptance_low"], best["acceptance_high"])
    return f"{name(best['loss'])} gets {_together(percent)}% of its drafts accepted"


def _against(best, reference):
    points = table.points(best["difference"], best["difference_low"], best["difference_high"]).removeprefix("+")
    sentence = f"{_together(points)} points more than {name(reference)}"
    endings = {
        "real": ", a real difference.",
        "not shown": ", which does not show that it is the better loss.",
        "these students only": ", for these students only: fewer than three seeds can't speak for others.",
    }
    return sentence + endings.get(best["verdict"], ".")


def _together(number):
    """A number and its interval on one line."""
    return number.replace(" ", "\N{NO-BREAK SPACE}")


def _others(trained, reference):
    real = trained[trained["verdict"].eq("real")]
    groups = {
        f"Really above {name(reference or '')}": real.loc[real["difference"].gt(0), "loss"],
        "really below": real.loc[real["difference"].lt(0), "loss"],
        "no difference shown": trained.loc[trained["verdict"].eq("not shown"), "loss"],
    }
    told = "; ".join(f"{head}: {_names(losses)}" for head, losses in groups.items() if len(losses))
    return f"{told[0].upper()}{told[1:]}." if told else ""


def _names(losses: Iterable[str]) -> str:
    return ", ".join(name(loss) for loss in losses)
