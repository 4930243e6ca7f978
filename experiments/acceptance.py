r"""Measures finished runs again: other temperatures, rules or contexts, or several runs pooled.

  python -m experiments.acceptance --workdir=runs/quickstart \
    --temperatures=0,0.7 --rules=exact_match --output=runs/b
  python -m experiments.acceptance --workdir=runs/quickstart \
    --decode --decode_gamma=6 --output=runs/decoded
  python -m experiments.acceptance --workdir=runs/seed0,runs/seed1

Students are read from their checkpoints. The results.csv and report.html of one run are replaced;
those of several runs go to a folder of their own.
"""

from experiments.common import startup

startup.begin(__name__)

import itertools

from absl import flags

from experiments.common import cli, run_results
from jaxdiv import acceptance, files, schema
from jaxdiv.runs import config as run_config
from jaxdiv.runs import config_keys, specs
from jaxdiv.runs.workdir import DATA_READY, Workdir
from jaxdiv.training import run_data

cli.define_log_format()
WORKDIR = flags.DEFINE_list("workdir", None, "Folders of finished runs, separated by commas.")
TEMPERATURES = flags.DEFINE_list(
    "temperatures", None, "Sampling temperatures, separated by commas; the runs' own if not given."
)
CONTEXTS = flags.DEFINE_string(
    "contexts", None, f"Some of {','.join(schema.CONTEXTS)}; the runs' own if not given."
)
RULES = flags.DEFINE_string(
    "rules",
    None,
    f"Some of {','.join(acceptance.RULES)}; the runs' own if not given. "
    "Sampling is always measured.",
)
DECODE = flags.DEFINE_bool(
    "decode",
    False,
    "Also decode after every prompt with every student: tokens a call and speed-up; takes minutes.",
)
DECODE_GAMMA = flags.DEFINE_integer(
    "decode_gamma",
    schema.HEADLINE_GAMMA,
    "Drafts a round of --decode.",
    lower_bound=1,
    upper_bound=schema.MAX_MEASURED_GAMMA,
)
OUTPUT = flags.DEFINE_string(
    "output", None, "Where results go; the run's folder, or for several one beside them."
)

# Keys in which pooled runs may differ.
_MAY_DIFFER = (
    *("config.losses", "config.seed", "config.seeds", "config.data.directory"),
    *("config.teacher.checkpoint", "config.checkpoint", "config.log"),
    *("config.evaluation.contexts", "config.evaluation.rules", "config.evaluation.temperatures"),
)


def main(_):
    if not WORKDIR.value or not all(WORKDIR.value):
        raise ValueError("give a finished run, such as --workdir=runs/quickstart")
    runs = [Workdir(path) for path in WORKDIR.value]
    run_specs = [run.spec() for run in runs]
    for one, other in itertools.combinations(runs, 2):
        _check_alike(one, other)
    output = runs[0].root
    if OUTPUT.value:
        output = files.path_of(OUTPUT.value)
    elif len(runs) > 1:
        output = output.with_name("+".join(run.root.name for run in runs))
    contexts = _parse(CONTEXTS, "evaluation.contexts", config_keys.names_in)
    for spec in run_specs if DECODE.value else ():
        run_data.require_text(spec.data)
        if not set(contexts or spec.evaluation.contexts) & set(schema.GENERATED_TEMPERATURES):
            generated = ", ".join(schema.GENERATED_TEMPERATURES)
            raise ValueError(f"--decode needs one of the contexts {generated}; give --contexts")
    measured = run_results.measure(
        runs,
        contexts=contexts,
        rules=_parse(RULES, "evaluation.rules", specs.parse_rules),
        temperatures=_parse_temperatures(TEMPERATURES.value or ()),
        decode_gamma=DECODE_GAMMA.value if DECODE.value else None,
    )
    run_results.show(run_results.write(runs, measured, output=output))
    cli.log(f"\nWritten to {output}: open {output / 'report.html'}")
    return 0


def _check_alike(one: Workdir, other: Workdir) -> None:
    """Raises ValueError unless two runs can be pooled under their losses' names."""
    pair = f"{one.root} and {other.root} can't be pooled:"
    if one.root.resolve() == other.root.resolve():
        raise ValueError(f"--workdir names {one.root} twice")
    if shared := set(one.spec().seeds) & set(other.spec().seeds):
        raise ValueError(
            f"{pair} both have students of seed {min(shared)}; "
            f"give each run a `config.seed` of its own"
        )
    for key, (a, b) in run_config.differences(one.config(), other.config()).items():
        if not run_config.within(key, _MAY_DIFFER):
            raise ValueError(f"{pair} {key} is {a!r} and {b!r}; measure each by itself")
    for fact in (DATA_READY, run_data.TOKENIZER):
        if one.facts().get(fact) != other.facts().get(fact):
            raise ValueError(f"{pair} each has another {fact}")


def _parse(flag, key, parse):
    """Checks a flag by the rule of a config key and returns its names, or none."""
    if flag.value is None:
        return ()
    config_keys.check_value(f"--{flag.name}", run_config.KEYS[key].rule, flag.value)
    return parse(flag.value)


def _parse_temperatures(texts):
    try:
        temperatures = tuple(float(text) for text in texts)
    except ValueError:
        temperatures = ()
    if texts:
        config_keys.check_value("--temperatures", config_keys.TEMPERATURES, temperatures or texts)
    return temperatures


if __name__ == "__main__":
    cli.run(main)
