"""Cost of head and divergence together, against whole logits and against the bare products.

  python -m experiments.benchmarks.fused --losses=kl,tv --tokens=4096 --width=256 --vocabulary=32768
  python -m experiments.benchmarks.fused --students=8 --frozen --teacher_width=1024

All contestants compute value and gradient of the sum by a student's hidden states and head, in turn
in one process. `fused` is `jaxdiv.linear_divergence`. On whole logits, `dense` is jaxdiv's loss and
`jnp` the loss as one writes it with jax.nn.log_softmax. `products` are the matrix products alone
that no form can do without. Memory is what XLA sets apart for temporaries. With several students
`fused` shares the teacher's logits among them, and `calls` is as many single calls.
"""

from experiments.common import startup

startup.begin(__name__)

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from rich.console import Console

import jaxdiv
from experiments.benchmarks import peers, tables
from experiments.common import cli, timing
from jaxdiv.divergences import registry
from jaxdiv.fused import chunks

LOSSES = flags.DEFINE_list("losses", ["kl"], "Losses by name, by commas.")
TOKENS = flags.DEFINE_integer("tokens", 4096, "Tokens, N.", lower_bound=1)
WIDTH = flags.DEFINE_integer("width", 256, "Of the students' hidden states, D.", lower_bound=1)
TEACHER_WIDTH = flags.DEFINE_integer(
    "teacher_width", None, "Of the teacher's; the students' if not given.", lower_bound=1
)
VOCABULARY = flags.DEFINE_integer("vocabulary", 32768, "Classes, V.", lower_bound=2)
DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "Type of hidden states and heads."
)
CHUNK = flags.DEFINE_integer(
    "chunk", None, "Tokens a chunk; what the library chooses if not given.", lower_bound=1
)
STUDENTS = flags.DEFINE_integer(
    "students", 1, "Students on one teacher, each with its own head.", lower_bound=1
)
FROZEN = flags.DEFINE_bool(
    "frozen", False, "No gradient by the head, as Kangaroo has it; the students share it."
)
ROUNDS = flags.DEFINE_integer(
    "rounds", 5, "How often each is timed; the medians count.", lower_bound=1
)
OUTPUT = flags.DEFINE_string("output", None, "A CSV file for the numbers.")

FUSED = "fused"


@dataclasses.dataclass(frozen=True)
class HeadInputs:
    """Hidden states and heads of S students and their teacher.

    Attributes:
      hidden: [S, N, D].
      head: [S, D, V], or a frozen one [D, V].
      teacher: ([N, D'], [D', V]).
    """

    hidden: jax.Array
    head: jax.Array
    teacher: tuple[jax.Array, jax.Array]

    @classmethod
    def random(cls) -> "HeadInputs":
        """Draws inputs of the sizes that the flags give."""
        tokens, width, classes = TOKENS.value, WIDTH.value, VOCABULARY.value
        wide, students = TEACHER_WIDTH.value or width, STUDENTS.value
        head = (width, classes) if FROZEN.value else (students, width, classes)
        shapes = [(students, tokens, width), head, (tokens, wide), (wide, classes)]
        keys = jax.random.split(jax.random.key(0), len(shapes))
        hidden, head, teacher_hidden, teacher_head = (
            jax.random.normal(key, shape, DTYPE.value)
            for key, shape in zip(keys, shapes, strict=True)
        )
        return cls(hidden, head * width**-0.5, (teacher_hidden, teacher_head * wide**-0.5))

    def student(self, i: int) -> tuple[jax.Array, jax.Array]:
        """Returns hidden states [N, D] and head [D, V] of one student."""
        return self.hidden[i], self.head if FROZEN.value else self.head[i]


def contestants(loss: str, inputs: HeadInputs) -> dict[str, tuple[Callable[[], Any], float]]:
    """Returns by name a compiled call, and the bytes of its temporaries."""
    if STUDENTS.value > 1:
        together = _compile(
            _gradient(_fused_students, loss), (inputs.hidden, inputs.head, *inputs.teacher)
        )
        alone, size = _compile(_gradient(_fused, loss), (*inputs.student(0), *inputs.teacher))
        students = [inputs.student(i) for i in range(STUDENTS.value)]
        program = alone.func

        def calls():
            return [program(*student, *inputs.teacher) for student in students]

        return {FUSED: together, "calls": (calls, size)}
    functions = {FUSED: _gradient(_fused, loss), "dense": _gradient(_dense, jaxdiv.get(loss))}
    name = registry.canonical(loss) if loss.isidentifier() else loss
    if name in (plain := peers.load("jnp").losses):
        functions["jnp"] = _gradient(_dense, plain[name])
    functions["products"] = jax.jit(_products)
    arguments = (*inputs.student(0), *inputs.teacher)
    return {name: _compile(function, arguments) for name, function in functions.items()}


def _compile(function, arguments: tuple) -> tuple[functools.partial, float]:
    program = function.lower(*arguments).compile()
    memory = program.memory_analysis()
    size = memory.temp_size_in_bytes if memory else float("nan")
    return functools.partial(program, *arguments), size


def _gradient(function, loss):
    arguments = 0 if FROZEN.value else (0, 1)
    return jax.jit(jax.value_and_grad(functools.partial(function, loss), argnums=arguments))


def _fused(loss, hidden, head, *teacher):
    return jaxdiv.linear_divergence(loss, hidden, head, *teacher, chunk=CHUNK.value).sum()


def _fused_students(loss, hidden, head, *teacher):
    count = len(hidden)
    heads = [head if FROZEN.value else head[i] for i in range(count)]
    values, _ = jaxdiv.linear_divergences(
        [loss] * count, list(hidden), heads, *teacher, chunk=CHUNK.value
    )
    return sum(each.sum() for each in values)


def _dense(loss, hidden, head, teacher_hidden, teacher_head):
    sides = (hidden, head), (teacher_hidden, teacher_head)
    return loss(*(jnp.matmul(*side, preferred_element_type=jnp.float32) for side in sides)).sum()


def _products(hidden, head, teacher_hidden, teacher_head):
    """Computes both sides' logits, and the student's in place of the gradient by logits."""
    float32 = {"preferred_element_type": jnp.float32}
    teacher_logits = jnp.matmul(teacher_hidden, teacher_head, **float32)
    logits = jnp.matmul(hidden, head, **float32).astype(hidden.dtype)
    by_hidden = jnp.matmul(logits, head.T, **float32)
    by_head = () if FROZEN.value else jnp.matmul(hidden.T, logits, **float32)
    return teacher_logits, by_hidden, by_head


def measure(loss: str, inputs: HeadInputs) -> list[dict]:
    """Returns a record a contestant."""
    entered = contestants(loss, inputs)
    calls = {name: call for name, (call, _) in entered.items()}
    seconds = timing.interleaved(calls, rounds=ROUNDS.value)
    return [
        {
            "loss": loss,
            "contestant": name,
            "ms": 1e3 * float(np.median(seconds[name])),
            "fused_over_it": float(np.median(seconds[FUSED] / seconds[name])),
            "temporaries_mb": size / 1e6,
        }
        for name, (_, size) in entered.items()
    ]


def main(_):
    losses = jaxdiv.split(",".join(LOSSES.value))
    for loss in losses:
        if jaxdiv.get(loss).needs_labels:
            raise ValueError(f"--losses: `{loss}` needs labels, which nothing here has")
    inputs = HeadInputs.random()
    records = [record for loss in losses for record in measure(loss, inputs)]
    tokens, width, classes = TOKENS.value, WIDTH.value, VOCABULARY.value
    chunk = min(CHUNK.value or chunks.size(tokens, classes, width), tokens)
    console = Console(width=120, highlight=False)
    console.print(
        f"N = {tokens}, D = {width}, D' = {TEACHER_WIDTH.value or width}, V = {classes}, "
        f"{DTYPE.value}, {STUDENTS.value} student(s), {'frozen' if FROZEN.value else 'trained'} "
        f"head, chunks of {chunk} tokens"
    )
    console.print(tables.table(records))
    if OUTPUT.value:
        tables.write_csv(OUTPUT.value, records)
    return 0


if __name__ == "__main__":
    cli.run(main)
