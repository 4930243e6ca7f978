"""The cost of saving, and the time to start with and without cached compilations.

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
import numpy as np
from absl import flags
from rich.console import Console

from experiments.benchmarks.random_setup import RandomSetup
from experiments.common import cli
from jaxdiv import files
from jaxdiv.runs import config as run_config
from jaxdiv.runs.checkpoints import Checkpoints
from jaxdiv.training import students
from jaxdiv.training.step import initial_state

CONFIG = cli.define_config()
STRETCH = flags.DEFINE_integer("stretch", 8, "Steps of a stretch.", lower_bound=2)
ROUNDS = flags.DEFINE_integer(
    "rounds", 6, "Stretches with and without a save, each.", lower_bound=1
)
_PATIENCE = 600  # seconds for a start
_CONFIG_FILE = """from ml_collections import ConfigDict

def get_config():
    return ConfigDict({config!r})
"""


def stretches(
    config: dict, folder: pathlib.Path, *, steps: int, rounds: int
) -> tuple[np.ndarray, int]:
    """Times stretches of steps, without and with a save that is waited for.

    Returns:
      (seconds [rounds, 2]; bytes of a checkpoint).
    """
    setup = RandomSetup.from_config(config)
    spec, model = setup.untrained_students(config["seeds"])
    state = initial_state(spec.student_stage, model)
    step = students.step(spec, model, students.teacher_outputs(model, setup.teacher))
    seconds, metrics = [], None
    with Checkpoints(folder, keep=1) as checkpoints:
        for number in range(2 * rounds + 2):
            begin = time.perf_counter()
            for i in range(steps):
                checkpoints.raise_error()
                before = metrics
                state, metrics = step(state, setup.teacher.params, setup.batch)
                jax.block_until_ready(before)  # as the training loop does, a step later
                if i == 0 and number % 2:
                    checkpoints.save(number, state.to_checkpoint(), {})
            checkpoints.wait()
            jax.block_until_ready(metrics)
            seconds.append(time.perf_counter() - begin)
        newest = folder / str(checkpoints.latest())
        size = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
    return np.reshape(seconds, (-1, 2))[1:], size  # the first two compile


def start(config: dict, run: pathlib.Path, cache: pathlib.Path) -> float:
    """Returns the seconds from a process's start to its first training step, and then kills it."""
    file = cache / "config.py"
    files.write_text(file, _CONFIG_FILE.format(config=config))
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
        sizes = {"steps": STRETCH.value, "rounds": ROUNDS.value}
        seconds, size = stretches(config, folder / "steps", **sizes)
        uncached, cached, resumed = (start(config, folder / run, folder / "cache") for run in "abb")
    step, every = float(np.median(seconds[:, 0])) / STRETCH.value, config["checkpoint"]["every"]
    low, median, high = 1e3 * np.quantile(seconds[:, 1] - seconds[:, 0], [0.25, 0.5, 0.75])
    lines = [
        f"step {1e3 * step:.0f} ms; checkpoint {size / 2**20:.1f} MiB",
        f"one save adds {median:.0f} ms (quartiles {low:.0f} to {high:.0f}, {ROUNDS.value} pairs): "
        f"{median / 10 / (every * step):.2f}% of {every} steps",
        f"start to first step: {uncached:.1f} s without compilations, {cached:.1f} s with, "
        f"{resumed:.1f} s with and its data",
    ]
    Console(width=110).print("\n".join(lines), highlight=False)
    return 0


if __name__ == "__main__":
    cli.run(main)
