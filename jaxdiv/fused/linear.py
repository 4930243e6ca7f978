"""Divergences from hidden states and heads: no array of all tokens' logits is ever made."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiv import divergences, targets
from jaxdiv.divergences import Loss
from jaxdiv.fused import chunks, values
from jaxdiv.fused.heads import Head

MODES = ("one_pass", "remat")


def linear_divergence(
    loss: str | Loss | Callable,
    student_hidden: jax.Array,
    student_head: jax.Array | Head,
    teacher_hidden: Any = None,
    teacher_head: jax.Array | Head | None = None,
    *,
    labels: jax.Array | None = None,
    weights: jax.Array | None = None,
    metrics: Sequence[str | Loss | Callable] = (),
    temperature: float = 1.0,
    vocab_size: int | None = None,
    teacher_gradient: bool = False,
    mode: str = "one_pass",
    chunk: int | None = None,
    memory: int | None = None,
    tokens_over: str | None = None,
):
    """weight · divergence of every token, from what comes before the logits.

    In the default mode the gradient is made in the same pass, for which it must know each token's weight: give it as
    `weights`, and only sum, scale or average what comes back. Where values are weighted token by token afterwards, the
    gradient by a hidden state is still right, and that by a trained head is NaN. A head that no gradient is asked for
    (`jax.lax.stop_gradient`, or not an argument of `jax.grad`) costs none.

    Args:
      loss: text as `jaxdiv.get` reads it, a `Loss`, or a function of (student's logits [C, V], the teacher's [C, V] or
        what stands in its place, and `labels=` where they are given) to [C].
      student_hidden: [..., D].
      student_head: [D, V], or a `Head` with bias, scale or soft cap.
      teacher_hidden: [..., D'], a constant unless `teacher_gradient`; with `teacher_head` None, dense logits [..., V],
        `Labels`, `TopK` or `Samples` of `targets`; None for a loss that has no teacher.
      teacher_head: [D', V] or a `Head`, likewise.
      labels: [...] integers, for losses on data labels.
      weights: [...], of each token; None for 1. A token of weight 0 may have anything in it.
      metrics: losses that are only measured, on the same logits.
      temperature, vocab_size: as `Loss` has them, the temperature a number; a function does what it does.
      teacher_gradient: whether the teacher is trained too, by a loss that is another one's mirror (`kl` is that of
        `rkl`, `tv` its own; `ce` and `lk_hybrid` have none). Both sides' logits are then made twice.
      mode: `one_pass`, or `remat`, which computes each chunk of logits twice but is differentiable as often as the
        loss, forwards and backwards, and under any weighting.
      chunk: tokens a chunk; None for as many as `memory` allows.
      memory: bytes for the logits of a chunk; None for half of the head's float32 gradient, and 64 MiB at least.
      tokens_over: the axis of the mesh in `jax.set_mesh` over which the first axis of the tokens is spread: each device
        then goes through its own. Heads may be spread by their classes over other axes, of type `Auto`.

    Returns:
      [...]; with `metrics`, ([...], a tuple of each one's values [...], without weights).

    Raises:
      ValueError: for shapes that do not fit, an unknown mode, and whatever the loss refuses.
    """
    shared = {"weights": weights, "temperature": temperature, "vocab_size": vocab_size}
    shared |= {"mode": mode, "chunk": chunk, "memory": memory, "tokens_over": tokens_over}
    student, teacher = (student_hidden, student_head), (teacher_hidden, teacher_head)
    made, measured = linear_divergences(
        [loss], [student_hidden], [student_head], *teacher, labels=labels, metrics=metrics, **shared
    )
    values = made[0]
    if teacher_gradient:
        values = _also(values, linear_divergence(_mirror(loss, teacher_head), *teacher, *student, **shared))
    return (values, measured[0]) if metrics else values


def _mirror(loss, teacher_head):
    if not isinstance(loss, str | Loss) or teacher_head is None:
        raise ValueError("`teacher_gradient` needs a loss by name, and a teacher's hidden states with their head.")
    return divergences.mirror(divergences.get(loss) if isinstance(loss, str) else loss)


@jax.custom_jvp
def _also(values, others):
    """The values, which also change as the others do."""
    return values


@_also.defjvp
def _also_jvp(primals, tangents):
    return primals[0], tangents[0] + tangents[1]


def linear_divergences(
    losses: Sequence[str | Loss | Callable],
    student_hiddens: Sequence[jax.Array],
    student_heads: Sequence[jax.Array | Head],
    teacher_hidden: Any = None,
    teacher_head: jax.Array | Head | None = None,
    *,
    labels: jax.Array | None = None,
    weights: jax.Array | None = None,
    metrics: Sequence[str | Loss | Callable] = (),
    temperature: float = 1.0,
    vocab_size: int | None = None,
    mode: str = "one_pass",
    chunk: int | None = None,
    memory: int | None = None,
    tokens_over: str | None = None,
) -> tuple[tuple[jax.Array, ...], tuple[tuple[jax.Array, ...], ...]]:
    """`linear_divergence` of several students, each under its own loss, on one pass of the teacher's head.

    Students of one loss may also be stacked and mapped: under `jax.vmap` over students alone the teacher's logits are
    still computed once.

    Args:
      losses, student_hiddens, student_heads: one each a student; the others are shared and as in `linear_divergence`.

    Returns:
      (values [...] a student, metrics [...] a student and metric).
    """
    if mode not in MODES:
        raise ValueError(f"`mode` must be one of {', '.join(MODES)}, got {mode!r}.")
    if not len(losses) == len(student_hiddens) == len(student_heads) > 0:
        raise ValueError(
            f"each student needs a loss, hidden states and a head, got {len(losses)}, {len(student_hiddens)} and "
            f"{len(student_heads)}."
        )
    rows = jnp.shape(student_hiddens[0])[:-1]
    students = tuple(
        values.Student(_flat("student_hidden", hidden, rows), _head("student_head", head, hidden))
        for hidden, head in zip(student_hiddens, student_heads, strict=True)
    )
    given = values.Given(
        _teacher(teacher_hidden, teacher_head, rows),
        None if labels is None else _flat("labels", labels, rows, trailing=0),
    )
    weights = jnp.ones(rows) if weights is None else _weights(weights, rows)
    classes, width = (max(s.head.matrix.shape[axis] for s in students) for axis in (1, 0))
    tokens = math.prod(rows) // _devices(tokens_over, rows)
    chunk = chunks.size(tokens, classes, width, memory) if chunk is None else min(chunk, tokens)
    if chunk < 1:
        raise ValueError(f"`chunk` must be at least 1, and there must be tokens, got {chunk} of {tokens}.")
    if isinstance(temperature, jax.core.Tracer):
        raise ValueError("`temperature` must be a number that is known before it is compiled, got a traced array.")
    options = _Options(float(temperature), vocab_size)
    plan = values.Plan(
        tuple(_objective(loss, options) for loss in losses),
        tuple(_objective(loss, options) for loss in metrics),
        chunk,
        tokens_over,
    )
    run = values.one_pass if mode == "one_pass" else values.rematerialized
    return jax.tree.map(lambda x: x.reshape(rows), run(plan, students, given, weights.reshape(-1)))


def _devices(axis, rows):
    """How many the tokens are spread over."""
    if axis is None:
        return 1
    sizes = jax.sharding.get_abstract_mesh().shape
    if axis not in sizes:
        raise ValueError(f"`tokens_over` must name an axis of the mesh in `jax.set_mesh`, {dict(sizes)}, got {axis!r}.")
    if not rows or rows[0] % sizes[axis]:
        raise ValueError(f"`tokens_over` {axis!r} has {sizes[axis]} devices, which must divide {_told(rows)} tokens.")
    return sizes[axis]


@dataclasses.dataclass(frozen=True)
class _Options:
    temperature: float
    vocab_size: int | None


@dataclasses.dataclass(frozen=True)
class _Objective:
    """A loss with its options, as `values.Objective`."""

    loss: Loss
    options: _Options

    def __call__(self, logits, teacher, labels):
        return self.loss(logits, teacher, labels=labels, **dataclasses.asdict(self.options))


@dataclasses.dataclass(frozen=True)
class _Function:
    """Anybody's function, as `values.Objective`."""

    function: Callable

    def __call__(self, logits, teacher, labels):
        named = {} if labels is None else {"labels": labels}
        made = self.function(logits, teacher, **named)
        if jnp.shape(made) != logits.shape[:1]:
            raise ValueError(f"a loss must give one value a row, {logits.shape[:1]}, got {jnp.shape(made)}.")
        return made


def _objective(loss, options):
    if isinstance(loss, str | Loss):
        return _Objective(divergences.get(loss) if isinstance(loss, str) else loss, options)
    if not callable(loss):
        raise ValueError(f"a loss must be text, such as `kl`, or a function, got {loss!r}.")
    if options != _Options(1.0, None):
        raise ValueError("`temperature` and `vocab_size` are for losses by name; a function has its own.")
    return _Function(loss)


def _flat(name, array, rows, trailing=1):
    array = jnp.asarray(array)
    if array.shape[: len(rows)] != rows or array.ndim != len(rows) + trailing:
        wanted = (*rows, *("D" * trailing))
        raise ValueError(f"`{name}` must be {_told(wanted)}, as the first student's tokens are, got {array.shape}.")
    return array.reshape(-1, *array.shape[len(rows) :])


def _told(shape):
    return f"[{', '.join(map(str, shape))}]"


def _head(name, head, hidden):
    head = head if isinstance(head, Head) else Head(jnp.asarray(head))
    shape, width = jnp.shape(head.matrix), jnp.shape(hidden)[-1]
    if len(shape) != 2 or shape[0] != width:
        raise ValueError(f"`{name}` must be [{width}, V], as its hidden states are [..., {width}], got {shape}.")
    if head.bias is not None and jnp.shape(head.bias) != shape[1:]:
        raise ValueError(f"the bias of `{name}` must be [{shape[1]}], got {jnp.shape(head.bias)}.")
    return head


def _weights(weights, rows):
    weights = jnp.asarray(weights)
    if weights.shape != rows:
        raise ValueError(f"`weights` must be {_told(rows)}, one a token, got {weights.shape}.")
    return weights if jnp.issubdtype(weights.dtype, jnp.floating) else weights.astype(jnp.float32)


def _teacher(hidden, head, rows):
    """The teacher with its tokens flat, a constant."""
    if head is not None:
        if hidden is None:
            raise ValueError("`teacher_head` needs `teacher_hidden`.")
        teacher = values.Teacher(_flat("teacher_hidden", hidden, rows), _head("teacher_head", head, hidden))
        return jax.lax.stop_gradient(teacher)
    if isinstance(hidden, targets.Labels | targets.TopK | targets.Samples):
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(rows) :]), hidden)
    else:
        flat = None if hidden is None else _flat("teacher_hidden", hidden, rows)
    return values.Teacher(jax.lax.stop_gradient(flat), None)
