"""Writes report.html and the pictures of a run again from its results.csv, and prints the table.

python -m experiments.report --workdir=runs/quickstart [--markdown]
"""

from experiments.common import startup

startup.begin(__name__)

from absl import flags

from experiments.common import cli, run_results
from jaxdiv.reporting import results
from jaxdiv.runs.workdir import Workdir

MARKDOWN = flags.DEFINE_bool("markdown", False, "Print the table as Markdown, for a README.")
WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "The folder of a finished run.")


def main(_):
    run = Workdir(WORKDIR.value)
    run.config()
    if not run.results.exists():
        command = f"python -m experiments.acceptance --workdir={run.root}"
        raise ValueError(f"{run.results} is not there; measure first: {command}")
    frame = results.read_csv(run.results)
    run_results.report([run], frame, output=run.root)
    run_results.show(frame, markdown=MARKDOWN.value)
    cli.log(f"\nOpen {run.report}")
    return 0


if __name__ == "__main__":
    cli.run(main)
