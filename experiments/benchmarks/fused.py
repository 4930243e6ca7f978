"""Cost of head and divergence together, against whole logits and against the bare products.

  python -m experiments.benchmarks.fused --losses=kl,tv --tokens=4096 --width=256 --vocabulary=32768
  python -m experiments.benchmarks.fused --students=8 --frozen --teacher_width=1024
  python -m experiments.benchmarks.fused --frozen --tokens=384 --width=576 --vocabulary=49152

All contestants compute value and gradient of the sum by a student's hidden states and head, in turn
in one process. `fused` is `jaxdiv.linear_divergence`. On whole logits, `dense` is jaxdiv's loss and
`jnp` the loss as one writes it with jax.nn.log_softmax. `products` are the matrix products alone
that no form can do without. Memory is what XLA sets apart for temporaries. With several students
`fused` shares the teacher's logits among them, as their `products` do, and `calls` is as many
single calls. Tokens count once a student.
"""

from experiments.common import startup

startup.begin(__name__)

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import jaxdiv
from experiments.benchmarks import harness, peers
from experiments.common import cli, timing
from jaxdiv.divergences import registry
from jaxdiv.fused import chunks

LOSSES = flags.DEFINE_list("losses", ["kl"], "Losses by name, separated by commas.")
TOKENS, WIDTH, VOCABULARY, CHUNK = harness.define_head_sizes(
    tokens=4096, width=256, vocabulary=32768
)
TEACHER_WIDTH = flags.DEFINE_integer(
    "teacher_width", None, "Of the teacher's; the students' if not given.", lower_bound=1
)
DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "Type of hidden states and heads."
)
STUDENTS = flags.DEFINE_integer(
    "students", 1, "Students on one teacher, each with its own head.", lower_bound=1
)
FROZEN = flags.DEFINE_bool(
    "frozen", False, "No gradient by the head, as Kangaroo has it; the students share it."
)
ROUNDS = harness.define_rounds(5)
OUTPUT = harness.define_output()

FUSED = "fused"


class HeadInputs(NamedTuple):
    """Hidden states and heads of S students and their teacher.

    Attributes:
      hidden: [S, N, D].
      head: [S, D, V], or a frozen one [D, V].
      teacher_hidden: [N, D'].
      teacher_head: [D', V].
    """

    hidden: jax.Array
    head: jax.Array
    teacher_hidden: jax.Array
    teacher_head: jax.Array

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
        return cls(hidden, head * width**-0.5, teacher_hidden, teacher_head * wide**-0.5)

    def of_student(self, i: int) -> tuple[jax.Array, ...]:
        """Returns hidden states [N, D] and head [D, V] of one student, and the teacher's."""
        head = self.head if FROZEN.value else self.head[i]
        return self.hidden[i], head, self.teacher_hidden, self.teacher_head


def contestants(loss: str, inputs: HeadInputs) -> dict[str, tuple[Callable[[], Any], float]]:
    """Returns by name a compiled call, and the bytes of its temporaries."""

    def fused(*arguments):
        return jaxdiv.linear_divergence(loss, *arguments, chunk=CHUNK.value).sum()

    def fused_students(hidden, head, *teacher):
        heads = [head] * len(hidden) if FROZEN.value else list(head)
        values, _ = jaxdiv.linear_divergences(
            [loss] * len(hidden), list(hidden), heads, *teacher, chunk=CHUNK.value
        )
        return sum(each.sum() for each in values)

    def gradient(function):
        return jax.value_and_grad(function, argnums=0 if FROZEN.value else (0, 1))

    def on_whole_logits(loss):
        values = peers.on_whole_logits(loss)
        return gradient(lambda *arguments: values(*arguments).sum())

    if STUDENTS.value > 1:
        students = [inputs.of_student(i) for i in range(STUDENTS.value)]
        alone, size_alone = harness.compiled(gradient(fused), *students[0])
        return {
            FUSED: _bound(gradient(fused_students), inputs),
            "calls": (lambda: [alone(*student) for student in students], size_alone),
            "products": _bound(_products_of_students, inputs),
        }
    functions = {FUSED: gradient(fused), "dense": on_whole_logits(jaxdiv.get(loss))}
    name = registry.canonical(loss) if loss.isidentifier() else loss
    if name in (plain := peers.load("jnp")):
        functions["jnp"] = on_whole_logits(plain[name])
    functions["products"] = _products
    student = inputs.of_student(0)
    return {name: _bound(function, student) for name, function in functions.items()}


def _bound(function, arguments):
    """Returns the compiled function as a call without arguments, and its bytes."""
    program, size = harness.compiled(function, *arguments)
    return functools.partial(program, *arguments), size


def _products(hidden, head, teacher_hidden, teacher_head):
    return _matmul(teacher_hidden, teacher_head), _products_of_student(hidden, head)


def _products_of_students(hidden, head, teacher_hidden, teacher_head):
    if FROZEN.value:
        students = jax.lax.map(lambda hidden: _products_of_student(hidden, head), hidden)
    else:
        students = jax.lax.map(lambda student: _products_of_student(*student), (hidden, head))
    return _matmul(teacher_hidden, teacher_head), students


def _products_of_student(hidden, head):
    """Computes gradients, with the logits in place of the gradient by logits."""
    logits = _matmul(hidden, head).astype(hidden.dtype)
    return _matmul(logits, head.T), () if FROZEN.value else _matmul(hidden.T, logits)


_matmul = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)


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
            "tokens_a_second": round(TOKENS.value * STUDENTS.value / np.median(seconds[name])),
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
    print(
        f"N = {tokens}, D = {width}, D' = {TEACHER_WIDTH.value or width}, V = {classes}, "
        f"{DTYPE.value}, {STUDENTS.value} student(s), {'frozen' if FROZEN.value else 'trained'} "
        f"head, chunks of {chunk} tokens"
    )
    harness.print_table(records, width=120)
    harness.write_csv(OUTPUT.value, records)
    return 0


if __name__ == "__main__":
    cli.run(main)
