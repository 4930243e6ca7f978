"""Trains only the teacher; `experiments.distill` with the same config and folder goes on from it.

python -m experiments.teacher --config=configs/quickstart.py --workdir=runs/quickstart
"""

from absl import flags

from experiments import cli
from jaxdiv.training import config as run_config
from jaxdiv.training import corpus, loop, teacher
from jaxdiv.training.workdir import Workdir

CONFIG = cli.define_config()
WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "The run's folder.")


def main(_):
    config = cli.loaded(CONFIG).to_dict()
    run_config.check(config)
    workdir = Workdir(WORKDIR.value)
    teacher.check_donor(config, workdir)
    workdir.claim(config)
    try:
        teacher.prepare(config, workdir, corpus.prepare(config, workdir))
    except loop.Stopped as stopped:
        cli.say(f"{stopped}; the same command goes on from there")
        return 128 + stopped.signum
    cli.say(
        f"{teacher.QUALITY}: {workdir.facts()[teacher.QUALITY]}. It lies in {workdir.teacher}; take it elsewhere by "
        f"--config.teacher.checkpoint={workdir.root}",
    )
    return 0


if __name__ == "__main__":
    cli.run(main, resumes=True)
