"""Trains a teacher, distils students under every loss side by side, and compares their acceptance.

  python -m experiments.distill --config=configs/quickstart.py --workdir=runs/quickstart

The command line can set any key of the config, nested ones with dots; docs/config.md lists the
keys and what they mean:

  --config.losses='ce,jsd(beta=0.3),0.5*kl+0.5*tv' --config.seeds=5 --config.teacher.steps=1000

The same command continues a run that was stopped; docs/runs.md says how to watch one.
"""

from experiments.common import startup

startup.begin(__name__)

import shlex
import sys
from collections.abc import Iterable

from absl import flags

from experiments.common import cli, run_results, watch_flags
from jaxdiv.runs import config as run_config
from jaxdiv.runs import lock, processes
from jaxdiv.runs.specs import RunSpec
from jaxdiv.runs.workdir import ConfigDiffers, Workdir
from jaxdiv.training import loop, run_data, sharding, students, teacher_cache, teacher_sources

CONFIG = cli.define_config()
cli.define_log_format()
WORKDIR = flags.DEFINE_string(
    "workdir", "runs/quickstart", "The run's folder; it may be gs://BUCKET/FOLDER."
)

# Keys that may change while the teacher, its data and its tokenizer stay the same.
_AFTER_TEACHER = (
    *("config.losses", "config.seed", "config.seeds", "config.temperature", "config.student"),
    *("config.evaluation", "config.mesh", "config.checkpoint", "config.log"),
    *("config.teacher.cache", "config.teacher.cache_rows"),
)


def main(_):
    workdir = Workdir(WORKDIR.value)
    config = teacher_sources.resolve(cli.load_config(CONFIG), workdir, typed=cli.overrides(CONFIG))
    spec = RunSpec.from_config(config)
    sharding.make_mesh(spec)  # raises early if this machine lacks the devices
    profile, trackers = watch_flags.profiled_steps(spec.student_stage.steps), watch_flags.trackers()
    with lock.hold(workdir.root):
        try:
            workdir.initialize_or_resume(config)
        except ConfigDiffers as error:
            raise ValueError(f"{error}. {_remedy(error.keys, workdir)}") from None
        data = run_data.prepare(spec, workdir)
        model = teacher_cache.prepare(spec, workdir, data, loop.Monitoring(trackers=trackers))
        students.train(spec, workdir, data, model, loop.Monitoring(profile, trackers))
        measured = run_results.measure([workdir])
        if processes.is_first():
            run_results.show(run_results.write([workdir], measured, output=workdir.root))
        cli.log(
            f"\nEverything lies in {workdir.root}: open {workdir.report}. Measure again with other "
            "temperatures by python -m experiments.acceptance "
            f"--workdir={workdir.root} --temperatures=0.7,1.5"
        )
    return 0


def _remedy(keys: Iterable[str], workdir: Workdir) -> str:
    """Returns the command for a folder of its own, with the old teacher where that can serve."""
    path, number = workdir.root, 2
    while (new := path.with_name(f"{path.name}-{number}")).exists():
        number += 1
    command, arguments = ["python", "-m", "experiments.distill"], iter(sys.argv[1:])
    for argument in arguments:
        name, equals, _ = argument.lstrip("-").partition("=")
        if not argument.startswith("-") or name not in ("workdir", "config.teacher.checkpoint"):
            command.append(argument)
        elif not equals:
            next(arguments, None)  # its value
    command.append(f"--workdir={new}")
    if all(run_config.within(key, _AFTER_TEACHER) for key in keys):
        command.append(f"--config.teacher.checkpoint={path}")
    return f"Give it a folder of its own: {shlex.join(command)}"


if __name__ == "__main__":
    cli.run(main, resumes=True)
