"""Finds what makes a hundredfold gap in acceptance between students of cross-entropy and of KL.

  python -m experiments.gap --config=configs/gap.py --workdir=runs/gap

Trains the students of both losses under each cause of `config.causes`, mistakes and choices of a
re-implementation, from one sound baseline, and measures all of them by every rule, temperature and
count. docs/gap.md has the results. `--config=configs/gap.py:quick` is a first look. Causes may
be joined: `sum+sgd`.
"""

from experiments.common import startup

startup.begin(__name__)

from collections.abc import Mapping

from absl import flags

from experiments.common import cli, watch_flags
from experiments.gap import causes, measuring, ratios, report
from experiments.gap.training import VariantTrainer
from jaxdiv import files
from jaxdiv.acceptance import RULES
from jaxdiv.runs import config as run_config
from jaxdiv.runs import lock, processes
from jaxdiv.runs.specs import RunSpec
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import loop, run_data, sharding, students, teacher, teacher_sources

CONFIG = cli.define_config()
cli.define_log_format()
WORKDIR = flags.DEFINE_string(
    "workdir", "runs/gap", "The study's folder; it may be gs://BUCKET/FOLDER."
)
MARKDOWN = flags.DEFINE_bool("markdown", False, "Print the table as Markdown.")
_FILE = "arms.json"  # the names of the folder's variants, under the name that folders in use have
# What no cause changes is the same for all students.
_FIXED = {
    "losses": "ce,kl",
    "temperature": 1.0,
    "data.context": "corpus",
    "teacher.cache": "",
    "student.learning_rates": "",
    "student.vocabulary": 0,
    "evaluation.rules": ",".join(RULES),
    "evaluation.contexts": "corpus,generated,generated_greedy",
}


def main(_):
    workdir = Workdir(WORKDIR.value)
    config = cli.load_config(CONFIG)
    if "causes" not in config:
        raise ValueError("the config has no `causes`; give one such as --config=configs/gap.py")
    text = config.pop("causes")
    values = run_config.flatten(config)
    for key, fixed in _FIXED.items():
        if values[key] != fixed:
            raise ValueError(f"`config.{key}` is {fixed!r} in this study, got {values[key]!r}")
    config = teacher_sources.resolve(config, workdir, typed=cli.overrides(CONFIG))
    spec = RunSpec.from_config(config)
    run_data.require_text(spec.data)
    study_causes = causes.read(text, config)
    variants = causes.variants(study_causes)
    mesh = sharding.make_mesh(spec)
    profile, trackers = watch_flags.profiled_steps(spec.student_stage.steps), watch_flags.trackers()
    with lock.hold(workdir.root):
        _initialize_or_resume(workdir, config, list(variants))
        corpus = run_data.prepare(spec, workdir)
        model = teacher.prepare(spec, workdir, corpus, loop.Monitoring(trackers=trackers))
        untrained = students.untrained(spec, corpus.tokenizer.vocab_size, mesh)
        trainer = VariantTrainer(spec, variants, model, untrained, corpus, mesh)
        state = trainer.train(workdir, loop.Monitoring(profile, trackers))
        sums = measuring.measure(trainer, state)
        if processes.is_first():
            frame = ratios.table(study_causes, sums)
            report.write(workdir.root, frame, ratios.acceptance_table(variants, sums))
            if MARKDOWN.value:
                print(report.table(frame).markdown(), end="")
            else:
                cli.console(150).print(report.table(frame).terminal())
            names = f"{report.FILE}, {report.ACCEPTANCE} and two pictures"
            cli.log(f"\nEverything lies in {workdir.root}: {names}")
    return 0


def _initialize_or_resume(workdir: Workdir, config: Mapping, names: list[str]) -> None:
    """Begins or resumes the study. Raises ValueError if the folder trains the students of other
    causes."""
    path = workdir.root / _FILE
    # Checked before the folder takes a config that differs in what may change.
    if workdir.students.exists():
        stored = files.read_json(path) if path.exists() else []
        if stored != names:
            different = {name.rpartition(":")[0] for name in set(stored) ^ set(names)}
            raise ValueError(
                f"{workdir.root} trains the students of other causes, which differ in "
                f"{', '.join(sorted(different)) or 'their order'}; give it a folder of its own, "
                f"with its teacher: --workdir={workdir.root}-2 "
                f"--config.teacher.checkpoint={workdir.root}"
            )
    workdir.initialize_or_resume(config)
    if processes.is_first():
        files.write_json(path, names)


if __name__ == "__main__":
    cli.run(main, resumes=True)
