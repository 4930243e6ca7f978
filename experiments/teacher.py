r"""Trains only the teacher, or takes over a pretrained one, for `experiments.distill` to continue.

  python -m experiments.teacher --config=configs/quickstart.py --workdir=runs/quickstart
  python -m experiments.teacher --config=configs/quickstart.py --workdir=runs/llama \
    --from_hf=models/llama
  python -m experiments.teacher --config=configs/quickstart.py --workdir=runs/smollm2 \
    --from_gguf=models/SmolLM2-135M-Instruct.Q4_1.gguf

`--from_hf` is a model's folder on this machine: config.json, safetensors, tokenizer.json; the
families are Llama, Mistral, Qwen 2 and 3, and Gemma 3. `--from_gguf` is a file that holds all of
these. The model's sizes replace the config's.
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
    "from_hf", None, "A folder whose model and tokenizer to take; nothing is trained."
)
FROM_GGUF = flags.DEFINE_string("from_gguf", None, "The same from a GGUF file.")


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
        quality, facts = teacher.quality(spec.data), workdir.facts()
        count = facts.get(teacher.QUALITY_TOKENS)
        reference = teacher_sources.Reference.load(workdir)
        cli.log(
            f"{quality}: {facts[quality]}{f' ({count:,} tokens)' if count else ''}. It lies in "
            f"{reference.path if reference else workdir.teacher}; take it elsewhere by "
            f"--config.teacher.checkpoint={workdir.root}"
        )
    return 0


def _load_config():
    """Returns the config; the flags of a model stand for its `config.teacher.checkpoint`."""
    config = cli.load_config(CONFIG)
    sources = {
        "--from_hf": FROM_HF.value,
        "--from_gguf": FROM_GGUF.value,
        "--config.teacher.checkpoint": config.get("teacher", {}).get("checkpoint"),
    }
    paths = {flag: path for flag, path in sources.items() if path}
    if FROM_HF.value is None and FROM_GGUF.value is None:
        return config
    if FROM_HF.value and FROM_HF.value.endswith(".gguf"):
        raise ValueError(f"--from_hf={FROM_HF.value} is a GGUF file; give it as --from_gguf")
    if FROM_GGUF.value and pathlib.Path(FROM_GGUF.value).is_dir():
        raise ValueError(f"--from_gguf={FROM_GGUF.value} is a folder; give it as --from_hf")
    if FROM_HF.value and not (pathlib.Path(FROM_HF.value) / "config.json").is_file():
        raise ValueError(
            f"--from_hf={FROM_HF.value}: there is no config.json; give a model's folder of this "
            "machine"
        )
    if FROM_GGUF.value and not (
        FROM_GGUF.value.endswith(".gguf") and pathlib.Path(FROM_GGUF.value).is_file()
    ):
        raise ValueError(f"--from_gguf={FROM_GGUF.value} must be a file that ends in .gguf")
    run_config.check_each(config)
    if len(set(paths.values())) > 1:
        listed = " and ".join(f"{flag}={path}" for flag, path in paths.items())
        raise ValueError(f"{listed}: give one of them")
    config["teacher"]["checkpoint"] = next(iter(paths.values()))
    return config


if __name__ == "__main__":
    cli.run(main, resumes=True)
