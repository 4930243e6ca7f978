"""Divergences from hidden states and heads: no array of all tokens' logits is ever made."""

import dataclasses
import math
import operator
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
    tokens_over: str | Sequence[str] | None = None,
):
    """weight · divergence of every token, from what comes before the logits.

    In the default mode the gradient is made in the same pass, for which it must know each token's
    weight: give it as `weights`, and only sum, scale or average what comes back. Where values are
      weighted token by token afterwards, the
    gradient by a hidden state is still right, and that by a trained head is NaN. A head that no
    gradient is asked for (`jax.lax.stop_gradient`, or not an argument of `jax.grad`) costs none.

    Args:
      loss: text as `jaxdiv.get` reads it, a `Loss`, or a function of (student's logits [C, V], the
        teacher's [C, V] or what stands in its place, and `labels=` where they are given) to [C];
        write `rkl`, not jaxdiv.reverse_kl, beside labels.
      student_hidden: [..., D].
      student_head: [D, V], or a `Head` with bias, scale or soft cap.
      teacher_hidden: [..., D'], a constant unless `teacher_gradient`; with `teacher_head` None,
        dense logits [..., V], `Labels`, `TopK` or `Samples` of `targets`; None for a loss that has
        no teacher.
      teacher_head: [D', V] or a `Head`, likewise.
      labels: [...] integers, for losses on data labels.
      weights: [...], of each token; None for 1. A token of weight 0 may have anything in it, and
        its value has no derivative by that weight.
      metrics: losses that are only measured, on the same logits.
      temperature, vocab_size: as `Loss` has them, the temperature a number; a function does what it
        does.
      teacher_gradient: whether the teacher is trained too, by a loss that is another one's mirror
        (`kl` is that of `rkl`, `tv` its own; `ce`, `lk_hybrid`, `akl`, `renyi` from alpha 1 on and
        losses of one class have none). Both sides' logits are then made twice, and second
        derivatives take the other side as a constant.
      mode: `one_pass`, or `remat`, which computes each chunk of logits twice but is differentiable
        as often as the loss, forwards and backwards, and under any weighting.
      chunk: tokens a chunk; None for as many as `memory` allows.
      memory: bytes for the logits of a chunk; None for half of the head's float32 gradient, and 64
        MiB at least.
      tokens_over: the axis or axes of the mesh in `jax.set_mesh` over which the first axis of the
        tokens is spread: each device then goes through its own. All axes of the mesh must be of
          type `Auto`; heads may be spread by their
        classes over others.

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
        shared["weights"] = jax.lax.stop_gradient(weights)  # whose gradient the values above have
        values = _also(
            values, linear_divergence(_mirror(loss, teacher_head), *teacher, *student, **shared)
        )
    return (values, measured[0]) if metrics else values


def _mirror(loss, teacher_head):
    if not isinstance(loss, str | Loss) or teacher_head is None:
        raise ValueError(
            "`teacher_gradient` needs a loss by name, and a teacher's hidden states with their head."
        )
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
    tokens_over: str | Sequence[str] | None = None,
) -> tuple[tuple[jax.Array, ...], tuple[tuple[jax.Array, ...], ...]]:
    """`linear_divergence` of several students, each under its own loss, on one pass of the
    teacher's head.

    Students of one loss may also be stacked and mapped: under `jax.vmap` over students alone the
      teacher's logits are
    still computed once.

    Args:
      losses, student_hiddens, student_heads: one each a student; the others are shared and as in
        `linear_divergence`.

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
    if isinstance(metrics, str):
        raise ValueError(f"`metrics` must be a list of losses, such as [{metrics!r}], got text.")
    options = _Options(_number("temperature", temperature), _whole_number("vocab_size", vocab_size))
    rows = _array("student_hidden", student_hiddens[0]).shape[:-1]
    students = tuple(
        values.Student(_flat("student_hidden", hidden, rows), _head("student_head", head, hidden))
        for hidden, head in zip(student_hiddens, student_heads, strict=True)
    )
    labels = None if labels is None else _flat("labels", labels, rows, trailing=0)
    axes = (
        tuple(tokens_over)
        if isinstance(tokens_over, list | tuple)
        else (tokens_over,)
        if tokens_over
        else ()
    )
    given = values.Given(_teacher(teacher_hidden, teacher_head, rows), labels)
    plan = values.Plan(
        tuple(_objective(loss, options) for loss in losses),
        tuple(_objective(loss, options) for loss in metrics),
        _chunk(
            _whole_number("chunk", chunk),
            _whole_number("memory", memory),
            students,
            math.prod(rows) // _devices(axes, rows),
        ),
        axes,
    )
    run = values.one_pass if mode == "one_pass" else values.rematerialized
    return jax.tree.map(
        lambda x: x.reshape(rows), run(plan, students, given, _weights(weights, rows).reshape(-1))
    )


def _chunk(chunk, memory, students, tokens):
    classes, width = (max(one.head.matrix.shape[axis] for one in students) for axis in (1, 0))
    if min(tokens, classes, width) < 1:
        raise ValueError(
            f"there must be tokens, widths and classes, got {tokens}, {width} and {classes}."
        )
    return min(chunk, tokens) if chunk else chunks.size(tokens, classes, width, memory)


def _whole_number(name, value):
    """A whole number from 1 on, or None."""
    try:
        found = None if value is None else operator.index(value)
    except TypeError:
        found = 0
    if isinstance(value, bool) or (found is not None and found < 1):
        raise ValueError(f"`{name}` must be at least 1 and a whole number, got {value!r}.")
    return found


def _number(name, value):
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(
            f"`{name}` must be a number that is known at trace time, got {value!r}."
        ) from None


def _array(name, value):
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError):
        raise ValueError(f"`{name}` must be an array, got {type(value).__name__}.") from None


def _devices(axes, rows):
    """How many the tokens are spread over."""
    if not axes:
        return 1
    mesh = jax.sharding.get_abstract_mesh()
    for axis in axes:
        if axis not in mesh.shape:
            raise ValueError(
                f"`tokens_over` must name axes of the mesh in `jax.set_mesh`, {dict(mesh.shape)}, got {axis!r}."
            )
    if any(kind != jax.sharding.AxisType.Auto for kind in mesh.axis_types):
        raise ValueError(
            f"`tokens_over` needs a mesh whose axes are all of type Auto, which `axis_types` of `jax.make_mesh` sets; "
            f"got {', '.join(kind.name for kind in mesh.axis_types)}."
        )
    devices = math.prod(mesh.shape[axis] for axis in axes)
    if not rows or rows[0] % devices:
        raise ValueError(
            f"`tokens_over` {', '.join(axes)} has {devices} devices, which must divide the first axis of {_told(rows)} "
            f"tokens."
        )
    return devices


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
            raise ValueError(
                f"a loss must give one value a row, {logits.shape[:1]}, got {jnp.shape(made)}."
            )
        return made


def _objective(loss, options):
    if isinstance(loss, str | Loss):
        return _Objective(divergences.get(loss) if isinstance(loss, str) else loss, options)
    if not callable(loss):
        raise ValueError(f"a loss must be text, such as `kl`, or a function, got {loss!r}.")
    if options != _Options(1.0, None):
        raise ValueError(
            "`temperature` and `vocab_size` are for losses by name; a function has its own."
        )
    return _Function(loss)


def _flat(name, array, rows, trailing=1):
    """[..., *] as [N, *], where * are `trailing` axes, or any for None."""
    array = _array(name, array)
    if array.shape[: len(rows)] != rows or trailing not in (None, array.ndim - len(rows)):
        wanted = (*rows, *("D" * (trailing or 0)))
        raise ValueError(
            f"`{name}` must be {_told(wanted)}, as the first student's tokens are, got {array.shape}."
        )
    return array.reshape(-1, *array.shape[len(rows) :])


def _told(shape):
    return f"[{', '.join(map(str, shape))}]"


def _head(name, head, hidden):
    head = head if isinstance(head, Head) else Head(head)
    bias = None if head.bias is None else _array(f"the bias of `{name}`", head.bias)
    head = dataclasses.replace(head, matrix=_array(name, head.matrix), bias=bias)
    shape, width = head.matrix.shape, jnp.shape(hidden)[-1]
    if len(shape) != 2 or shape[0] != width:
        raise ValueError(
            f"`{name}` must be [{width}, V], as its hidden states are [..., {width}], got {shape}."
        )
    if bias is not None and bias.shape != shape[1:]:
        raise ValueError(f"the bias of `{name}` must be [{shape[1]}], got {bias.shape}.")
    return head


def _weights(weights, rows):
    if weights is None:
        return jnp.ones(rows, jnp.float32)
    weights = _array("weights", weights)
    if weights.shape != rows or jnp.issubdtype(weights.dtype, jnp.complexfloating):
        raise ValueError(
            f"`weights` must be {_told(rows)}, a real number a token, got {weights.dtype} {weights.shape}."
        )
    return weights if jnp.issubdtype(weights.dtype, jnp.floating) else weights.astype(jnp.float32)


def _teacher(hidden, head, rows):
    """The teacher with its tokens flat, a constant."""
    if head is not None:
        if hidden is None:
            raise ValueError("`teacher_head` needs `teacher_hidden`.")
        teacher = values.Teacher(
            _flat("teacher_hidden", hidden, rows), _head("teacher_head", head, hidden)
        )
        return jax.lax.stop_gradient(teacher)
    if isinstance(hidden, targets.Labels | targets.TopK | targets.Samples):
        flat = jax.tree.map(lambda x: _flat("teacher_hidden", x, rows, trailing=None), hidden)
    else:
        flat = None if hidden is None else _flat("teacher_hidden", hidden, rows)
    return values.Teacher(jax.lax.stop_gradient(flat), None)
