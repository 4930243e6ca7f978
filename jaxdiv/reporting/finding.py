"""The headline of a report and the sentences below it: they claim no more than the verdicts."""

import dataclasses
from collections.abc import Iterable, Sequence

from markupsafe import Markup, escape

from jaxdiv.reporting import formats, verdicts
from jaxdiv.reporting.summary import ContextSummary, LossRow, Summary


@dataclasses.dataclass(frozen=True)
class Headline:
    """The result of a run in words, as HTML."""

    headline: Markup  # one sentence
    sentences: Sequence[Markup] = ()  # the numbers that it rests on
    row: LossRow | None = None  # the loss that both speak of
    groups: Sequence[Markup] = ()  # all losses, by their verdicts against the reference


def find(summary: Summary) -> Headline:
    """Returns the loss shown to be accepted more than the reference, or that none is."""
    table, groups = summary.headline, ()
    if not table.trained:
        return Headline(Markup("No trained student has a result."))
    row = table.trained[0]
    if len(table.trained) == 1:
        texts = [
            f"{short(row.loss)} gets {_percent(row)} of its drafts accepted.",
            f"Sampled drafts at {_where(table)}. One loss alone: there is nothing to compare it "
            "with.",
        ]
    elif table.reference is None:
        texts = [
            f"{short(row.loss)} has the highest acceptance, but no differences were measured.",
            _accepted(row, table),
            "Without them nothing tells whether it is more than chance.",
        ]
    else:
        above = [row for row in table.trained if row.side > 0]
        row = above[0] if above else row
        texts = _describe_winner(row, table) if above else _describe_none(table)
        groups = _groups(table)
    headline, *sentences = map(Markup, texts)
    return Headline(headline, sentences, row, groups)


def _describe_winner(row: LossRow, table: ContextSummary) -> list[str]:
    """Names the highest loss that is shown to lie above the reference."""
    top, reference = table.trained[0], short(table.reference)
    gain = formats.unbroken(formats.points(*row.difference))
    name = f"{_among([row])}{short(row.loss)}"
    # The highest other loss that no test puts below this one, as one puts the reference.
    rivals = (r for r in table.trained if r.side >= 0 and r.loss not in (row.loss, table.reference))
    rival = next(rivals, None)
    sentences = [_accepted(row, table), _against(row, table)]
    if row is not top:
        headline = f"{name} is accepted more than {reference}: {gain} points."
        sentences.append(f"{short(top.loss)} lies higher still. {_against(top, table)}")
    elif rival:
        headline = f"{name} lies highest: {gain} points over {reference}."
        test = f"losses are compared with {reference} alone"
        sentences.append(f"Whether it beats {short(rival.loss)} was not tested: {test}.")
    else:
        headline = f"{name} is accepted most: {gain} points over {reference}."
    return [headline, *sentences]


def _describe_none(table: ContextSummary) -> list[str]:
    """Says that no loss is shown to lie above the reference, or that all lie below it."""
    top, name = table.trained[0], short(table.reference)
    others = [row for row in table.trained if row.loss != table.reference]
    if top.loss == table.reference and all(row.side < 0 for row in others):
        return [f"{_among(others)}{name} is accepted most.", _accepted(top, table)]
    relation = "be accepted more than" if any(row.side for row in others) else "differ from"
    headline = f"No loss is shown to {relation} {name}."
    against = [_against(top, table)] if top.loss != table.reference else []
    return [headline, _accepted(top, table, ", the most of all"), *against]


def short(loss: str) -> Markup:
    """Returns a loss's name as code, cut to what a headline has room for."""
    return Markup("<code>{}</code>").format(loss if len(loss) <= 40 else f"{loss[:39]}…")


def _among(rows: Iterable[LossRow]) -> str:
    few = any(row.verdict == verdicts.FEW_SEEDS for row in rows)
    return "Among these students " if few else ""


def _where(table: ContextSummary) -> str:
    return f"temperature {table.temperature:g}, {escape(table.phrase)}"


def _percent(row: LossRow) -> str:
    return formats.unbroken(formats.percent(*row.numbers["acceptance"])) + "%"


def _accepted(row: LossRow, table: ContextSummary, remark: str = "") -> str:
    drafts = f"{short(row.loss)}'s sampled drafts {_percent(row)}"
    return f"Of {drafts} are accepted at {_where(table)}{remark}."


def _against(row: LossRow, table: ContextSummary) -> str:
    """Returns how far a loss lies from the reference, and why that counts or does not."""
    value, low, high = row.difference
    if not row.compared:
        return f"It was not compared with {short(table.reference)}."
    ends = formats.interval(low, high)
    interval = f", corrected 95% interval {ends}" if ends else ""
    count = len(row.by_seed)
    seeds = formats.unbroken(f"{count} seed{'s' * (count != 1)}")
    if row.verdict == verdicts.REAL:
        reason = f"real, with one sign in all {seeds}"
    elif row.verdict == verdicts.FEW_SEEDS:
        reason = f"{seeds} can't speak for other students; {verdicts.ENOUGH_SEEDS} are needed"
    elif low <= 0 <= high:
        reason = "not shown, as the interval holds 0"
    elif abs(value) <= verdicts.ROUNDING:
        reason = "not shown, as it is no more than rounding"
    else:
        reason = "not shown, as the seeds differ in sign"
    points = formats.unbroken(f"{formats.points(value)} points")
    return f"That is {points} against {short(table.reference)}{interval}: {reason}."


def _groups(table: ContextSummary) -> list[Markup]:
    """Returns a line for each verdict against the reference, with the losses that have it."""
    reference = short(table.reference)
    groups = {
        f"Really above {reference}": (verdicts.REAL, True),
        f"Really below {reference}": (verdicts.REAL, False),
        f"Not told apart from {reference}": (verdicts.NOT_SHOWN, None),
        "Of too few seeds to tell": (verdicts.FEW_SEEDS, None),
    }
    lines = []
    for head, (verdict, above) in groups.items():
        rows = (row for row in table.trained if row.compared and row.verdict == verdict)
        losses = [r.loss for r in rows if above in (None, r.difference.value > 0)]
        lines += [Markup(f"{head}: {names(losses)}.")] if losses else []
    return lines


def names(losses: Sequence[str]) -> Markup:
    """Returns names as code: `a`, `b` and `c`."""
    *first, last = map(short, losses)
    return Markup(f"{', '.join(first)} and {last}" if first else last)
