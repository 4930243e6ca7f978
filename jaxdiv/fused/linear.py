"""Divergences from hidden states and heads, without an array of all tokens' logits."""

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


@dataclasses.dataclass(frozen=True)
class HeadOptions:
    """Options of the product with a head: its classes, its chunks of tokens, its devices.

    Attributes:
      vocab_size: the classes that exist, as in `Loss`; None for all columns of the head.
      mode: `one_pass`, or `remat`, which computes each chunk of logits twice but has all
        derivatives that the loss has, under any weighting.
      chunk: tokens in a chunk; None for as many as `memory` allows.
      memory: bytes for the logits of a chunk; None for half of the head's float32 gradient, and 64
        MiB and 256 tokens at least.
      tokens_over: the axis or axes of the mesh in `jax.set_mesh` over which the first axis of the
        tokens is sharded: each device loops over its own tokens. All axes of the mesh must be of
        type `Auto`; heads may be sharded by their classes over others.

    Raises:
      ValueError: for an unknown mode, or a number that is not whole and positive.
    """

    vocab_size: int | None = None
    mode: str = "one_pass"
    chunk: int | None = None
    memory: int | None = None
    tokens_over: str | Sequence[str] | None = None

    def __post_init__(self):
        if self.mode not in MODES:
            raise ValueError(f"`mode` must be one of {', '.join(MODES)}, got {self.mode!r}.")
        for name in ("vocab_size", "chunk", "memory"):
            object.__setattr__(self, name, _whole_number(name, getattr(self, name)))
        if not all(isinstance(axis, str) for axis in self.axes):
            raise ValueError(f"`tokens_over` must name axes of the mesh, got {self.tokens_over!r}.")

    @property
    def axes(self) -> tuple[str, ...]:
        """The mesh axes of `tokens_over`."""
        if self.tokens_over is None:
            return ()
        listed = isinstance(self.tokens_over, Sequence) and not isinstance(self.tokens_over, str)
        return tuple(self.tokens_over) if listed else (self.tokens_over,)


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
    teacher_gradient: bool = False,
    **options: Any,
):
    """Computes weight · divergence of every token from hidden states, never holding all logits.

    In the default mode the gradient is computed in the same pass, which must know each token's
    weight: pass it as `weights`, and only sum, scale or average the values. If values are weighted
    token by token afterwards, the gradient by hidden states is still right, and that by a trained
    head is NaN. A head without a gradient (`jax.lax.stop_gradient`, or no argument of `jax.grad`)
    costs none.

    Args:
      loss: text as `jaxdiv.get` reads it, a `Loss`, or a function of (student's logits [C, V], the
        teacher's [C, V] or its target, and `labels=` if there are any) to [C]. Beside labels write
        `rkl`, not jaxdiv.reverse_kl.
      student_hidden: [..., D].
      student_head: [D, V], or a `Head` with bias, scale or soft cap.
      teacher_hidden: [..., D'], a constant unless `teacher_gradient`; or a `targets.Restricted`
        with these in place of logits, if the heads are of the kept classes. Without
        `teacher_head`: dense logits [..., V], or a target of `targets`. None for a loss without a
        teacher.
      teacher_head: [D', V] or a `Head`; None if `teacher_hidden` needs none.
      labels: [...] integers, for losses on data labels.
      weights: [...], the weight of each token; None for 1. A token of weight 0 may have any
        content, and its value has no derivative by that weight.
      metrics: losses that are only measured, on the same logits.
      temperature: as in `Loss`, a number; not for functions.
      teacher_gradient: whether the teacher is trained too, by a loss that has a mirror (`kl` is the
        mirror of `rkl`, `tv` its own; `ce`, `lk_hybrid`, `akl`, `renyi` from alpha 1 on and losses
        of one class have none). Both sides' logits are then computed twice, and second derivatives
        take the other side as a constant.
      **options: `vocab_size`, `mode`, `chunk`, `memory` and `tokens_over` of `HeadOptions`.

    Returns:
      [...]; with `metrics`, ([...], a tuple of each one's values [...], without weights).

    Raises:
      ValueError: for shapes that do not fit, an unknown mode, and whatever the loss refuses.
    """
    shared = {"weights": weights, "temperature": temperature, **options}
    student, teacher = (student_hidden, student_head), (teacher_hidden, teacher_head)
    (values,), (measures,) = linear_divergences(
        [loss], [student_hidden], [student_head], *teacher, labels=labels, metrics=metrics, **shared
    )
    if teacher_gradient:
        if not isinstance(loss, str | Loss) or teacher_head is None:
            raise ValueError(
                "`teacher_gradient` needs a loss by name, and a teacher's hidden states with their "
                "head."
            )
        mirror = divergences.mirror(divergences.get(loss) if isinstance(loss, str) else loss)
        # The values above have the gradient by the weights already.
        shared["weights"] = jax.lax.stop_gradient(weights)
        values = _with_gradient_of(values, linear_divergence(mirror, *teacher, *student, **shared))
    return (values, measures) if metrics else values


@jax.custom_jvp
def _with_gradient_of(values, others):
    """Returns the values, which also have the derivatives of the others."""
    return values


@_with_gradient_of.defjvp
def _with_gradient_of_jvp(primals, tangents):
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
    **options: Any,
) -> tuple[tuple[jax.Array, ...], tuple[tuple[jax.Array, ...], ...]]:
    """Computes `linear_divergence` of several students on one pass of the teacher's head.

    Each student has its own loss. Students of one loss may also be stacked: under `jax.vmap` over
    students alone the teacher's logits are still computed once.

    Args:
      losses, student_hiddens, student_heads: one of each a student; the other arguments are shared,
        as in `linear_divergence`.

    Returns:
      (values [...] a student, metrics [...] a student and metric).
    """
    unknown = options.keys() - {field.name for field in dataclasses.fields(HeadOptions)}
    if unknown:
        raise TypeError(f"linear_divergence takes no argument {min(unknown)!r}.")
    head_options = HeadOptions(**options)
    if not len(losses) == len(student_hiddens) == len(student_heads) > 0:
        raise ValueError(
            f"each student needs a loss, hidden states and a head, got {len(losses)}, "
            f"{len(student_hiddens)} and {len(student_heads)}."
        )
    if isinstance(metrics, str):
        raise ValueError(f"`metrics` must be a list of losses, such as [{metrics!r}], got text.")
    temperature, vocab_size = _number("temperature", temperature), head_options.vocab_size
    rows = _array("student_hidden", student_hiddens[0]).shape[:-1]
    students = tuple(
        values.StudentSide(
            _flat("student_hidden", hidden, rows), _head("student_head", head, hidden)
        )
        for hidden, head in zip(student_hiddens, student_heads, strict=True)
    )
    labels = None if labels is None else _flat("labels", labels, rows, trailing=0)
    axes = head_options.axes
    tokens = math.prod(rows) // _devices(axes, rows)
    classes, width = (max(one.head.matrix.shape[axis] for one in students) for axis in (1, 0))
    if min(tokens, classes, width) < 1:
        raise ValueError(
            f"there must be tokens, widths and classes, got {tokens}, {width} and {classes}."
        )
    constants = values.Constants(_teacher(teacher_hidden, teacher_head, rows), labels)
    spec = values.FusedSpec(
        objectives=tuple(_objective(loss, temperature, vocab_size) for loss in losses),
        metrics=tuple(_objective(loss, temperature, vocab_size) for loss in metrics),
        chunk=min(
            head_options.chunk or chunks.size(tokens, classes, width, head_options.memory), tokens
        ),
        axes=axes,
    )
    weights = _weights(weights, rows).reshape(-1)
    run = values.one_pass if head_options.mode == "one_pass" else values.rematerialize
    return jax.tree.map(lambda x: x.reshape(rows), run(spec, students, constants, weights))


def _whole_number(name, value):
    """Checks that a value is None or a whole number from 1 on."""
    try:
        number = None if value is None else operator.index(value)
    except TypeError:
        number = 0
    if isinstance(value, bool) or (number is not None and number < 1):
        raise ValueError(f"`{name}` must be at least 1 and a whole number, got {value!r}.")
    return number


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


def _devices(axes: tuple[str, ...], rows: tuple[int, ...]) -> int:
    """Returns the number of devices that the tokens are spread over."""
    if not axes:
        return 1
    mesh = jax.sharding.get_abstract_mesh()
    for axis in axes:
        if axis not in mesh.shape:
            raise ValueError(
                "`tokens_over` must name axes of the mesh in `jax.set_mesh`, "
                f"{dict(mesh.shape)}, got {axis!r}."
            )
    if any(kind != jax.sharding.AxisType.Auto for kind in mesh.axis_types):
        raise ValueError(
            "`tokens_over` needs a mesh whose axes are all of type Auto, which `axis_types` of "
            f"`jax.make_mesh` sets; got {', '.join(kind.name for kind in mesh.axis_types)}."
        )
    devices = math.prod(mesh.shape[axis] for axis in axes)
    if not rows or rows[0] % devices:
        raise ValueError(
            f"`tokens_over` {', '.join(axes)} has {devices} devices, which must divide the first "
            f"axis of {_brackets(rows)} tokens."
        )
    return devices


@dataclasses.dataclass(frozen=True)
class _NamedObjective:
    """A `values.Objective` of a loss by name."""

    loss: Loss
    temperature: float
    vocab_size: int | None

    def __call__(self, logits, teacher, labels):
        options = {"temperature": self.temperature, "vocab_size": self.vocab_size}
        return self.loss(logits, teacher, labels=labels, **options)


@dataclasses.dataclass(frozen=True)
class _FunctionObjective:
    """A `values.Objective` of a user's function."""

    function: Callable

    def __call__(self, logits, teacher, labels):
        named = {} if labels is None else {"labels": labels}
        losses = self.function(logits, teacher, **named)
        if jnp.shape(losses) != logits.shape[:1]:
            raise ValueError(
                f"a loss must give one value a row, {logits.shape[:1]}, got {jnp.shape(losses)}."
            )
        return losses


def _objective(loss, temperature: float, vocab_size: int | None) -> values.Objective:
    if isinstance(loss, str | Loss):
        loss = divergences.get(loss) if isinstance(loss, str) else loss
        return _NamedObjective(loss, temperature, vocab_size)
    if not callable(loss):
        raise ValueError(f"a loss must be text, such as `kl`, or a function, got {loss!r}.")
    if temperature != 1 or vocab_size is not None:
        raise ValueError(
            "`temperature` and `vocab_size` are for losses by name; a function has its own."
        )
    return _FunctionObjective(loss)


def _flat(name, array, rows, trailing=1):
    """Reshapes [..., *] to [N, *], where * is `trailing` axes, or any number for None."""
    array = _array(name, array)
    if array.shape[: len(rows)] != rows or trailing not in (None, array.ndim - len(rows)):
        shape = _brackets((*rows, *("D" * (trailing or 0))))
        raise ValueError(
            f"`{name}` must be {shape}, as the first student's tokens are, got {array.shape}."
        )
    return array.reshape(-1, *array.shape[len(rows) :])


def _brackets(shape):
    return f"[{', '.join(map(str, shape))}]"


def _head(name: str, head: jax.Array | Head, hidden: jax.Array) -> Head:
    """Checks a head against its hidden states [..., D]."""
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
            f"`weights` must be {_brackets(rows)}, a real number a token, "
            f"got {weights.dtype} {weights.shape}."
        )
    return weights if jnp.issubdtype(weights.dtype, jnp.floating) else weights.astype(jnp.float32)


def _teacher(hidden: Any, head: jax.Array | Head | None, rows: tuple[int, ...]) -> values.Teacher:
    """Returns the teacher as a constant, with its tokens [...] flattened to [N]."""
    if head is not None:
        if hidden is None:
            raise ValueError("`teacher_head` needs `teacher_hidden`.")
        states = hidden.logits if isinstance(hidden, targets.Restricted) else hidden
        _flat("teacher_hidden", states, rows)
        head = _head("teacher_head", head, states)
    if isinstance(hidden, targets.Target):
        hidden = jax.tree.map(lambda x: _flat("teacher_hidden", x, rows, trailing=None), hidden)
    elif hidden is not None:
        hidden = _flat("teacher_hidden", hidden, rows)
    return jax.lax.stop_gradient(values.Teacher(hidden, head))
