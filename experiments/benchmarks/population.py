"""Cost of training N students on one teacher pass, against N separate runs and the ideal.

  python -m experiments.benchmarks.population --config=configs/quickstart.py

A step of a population can't be faster than one teacher pass, T, and N student steps, s: (T + N·s) /
(T + s) times a run of one student. Teacher and students have the config's sizes and initial values,
and read random tokens.
"""

from experiments.common import startup

startup.begin(__name__)

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments.benchmarks import harness
from experiments.benchmarks.random_setup import RandomSetup
from experiments.common import cli, timing
from jaxdiv import reductions
from jaxdiv.runs import config as run_config
from jaxdiv.runs.specs import parse_losses
from jaxdiv.training import run_data, students
from jaxdiv.training.step import initial_state

CONFIG = cli.define_config()
LOSS = flags.DEFINE_string("loss", "kl", "The loss of every student.")
SIZES = flags.DEFINE_list(
    "students", ["1", "2", "4", "8", "16"], "Numbers of students, separated by commas."
)
ROUNDS = harness.define_rounds(15)


def plain_gradient(setup: RandomSetup, outputs: Any) -> Callable[[], Any]:
    """Returns a call of a plain jax.grad of one student, with the teacher's outputs as inputs."""
    spec, population = setup.untrained_students(1)
    student, (loss,) = population.student(0), spec.losses
    teacher_logits = jax.jit(lambda output: output.logits)(outputs.output)

    @jax.jit
    def gradient(params, output, teacher_logits, batch):
        def mean(params):
            logits = student.with_params(params)(batch["inputs"], output)
            options = {"labels": batch["labels"], "temperature": spec.temperature}
            return reductions.token_mean(loss(logits, teacher_logits, **options), batch["weights"])

        return jax.value_and_grad(mean)(params)

    return lambda: gradient(student.params, outputs.output, teacher_logits, setup.batch)


def training_step(
    setup: RandomSetup, count: int, forward: Callable, teacher: Any
) -> Callable[[], Any]:
    """Returns a call of a training step of `count` students, each going on from the one before.

    `forward` is the step's pass of the teacher, and `teacher` its first argument.
    """
    spec, population = setup.untrained_students(count)
    step = students.step(spec, population, forward)
    state = initial_state(spec.student_stage, population)

    def call():
        nonlocal state
        state, metrics = step(state, teacher, setup.batch)
        return state, metrics

    return call


def measure(setup: RandomSetup, sizes: list[int], rounds: int) -> dict:
    """Returns median seconds of the parts by name, and of each population's step by its size."""
    forward = jax.jit(students.teacher_outputs(setup.untrained_students(1)[1], setup.teacher))
    outputs = forward(setup.teacher.params, setup.batch)
    contestants = {
        "teacher pass": lambda: forward(setup.teacher.params, setup.batch),
        "student step": training_step(setup, 1, lambda outputs, _: outputs, outputs),
        "plain gradient": plain_gradient(setup, outputs),
    }
    for count in sorted({1, *sizes}):
        contestants[count] = training_step(setup, count, forward, setup.teacher.params)
    seconds = timing.interleaved(contestants, rounds=rounds)
    return {name: float(np.median(times)) for name, times in seconds.items()}


def main(_):
    config = cli.load_config(CONFIG)
    run_config.check(config)
    if len(parse_losses(LOSS.value)) != 1:
        raise ValueError(f"--loss must be one loss, got {LOSS.value}")
    if not all(text.isdigit() and int(text) > 0 for text in SIZES.value):
        raise ValueError(
            "--students must be whole numbers above 0, separated by commas, got "
            f"{','.join(SIZES.value)}"
        )
    setup = RandomSetup.from_config({**config, "losses": LOSS.value})
    run_data.require_text(setup.spec.data)
    sizes = [int(text) for text in SIZES.value]
    seconds = measure(setup, sizes, ROUNDS.value)
    teacher, student = seconds["teacher pass"], seconds["student step"]
    rows = []
    for count in sizes:
        ratio = seconds[count] / seconds[1]
        ideal = (teacher + count * student) / (teacher + student)
        columns = {"× one run": ratio, "ideal ×": ideal, "over ideal": ratio / ideal}
        columns["× faster than separate"] = count / ratio
        row = {"students": count, "step, ms": f"{1e3 * seconds[count]:.1f}"}
        rows.append(row | {name: f"{value:.2f}" for name, value in columns.items()})
    title = (
        f"Teacher pass T = {1e3 * teacher:.1f} ms, student step s = {1e3 * student:.1f} ms, "
        f"{student / seconds['plain gradient']:.2f} × a plain jax.grad"
    )
    caption = "ideal = (T + N·s) / (T + s); separate = N runs of one student"
    harness.print_table(rows, width=110, title=title, caption=caption)
    return 0


if __name__ == "__main__":
    cli.run(main)
