"""What `distill`, `acceptance` and `report` share: measure runs, write the results, make the
report."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import pandas as pd

from experiments.common import cli, decoded_acceptance
from jaxdiv.evaluation import estimates, measurement
from jaxdiv.evaluation.measurement import Measurement
from jaxdiv.reporting import decoded as decoded_table
from jaxdiv.reporting import html, pictures, results, results_table
from jaxdiv.runs import config as run_config
from jaxdiv.runs import config_keys, metrics, processes, specs
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import students


def measure_and_report(runs: Sequence[Workdir], *, output: pathlib.PurePath, **how: Any) -> None:
    """Measures `runs`, pooled, prints the table, and writes what `write` writes; `how` is what
    `measure` takes."""
    measured = measure(runs, **how)
    if processes.is_first():
        show(write(runs, measured, output=output))


def measure(
    runs: Sequence[Workdir],
    *,
    contexts: Sequence[str] = (),
    rules: Sequence[str] = (),
    temperatures: Sequence[float] = (),
    decode_gamma: int | None = None,
) -> list[Measurement]:
    """Measures each of `runs`.

    Contexts, rules and temperatures are those of each run's config where none are given; with
    `decode_gamma` texts are decoded too, with so many drafts a round.
    """
    measured = []
    for run in runs:
        settings = run.config()["evaluation"]
        names = contexts or config_keys.names_in(settings["contexts"])
        found = measurement.measure(
            run,
            names=names,
            rules=rules or specs.parse_rules(settings["rules"]),
            temperatures=temperatures or tuple(settings["temperatures"]),
        )
        if decode_gamma:
            found = decoded_acceptance.with_decoding(run, found, names=names, gamma=decode_gamma)
        measured.append(found)
    return measured


def write(
    runs: Sequence[Workdir], measured: Sequence[Measurement], *, output: pathlib.PurePath
) -> pd.DataFrame:
    """Writes results.csv, pictures and report.html of measured runs, pooled, to `output`; gives the
    results."""
    output.mkdir(parents=True, exist_ok=True)
    for run, found in zip(runs, measured, strict=True):
        _tell_lost(run, found)
    frame = results.table(estimates.rows(measured))
    results.write_csv(frame, output / "results.csv")
    report(runs, frame, output=output)
    return frame


def _tell_lost(run, found):
    every = students.seeds(run.config())
    lost = [
        f"{loss} (seed {seed})"
        for loss, kept in found.losses.items()
        for seed in every
        if seed not in kept
    ]
    if lost:
        cli.log(f"not finite, left out of the table of {run.root}: {', '.join(lost)}")


def report(runs: Sequence[Workdir], frame: pd.DataFrame, *, output: pathlib.PurePath) -> None:
    """Writes the pictures and report.html of `frame` to `output`."""
    if not results.contexts(frame):
        raise ValueError(
            "the results hold no pooled acceptance; measure again with experiments.acceptance"
        )
    curves = pd.concat([_curves(run) for run in runs], ignore_index=True)
    images = pictures.render_all(frame=frame, curves=curves)
    pictures.write(output, images)
    html.write_report(
        output / "report.html",
        frame=frame,
        curves=curves,
        images=images,
        config_text="\n".join(json.dumps(run.config(), indent=2) for run in runs),
        facts=_facts(runs),
        about=_about(runs),
    )


def show(frame: pd.DataFrame, *, markdown: bool = False) -> None:
    """Prints the table of `frame`, if asked as Markdown."""
    if markdown:
        print(results_table.markdown(frame), end="")
        return
    console = cli.console(110)
    console.print(results_table.rich_table(frame))
    if (by_decoding := decoded_table.rich_table(frame)) is not None:
        console.print(by_decoding)


def _curves(run):
    config = run.config()
    return metrics.read_curves(run.curves, "student", students.seeds(config))


_ONE_RUN = (
    "test documents and initial values; one teacher and one order of the data serve all students"
)
_SEVERAL_RUNS = "test documents and runs, with all that they do not share: initial values, order of the data, teacher"


def _about(runs):
    """What the runs were, in a line."""
    config = runs[0].config()
    data, teacher, student = config["data"], config["teacher"], config["student"]
    pooled = f"{len(runs)} runs, pooled; the first: " if len(runs) > 1 else ""
    after = f" after layer {student['exit_layer']}" if student["kind"] == "kangaroo" else ""
    documents = f"{config['evaluation']['documents']} held-out {'images' if run_config.of_images(config) else 'documents'}"
    return (
        f"{pooled}{student['kind'].capitalize()} students{after} of a {teacher['depth']}-layer teacher of width "
        f"{teacher['width']}, {config['seeds']} a loss, trained for {student['steps']} steps on "
        f"{data['files'] or data['source']}, measured on up to {documents}."
    )


def _facts(runs):
    facts = {"intervals cover": _SEVERAL_RUNS if len(runs) > 1 else _ONE_RUN}
    for run in runs:
        prefix = f"{run.root}: " if len(runs) > 1 else ""
        facts |= {prefix + name: str(value) for name, value in run.facts().items()}
    return facts
