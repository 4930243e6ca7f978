"""The loop over chunks of tokens: values of every student's loss and, in the same pass, their
gradients."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiv.fused import chunks
from jaxdiv.fused.heads import Head, matmul

# objective(student's logits [C, V], the teacher's chunk, labels [C] or None) -> [C]
Objective = Callable[[jax.Array, Any, jax.Array | None], jax.Array]


class Student(NamedTuple):
    """Hidden states [N, D] and the head that they go through."""

    hidden: jax.Array
    head: Head


class Teacher(NamedTuple):
    """Hidden states [N, D] with their head; without one `hidden` is what a loss takes, such as
    logits [N, V]."""

    hidden: Any
    head: Head | None


class Given(NamedTuple):
    """What no gradient reaches: the teacher, and labels [N] or None."""

    teacher: Teacher
    labels: jax.Array | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is fixed at trace time.

    Attributes:
      objectives: each student's.
      metrics: what else is measured of each.
      chunk: tokens of a chunk.
      axes: of the mesh, that tokens are spread over.
    """

    objectives: tuple[Objective, ...]
    metrics: tuple[Objective, ...]
    chunk: int
    axes: tuple[str, ...]


class Chunk(NamedTuple):
    """What students share of a chunk's tokens.

    Attributes:
      first: the chunk's first token.
      new: [C], which of them no earlier chunk had.
      teacher, labels, weights: of these tokens, the teacher as a loss takes it.
      peak: the largest weight of all tokens, or 1.
    """

    first: jax.Array
    new: jax.Array
    teacher: Any
    labels: jax.Array | None
    weights: jax.Array
    peak: jax.Array


class Made(NamedTuple):
    """Of a student's tokens: the loss and metrics, [C] each, and the gradient by hidden [C, D] or
    None."""

    values: jax.Array
    metrics: tuple[jax.Array, ...]
    by_hidden: jax.Array | None


class Wanted(NamedTuple):
    """Which arrays of a student a gradient is asked for."""

    hidden: bool = False
    matrix: bool = False
    bias: bool = False


def rematerialized(plan: Plan, students: tuple[Student, ...], given: Given, weights: jax.Array):
    """Values w·D [N] of each student, and its metrics, by a loop that JAX differentiates as any
    other.

    Derivatives compute each chunk once more, so that memory stays that of a chunk.
    """
    made = _on_each_device(plan, lambda *local: (_again(plan, *local), ()))(
        students, given, weights
    )[0]
    return _results(made, weights)


def _again(plan, students, given, weights):
    """What is `Made` of each student's tokens."""

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def pieces(number):
        chunk = _chunk(plan, given, weights, number)
        return chunk.first, tuple(
            _measure(plan, i, one, Wanted(), chunk)[0] for i, one in enumerate(students)
        )

    def body(made, number):
        first, new = pieces(number)
        return chunks.put(made, new, first), None

    made = _whole(jax.eval_shape(pieces, 0)[1], len(weights))
    return jax.lax.scan(body, made, jnp.arange(_count(plan, weights)))[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def one_pass(plan: Plan, students: tuple[Student, ...], given: Given, weights: jax.Array):
    """As `rematerialized`, but the gradient is made with the values and costs no second pass.

    It is that of Σ w·D: values may be summed and scaled, not weighted token by token. A cotangent
    that differs between a student's tokens is exact for its hidden states, and makes its head's
    gradient NaN rather than wrong.
    """
    made, _ = _run(plan, students, given, weights, tuple(Wanted() for _ in students))
    return _results(made, weights)


def _results(made, weights):
    """Of tokens without weight, whose numbers mean nothing, 0."""
    values = tuple(weights * _counted(weights, one.values) for one in made)
    return values, tuple(tuple(_counted(weights, metric) for metric in one.metrics) for one in made)


def _forward(plan, students, given, weights):
    wanted = tuple(
        Wanted(
            s.hidden.perturbed,
            s.head.matrix.perturbed,
            s.head.bias is not None and s.head.bias.perturbed,
        )
        for s in students
    )
    students, given, weights = jax.tree.map(lambda primal: primal.value, (students, given, weights))
    made, sums = _run(plan, students, given, weights, wanted)
    return _results(made, weights), (students, weights, made, sums)


def _backward(plan, residuals, cotangents):
    students, weights, made, sums = residuals
    cotangents = jax.tree.map(_instantiated, cotangents, is_leaf=_is_symbolic_zero)
    gradients = []
    for student, one, (matrix, bias), cotangent in zip(
        students, made, sums, cotangents[0], strict=True
    ):
        uniform = _uniform(cotangent, weights)
        hidden = _scaled(one.by_hidden, _counted(weights, cotangent)[:, None], student.hidden)
        head = dataclasses.replace(
            student.head,
            matrix=_scaled(matrix, uniform, student.head.matrix),
            bias=_scaled(bias, uniform, student.head.bias),
        )
        gradients.append(Student(hidden, head))
    by_weights = sum(
        c * _counted(weights, one.values) for c, one in zip(cotangents[0], made, strict=True)
    )
    return tuple(gradients), None, by_weights.astype(weights.dtype)


def _is_symbolic_zero(cotangent):
    return isinstance(cotangent, jax.custom_derivatives.SymbolicZero)


def _instantiated(cotangent):
    """Zeros, as an array, where nothing was asked of an output."""
    return (
        jnp.zeros(cotangent.shape, cotangent.dtype) if _is_symbolic_zero(cotangent) else cotangent
    )


def _scaled(gradient, factor, like):
    return None if gradient is None else (factor * gradient).astype(like.dtype)


def _uniform(cotangent, weights):
    """What stands at every token that has a weight; NaN if they differ."""
    counted = weights != 0
    high = jnp.max(cotangent, where=counted, initial=-jnp.inf)
    low = jnp.min(cotangent, where=counted, initial=jnp.inf)
    return jnp.where(jnp.any(counted), jnp.where(high == low, high, jnp.nan), 0)


one_pass.defvjp(_forward, _backward, symbolic_zeros=True)


def _run(plan, students, given, weights, wanted):
    """Of each student what is `Made` of all tokens, and the gradients (matrix, bias) of its head,
    in float32."""
    return _on_each_device(plan, lambda *local: _once(plan, *local, wanted))(
        students, given, weights
    )


def _on_each_device(plan, run):
    """run(students, given, weights) -> (what each token has, sums over tokens), of tokens that
    devices share.

    Heads go in and sums come out with an axis for the devices: XLA can't add up over some axes of a
      mesh while it
    shares out others by itself.
    """
    if not plan.axes:
        return run
    tokens = jax.P(plan.axes)

    def local(students, given, weights):
        students, given = _heads(lambda x: x[0], students, given)
        made, sums = run(students, given, weights)
        return made, jax.tree.map(lambda x: x[None], sums)

    mapped = jax.shard_map(
        local, in_specs=tokens, out_specs=tokens, axis_names=set(plan.axes), check_vma=False
    )

    def spread(students, given, weights):
        sizes = jax.sharding.get_abstract_mesh().shape
        devices = math.prod(sizes[axis] for axis in plan.axes)
        students, given = _heads(
            lambda x: jnp.broadcast_to(x[None], (devices, *x.shape)), students, given
        )
        made, sums = jax.jit(mapped)(students, given, weights)
        return made, jax.tree.map(lambda x: jnp.sum(x, axis=0), sums)

    return spread


def _heads(change, students, given):
    """All with their heads' arrays changed."""
    students = tuple(one._replace(head=jax.tree.map(change, one.head)) for one in students)
    teacher = given.teacher._replace(head=jax.tree.map(change, given.teacher.head))
    return students, given._replace(teacher=teacher)


def _once(plan, students, given, weights, wanted):
    """`_run` on one device's tokens."""

    def pieces(number):
        chunk = _chunk(plan, given, weights, number)
        each = (
            _measure(plan, i, *both, chunk)
            for i, both in enumerate(zip(students, wanted, strict=True))
        )
        made, sums = zip(*each, strict=True)
        return chunk.first, made, sums

    def body(number, carry):
        first, new, added = pieces(number)
        made, sums = carry
        return chunks.put(made, new, first), jax.tree.map(jnp.add, sums, added)

    _, made, sums = jax.eval_shape(pieces, 0)
    start = _whole(made, len(weights)), jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), sums)
    made, sums = jax.lax.fori_loop(0, _count(plan, weights), body, start)
    return made, jax.tree.map(lambda x: _peak(weights) * x, sums)


def _count(plan, weights):
    return -(-len(weights) // plan.chunk)


def _whole(pieces, tokens):
    """Arrays [N, ...] for pieces [C, ...]."""
    return jax.tree.map(lambda x: jnp.zeros((tokens, *x.shape[1:]), x.dtype), pieces)


def _chunk(plan, given, weights, number):
    first, new = chunks.begin(number, plan.chunk, len(weights))
    (hidden, head), labels = given
    peak = _peak(weights)
    hidden, labels, weights = chunks.cut((hidden, labels, weights), first, plan.chunk)
    if isinstance(hidden, jax.Array):
        hidden = _counted(weights, hidden)
    teacher = hidden if head is None else head.logits(head.product(hidden), head.bias)
    return Chunk(first, new, teacher, labels, weights, peak)


def _peak(weights):
    largest = jnp.max(jnp.abs(weights))
    return jnp.where(largest > 0, largest, 1)


def _counted(weights, rows):
    """Rows [C] or [C, *], 0 at tokens without weight: what is there may be no number, which a
    product would spread."""
    return jnp.where((weights == 0).reshape(-1, *(1,) * (rows.ndim - 1)), 0, rows)


def _measure(plan, i, student, wanted, chunk):
    """What is `Made` of a student's chunk, and what its new tokens add to the gradients (matrix,
    bias)."""
    head, weights = student.head, chunk.weights[:, None]
    hidden = _counted(chunk.weights, chunks.cut(student.hidden, chunk.first, plan.chunk))
    product = head.product(hidden)

    def value(product):
        # A loss of somebody's own may have no slope where both sides are alike, as they are without
        # weight.
        logits = _counted(chunk.weights, head.logits(product, head.bias))
        return plan.objectives[i](logits, chunk.teacher, chunk.labels)

    logits = jax.lax.stop_gradient(head.logits(product, head.bias))
    metrics = tuple(metric(logits, chunk.teacher, chunk.labels) for metric in plan.metrics)
    if not any(wanted):
        return Made(value(product), metrics, None), (None, None)
    values, pull = jax.vjp(value, product)
    (slope,) = pull(jnp.ones_like(values))
    operand = jnp.promote_types(hidden.dtype, head.matrix.dtype)
    # Weights scale what is [C, D], not the slope, which is [C, V]; and relative to the largest, as
    # half precision would lose those of a mean over many tokens.
    new = jnp.where(chunk.new[:, None], weights / chunk.peak, 0)
    by_hidden = by_matrix = by_bias = None
    if wanted.hidden:
        by_hidden = weights * matmul(slope.astype(operand), head.matrix, "cv,dv->cd")
    if wanted.matrix:
        by_matrix = matmul((new * hidden).astype(operand), slope.astype(operand), "cd,cv->dv")
    if wanted.bias:
        by_bias = jnp.sum(new * slope, axis=0)
    return Made(values, metrics, by_hidden), (by_matrix, by_bias)
