"""What the pictures of a run show: a sentence for all, and its numbers for those who can't see
them. Plain text."""

import math
from collections.abc import Iterable

import pandas as pd

from jaxdiv.reporting import results, results_table, style

_TRAINING = {
    "acceptance": "acceptance on held-out data",
    "gradient_norm": "norm of the gradient",
    "loss": "loss",
}


def caption(name: str, frame: pd.DataFrame) -> str:
    """What to see in a picture that `pictures.render` names."""
    reference = results.reference(frame)
    return {
        "differences": f"How far each loss lies above or below {reference}. A bar that crosses the line at 0 does not "
        "show a difference; a filled dot is a real one.",
        "acceptance_over_temperature": "At a high temperature both distributions are flat and any student agrees with "
        "its teacher; compare losses at the temperature that texts are sampled at.",
        "acceptance_by_position": "The share of rounds that get this far falls with each further draft; where it is "
        "low, drafting longer is work lost.",
        "training_curves": "Whether training had settled: acceptance and gradients of all losses, and each loss in "
        "its own unit.",
    }[name]


def alternative(name: str, frame: pd.DataFrame, curves: pd.DataFrame) -> str:
    """The picture's numbers in words, for its alt text."""
    return {
        "differences": _differences,
        "acceptance_over_temperature": _over_temperature,
        "acceptance_by_position": _by_position,
        "training_curves": _training,
    }[name](frame, curves)


def _differences(frame, _):
    rows = results_table.summary(frame, context=results.contexts(frame)[0])
    told = [
        f"{row.loss} {results_table.points(row.difference, row.difference_low, row.difference_high)} ({row.verdict})"
        for row in rows.itertuples()
        if not math.isnan(row.difference)
    ]
    return f"Dots with intervals, percentage points of acceptance against {results.reference(frame)}: {_join(told)}."


def _over_temperature(frame, _):
    context = results.contexts(frame)[0]
    accepted = results.select(frame, measure="acceptance", context=context)
    return f"Lines of acceptance over the temperature, {results_table.describe(context)}. {_ends(frame, accepted, 'T=')}"


def _by_position(frame, _):
    counted = results.select(frame, measure="acceptance_at")
    counted = counted[counted["context"].eq(counted["context"].iloc[0])]
    where = results_table.describe(counted["context"].iloc[0])
    return f"Lines of accepted drafts over their position, {where}. {_ends(frame, counted, 'position ', 'gamma')}"


def _training(_, curves):
    metrics = [_TRAINING[name] for name in _TRAINING if curves["metric"].eq(name).any()]
    return f"Lines over {curves['step'].max():g} training steps of {_join(metrics)}. {_reached(curves)}".strip()


def _reached(curves):
    rows = curves[curves["metric"].eq("acceptance")]
    last = rows[rows["step"].eq(rows["step"].max())].groupby("loss", sort=False)["value"].mean()
    told = [
        f"{loss} {results_table.percent(value)}%"
        for loss, value in last.sort_values(ascending=False).items()
    ]
    return f"Acceptance at the last measurement: {_join(told)}." if told else ""


def _ends(frame, rows, axis, across="temperature"):
    """Of the lines that the picture names, the first and the last point."""
    ranked = results_table.summary(frame, context=rows["context"].iloc[0])
    told = []
    for loss in ranked["loss"][ranked["loss"].isin(style.named(ranked, style.LIGHT))]:
        line = rows[rows["loss"].eq(loss)].sort_values(across)
        ends = [
            f"{results_table.percent(value)}% at {axis}{at:g}"
            for at, value in line[[across, "value"]].to_numpy()[[0, -1]]
        ]
        told.append(f"{loss} from {' to '.join(ends)}")
    return f"{'; '.join(told)}."


def _join(told: Iterable[str]) -> str:
    return ", ".join(told)
