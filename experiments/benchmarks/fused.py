"""What head and divergence cost together, against the same loss on whole logits and against its
products alone.

  python -m experiments.benchmarks.fused --losses=kl,tv --tokens=4096 --width=256 --vocabulary=32768
  python -m experiments.benchmarks.fused --students=8 --frozen --teacher_width=1024

Value and gradient of the sum by a student's hidden states and head, all contestants in turn in one
process: `fused`; on whole logits `dense`, jaxdiv's loss, and `jnp`, the loss as one writes it with
  jax.nn.log_softmax; and `products`, the
matrix products alone that no form can do without. Memory is what XLA sets apart for temporaries.
With several students `fused` shares the teacher's logits among them, and `calls` is as many single
calls.
"""

from experiments.common import startup

startup.begin(__name__)

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from absl import flags
from rich.console import Console
from rich.table import Table

import jaxdiv
from experiments.benchmarks import peers
from experiments.common import cli, timing
from jaxdiv import files
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
class Inputs:
    """Hidden states of S students [S, N, D], their heads [S, D, V] or a frozen one [D, V], the
    teacher's of both."""

    hidden: jax.Array
    head: jax.Array
    teacher_hidden: jax.Array
    teacher_head: jax.Array

    @classmethod
    def draw(cls) -> "Inputs":
        tokens, width, classes, students = (
            TOKENS.value,
            WIDTH.value,
            VOCABULARY.value,
            STUDENTS.value,
        )
        wide = TEACHER_WIDTH.value or width
        keys = jax.random.split(jax.random.key(0), 4)
        shapes = [(students, tokens, width), (width, classes), (tokens, wide), (wide, classes)]
        if not FROZEN.value:
            shapes[1] = (students, *shapes[1])
        made = (
            jax.random.normal(key, shape, DTYPE.value)
            for key, shape in zip(keys, shapes, strict=True)
        )
        hidden, head, teacher_hidden, teacher_head = made
        return cls(hidden, head * width**-0.5, teacher_hidden, teacher_head * wide**-0.5)

    def of(self, i: int) -> tuple[jax.Array, jax.Array]:
        return self.hidden[i], self.head if FROZEN.value else self.head[i]


def contestants(loss: str, inputs: Inputs) -> dict:
    """Calls, each compiled already, with the bytes of their temporaries: {name: (call, bytes)}."""
    teacher = inputs.teacher_hidden, inputs.teacher_head
    if STUDENTS.value > 1:
        together = (
            _gradient(functools.partial(_of_all, loss))
            .lower(inputs.hidden, inputs.head, *teacher)
            .compile()
        )
        alone = _gradient(functools.partial(_fused, loss)).lower(*inputs.of(0), *teacher).compile()
        pairs = [inputs.of(i) for i in range(STUDENTS.value)]
        return {
            FUSED: (lambda: together(inputs.hidden, inputs.head, *teacher), _temporaries(together)),
            "calls": (lambda: [alone(*pair, *teacher) for pair in pairs], _temporaries(alone)),
        }
    whole = {"dense": jaxdiv.get(loss)}
    name = registry.canonical(loss) if loss.isidentifier() else loss
    if name in (plain := peers.load("jnp").losses):
        whole["jnp"] = plain[name]
    functions = {FUSED: _gradient(functools.partial(_fused, loss))}
    functions |= {
        name: _gradient(functools.partial(_dense, function)) for name, function in whole.items()
    }
    functions["products"] = jax.jit(_products)
    arguments = *inputs.of(0), *teacher
    compiled = {name: function.lower(*arguments).compile() for name, function in functions.items()}
    return {
        name: (functools.partial(run, *arguments), _temporaries(run))
        for name, run in compiled.items()
    }


def _gradient(function):
    return jax.jit(jax.value_and_grad(function, argnums=0 if FROZEN.value else (0, 1)))


def _fused(loss, hidden, head, *teacher):
    return jaxdiv.linear_divergence(loss, hidden, head, *teacher, chunk=CHUNK.value).sum()


def _of_all(loss, hidden, head, *teacher):
    heads = [head if FROZEN.value else head[i] for i in range(len(hidden))]
    made, _ = jaxdiv.linear_divergences(
        [loss] * len(hidden), list(hidden), heads, *teacher, chunk=CHUNK.value
    )
    return sum(values.sum() for values in made)


def _dense(loss, hidden, head, teacher_hidden, teacher_head):
    sides = (hidden, head), (teacher_hidden, teacher_head)
    return loss(*(jnp.matmul(*side, preferred_element_type=jnp.float32) for side in sides)).sum()


def _chunk():
    return min(
        CHUNK.value or chunks.size(TOKENS.value, VOCABULARY.value, WIDTH.value), TOKENS.value
    )


def _products(hidden, head, teacher_hidden, teacher_head):
    """The products alone: both sides' logits, and one of them in place of the gradient by
    logits."""
    float32 = {"preferred_element_type": jnp.float32}
    of_teacher = jnp.matmul(teacher_hidden, teacher_head, **float32)
    logits = jnp.matmul(hidden, head, **float32).astype(hidden.dtype)
    by_hidden = jnp.matmul(logits, head.T, **float32)
    by_head = () if FROZEN.value else jnp.matmul(hidden.T, logits, **float32)
    return of_teacher, by_hidden, by_head


def _temporaries(compiled):
    memory = compiled.memory_analysis()
    return memory.temp_size_in_bytes if memory else float("nan")


def measure(loss: str, inputs: Inputs) -> list[dict]:
    """A row a contestant."""
    made = contestants(loss, inputs)
    seconds = timing.interleaved(
        {name: call for name, (call, _) in made.items()}, rounds=ROUNDS.value
    )
    first = seconds[FUSED]
    return [
        {
            "loss": loss,
            "contestant": name,
            "ms": 1e3 * np.median(seconds[name]),
            "fused_over_it": np.median(first / seconds[name]),
            "temporaries_mb": temporaries / 1e6,
        }
        for name, (_, temporaries) in made.items()
    ]


def table(rows: list[dict]) -> Table:
    made = Table()
    for column in rows[0]:
        made.add_column(
            column.replace("_", " "),
            justify="right" if column not in ("loss", "contestant") else "left",
        )
    for row in rows:
        made.add_row(
            *(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values())
        )
    return made


def _title():
    head = "frozen" if FROZEN.value else "trained"
    return (
        f"N = {TOKENS.value}, D = {WIDTH.value}, D' = {TEACHER_WIDTH.value or WIDTH.value}, V = {VOCABULARY.value}, "
        f"{DTYPE.value}, {STUDENTS.value} student(s), {head} head, chunks of {_chunk()} tokens"
    )


def main(_):
    losses = jaxdiv.split(",".join(LOSSES.value))
    for loss in losses:
        if jaxdiv.get(loss).needs_labels:
            raise ValueError(f"--losses: `{loss}` needs labels, which nothing here has")
    inputs = Inputs.draw()
    rows = [row for loss in losses for row in measure(loss, inputs)]
    console = Console(width=120, highlight=False)
    console.print(_title())
    console.print(table(rows))
    if OUTPUT.value:
        files.write_text(OUTPUT.value, pd.DataFrame(rows).to_csv(index=False))
    return 0


if __name__ == "__main__":
    cli.run(main)
