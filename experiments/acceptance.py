"""Measures finished runs again from their checkpoints: other temperatures, rules or contexts;
several runs pooled.

  python -m experiments.acceptance --workdir=runs/quickstart --temperatures=0,0.7
  --rules=exact_match --output=runs/b python -m experiments.acceptance --workdir=runs/quickstart
  --decode --decode_gamma=6 --output=runs/decoded python -m experiments.acceptance
  --workdir=runs/seed0,runs/seed1

One run's results.csv and report.html are written anew; several runs' go to a folder of their own.
"""

from experiments.common import startup

startup.begin(__name__)

from absl import flags

from experiments.common import cli, run_results
from jaxdiv import files, schema
from jaxdiv.acceptance import RULES as RULE_NAMES
from jaxdiv.runs import config as run_config
from jaxdiv.runs import config_keys, specs
from jaxdiv.runs.workdir import DATA_READY, Workdir
from jaxdiv.schema import GENERATED_TEMPERATURES
from jaxdiv.training import run_data, students

cli.define_log_format()
WORKDIR = flags.DEFINE_list("workdir", None, "Folders of finished runs, by commas.")
TEMPERATURES = flags.DEFINE_list(
    "temperatures", None, "Sampling temperatures, by commas; the runs' own if not given."
)
CONTEXTS = flags.DEFINE_string(
    "contexts", None, f"Some of {','.join(schema.CONTEXTS)}; the runs' own if not given."
)
RULES = flags.DEFINE_string(
    "rules",
    None,
    f"Some of {','.join(RULE_NAMES)}; sampling is always measured. The runs' own if not given.",
)
DECODE = flags.DEFINE_bool(
    "decode",
    False,
    "Also decode after every prompt with every student: tokens a call and speed-up; takes minutes.",
)
DECODE_GAMMA = flags.DEFINE_integer(
    "decode_gamma",
    4,
    "Drafts a round of --decode.",
    lower_bound=1,
    upper_bound=schema.MAX_MEASURED_GAMMA,
)
OUTPUT = flags.DEFINE_string(
    "output", None, "Where results go; the run's folder, or for several one beside them."
)

# What runs that are pooled need not share.
_MAY_DIFFER = (
    "config.losses",
    "config.seed",
    "config.seeds",
    "config.data.directory",
    "config.teacher.checkpoint",
    "config.evaluation.contexts",
    "config.evaluation.rules",
    "config.evaluation.temperatures",
    "config.checkpoint",
    "config.log",
)


def main(_):
    if not WORKDIR.value or not all(WORKDIR.value):
        raise ValueError("give a finished run, such as --workdir=runs/quickstart")
    runs = [Workdir(path) for path in WORKDIR.value]
    _check_alike(runs)
    output = files.path_of(OUTPUT.value) if OUTPUT.value else _folder(runs)
    contexts = _given(CONTEXTS, config_keys.KEYS["evaluation.contexts"].rule, config_keys.names_in)
    if DECODE.value:
        _check_decodable(runs, contexts)
    run_results.measure_and_report(
        runs,
        output=output,
        contexts=contexts,
        rules=_given(RULES, config_keys.KEYS["evaluation.rules"].rule, specs.parse_rules),
        temperatures=_temperatures(TEMPERATURES.value or ()),
        decode_gamma=DECODE_GAMMA.value if DECODE.value else None,
    )
    cli.log(f"\nWritten to {output}: open {output / 'report.html'}")
    return 0


def _check_decodable(runs, contexts):
    for run in runs:
        run_data.refuse_images(run.config())
        names = contexts or config_keys.names_in(run.config()["evaluation"]["contexts"])
        if not set(names) & set(GENERATED_TEMPERATURES):
            raise ValueError(
                f"--decode needs one of the contexts {', '.join(GENERATED_TEMPERATURES)}; give --contexts"
            )


def _check_alike(runs):
    """Runs that are pooled under the names of their losses differ in nothing else that makes a
    student."""
    first = runs[0]
    for i, run in enumerate(runs):
        if run.root.resolve() in [other.root.resolve() for other in runs[:i]]:
            raise ValueError(f"--workdir names {run.root} twice")
        for other in runs[:i]:
            shared = set(students.seeds(other.config())) & set(students.seeds(run.config()))
            if shared:
                raise ValueError(
                    f"{other.root} and {run.root} can't be pooled: both have students of seed {min(shared)}; "
                    f"give each run a `config.seed` of its own"
                )
        differing = run_config.differences(first.config(), run.config())
        wrong = [key for key in differing if not run_config.within(key, _MAY_DIFFER)]
        if wrong:
            there, here = differing[wrong[0]]
            raise ValueError(
                f"{first.root} and {run.root} can't be pooled: {wrong[0]} is {there!r} and {here!r}; "
                f"measure each by itself"
            )
        for fact in (DATA_READY, run_data.TOKENIZER):
            if first.facts().get(fact) != run.facts().get(fact):
                raise ValueError(
                    f"{first.root} and {run.root} can't be pooled: each has another {fact}"
                )


def _given(flag, rule, read):
    if flag.value is None:
        return ()
    config_keys.check_value(f"--{flag.name}", rule, flag.value)
    return read(flag.value)


def _temperatures(given):
    try:
        temperatures = tuple(float(text) for text in given)
    except ValueError:
        temperatures = ()
    if given:
        config_keys.check_value("--temperatures", config_keys.TEMPERATURES, temperatures or given)
    return temperatures


def _folder(runs):
    if len(runs) == 1:
        return runs[0].root
    return runs[0].root.with_name("+".join(run.root.name for run in runs))


if __name__ == "__main__":
    cli.run(main)
