r"""Trains only the teacher, or takes over a pretrained one, for `experiments.distill` to continue.

  python -m experiments.teacher --config=configs/quickstart.py --workdir=runs/quickstart
  python -m experiments.teacher --config=configs/quickstart.py --workdir=runs/llama \
    --from_hf=models/llama

`--from_hf` is a Llama folder of this machine: config.json, safetensors, tokenizer.json. Its sizes
replace the config's.
"""

from experiments.common import startup

startup.begin(__name__)

import pathlib

from absl import flags

from experiments.common import cli, watch_flags
from jaxdiv.runs import config as run_config
from jaxdiv.runs import lock
from jaxdiv.runs.specs import RunSpec
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import loop, run_data, sharding, teacher, teacher_sources

CONFIG = cli.define_config()
cli.define_log_format()
WORKDIR = flags.DEFINE_string(
    "workdir", "runs/quickstart", "The run's folder; it may be gs://BUCKET/FOLDER."
)
FROM_HF = flags.DEFINE_string(
    "from_hf", None, "A Llama folder whose model and tokenizer to take; nothing is trained."
)


def main(_):
    workdir = Workdir(WORKDIR.value)
    config = teacher_sources.resolve(_load_config(), workdir, typed=cli.overrides(CONFIG))
    spec = RunSpec.from_config(config)
    sharding.make_mesh(spec)  # raises early if this machine lacks the devices
    profile = watch_flags.profiled_steps(spec.teacher_stage.steps)
    monitoring = loop.Monitoring(profile, watch_flags.trackers())
    if profile and spec.teacher.checkpoint:
        raise ValueError(
            f"--profile: the teacher of {spec.teacher.checkpoint} is taken over, not trained"
        )
    with lock.hold(workdir.root):
        workdir.initialize_or_resume(config)
        teacher.prepare(spec, workdir, run_data.prepare(spec, workdir), monitoring)
        quality = teacher.quality(spec.data)
        cli.log(
            f"{quality}: {workdir.facts()[quality]}. It lies in {workdir.teacher}; "
            f"take it elsewhere by --config.teacher.checkpoint={workdir.root}"
        )
    return 0


def _load_config():
    """Returns the config; --from_hf stands for a `config.teacher.checkpoint` of a Llama folder."""
    config, folder = cli.load_config(CONFIG), FROM_HF.value
    if folder is None:
        return config
    if not (pathlib.Path(folder) / "config.json").is_file():
        raise ValueError(
            f"--from_hf={folder}: there is no config.json; give a Llama folder of this machine"
        )
    run_config.check_each(config)
    checkpoint = config["teacher"]["checkpoint"]
    if checkpoint not in ("", folder):
        raise ValueError(
            f"--from_hf={folder} and --config.teacher.checkpoint={checkpoint}: give one of them"
        )
    config["teacher"]["checkpoint"] = folder
    return config


if __name__ == "__main__":
    cli.run(main, resumes=True)
