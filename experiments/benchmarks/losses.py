"""Cost of each loss, against peers that are first checked against float64.

  python -m experiments.benchmarks.losses --losses=kl,tv --rows=512 --vocabulary=131072

All contestants of a loss take turns in one process on the same arrays. The unit of time is one
pass, the jitted `student + teacher`; the unit of memory is one [N, V] array of the inputs' type.
All compute in float32. A gradient is that of the sum by the student's logits; "both" is the value
with it. PyTorch gets a thread for each core.
"""

from experiments.common import startup

startup.begin(__name__)

import functools
import itertools
import math
import operator
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.benchmarks import harness, peers
from experiments.common import cli, timing
from jaxdiv.divergences import registry

LOSSES = flags.DEFINE_list(
    "losses", None, "Losses by name, separated by commas; all of them unless given."
)
ROWS = flags.DEFINE_integer("rows", 512, "Rows of logits, N.", lower_bound=1)
VOCABULARY = flags.DEFINE_integer("vocabulary", 131072, "Classes, V.", lower_bound=2)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Type of the logits.")
ROUNDS = harness.define_rounds(9)
PEERS = flags.DEFINE_list(
    "peers", None, "Libraries beside jaxdiv, separated by commas; all that are installed if none."
)
OUTPUT = harness.define_output()

KINDS = ("value", "gradient", "both")
ALLOWED = 1e-2  # relative error, of a gradient by norm, up to which a loss is called correct
NEAR = 1e-3  # student = teacher + NEAR * noise


# By kind, a function of (student logits, target), and the bytes of its temporaries.
Contestant = dict[str, tuple[Callable[[jax.Array, jax.Array], Any], float]]


class LogitPair(NamedTuple):
    """Logits [N, V] of both sides, and the loss's target: the teacher's logits, or labels [N]."""

    student: jax.Array
    teacher: jax.Array
    target: jax.Array


def random_inputs(loss: str, rows: int, vocabulary: int, dtype, distance: float = 1.0) -> LogitPair:
    """Returns random logits, the student's at `distance` from the teacher's."""
    draws = np.random.default_rng(0)
    teacher = 2 * draws.standard_normal((rows, vocabulary), np.float32)
    student = teacher + np.float32(distance) * draws.standard_normal((rows, vocabulary), np.float32)
    student, teacher = jnp.asarray(student, dtype), jnp.asarray(teacher, dtype)
    labels = jnp.asarray(draws.integers(0, vocabulary, rows), jnp.int32)
    takes_labels = registry.ENTRIES[loss].target == "labels"
    return LogitPair(student, teacher, labels if takes_labels else teacher)


def contestant(library: str, function: Callable, inputs: LogitPair) -> Contestant:
    """Returns a library's loss in each of KINDS, compiled for such inputs."""
    if library == "torch":
        return _torch_contestant(function)

    def value(student, target):
        if library != "jaxdiv":
            student = student.astype(jnp.float32)
            target = target if target.ndim == 1 else target.astype(jnp.float32)
        return function(student, target)

    def total(student, target):
        return jnp.sum(value(student, target))

    functions = value, jax.grad(total), jax.value_and_grad(total)
    arguments = inputs.student, inputs.target
    programs = (harness.compiled(each, *arguments) for each in functions)
    return dict(zip(KINDS, programs, strict=True))


def _torch_contestant(function: Callable) -> Contestant:
    import torch

    torch.set_num_threads(os.cpu_count())

    def compute(student, target):
        student, target = torch.from_dlpack(student), torch.from_dlpack(target)
        student = student.detach().requires_grad_()
        target = target.float() if target.is_floating_point() else target
        return student, function(student.float(), target)

    def value(student, target):
        with torch.no_grad():
            return compute(student, target)[1]

    def both(student, target):
        student, values = compute(student, target)
        return values.detach().sum(), torch.autograd.grad(values.sum(), student)[0]

    functions = value, lambda student, target: both(student, target)[1], both
    return {kind: (each, math.nan) for kind, each in zip(KINDS, functions, strict=True)}


def errors(contestant: Contestant, loss: str, inputs: LogitPair) -> tuple[float, float]:
    """Returns the largest relative errors of value and (by norm) gradient over two of the rows."""
    rows, largest = np.unique([0, inputs.student.shape[0] - 1]), []
    for kind, right in zip(("value", "gradient"), reference(loss, inputs, rows), strict=True):
        call, _ = contestant[kind]
        array = call(inputs.student, inputs.target)[rows]
        array = np.asarray(array.float() if hasattr(array, "float") else array, np.float64)
        # Values are one number a row, gradients a vector.
        distance, size = (
            np.linalg.norm(each.reshape(len(rows), -1), axis=-1) for each in (array - right, right)
        )
        largest.append(float(np.max(distance / size)))
    return tuple(largest)


def reference(loss: str, inputs: LogitPair, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns values and gradients of some rows by the plain formula in float64."""
    function = peers.load("jnp")[loss]
    student, target = (np.asarray(array[rows]) for array in (inputs.student, inputs.target))
    with jax.enable_x64(True):
        student = jnp.asarray(student, jnp.float64)
        target = target if target.ndim == 1 else jnp.asarray(target, jnp.float64)
        gradient = jax.grad(lambda student: jnp.sum(function(student, target)))
        return np.asarray(function(student, target)), np.asarray(gradient(student))


def measure(
    losses: Sequence[str], libraries: Mapping[str, peers.Losses], *, rounds: int, **sizes: Any
) -> Iterator[dict]:
    """Yields a record for each loss and each library that has it, jaxdiv's first.

    Its keys are loss, library; for each kind, `kind` in passes and `kind_temporaries` in arrays
    [N, V]; the errors `random_value`, `random_gradient`, `near_value`, `near_gradient`.

    Args:
      losses: full names.
      libraries: by name, jaxdiv's first.
      rounds: how often each is timed.
      **sizes: rows, vocabulary and dtype of `random_inputs`.
    """
    add = jax.jit(jnp.add)
    for loss in losses:
        inputs = random_inputs(loss, **sizes)
        at = {"random": inputs, "near": random_inputs(loss, **sizes, distance=NEAR)}
        entered = {
            library: contestant(library, functions[loss], inputs)
            for library, functions in libraries.items()
            if loss in functions
        }
        turns = {"pass": functools.partial(add, inputs.student, inputs.teacher)}
        for library, kinds in entered.items():
            for kind, (call, _) in kinds.items():
                turns[library, kind] = functools.partial(call, inputs.student, inputs.target)
        seconds = timing.interleaved(turns, rounds=rounds)
        for library, kinds in entered.items():
            record = {"loss": loss, "library": library}
            for kind, (_, size) in kinds.items():
                record[kind] = float(np.median(seconds[library, kind] / seconds["pass"]))
                record[f"{kind}_temporaries"] = size / inputs.student.nbytes
            for name, where in at.items():
                record[f"{name}_value"], record[f"{name}_gradient"] = errors(kinds, loss, where)
            yield record


def verdict(record: Mapping[str, Any]) -> str:
    """Returns `correct`, or by how much the worst of the record's numbers is off."""
    names = ("random_value", "random_gradient", "near_value", "near_gradient")
    worst = max(record[name] if math.isfinite(record[name]) else math.inf for name in names)
    if worst == math.inf:
        return "wrong: not finite"
    share = f"{100 * worst:.2g}%" if worst < 1 else f"{100 * worst:.0f}%"
    return "correct" if worst <= ALLOWED else f"wrong: off by {share}"


def row(record: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, str]:
    """Returns the printed cells of a record; `reference` is jaxdiv's record of the same loss."""
    first = record is reference
    ratios = " ".join(f"{reference[kind] / record[kind]:.2f}" for kind in KINDS)
    memory = (record[f"{kind}_temporaries"] for kind in KINDS)
    error, near = (
        f"{record[f'{at}_value']:.0e} {record[f'{at}_gradient']:.0e}" for at in ("random", "near")
    )
    return {
        "loss": record["loss"] if first else "",
        "library": record["library"],
        **{kind: f"{record[kind]:.2f}" for kind in KINDS},
        "jaxdiv /": "" if first else ratios,
        "memory": " ".join("–" if math.isnan(size) else f"{size:.1f}" for size in memory),
        "error": error,
        "error near": near,
        "checked": verdict(record),
    }


def summary(records: Sequence[Mapping[str, Any]]) -> str:
    """Returns where a correct peer is faster than jaxdiv, and what the columns mean."""
    slower = []
    counted = [r for r in records if r["library"] == "jaxdiv" or verdict(r) == "correct"]
    for loss, kind in itertools.product(dict.fromkeys(r["loss"] for r in records), KINDS):
        reference, *others = (record for record in counted if record["loss"] == loss)
        best = min(others, key=operator.itemgetter(kind), default=reference)
        if reference[kind] > best[kind]:
            ratio = reference[kind] / best[kind]
            slower.append(f"{loss} {kind} {ratio:.2f} × {best['library']}")
    return (
        "Times in passes, `student + teacher`; jaxdiv / : its times over this library's; memory: "
        "temporaries in arrays [N, V], of value, gradient, both; errors: relative, of value and "
        f"gradient, at random logits and near, at student = teacher + {NEAR:g} noise.\n"
        f"Slower than a correct peer: {', '.join(slower) or 'none'}."
    )


def losses_by_name(names: Sequence[str] | None) -> list[str]:
    """Returns full names, all that a peer has for None. Raises ValueError for one without peer."""
    available = sorted(peers.load("jnp"))
    full = [registry.canonical(name.strip()) for name in names or available]
    for name in full:
        if name not in available:
            raise ValueError(f"--losses={name}: no peer has it; known: {', '.join(available)}")
    return list(dict.fromkeys(full))


def installed_libraries(names: Sequence[str] | None) -> dict[str, peers.Losses]:
    """Returns jaxdiv's losses and those of the named peers, by library.

    Without names, peers that can't be imported are left out and logged.

    Raises:
      ValueError: if a named peer can't be imported.
    """
    libraries = {}
    for name in dict.fromkeys(["jaxdiv", *(names or peers.LIBRARIES)]):
        try:
            libraries[name] = peers.load(name)
        except ImportError as error:
            if names:
                raise ValueError(
                    f"--peers={name}: can't be imported ({error}); pip install -e '.[peers]'"
                ) from None
            cli.log(f"{name} is left out: {error}")
    return libraries


def main(_):
    losses = losses_by_name(LOSSES.value)
    if OUTPUT.value and os.path.isdir(OUTPUT.value):
        raise ValueError(f"--output={OUTPUT.value} is a folder; give a CSV file")
    libraries = installed_libraries(PEERS.value)
    sizes = {"rows": ROWS.value, "vocabulary": VOCABULARY.value}
    records = []
    for record in measure(losses, libraries, **sizes, dtype=DTYPE.value, rounds=ROUNDS.value):
        records.append(record)
        cli.log(f"measured {record['loss']} of {record['library']}")
    first = {record["loss"]: record for record in records if record["library"] == "jaxdiv"}
    rows = [row(record, first[record["loss"]]) for record in records]
    machine = f"{os.cpu_count()} cores, JAX {jax.__version__}"
    title = f"{ROWS.value} × {VOCABULARY.value} {DTYPE.value}, {machine}"
    harness.print_table(rows, width=150, title=title, caption=summary(records))
    sizes["dtype"] = DTYPE.value
    harness.write_csv(OUTPUT.value, [record | sizes for record in records])
    return 0


if __name__ == "__main__":
    cli.run(main)
