"""Finds what makes a hundredfold gap in acceptance between students of cross-entropy and of KL.

  python -m experiments.gap --config=configs/gap.py --workdir=runs/gap

Trains the students of both losses under each cause of `config.causes`, mistakes and choices of a
re-implementation, from one sound baseline, and measures all of them by every rule, temperature and
count. docs/gap.md has the results. `--config=configs/gap.py:quick` is a first look. Causes may
be joined: `sum+sgd`.
"""

from experiments.common import startup

startup.begin(__name__)

import functools

from absl import flags

from experiments.common import cli, watch_flags
from experiments.gap import causes, report, study
from jaxdiv.acceptance import RULES
from jaxdiv.runs import lock, processes
from jaxdiv.runs.specs import RunSpec
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import loop, run_data, sharding, teacher, teacher_sources

CONFIG = cli.define_config()
cli.define_log_format()
WORKDIR = flags.DEFINE_string(
    "workdir", "runs/gap", "The study's folder; it may be gs://BUCKET/FOLDER."
)
MARKDOWN = flags.DEFINE_bool("markdown", False, "Print the table as Markdown.")
# What no cause changes is the same for all students.
_FIXED = {
    "losses": "ce,kl",
    "temperature": 1.0,
    "data.context": "corpus",
    "student.learning_rates": "",
    "evaluation.rules": ",".join(RULES),
    "evaluation.contexts": "corpus,generated,generated_greedy",
}


def main(_):
    workdir = Workdir(WORKDIR.value)
    config = cli.load_config(CONFIG)
    if "causes" not in config:
        raise ValueError("the config has no `causes`; give one such as --config=configs/gap.py")
    text = config.pop("causes")
    for key, fixed in _FIXED.items():
        value = functools.reduce(lambda section, name: section[name], key.split("."), config)
        if value != fixed:
            raise ValueError(f"`config.{key}` is {fixed!r} in this study, got {value!r}")
    config = teacher_sources.resolve(config, workdir, typed=cli.overrides(CONFIG))
    spec = RunSpec.from_config(config)
    run_data.require_text(spec.data)
    study_causes = causes.read(text, config)
    mesh = sharding.make_mesh(spec)
    profile, trackers = watch_flags.profiled_steps(spec.student_stage.steps), watch_flags.trackers()
    with lock.hold(workdir.root):
        study.initialize_or_resume(workdir, config, study_causes)
        try:
            corpus = run_data.prepare(spec, workdir)
            frame, acceptance = study.run(
                spec,
                workdir,
                study_causes,
                corpus=corpus,
                teacher=teacher.prepare(spec, workdir, corpus, loop.Monitoring(trackers=trackers)),
                mesh=mesh,
                monitoring=loop.Monitoring(profile, trackers),
            )
        except loop.Stopped as stopped:
            cli.log(f"{stopped}; the same command goes on from there")
            return 128 + stopped.signum
        if processes.is_first():
            report.write(workdir.root, frame, acceptance)
            if MARKDOWN.value:
                print(report.table(frame).markdown(), end="")
            else:
                cli.console(150).print(report.table(frame).terminal())
            names = f"{report.FILE}, {report.ACCEPTANCE} and two pictures"
            cli.log(f"\nEverything lies in {workdir.root}: {names}")
    return 0


if __name__ == "__main__":
    cli.run(main, resumes=True)
