"""Trains a teacher, distils students under every loss side by side, and compares their acceptance.

  python -m experiments.distill --config=configs/quickstart.py --workdir=runs/quickstart

Any key of the config file can be overridden, nested ones with dots; the file lists the keys and
says what each means:

  --config.losses='ce,jsd(beta=0.3),0.5*kl+0.5*tv' --config.seeds=5 --config.teacher.steps=1000

The same command goes on where an earlier one stopped; docs/runs.md says how to watch it.
"""

from experiments.common import startup

startup.begin(__name__)

import shlex
import sys

from absl import flags

from experiments.common import cli, run_results, watch_flags
from jaxdiv.runs import config as run_config
from jaxdiv.runs import lock, sharding
from jaxdiv.runs.workdir import ConfigDiffers, Workdir
from jaxdiv.training import loop, run_data, students, teacher

CONFIG = cli.define_config()
cli.define_log_format()
WORKDIR = flags.DEFINE_string(
    "workdir", "runs/quickstart", "The run's folder; it may be gs://BUCKET/FOLDER."
)

# What may change while the teacher, its data and its tokenizer stay the same.
_AFTER_TEACHER = (
    "config.losses",
    "config.seed",
    "config.seeds",
    "config.temperature",
    "config.student",
    "config.evaluation",
    "config.mesh",
    "config.checkpoint",
    "config.log",
)


def main(_):
    workdir = Workdir(WORKDIR.value)
    config = teacher.resolve(cli.load_config(CONFIG), workdir, typed=cli.overrides(CONFIG))
    sharding.make(config)  # which refuses what this machine has not
    profile, also = watch_flags.profiled_steps(config["student"]["steps"]), watch_flags.trackers()
    with lock.hold(workdir.root):
        return _run(config, workdir, profile, also)


def _run(config, workdir, profile, also):
    try:
        workdir.initialize_or_resume(config)
    except ConfigDiffers as error:
        raise ValueError(f"{error}. {_mend(error.keys, workdir)}") from None
    try:
        data = run_data.prepare(config, workdir)
        guide = teacher.prepare(config, workdir, data, also=also)
        students.train(config, workdir, data, guide, profile=profile, also=also)
    except loop.Stopped as stopped:
        cli.log(f"{stopped}; the same command goes on from there")
        return 128 + stopped.signum
    run_results.measure_and_report([workdir], output=workdir.root)
    cli.log(
        f"\nEverything lies in {workdir.root}: open {workdir.report}. Measure again with other temperatures by "
        f"python -m experiments.acceptance --workdir={workdir.root} --temperatures=0.7,1.5",
    )
    return 0


def _mend(keys, workdir):
    """The command that asks for the same in a folder of its own, with the old teacher where it can
    serve."""
    path = workdir.root
    number = 2
    while (fresh := path.with_name(f"{path.name}-{number}")).exists():
        number += 1
    command = [
        "python",
        "-m",
        "experiments.distill",
        *_without("workdir", "config.teacher.checkpoint"),
    ]
    command.append(f"--workdir={fresh}")
    if all(run_config.within(key, _AFTER_TEACHER) for key in keys):
        command.append(f"--config.teacher.checkpoint={path}")
    return f"Give it a folder of its own: {shlex.join(command)}"


def _without(*flags_left_out):
    """The command line without these flags, whether their value follows `=` or a space."""
    kept, skip = [], False
    for argument in sys.argv[1:]:
        name, equals, _ = argument.lstrip("-").partition("=")
        if skip:
            skip = False
        elif argument.startswith("-") and name in flags_left_out:
            skip = not equals
        else:
            kept.append(argument)
    return kept


if __name__ == "__main__":
    cli.run(main, resumes=True)
