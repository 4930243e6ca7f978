"""What can make a hundredfold gap in acceptance between students of cross-entropy and of KL?

  python -m experiments.gap --config=configs/gap.py --workdir=runs/gap

Trains the students of both losses under each cause of `config.causes`, mistakes and choices of a
re-implementation, from one sound baseline, and measures all of them by every rule, temperature and
count. docs/gap.md says what came of it. `--config=configs/gap.py:quick` is a first look. Causes may
be joined: `sum+sgd`.
"""

from experiments.common import startup

startup.begin(__name__)

import functools

from absl import flags

from experiments.common import cli, watch_flags
from experiments.gap import causes, report, study
from jaxdiv.acceptance import RULES
from jaxdiv.runs import lock, processes, sharding
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import loop, run_data, teacher

CONFIG = cli.define_config()
cli.define_log_format()
WORKDIR = flags.DEFINE_string(
    "workdir", "runs/gap", "The study's folder; it may be gs://BUCKET/FOLDER."
)
_FIXED = {
    "losses": "ce,kl",
    "temperature": 1.0,
    "data.context": "corpus",
    "student.learning_rates": "",
    "evaluation.rules": ",".join(RULES),
    "evaluation.contexts": "corpus,generated,generated_greedy",
}
MARKDOWN = flags.DEFINE_bool("markdown", False, "Print the table as Markdown.")


def main(_):
    workdir = Workdir(WORKDIR.value)
    config = cli.load_config(CONFIG)
    if "causes" not in config:
        raise ValueError("the config has no `causes`; give one such as --config=configs/gap.py")
    text = config.pop("causes")
    _refuse_others(config)
    config = teacher.resolve(config, workdir, typed=cli.overrides(CONFIG))
    run_data.refuse_images(config)
    found = causes.read(text, config)
    mesh = sharding.make(config)
    profile, also = watch_flags.profiled_steps(config["student"]["steps"]), watch_flags.trackers()
    with lock.hold(workdir.root):
        study.check(
            workdir, found
        )  # before the folder takes a config that differs in what may change
        workdir.initialize_or_resume(config)
        study.initialize_or_resume(workdir, found)
        try:
            data = run_data.prepare(config, workdir)
            guide = teacher.prepare(config, workdir, data, also=also)
            made = study.run(
                config,
                workdir,
                found,
                corpus=data,
                teacher=guide,
                mesh=mesh,
                profile=profile,
                also=also,
            )
        except loop.Stopped as stopped:
            cli.log(f"{stopped}; the same command goes on from there")
            return 128 + stopped.signum
        if processes.is_first():
            _report(*made, workdir.root)
    return 0


def _refuse_others(config):
    """What causes don't speak of is one for all."""
    for key, wanted in _FIXED.items():
        *sections, name = key.split(".")
        found = functools.reduce(lambda inner, section: inner[section], sections, config)[name]
        if found != wanted:
            raise ValueError(f"`config.{key}` is {wanted!r} in this study, got {found!r}")


def _report(rows, acceptance, folder):
    frame = report.table(rows)
    report.write(folder, frame, acceptance)
    if MARKDOWN.value:
        print(report.markdown(frame), end="")
    else:
        cli.console(150).print(report.rich_table(frame))
    cli.log(f"\nEverything lies in {folder}: {report.FILE}, {report.ACCEPTANCE} and two pictures")


if __name__ == "__main__":
    cli.run(main, resumes=True)
