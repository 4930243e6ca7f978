"""Measures finished runs again, from their checkpoints alone: other temperatures or contexts, several runs pooled.

  python -m experiments.acceptance --workdir=runs/quickstart --temperatures=0.7,1,1.5 --contexts=generated
  python -m experiments.acceptance --workdir=runs/seed0,runs/seed1

One run's results.csv and report.html are written anew; several runs' go to a folder of their own.
"""

import pathlib

from absl import flags

from experiments import cli, measuring
from jaxdiv.training import config as run_config
from jaxdiv.training.workdir import Workdir

WORKDIR = flags.DEFINE_list("workdir", None, "Folders of finished runs, by commas.")
TEMPERATURES = flags.DEFINE_list("temperatures", None, "Sampling temperatures, by commas; the runs' own if not given.")
CONTEXTS = flags.DEFINE_string(
    "contexts", None, "Some of corpus,generated,generated_greedy; the runs' own if not given."
)
OUTPUT = flags.DEFINE_string("output", None, "Where results go; the run's folder, or for several one beside them.")


def main(_):
    if not WORKDIR.value:
        raise ValueError("give a finished run, such as --workdir=runs/quickstart")
    runs = [Workdir(path) for path in WORKDIR.value]
    for run in runs:
        run.config()
    output = pathlib.Path(OUTPUT.value) if OUTPUT.value else _folder(runs)
    measuring.measure_and_report(
        runs,
        output=output,
        contexts=run_config.contexts(CONTEXTS.value) if CONTEXTS.value else (),
        temperatures=_temperatures(TEMPERATURES.value or ()),
    )
    cli.say(f"\nWritten to {output}: open {output / 'report.html'}")
    return 0


def _temperatures(given):
    try:
        temperatures = tuple(float(text) for text in given)
    except ValueError:
        temperatures = (0.0,)
    if given and not run_config.TEMPERATURES.holds(temperatures):
        raise ValueError(f"--temperatures must be {run_config.TEMPERATURES.allowed}, got {','.join(given)}")
    return temperatures


def _folder(runs):
    if len(runs) == 1:
        return runs[0].root
    return runs[0].root.with_name("+".join(run.root.name for run in runs))


if __name__ == "__main__":
    cli.run(main)
