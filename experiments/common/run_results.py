"""Measures finished runs, pooled, and writes their results: CSV, table, pictures and report."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import pandas as pd

from experiments.common import cli, decoded_acceptance
from jaxdiv import models, schema
from jaxdiv.evaluation import estimates, measurement
from jaxdiv.evaluation.measurement import Measurement
from jaxdiv.reporting import loss_tables, page, pictures, results
from jaxdiv.reporting.summary import summarize
from jaxdiv.runs import metrics
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import draft_tokens


def measure(
    runs: Sequence[Workdir],
    *,
    contexts: Sequence[str] = (),
    rules: Sequence[str] = (),
    temperatures: Sequence[float] = (),
    decode_gamma: int | None = None,
) -> list[Measurement]:
    """Measures each run.

    Args:
      runs: finished runs.
      contexts, rules, temperatures: those of each run's config if empty.
      decode_gamma: drafts a round with which texts are decoded too; None for no decoding.
    """
    measured = []
    for run in runs:
        choices = {"contexts": contexts, "rules": rules, "temperatures": temperatures}
        changes = {name: tuple(values) for name, values in choices.items() if values}
        evaluation = dataclasses.replace(run.spec().evaluation, **changes)
        measurements = measurement.measure(run, evaluation)
        if decode_gamma:
            measurements = decoded_acceptance.with_decoding(
                run, measurements, names=evaluation.contexts, gamma=decode_gamma
            )
        measured.append(measurements)
    return measured


def write(
    runs: Sequence[Workdir], measured: Sequence[Measurement], *, output: pathlib.PurePath
) -> pd.DataFrame:
    """Writes results.csv, pictures and report.html to `output`, and returns the results."""
    output.mkdir(parents=True, exist_ok=True)
    for run, measurements in zip(runs, measured, strict=True):
        diverged = [
            f"{loss} (seed {seed})"
            for loss, finite in measurements.losses.items()
            for seed in run.spec().seeds
            if seed not in finite
        ]
        if diverged:
            names = ", ".join(diverged)
            cli.log(f"not finite, left out of the table of {run.root}: {names}")
    frame = results.table(estimates.rows(measured))
    results.write_csv(frame, output / "results.csv")
    report(runs, frame, output=output)
    return frame


def report(runs: Sequence[Workdir], frame: pd.DataFrame, *, output: pathlib.PurePath) -> None:
    """Writes the pictures and report.html of the results to `output`.

    Raises:
      ValueError: the results hold no pooled acceptance.
    """
    curves = [metrics.read_curves(run.curves, "student", run.spec().seeds) for run in runs]
    summary = summarize(frame, pd.concat(curves, ignore_index=True))
    images = pictures.draw(summary)
    pictures.write(output, images)
    page.write_report(
        output / "report.html",
        summary,
        images,
        config_text="\n".join(json.dumps(run.config(), indent=2) for run in runs),
        facts=_facts(runs),
        about=_about(runs),
    )


def show(frame: pd.DataFrame, *, markdown: bool = False) -> None:
    """Prints the table of the results, as Markdown if asked."""
    summary = summarize(frame)
    table = loss_tables.acceptance(summary.headline)
    if markdown:
        print(table.markdown(), end="")
        return
    console = cli.console(110)
    console.print(table.terminal())
    if (decoding := loss_tables.decoding(summary)) is not None:
        console.print(decoding.terminal())


def _about(runs: Sequence[Workdir]) -> str:
    """Returns a sentence on what was trained and measured."""
    config = runs[0].config()
    data, teacher, student = config["data"], config["teacher"], config["student"]
    pooled = f"{len(runs)} runs, pooled; the first: " if len(runs) > 1 else ""
    after = f" after layer {student['exit_layer']}" if student["kind"] == models.KANGAROO else ""
    documents = "images" if data["kind"] == schema.IMAGES else "documents"
    return (
        f"{pooled}{student['kind'].capitalize()} students{after} of a {teacher['depth']}-layer "
        f"teacher of width {teacher['width']}, {config['seeds']} a loss, trained for "
        f"{student['steps']} steps on {data['files'] or data['source']}, measured on up to "
        f"{config['evaluation']['documents']} held-out {documents}."
        f"{draft_tokens.describe(runs[0].spec(), runs[0].facts())}"
    )


def _facts(runs: Sequence[Workdir]) -> dict[str, str]:
    """Returns the facts of all runs by name, and what the intervals cover."""
    cover = "test documents and initial values; one teacher and one order of the data serve all "
    cover += "students"
    if len(runs) > 1:
        cover = "test documents and runs, with all that they do not share: initial values, order "
        cover += "of the data, teacher"
    facts = {"intervals cover": cover}
    for run in runs:
        prefix = f"{run.root}: " if len(runs) > 1 else ""
        facts |= {prefix + name: str(value) for name, value in run.facts().items()}
    return facts
