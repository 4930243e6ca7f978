"""What each loss costs, in passes over the logits, against peers that are first checked against
float64.

  python -m experiments.benchmarks.losses --losses=kl,tv --rows=512 --vocabulary=131072

All contestants of a loss take turns in one process on the same arrays. The unit of time is one
pass, the jitted `student + teacher`; the unit of memory one [N, V] array of the inputs' type. All
compute in float32. A gradient is that of the sum by the student's logits; "both" is the value with
it. PyTorch gets a thread for each core.
"""

from experiments.common import startup

startup.begin(__name__)

import dataclasses
import functools
import io
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from absl import flags
from rich.console import Console
from rich.table import Table

from experiments.benchmarks import peers
from experiments.common import cli, timing
from jaxdiv import files
from jaxdiv.divergences import registry
from tests import references

LOSSES = flags.DEFINE_list("losses", None, "Losses by name, by commas; all of them unless given.")
ROWS = flags.DEFINE_integer("rows", 512, "Rows of logits, N.", lower_bound=1)
VOCABULARY = flags.DEFINE_integer("vocabulary", 131072, "Classes, V.", lower_bound=2)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Type of the logits.")
ROUNDS = flags.DEFINE_integer(
    "rounds", 9, "How often each is timed; the medians count.", lower_bound=1
)
PEERS = flags.DEFINE_list(
    "peers", None, "Libraries beside jaxdiv, by commas; all that are installed unless given."
)
OUTPUT = flags.DEFINE_string("output", None, "A CSV file for the numbers.")

KINDS = ("value", "gradient", "both")
ALLOWED = 1e-2  # relative error, of a gradient by norm, up to which a loss is called correct
NEAR = 1e-3  # student = teacher + NEAR * noise


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Student and teacher logits [N, V], and what the loss takes of the teacher: its logits, or
    labels [N]."""

    student: jax.Array
    teacher: jax.Array
    target: jax.Array


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One loss of one library, compiled for inputs of one size.

    Attributes:
      calls: by kind, a function of `Inputs` that gives the array or arrays.
      temporaries: by kind, bytes beyond inputs and outputs; empty where the framework does not
        tell.
    """

    calls: dict[str, Callable[[Inputs], Any]]
    temporaries: dict[str, int]


def inputs(loss: str, rows: int, vocabulary: int, dtype, distance: float = 1.0) -> Inputs:
    """Random logits, the student's at `distance` from the teacher's."""
    draws = np.random.default_rng(0)
    teacher = 2 * draws.standard_normal((rows, vocabulary), np.float32)
    student = teacher + np.float32(distance) * draws.standard_normal((rows, vocabulary), np.float32)
    student, teacher = jnp.asarray(student, dtype), jnp.asarray(teacher, dtype)
    labels = jnp.asarray(draws.integers(0, vocabulary, rows), jnp.int32)
    return Inputs(student, teacher, labels if _of_labels(loss) else teacher)


def _of_labels(loss):
    return registry.ENTRIES[loss].target == "labels"


def contestant(library: peers.Library, loss: str, given: Inputs) -> Contestant:
    """The library's loss for such inputs."""
    if library.framework == peers.TORCH:
        return _of_torch(library.losses[loss])
    function = library.losses[loss]
    return _of_jax(function if library.name == "jaxdiv" else _in_float32(function), given)


def _in_float32(function):
    def computed(student, target):
        return function(
            student.astype(jnp.float32), target if target.ndim == 1 else target.astype(jnp.float32)
        )

    return computed


def _of_jax(function, given):
    value = jax.jit(function)

    def total(student, target):
        return jnp.sum(value(student, target))

    jitted = {
        "value": value,
        "gradient": jax.jit(jax.grad(total)),
        "both": jax.jit(jax.value_and_grad(total)),
    }
    compiled = {
        kind: made.lower(given.student, given.target).compile() for kind, made in jitted.items()
    }
    memory = {kind: made.memory_analysis() for kind, made in compiled.items()}
    return Contestant(
        calls={kind: functools.partial(_call, made) for kind, made in compiled.items()},
        temporaries={
            kind: told.temp_size_in_bytes for kind, told in memory.items() if told is not None
        },
    )


def _call(compiled, given):
    return compiled(given.student, given.target)


def _of_torch(function):
    import torch

    torch.set_num_threads(os.cpu_count())

    def value(given):
        with torch.no_grad():
            return compute(given)[1]

    def both(given):
        student, values = compute(given)
        return values.detach().sum(), torch.autograd.grad(values.sum(), student)[0]

    def compute(given):
        student, target = (torch.from_dlpack(array) for array in (given.student, given.target))
        student = student.detach().requires_grad_()
        return student, function(
            student.float(), target.float() if target.is_floating_point() else target
        )

    return Contestant(
        calls={"value": value, "gradient": lambda given: both(given)[1], "both": both},
        temporaries={},
    )


def errors(contestant: Contestant, loss: str, given: Inputs) -> tuple[float, float]:
    """The largest relative errors of value and (by norm) gradient, against float64 NumPy, over two
    of the rows."""
    rows = np.unique([0, given.student.shape[0] - 1])
    found = [_float64(contestant.calls[kind](given)[rows]) for kind in ("value", "gradient")]
    expected = _expected(
        loss, *(np.asarray(array[rows]) for array in (given.student, given.teacher, given.target))
    )
    sizes = np.abs(expected[0]), np.linalg.norm(expected[1], axis=-1)
    distances = np.abs(found[0] - expected[0]), np.linalg.norm(found[1] - expected[1], axis=-1)
    return tuple(
        float(np.max(distance / size)) for distance, size in zip(distances, sizes, strict=True)
    )


def _expected(loss, student, teacher, target):
    student, teacher = student.astype(np.float64), teacher.astype(np.float64)
    if not _of_labels(loss):
        return references.VALUES[loss](student, teacher), references.gradient(
            loss, student, teacher
        )
    chosen = np.arange(student.shape[-1]) == target[:, None]
    return references.label_loss(student, target), np.exp(references.log_softmax(student)) - chosen


def _float64(array):
    return np.asarray(array.float() if hasattr(array, "float") else array, np.float64)


def measure(losses, libraries, *, rows: int, vocabulary: int, dtype, rounds: int) -> Iterator[dict]:
    """A record for each loss and library that has it, jaxdiv's first.

    Keys: loss, library; for each kind, `kind` in passes and `kind_temporaries` in arrays [N, V];
      the errors
    `random_value`, `random_gradient`, `near_value`, `near_gradient`.
    """
    for loss in losses:
        given = inputs(loss, rows, vocabulary, dtype)
        near = inputs(loss, rows, vocabulary, dtype, NEAR)
        entered = {
            lib.name: contestant(lib, loss, given) for lib in libraries if loss in lib.losses
        }
        seconds = timing.interleaved(_turns(entered, given), rounds=rounds)
        for library, made in entered.items():
            record = {"loss": loss, "library": library}
            for kind in KINDS:
                record[kind] = float(np.median(seconds[library, kind] / seconds["pass"]))
                record[f"{kind}_temporaries"] = (
                    made.temporaries.get(kind, math.nan) / given.student.nbytes
                )
            for name, at in (("random", given), ("near", near)):
                record[f"{name}_value"], record[f"{name}_gradient"] = errors(made, loss, at)
            yield record


def _turns(entered, given):
    add = jax.jit(jnp.add)
    turns = {"pass": lambda: add(given.student, given.teacher)}
    for name, made in entered.items():
        turns |= {(name, kind): functools.partial(call, given) for kind, call in made.calls.items()}
    return turns


def verdict(record: dict) -> str:
    """`correct`, or by how much the worst of its numbers is off."""
    found = [
        record[f"{where}_{what}"] for where in ("random", "near") for what in ("value", "gradient")
    ]
    if not all(map(math.isfinite, found)):
        return "wrong: not finite"
    worst = max(found)
    return "correct" if worst <= ALLOWED else f"wrong: off by {_percent(worst)}"


def _percent(share):
    return f"{100 * share:.2g}%" if share < 1 else f"{100 * share:.0f}%"


def table(records: Sequence[dict], title: str) -> Table:
    """A row a loss and library; of peers also how jaxdiv's time compares."""
    made = Table(
        title=title, title_justify="left", caption=summary(records), caption_justify="left"
    )
    for heading in ("loss", "library"):
        made.add_column(heading, no_wrap=True)
    for heading in ("value", "gradient", "both", "jaxdiv /", "memory", "error", "error near"):
        made.add_column(heading, justify="right", no_wrap=True)
    made.add_column("checked", no_wrap=True)
    own = {record["loss"]: record for record in records if record["library"] == "jaxdiv"}
    for record in records:
        ratios = [own[record["loss"]][kind] / record[kind] for kind in KINDS]
        first = record["library"] == "jaxdiv"
        made.add_row(
            record["loss"] if first else "",
            record["library"],
            *(f"{record[kind]:.2f}" for kind in KINDS),
            "" if first else " ".join(f"{ratio:.2f}" for ratio in ratios),
            " ".join(_memory(record[f"{kind}_temporaries"]) for kind in KINDS),
            *(
                f"{record[f'{name}_value']:.0e} {record[f'{name}_gradient']:.0e}"
                for name in ("random", "near")
            ),
            verdict(record),
        )
    return made


def _memory(arrays):
    return "–" if math.isnan(arrays) else f"{arrays:.1f}"


def summary(records: Sequence[dict]) -> str:
    """Where a correct peer is faster than jaxdiv, and what the columns mean."""
    slower = []
    for loss in dict.fromkeys(record["loss"] for record in records):
        own, *others = (record for record in records if record["loss"] == loss)
        others = [record for record in others if verdict(record) == "correct"]
        for kind in KINDS if others else ():
            best = min(others, key=lambda record: record[kind])
            if own[kind] > best[kind]:
                slower.append(f"{loss} {kind} {own[kind] / best[kind]:.2f} × {best['library']}")
    return (
        "Times in passes, `student + teacher`; jaxdiv / : its times over this library's; memory: temporaries in arrays "
        "[N, V], of value, gradient, both; errors: relative, of value and gradient, at random logits and near, at "
        f"student = teacher + {NEAR:g} noise.\nSlower than a correct peer: {', '.join(slower) or 'none'}."
    )


def _losses(wanted):
    known = peers.load("jnp").losses
    names = [registry.canonical(name.strip()) for name in wanted or known]
    for name in names:
        if name not in known:
            raise ValueError(f"--losses={name}: no peer has it; known: {', '.join(known)}")
    return list(dict.fromkeys(names))


def _libraries(wanted):
    """jaxdiv and the peers; what is left out unless it was asked for."""
    found, left_out = [peers.load("jaxdiv")], {}
    for name in wanted or peers.names()[1:]:
        if name == "jaxdiv":
            continue
        try:
            found.append(peers.load(name))
        except ImportError as error:
            if wanted:
                raise ValueError(
                    f"--peers={name}: can't be imported ({error}); pip install -e '.[peers]'"
                ) from None
            left_out[name] = str(error)
    return found, left_out


def main(_):
    losses = _losses(LOSSES.value)
    libraries, left_out = _libraries(PEERS.value)
    if OUTPUT.value and os.path.isdir(OUTPUT.value):
        raise ValueError(f"--output={OUTPUT.value} is a folder; give a CSV file")
    for name, reason in left_out.items():
        cli.say(f"{name} is left out: {reason}")
    dtype = jnp.dtype(DTYPE.value)
    sizes = {"rows": ROWS.value, "vocabulary": VOCABULARY.value}
    records = []
    for record in measure(losses, libraries, **sizes, dtype=dtype, rounds=ROUNDS.value):
        records.append(record)
        cli.say(f"measured {record['loss']} of {record['library']}")
    title = f"{ROWS.value} × {VOCABULARY.value} {dtype.name}, {os.cpu_count()} cores, JAX {jax.__version__}"
    Console(width=150).print(table(records, title))
    if OUTPUT.value:
        stream = io.StringIO()
        pd.DataFrame(records).assign(**sizes, dtype=dtype.name).to_csv(stream, index=False)
        files.write_text(OUTPUT.value, stream.getvalue())
    return 0


if __name__ == "__main__":
    cli.run(main)
