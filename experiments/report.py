"""Makes report.html and the pictures of a run anew from its results.csv, and prints the table.

python -m experiments.report --workdir=runs/quickstart
"""

from absl import flags

from experiments import cli, measuring
from jaxdiv.reporting import results
from jaxdiv.training.workdir import Workdir

WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "The folder of a finished run.")


def main(_):
    run = Workdir(WORKDIR.value)
    run.config()
    if not run.results.exists():
        raise ValueError(
            f"{run.results} is not there; measure first: python -m experiments.acceptance --workdir={run.root}"
        )
    measuring.report([run], results.read_csv(run.results), output=run.root)
    cli.say(f"\nOpen {run.report}")
    return 0


if __name__ == "__main__":
    cli.run(main)
