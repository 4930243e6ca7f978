"""Rows a block at a time, so that what a loss makes on its way stays in a CPU's cache and never
takes [N, V] memory.

On a CPU that memory is what costs: XLA writes what two reductions share to fresh pages. Other
  backends get all rows
at once.
"""

import functools
import inspect
import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

BLOCK = 2**19  # logits of a block


def in_blocks(loss: Callable) -> Callable:
    """Decorates a loss of (logits, teacher or labels, *, axis, where, ...), whose derivative is by
    the logits alone."""
    signature = inspect.signature(loss)

    @functools.wraps(loss)
    def blocked(*positional, **named):
        bound = signature.bind(*positional, **named)
        student, given, *_ = bound.args
        options = bound.kwargs
        axis, where = options.pop("axis", -1), options.pop("where", None)
        return by_rows(_With(loss, tuple(options.items())), student, given, axis=axis, where=where)

    return blocked


@dataclass(frozen=True)
class _With:
    """A loss with its parameters."""

    loss: Callable
    parameters: tuple[tuple[str, float], ...]

    def __call__(self, student, given, *, axis, where):
        return self.loss(student, given, axis=axis, where=where, **dict(self.parameters))


@dataclass(frozen=True)
class _Static:
    """What is compiled: `function` with the classes last; where `masked`, the last array says which
    of them exist."""

    function: Callable
    size: int
    masked: bool
    with_slope: bool = False

    def __call__(self, student, *given):
        def value(student):
            arrays, where = (given[:-1], given[-1]) if self.masked else (given, None)
            return self.function(student, *arrays, axis=-1, where=where)

        if not self.with_slope:
            return value(student)
        values, pull = jax.vjp(value, student)
        return values, pull(jnp.ones_like(values))[0]


def by_rows(
    function: Callable, student: jax.Array, *given: jax.Array, axis: int = -1, where=None
) -> jax.Array:
    """function(student, *given, axis=axis, where=where), one value a row, for rows that don't see
    each other.

    Args:
      function: hashable, so that one compilation serves all calls; what is not, sees all rows at
        once.
      student: logits, which alone the derivative is taken by.
      given: what begins with the same rows.
      axis: the classes, of logits.
      where: classes that exist, broadcast to the logits.
    """
    student, given = jnp.asarray(student), tuple(map(jnp.asarray, given))
    rows = student.shape[:-1]
    size = max(BLOCK // max(student.shape[-1], 1), 2) if student.shape else 1
    same_rows = axis in (-1, len(rows)) and all(x.shape[: len(rows)] == rows for x in given)
    same_rows = same_rows and (where is None or _spreads(jnp.shape(where), student.shape))
    few = math.prod(rows) < 2 * size
    if few or not same_rows or not _is_hashable(function) or _explicitly_sharded(student, *given):
        return function(student, *given, axis=axis, where=where)
    masked = () if where is None else (jnp.broadcast_to(jnp.asarray(where, bool), student.shape),)
    return _value(_Static(function, size, bool(masked)), student, (*given, *masked))


def _spreads(shape, to):
    """Whether an array of this shape broadcasts to the other."""
    return len(shape) <= len(to) and all(
        a in (1, b) for a, b in zip(reversed(shape), reversed(to), strict=False)
    )


def _is_hashable(function):
    try:
        return isinstance(function, Hashable) and hash(function) is not None
    except TypeError:  # a parameter that is an array
        return False


def _explicitly_sharded(*arrays):
    """Whether a mesh with explicit axes says where rows lie: blocks would cut across its
    devices."""
    return any(name is not None for x in arrays for name in jax.typeof(x).sharding.spec)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _value(static, student, given):
    return _on_this_platform(static, student, *given)


@_value.defjvp
def _value_jvp(static, primals, tangents):
    value, slope = _value_and_slope(static, *primals)
    # Not `along`: the slope has no NaN left, and to look for them once more takes a pass over all
    # logits.
    return value, jnp.sum(slope.astype(value.dtype) * tangents[0].astype(value.dtype), axis=-1)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _value_and_slope(static, student, given):
    return _on_this_platform(replace(static, with_slope=True), student, *given)


@_value_and_slope.defjvp
def _value_and_slope_jvp(static, primals, tangents):
    student, given = primals
    function = replace(static, with_slope=True)
    return jax.jvp(lambda student: function(student, *given), (student,), tangents[:1])


@functools.partial(jax.jit, static_argnums=0)
def _on_this_platform(static, *arrays):
    return jax.lax.platform_dependent(
        *arrays, cpu=functools.partial(_in_turn, static), default=static
    )


def _in_turn(static, *arrays):
    shape = arrays[0].shape[:-1]
    rows = math.prod(shape)
    flat = [_plain(x.reshape(rows, *x.shape[len(shape) :])) for x in arrays]

    def block(begin):
        pieces = (jax.lax.dynamic_slice_in_dim(x, begin, static.size) for x in flat)
        return static(*(_typed(piece, x.dtype) for piece, x in zip(pieces, arrays, strict=True)))

    def body(state):
        number, made = state
        begin = jnp.minimum(
            number * static.size, rows - static.size
        )  # the last block goes over some rows once more
        put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=begin, axis=0)
        return number + 1, jax.tree.map(
            lambda whole, piece: put(whole, _plain(piece)), made, block(begin)
        )

    # A loop over a known number of blocks would be a scan, out of which JAX hoists constants as
    # whole arrays.
    outputs = jax.eval_shape(block, jnp.int32(0))
    empty = jax.tree.map(lambda x: _plain(jnp.zeros((rows, *x.shape[1:]), x.dtype)), outputs)
    made = jax.lax.while_loop(
        lambda state: state[0] * static.size < rows, body, (jnp.int32(0), empty)
    )[1]
    return jax.tree.map(
        lambda x, like: _typed(x, like.dtype).reshape(*shape, *x.shape[1:]), made, outputs
    )


def _plain(x):
    """The bits of a half-precision float: XLA on CPU slices those only after it has cast the whole
    array to float32."""
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if _is_half(x.dtype) else x


def _typed(x, dtype):
    return jax.lax.bitcast_convert_type(x, dtype) if _is_half(dtype) else x


def _is_half(dtype):
    return jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize == 2
