"""What saving costs a run, and how long a start takes that finds its compilations.

  python -m experiments.benchmarks.checkpointing --config=configs/quickstart.py

The students' training step of the config's sizes reads random tokens. Stretches of steps with one
asynchronous save, its manifest included, take turns with stretches without; what one save adds is
compared with the time of the config's `checkpoint.every` steps. Starts are processes of their own:
`experiments.distill` up to its first training step.
"""

from experiments.common import startup

startup.begin(__name__)

import os
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx
from rich.console import Console

from experiments.common import cli
from jaxdiv import files, models
from jaxdiv.runs import config as run_config
from jaxdiv.runs.checkpoints import Checkpoints
from jaxdiv.runs.specs import RunSpec
from jaxdiv.training import students
from jaxdiv.training.state import Model

CONFIG = cli.define_config()
STRETCH = flags.DEFINE_integer("stretch", 8, "Steps of a stretch.", lower_bound=2)
ROUNDS = flags.DEFINE_integer(
    "rounds", 6, "Stretches with and without a save, each.", lower_bound=1
)
_PATIENCE = 600  # seconds for a start

_SIZES = (("data", "vocabulary"), ("student", "batch_size"), ("data", "sequence_length"))
_CONFIG_FILE = """import json, pathlib
from ml_collections import ConfigDict

def get_config():
    return ConfigDict(json.loads(pathlib.Path(__file__).with_suffix(".json").read_text(encoding="utf-8")))
"""


def stretches(
    config: dict, folder: pathlib.Path, *, steps: int, rounds: int
) -> tuple[np.ndarray, float]:
    """(seconds [rounds, 2] of stretches without and with a save, which is waited for; bytes of a
    checkpoint)."""
    vocab_size, rows, length = (config[a][b] for a, b in _SIZES)
    shapes = {**config["teacher"], "dtype": config["dtype"]}
    teacher = Model(*nnx.split(models.build_teacher(shapes, vocab_size, nnx.Rngs(0))))
    tokens = jax.random.randint(jax.random.key(0), (rows, length + 1), 0, vocab_size)
    batch = {"inputs": tokens[:, :-1], "labels": tokens[:, 1:], "weights": jnp.ones((rows, length))}
    spec = RunSpec.from_config(config)
    model = students.untrained(spec, vocab_size)
    state, step = (
        students.initial_state(spec.student_stage, model),
        students.step(spec, model, students.teacher_outputs(spec.student, teacher)),
    )
    seconds = []
    with Checkpoints(folder, keep=1) as checkpoints:
        for number in range(2 * rounds + 2):
            begin = time.perf_counter()
            for i in range(steps):
                checkpoints.raise_error()
                state, metrics = step(state, teacher.params, batch)
                jax.block_until_ready(metrics)  # as the loop, which writes them down
                if i == 0 and number % 2:
                    checkpoints.save(number, state.to_checkpoint(), {})
            checkpoints.wait()
            seconds.append(time.perf_counter() - begin)
        size = sum(
            path.stat().st_size
            for path in (folder / str(checkpoints.latest())).rglob("*")
            if path.is_file()
        )
    return np.reshape(seconds, (-1, 2))[1:], size  # the first two compile


def start(config: dict, run: pathlib.Path, cache: pathlib.Path) -> float:
    """Seconds from the start of a process to its first training step, after which it is ended."""
    file = cache / "config.py"
    files.write_text(file, _CONFIG_FILE)
    files.write_json(file.with_suffix(".json"), config)
    command = [sys.executable, "-m", "experiments.distill", f"--config={file}", f"--workdir={run}"]
    curve = run / "curves" / "teacher.jsonl"
    curve.unlink(missing_ok=True)
    begin = time.perf_counter()
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        while not (curve.is_file() and curve.stat().st_size):
            if process.poll() is not None or time.perf_counter() - begin > _PATIENCE:
                raise ValueError(f"{' '.join(command)} came to no first step")
            time.sleep(0.01)
        return time.perf_counter() - begin
    finally:
        process.kill()
        process.communicate()


def main(_):
    config = cli.load_config(CONFIG)
    run_config.check(config)
    with tempfile.TemporaryDirectory(prefix="jaxdiv-checkpointing-") as name:
        folder = pathlib.Path(name)
        seconds, size = stretches(
            config, folder / "steps", steps=STRETCH.value, rounds=ROUNDS.value
        )
        cold = start(config, folder / "a", folder / "cache")
        warm, goes_on = (
            start(config, folder / "b", folder / "cache"),
            start(config, folder / "b", folder / "cache"),
        )
    step, every = float(np.median(seconds[:, 0])) / STRETCH.value, config["checkpoint"]["every"]
    added = seconds[:, 1] - seconds[:, 0]
    low, median, high = (float(q) for q in np.quantile(added, [0.25, 0.5, 0.75]))
    told = [
        f"step {1e3 * step:.0f} ms; checkpoint {size / 2**20:.1f} MiB",
        f"one save adds {1e3 * median:.0f} ms (quartiles {1e3 * low:.0f} to {1e3 * high:.0f}, {ROUNDS.value} pairs): "
        f"{100 * median / (every * step):.2f}% of {every} steps",
        f"start to first step: {cold:.1f} s without compilations, {warm:.1f} s with, {goes_on:.1f} s with and its data",
    ]
    Console(width=110).print("\n".join(told), highlight=False)
    return 0


if __name__ == "__main__":
    cli.run(main)
