"""What a run found, in a headline and a few sentences that claim no more than the verdicts of its
table. All HTML."""

import dataclasses
import math
from html import escape

import pandas as pd

from jaxdiv.reporting import results, results_table, words


@dataclasses.dataclass(frozen=True)
class Finding:
    """What there is to say of the first context of some results.

    Attributes:
      headline: one sentence.
      sentences: what it rests on.
      others: all losses, sorted by what is known of them against the reference.
      loss: the row of the summary that both speak of; None without a trained student.
    """

    headline: str
    sentences: tuple[str, ...]
    loss: pd.Series | None
    others: tuple[str, ...] = ()


def of(frame: pd.DataFrame) -> Finding:
    """The loss shown to be accepted more than the reference, or that none is."""
    context = results.contexts(frame)[0]
    ranked = results_table.summary(frame, context=context)
    trained, reference = ranked[ranked["verdict"].ne("floor")], results.reference(frame)
    if trained.empty:
        return Finding("No trained student has a result.", (), None)
    where = (
        f"temperature {trained['temperature'].iloc[0]:g}, {escape(results_table.describe(context))}"
    )
    if len(trained) == 1:
        return _alone(trained.iloc[0], where)
    if reference is None:
        return _uncompared(trained.iloc[0], where)
    above = trained[trained.apply(results_table.side, axis=1).gt(0)]
    found = (
        _none(trained, reference, where)
        if above.empty
        else _winner(above.iloc[0], trained, reference, where)
    )
    return dataclasses.replace(found, others=_others(trained, reference))


def _alone(row, where):
    headline = f"{words.short(row['loss'])} gets {_percent(row)} of its drafts accepted."
    return Finding(
        headline,
        (f"Sampled drafts at {where}. One loss alone: there is nothing to compare it with.",),
        row,
    )


def _uncompared(row, where):
    headline = (
        f"{words.short(row['loss'])} has the highest acceptance, but no differences were measured."
    )
    return Finding(
        headline,
        (_accepted(row, where), "Without them nothing tells whether it is more than chance."),
        row,
    )


def _winner(row, trained, reference, where):
    top, reference_name = trained.iloc[0], words.short(reference)
    gain = words.together(
        results_table.points(row["difference"], row["difference_low"], row["difference_high"])
    )
    name = f"{'Among these students ' if row['verdict'] == results.FEW_SEEDS else ''}{words.short(row['loss'])}"
    sentences = [_accepted(row, where), _against(row, reference)]
    if row["loss"] != top["loss"]:
        headline = f"{name} is accepted more than {reference_name}: {gain} points."
        sentences.append(
            f"{words.short(top['loss'])} lies higher still. {_against(top, reference)}"
        )
    elif rival := _rival(row, trained, reference):
        headline = f"{name} lies highest: {gain} points over {reference_name}."
        sentences.append(
            f"Whether it beats {words.short(rival)} was not tested: losses are compared with {reference_name} alone."
        )
    else:
        headline = f"{name} is accepted most: {gain} points over {reference_name}."
    return Finding(headline, tuple(sentences), row)


def _rival(row, trained, reference):
    """The highest loss that no test puts below `row`, as one puts the reference and what lies below
    that; or None."""
    below = trained.apply(results_table.side, axis=1).lt(0) | trained["loss"].isin(
        [row["loss"], reference]
    )
    return next(iter(trained.loc[~below, "loss"]), None)


def _none(trained, reference, where):
    top, others = trained.iloc[0], trained[trained["loss"].ne(reference)]
    sides, name = others.apply(results_table.side, axis=1), words.short(reference)
    if top["loss"] == reference and sides.lt(0).all():
        among = "Among these students " if others["verdict"].eq(results.FEW_SEEDS).any() else ""
        return Finding(f"{among}{name} is accepted most.", (_accepted(top, where),), top)
    relation = "be accepted more than" if sides.any() else "differ from"
    told = (_accepted(top, f"{where}, the most of all"),)
    told += () if top["loss"] == reference else (_against(top, reference),)
    return Finding(f"No loss is shown to {relation} {name}.", told, top)


def _percent(row):
    return (
        words.together(
            results_table.percent(row["acceptance"], row["acceptance_low"], row["acceptance_high"])
        )
        + "%"
    )


def _accepted(row, where):
    return (
        f"Of {words.short(row['loss'])}'s sampled drafts {_percent(row)} are accepted at {where}."
    )


def _against(row, reference):
    """How far a loss lies from the reference, and why that counts or does not."""
    if math.isnan(row["difference"]):
        return f"It was not compared with {words.short(reference)}."
    points = words.together(f"{results_table.points(row['difference'])} points")
    ends = words.interval(row["difference_low"], row["difference_high"])
    interval = f", corrected 95% interval {ends}" if ends else ""
    return f"That is {points} against {words.short(reference)}{interval}: {_worth(row)}."


def _worth(row):
    seeds = words.number_of(len(row["by_seed"]), "seed")
    if row["verdict"] == "real":
        return f"real, with one sign in all {seeds}"
    if row["verdict"] == results.FEW_SEEDS:
        return f"{seeds} can't speak for other students; {results.ENOUGH_SEEDS} are needed"
    if row["difference_low"] <= 0 <= row["difference_high"]:
        return "not shown, as the interval holds 0"
    if abs(row["difference"]) <= results.ROUNDING:
        return "not shown, as it is no more than rounding"
    return "not shown, as the seeds differ in sign"


def _others(trained, reference):
    compared = trained[trained["difference"].notna() & trained["loss"].ne(reference)]
    real, shown = compared["verdict"].eq("real"), words.short(reference)
    groups = {
        f"Really above {shown}": compared.loc[real & compared["difference"].gt(0), "loss"],
        f"Really below {shown}": compared.loc[real & compared["difference"].lt(0), "loss"],
        f"Not told apart from {shown}": compared.loc[compared["verdict"].eq("not shown"), "loss"],
        "Of too few seeds to tell": compared.loc[compared["verdict"].eq(results.FEW_SEEDS), "loss"],
    }
    return tuple(
        f"{head}: {words.names(losses)}." for head, losses in groups.items() if len(losses)
    )
