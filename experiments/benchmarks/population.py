"""What training N students on one teacher pass costs, against N separate runs and against the
ideal.

  python -m experiments.benchmarks.population --config=configs/quickstart.py

A step of a population can't be faster than one teacher pass, T, and N student steps, s: (T + N·s) /
(T + s) times a run of one student. Teacher and students have the config's sizes and initial values,
and read random tokens.
"""

from experiments.common import startup

startup.begin(__name__)

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx
from rich.console import Console
from rich.table import Table

from experiments.common import cli, timing
from jaxdiv import models, reductions
from jaxdiv.runs import config as run_config
from jaxdiv.runs.specs import RunSpec, parse_losses
from jaxdiv.training import run_data, students
from jaxdiv.training.state import Model

CONFIG = cli.define_config()
LOSS = flags.DEFINE_string("loss", "kl", "The loss of every student.")
SIZES = flags.DEFINE_list("students", ["1", "2", "4", "8", "16"], "Numbers of students, by commas.")
ROUNDS = flags.DEFINE_integer(
    "rounds", 15, "How often each is timed; the medians count.", lower_bound=1
)


class Setting:
    """The config's teacher, its students under one loss, and one batch of random tokens."""

    def __init__(self, config, loss):
        self._config = {**config, "losses": loss}
        self._vocab_size = config["data"]["vocabulary"]
        shapes = {**config["teacher"], "dtype": config["dtype"]}
        self.teacher = Model(
            *nnx.split(models.build_teacher(shapes, self._vocab_size, nnx.Rngs(0)))
        )
        spec = RunSpec.from_config(self._config)
        self.teach = jax.jit(students.teacher_outputs(spec.student, self.teacher))
        rows, length = config["student"]["batch_size"], config["data"]["sequence_length"]
        tokens = jax.random.randint(jax.random.key(0), (rows, length + 1), 0, self._vocab_size)
        self.batch = {
            "inputs": tokens[:, :-1],
            "labels": tokens[:, 1:],
            "weights": jnp.ones((rows, length)),
        }
        self.shared = self.teacher_pass()

    def teacher_pass(self):
        return self.teach(self.teacher.params, self.batch["inputs"])

    def gradient(self):
        """A plain jax.grad of one student, the teacher's output given."""
        spec = RunSpec.from_config({**self._config, "seeds": 1})
        student = students.untrained(spec, self._vocab_size).student(0)
        (loss,), how = spec.losses, {"temperature": spec.temperature}

        @jax.jit
        def gradient(params, output, teacher_logits, batch):
            def mean(params):
                logits = student.with_params(params)(batch["inputs"], output)
                values = loss(logits, teacher_logits, labels=batch["labels"], **how)
                return reductions.token_mean(values, batch["weights"])

            return jax.value_and_grad(mean)(params)

        output, teacher_logits = (
            self.shared.output,
            jax.jit(lambda output: output.logits)(self.shared.output),
        )
        return lambda: gradient(student.params, output, teacher_logits, self.batch)

    def step(self, count, *, taught=False):
        """A training step of `count` students, with the teacher's pass or, `taught`, given its
        output.

        Each call goes on from the one before.
        """
        spec = RunSpec.from_config({**self._config, "seeds": count})
        group = students.untrained(spec, self._vocab_size)
        step = students.step(spec, group, (lambda shared, _: shared) if taught else self.teach)
        state = students.initial_state(spec.student_stage, group)
        teacher = self.shared if taught else self.teacher.params

        def call():
            nonlocal state
            state, metrics = step(state, teacher, self.batch)
            return state, metrics

        return call


def measure(setting: Setting, sizes: list[int], rounds: int) -> dict[str, float]:
    """Median seconds of the parts and, by its size, of each population's step."""
    contestants = {
        "teacher pass": setting.teacher_pass,
        "student step": setting.step(1, taught=True),
        "plain gradient": setting.gradient(),
    }
    for count in sorted({1, *sizes}):
        contestants[count] = setting.step(count)
    return {
        name: float(np.median(t))
        for name, t in timing.interleaved(contestants, rounds=rounds).items()
    }


def table(seconds: dict, sizes: list[int]) -> Table:
    """A row a population; times in milliseconds."""
    teacher, student, one = seconds["teacher pass"], seconds["student step"], seconds[1]
    made = Table(
        title=f"Teacher pass T = {1e3 * teacher:.1f} ms, student step s = {1e3 * student:.1f} ms, "
        f"{student / seconds['plain gradient']:.2f} × a plain jax.grad",
        caption="ideal = (T + N·s) / (T + s); separate = N runs of one student",
        caption_justify="left",
        title_justify="left",
    )
    for heading in (
        "students",
        "step, ms",
        "× one run",
        "ideal ×",
        "over ideal",
        "× faster than separate",
    ):
        made.add_column(heading, justify="right")
    for count in sizes:
        ratio, ideal = seconds[count] / one, (teacher + count * student) / (teacher + student)
        numbers = (f"{ratio:.2f}", f"{ideal:.2f}", f"{ratio / ideal:.2f}", f"{count / ratio:.2f}")
        made.add_row(str(count), f"{1e3 * seconds[count]:.1f}", *numbers)
    return made


def main(_):
    config = cli.load_config(CONFIG)
    run_config.check(config)
    run_data.require_text(RunSpec.from_config(config).data)
    if len(parse_losses(LOSS.value)) != 1:
        raise ValueError(f"--loss must be one loss, got {LOSS.value}")
    if not all(text.isdigit() and int(text) > 0 for text in SIZES.value):
        raise ValueError(
            f"--students must be whole numbers above 0, by commas, got {','.join(SIZES.value)}"
        )
    sizes = [int(text) for text in SIZES.value]
    Console(width=110).print(
        table(measure(Setting(config, LOSS.value), sizes, ROUNDS.value), sizes)
    )
    return 0


if __name__ == "__main__":
    cli.run(main)
