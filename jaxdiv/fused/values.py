"""The loop over chunks of tokens: every student's loss and, in the same pass, its gradients."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiv import targets
from jaxdiv.fused import chunks
from jaxdiv.fused.heads import Head, matmul

# objective(student's logits [C, V], the teacher's chunk, labels [C] or None) -> [C]
Objective = Callable[[jax.Array, Any, jax.Array | None], jax.Array]


class StudentSide(NamedTuple):
    """Hidden states [N, D] and their head."""

    hidden: jax.Array
    head: Head


class Teacher(NamedTuple):
    """Hidden states [N, D] with their head, or a restricted target of them; without a head a loss's
    target, such as logits [N, V]."""

    hidden: Any
    head: Head | None


class Constants(NamedTuple):
    """The inputs without a gradient: the teacher, and labels [N] or None."""

    teacher: Teacher
    labels: jax.Array | None


@dataclasses.dataclass(frozen=True)
class FusedSpec:
    """The static part of a computation.

    Attributes:
      objectives: the loss of each student.
      metrics: losses that are only measured, the same for all students.
      chunk: tokens in a chunk.
      axes: mesh axes that tokens are spread over.
    """

    objectives: tuple[Objective, ...]
    metrics: tuple[Objective, ...]
    chunk: int
    axes: tuple[str, ...]


class Chunk(NamedTuple):
    """The inputs that students share on a chunk of tokens.

    Attributes:
      first: the chunk's first token.
      new: [C], True for tokens that no earlier chunk had.
      teacher, labels, weights: those of the chunk's tokens; the teacher as a loss takes it.
      peak: the largest weight of all tokens, or 1.
    """

    first: jax.Array
    new: jax.Array
    teacher: Any
    labels: jax.Array | None
    weights: jax.Array
    peak: jax.Array


class Outputs(NamedTuple):
    """A student's loss and metrics, [C] each, and the gradient by hidden [C, D] or None."""

    values: jax.Array
    metrics: tuple[jax.Array, ...]
    by_hidden: jax.Array | None


class GradientMask(NamedTuple):
    """The arrays of a student that need a gradient."""

    hidden: bool = False
    matrix: bool = False
    bias: bool = False


def rematerialize(
    spec: FusedSpec, students: tuple[StudentSide, ...], constants: Constants, weights: jax.Array
):
    """Computes values w·D [N] of each student, and its metrics, by a loop that JAX differentiates.

    Derivatives compute each chunk once more, so that memory stays that of a chunk.
    """

    def run(students, constants, weights):
        @functools.partial(jax.checkpoint, prevent_cse=False)
        def pieces(number):
            chunk = _chunk(spec, constants, weights, number)
            every = enumerate(students)
            return chunk.first, tuple(
                _measure(spec, i, one, GradientMask(), chunk)[0] for i, one in every
            )

        def body(outputs, number):
            first, new = pieces(number)
            return chunks.put(outputs, new, first), None

        outputs = _zeros(jax.eval_shape(pieces, 0)[1], len(weights))
        return jax.lax.scan(body, outputs, jnp.arange(_count(spec, weights)))[0], ()

    outputs, _ = _on_each_device(spec, run)(students, constants, weights)
    return _results(outputs, weights)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def one_pass(
    spec: FusedSpec, students: tuple[StudentSide, ...], constants: Constants, weights: jax.Array
):
    """Computes what `rematerialize` does, with the gradient in the same pass.

    The gradient is that of Σ w·D: values may be summed and scaled, not weighted token by token. A
    cotangent that differs between a student's tokens is exact for its hidden states, and makes its
    head's gradient NaN rather than wrong.
    """
    masks = tuple(GradientMask() for _ in students)
    outputs, _ = _run(spec, students, constants, weights, masks)
    return _results(outputs, weights)


def _results(outputs, weights):
    """Returns values and metrics, 0 for tokens of weight 0, whose numbers are undefined."""
    values = tuple(weights * _mask_rows(weights, one.values) for one in outputs)
    metrics = (tuple(_mask_rows(weights, x) for x in one.metrics) for one in outputs)
    return values, tuple(metrics)


def _forward(
    spec: FusedSpec, students: tuple[StudentSide, ...], constants: Constants, weights: jax.Array
):
    """Runs the forward pass of `one_pass`, with the gradients that JAX asks for."""
    masks = tuple(
        GradientMask(
            s.hidden.perturbed,
            s.head.matrix.perturbed,
            s.head.bias is not None and s.head.bias.perturbed,
        )
        for s in students
    )
    students, constants, weights = jax.tree.map(
        lambda primal: primal.value, (students, constants, weights)
    )
    outputs, sums = _run(spec, students, constants, weights, masks)
    return _results(outputs, weights), (students, weights, outputs, sums)


def _backward(spec: FusedSpec, residuals: tuple, cotangents: tuple):
    """Scales the gradients of the forward pass by the cotangents."""
    students, weights, outputs, sums = residuals
    cotangents = jax.tree.map(_instantiate, cotangents, is_leaf=_is_symbolic_zero)
    gradients = []
    for student, one, (matrix, bias), cotangent in zip(
        students, outputs, sums, cotangents[0], strict=True
    ):
        uniform = _uniform(cotangent, weights)
        hidden = _scale(one.by_hidden, _mask_rows(weights, cotangent)[:, None], student.hidden)
        head = dataclasses.replace(
            student.head,
            matrix=_scale(matrix, uniform, student.head.matrix),
            bias=_scale(bias, uniform, student.head.bias),
        )
        gradients.append(StudentSide(hidden, head))
    by_weights = sum(
        c * _mask_rows(weights, one.values) for c, one in zip(cotangents[0], outputs, strict=True)
    )
    return tuple(gradients), None, by_weights.astype(weights.dtype)


def _is_symbolic_zero(cotangent):
    return isinstance(cotangent, jax.custom_derivatives.SymbolicZero)


def _instantiate(cotangent):
    """Replaces the symbolic zero of an unused output by an array."""
    if _is_symbolic_zero(cotangent):
        return jnp.zeros(cotangent.shape, cotangent.dtype)
    return cotangent


def _scale(gradient, factor, like):
    return None if gradient is None else (factor * gradient).astype(like.dtype)


def _uniform(cotangent, weights):
    """Returns the cotangent that all tokens of nonzero weight share; NaN if they differ."""
    counted = weights != 0
    high = jnp.max(cotangent, where=counted, initial=-jnp.inf)
    low = jnp.min(cotangent, where=counted, initial=jnp.inf)
    return jnp.where(jnp.any(counted), jnp.where(high == low, high, jnp.nan), 0)


one_pass.defvjp(_forward, _backward, symbolic_zeros=True)


def _run(
    spec: FusedSpec,
    students: tuple[StudentSide, ...],
    constants: Constants,
    weights: jax.Array,
    masks: tuple[GradientMask, ...],
):
    """Returns `Outputs` of all tokens and the gradients (matrix, bias) in float32, by student."""

    def run(students, constants, weights):
        def pieces(number):
            chunk = _chunk(spec, constants, weights, number)
            every = enumerate(zip(students, masks, strict=True))
            measures = [_measure(spec, i, one, mask, chunk) for i, (one, mask) in every]
            return chunk.first, *zip(*measures, strict=True)

        def body(number, carry):
            first, new, terms = pieces(number)
            outputs, sums = carry
            return chunks.put(outputs, new, first), jax.tree.map(jnp.add, sums, terms)

        _, outputs, sums = jax.eval_shape(pieces, 0)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), sums)
        start = _zeros(outputs, len(weights)), zeros
        outputs, sums = jax.lax.fori_loop(0, _count(spec, weights), body, start)
        return outputs, jax.tree.map(lambda x: _peak(weights) * x, sums)

    return _on_each_device(spec, run)(students, constants, weights)


def _on_each_device(spec: FusedSpec, run: Callable) -> Callable:
    """Maps run(students, constants, weights) -> (arrays of tokens, sums over tokens) over devices.

    Heads go in and sums come out with an axis for the devices: XLA can't add up over some axes of a
    mesh while it partitions others automatically.
    """
    if not spec.axes:
        return run
    tokens = jax.P(spec.axes)

    def local(students, constants, weights):
        students, constants = _map_heads(lambda x: x[0], students, constants)
        outputs, sums = run(students, constants, weights)
        return outputs, jax.tree.map(lambda x: x[None], sums)

    mapped = jax.shard_map(
        local, in_specs=tokens, out_specs=tokens, axis_names=set(spec.axes), check_vma=False
    )

    def spread(students, constants, weights):
        sizes = jax.sharding.get_abstract_mesh().shape
        devices = math.prod(sizes[axis] for axis in spec.axes)
        students, constants = _map_heads(
            lambda x: jnp.broadcast_to(x[None], (devices, *x.shape)), students, constants
        )
        outputs, sums = jax.jit(mapped)(students, constants, weights)
        return outputs, jax.tree.map(lambda x: jnp.sum(x, axis=0), sums)

    return spread


def _map_heads(change, students, constants):
    """Applies `change` to the arrays of all heads."""
    students = tuple(one._replace(head=jax.tree.map(change, one.head)) for one in students)
    teacher = constants.teacher._replace(head=jax.tree.map(change, constants.teacher.head))
    return students, constants._replace(teacher=teacher)


def _count(spec, weights):
    return -(-len(weights) // spec.chunk)


def _zeros(pieces, tokens):
    """Makes arrays [N, ...] for pieces [C, ...]."""
    return jax.tree.map(lambda x: jnp.zeros((tokens, *x.shape[1:]), x.dtype), pieces)


def _chunk(spec, constants, weights, number):
    first, new = chunks.begin(number, spec.chunk, len(weights))
    (hidden, head), labels = constants
    peak = _peak(weights)
    hidden, labels, weights = chunks.cut((hidden, labels, weights), first, spec.chunk)
    if isinstance(hidden, jax.Array | targets.Restricted):
        hidden = jax.tree.map(lambda x: _mask_rows(weights, x), hidden)
    teacher = hidden if head is None else _apply(head, hidden)
    return Chunk(first, new, teacher, labels, weights, peak)


def _apply(head: Head, hidden: Any) -> Any:
    """Returns logits [C, V] of hidden states [C, D], or a restricted target of them."""
    if isinstance(hidden, targets.Restricted):
        return dataclasses.replace(hidden, logits=_apply(head, hidden.logits))
    return head.logits(head.product(hidden), head.bias)


def _peak(weights):
    largest = jnp.max(jnp.abs(weights))
    return jnp.where(largest > 0, largest, 1)


def _mask_rows(weights, rows):
    """Returns rows [C] or [C, *] with 0 at tokens of weight 0.

    Those may be NaN, which a product would spread.
    """
    return jnp.where((weights == 0).reshape(-1, *(1,) * (rows.ndim - 1)), 0, rows)


def _measure(spec: FusedSpec, i: int, student: StudentSide, mask: GradientMask, chunk: Chunk):
    """Returns a student's `Outputs` on a chunk, and its new tokens' gradients (matrix, bias)."""
    head, weights = student.head, chunk.weights[:, None]
    hidden = _mask_rows(chunk.weights, chunks.cut(student.hidden, chunk.first, spec.chunk))
    product = head.product(hidden)

    def value(product):
        # A user's loss may have no derivative at equal sides, and tokens of weight 0 have equal
        # sides.
        logits = _mask_rows(chunk.weights, head.logits(product, head.bias))
        return spec.objectives[i](logits, chunk.teacher, chunk.labels)

    logits = jax.lax.stop_gradient(head.logits(product, head.bias))
    metrics = tuple(metric(logits, chunk.teacher, chunk.labels) for metric in spec.metrics)
    if not any(mask):
        return Outputs(value(product), metrics, None), (None, None)
    values, pull = jax.vjp(value, product)
    (slope,) = pull(jnp.ones_like(values))
    operand = jnp.promote_types(hidden.dtype, head.matrix.dtype)
    # Weights scale the hidden states [C, D], which are smaller than the slope [C, V]. They are
    # relative to the largest, as half precision would lose those of a mean over many tokens.
    new = jnp.where(chunk.new[:, None], weights / chunk.peak, 0)
    by_hidden = by_matrix = by_bias = None
    if mask.hidden:
        by_hidden = weights * matmul(slope.astype(operand), head.matrix, "cv,dv->cd")
    if mask.matrix:
        by_matrix = matmul((new * hidden).astype(operand), slope.astype(operand), "cd,cv->dv")
    if mask.bias:
        by_bias = jnp.sum(new * slope, axis=0)
    return Outputs(values, metrics, by_hidden), (by_matrix, by_bias)
