"""Losses over blocks of rows, so that intermediate values stay in a CPU's cache.

On a CPU, [N, V] intermediates cost most of the time: XLA writes what two reductions share to fresh
memory pages. Other backends get all rows at once.
"""

import functools
import inspect
import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

BLOCK = 2**19  # logits in a block


def in_blocks(loss: Callable) -> Callable:
    """Decorates a loss of (logits, teacher or labels, *, axis, where, ...).

    Its derivative is by the logits alone.
    """
    signature = inspect.signature(loss)

    @functools.wraps(loss)
    def blocked(*positional, **named):
        bound = signature.bind(*positional, **named)
        student, target, *_ = bound.args
        options = bound.kwargs
        axis, where = options.pop("axis", -1), options.pop("where", None)
        function = _Configured(loss, tuple(options.items()))
        return by_rows(function, student, target, axis=axis, where=where)

    return blocked


@dataclass(frozen=True)
class _Configured:
    """A loss with its parameters, hashable."""

    loss: Callable
    parameters: tuple[tuple[str, float], ...]

    def __call__(self, student, target, *, axis, where):
        return self.loss(student, target, axis=axis, where=where, **dict(self.parameters))


@dataclass(frozen=True)
class _Static:
    """The static part of a compilation: `function` with the classes last.

    If `masked`, the last array says which classes exist.
    """

    function: Callable
    size: int
    masked: bool
    with_slope: bool = False

    def __call__(self, student, *others):
        def value(student):
            arrays, where = (others[:-1], others[-1]) if self.masked else (others, None)
            return self.function(student, *arrays, axis=-1, where=where)

        if not self.with_slope:
            return value(student)
        values, pull = jax.vjp(value, student)
        return values, pull(jnp.ones_like(values))[0]


def by_rows(
    function: Callable, student: jax.Array, *others: jax.Array, axis: int = -1, where=None
) -> jax.Array:
    """Returns function(student, *others, axis=axis, where=where), computed in blocks of rows.

    Args:
      function: one value a row, from that row alone. It should be hashable, so that one compilation
        serves all calls; otherwise it gets all rows at once.
      student: logits, the only argument that derivatives are taken by.
      others: arrays that begin with the same rows.
      axis: the axis of the classes in the logits.
      where: the classes that exist, broadcast to the logits.
    """
    student, others = jnp.asarray(student), tuple(map(jnp.asarray, others))
    rows = student.shape[:-1]
    size = max(BLOCK // max(student.shape[-1], 1), 2) if student.shape else 1
    same_rows = axis in (-1, len(rows)) and all(x.shape[: len(rows)] == rows for x in others)
    same_rows = same_rows and (where is None or _broadcasts(jnp.shape(where), student.shape))
    few = math.prod(rows) < 2 * size
    if few or not same_rows or not _is_hashable(function) or _explicitly_sharded(student, *others):
        return function(student, *others, axis=axis, where=where)
    masked = () if where is None else (jnp.broadcast_to(jnp.asarray(where, bool), student.shape),)
    return _value(_Static(function, size, bool(masked)), student, (*others, *masked))


def _broadcasts(shape, other):
    """Returns whether an array of this shape broadcasts to the other without enlarging it."""
    pairs = zip(reversed(shape), reversed(other), strict=False)
    return len(shape) <= len(other) and all(a in (1, b) for a, b in pairs)


def _is_hashable(function):
    try:
        return isinstance(function, Hashable) and hash(function) is not None
    except TypeError:  # a parameter that is an array
        return False


def _explicitly_sharded(*arrays):
    """Returns whether explicit mesh axes place the rows; blocks would cut across devices."""
    return any(name is not None for x in arrays for name in jax.typeof(x).sharding.spec)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _value(static, student, others):
    return _on_this_platform(static, student, *others)


@_value.defjvp
def _value_jvp(static, primals, tangents):
    value, slope = _value_and_slope(static, *primals)
    # `along` would look for NaN once more, a pass over all logits; the slope has none left.
    return value, jnp.sum(slope.astype(value.dtype) * tangents[0].astype(value.dtype), axis=-1)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _value_and_slope(static, student, others):
    return _on_this_platform(replace(static, with_slope=True), student, *others)


@_value_and_slope.defjvp
def _value_and_slope_jvp(static, primals, tangents):
    student, others = primals
    function = replace(static, with_slope=True)
    return jax.jvp(lambda student: function(student, *others), (student,), tangents[:1])


@functools.partial(jax.jit, static_argnums=0)
def _on_this_platform(static, *arrays):
    blocked = functools.partial(_block_by_block, static)
    return jax.lax.platform_dependent(*arrays, cpu=blocked, default=static)


def _block_by_block(static: _Static, *arrays: jax.Array):
    """Applies `static` to arrays [..., *] one block of rows after the other."""
    shape = arrays[0].shape[:-1]
    rows = math.prod(shape)
    flat = [_as_bits(x.reshape(rows, *x.shape[len(shape) :])) for x in arrays]

    def block(begin):
        pieces = (jax.lax.dynamic_slice_in_dim(x, begin, static.size) for x in flat)
        return static(*(_from_bits(x, of.dtype) for x, of in zip(pieces, arrays, strict=True)))

    def body(state):
        number, results = state
        # The last block computes some rows of the block before it once more.
        begin = jnp.minimum(number * static.size, rows - static.size)
        put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=begin, axis=0)
        return number + 1, jax.tree.map(lambda a, x: put(a, _as_bits(x)), results, block(begin))

    # A loop over a known number of blocks would be a scan, out of which JAX hoists constants as
    # whole arrays.
    outputs = jax.eval_shape(block, jnp.int32(0))
    empty = jax.tree.map(lambda x: _as_bits(jnp.zeros((rows, *x.shape[1:]), x.dtype)), outputs)
    start = jnp.int32(0), empty
    _, results = jax.lax.while_loop(lambda state: state[0] * static.size < rows, body, start)
    return jax.tree.map(
        lambda x, like: _from_bits(x, like.dtype).reshape(*shape, *x.shape[1:]), results, outputs
    )


def _as_bits(x):
    """Returns the bits of a half-precision float, and other arrays as they are.

    XLA on CPU slices halves only after it has cast the whole array to float32.
    """
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if _is_half(x.dtype) else x


def _from_bits(x, dtype):
    return jax.lax.bitcast_convert_type(x, dtype) if _is_half(dtype) else x


def _is_half(dtype):
    return jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize == 2
