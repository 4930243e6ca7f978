"""Plain generation with a cache, of on-policy text and as the reference of decoding."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int

from jaxdiv import warps
from jaxdiv.models.decoder import Decoder
from jaxdiv.models.student import Drafter


def generate(
    decoder: Decoder,
    prompts: Int[Array | np.ndarray, "B P"],
    *,
    length: int,
    temperature: float,
    key: Array,
) -> Int[Array, "B total"]:
    """Continues each prompt by `length` tokens, in one jit.

    Args:
      decoder: the model.
      prompts: [B, P], P >= 1, all of the same length.
      length: tokens to add, at least 1; nothing stops earlier.
      temperature: of sampling; 0 takes the likeliest token (the first of equals).
      key: PRNG key. A row's tokens depend on the key and the row's number, not on the other rows.

    Returns:
      [B, P + length] int32, the prompts included.

    Raises:
      ValueError: an empty prompt, `length` below 1, or a temperature that is negative or not
        finite.
    """
    if prompts.shape[1] < 1 or length < 1:
        raise ValueError(
            f"prompts and `length` must be at least 1 token, got {prompts.shape[1]} and {length}"
        )
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"`temperature` must be finite and at least 0, got {temperature}")
    graphdef, params = nnx.split(decoder)
    return _generate(
        graphdef, params, jnp.asarray(prompts, jnp.int32), float(temperature), key, length=length
    )


@functools.partial(jax.jit, static_argnums=0, static_argnames="length")
def _generate(
    graphdef: Any,
    params: Any,
    prompts: Int[Array, "B P"],
    temperature: float | Array,
    key: Array,
    *,
    length: int,
) -> Int[Array, "B total"]:
    decoder = nnx.merge(graphdef, params).unrolled()

    def read(tokens, positions, cache):
        hidden, cache = decoder.run_layers(
            decoder.embed(tokens), 0, decoder.depth, positions=positions, cache=cache
        )
        return decoder.logits(hidden[:, -1:])[:, 0], cache

    cache = decoder.init_cache(prompts.shape[0], prompts.shape[1] + length - 1)
    return _continue(read, cache, prompts, length=length, temperature=temperature, key=key)


def draft_text(
    student: Drafter,
    target: Decoder,
    prompts: Int[Array, "B P"],
    *,
    length: int,
    temperature: float,
    key: Array,
) -> Int[Array, "B total"]:
    """Continues prompts as `generate` does, by the student; to be traced in a jit.

    A student that reads hidden states gets those of the target's first layers.
    """
    student, target = student.unrolled(), target.unrolled()
    exit_layer = student.exit_layer or 0
    output = target.output().restrict(student.vocabulary)

    def read(tokens, positions, caches):
        target_cache, student_cache = caches
        hidden, target_cache = target.run_layers(
            target.embed(tokens), 0, exit_layer, positions=positions, cache=target_cache
        )
        features, student_cache = student.extend(tokens, hidden, student_cache, positions=positions)
        return student.logits(features[:, -1:], output)[:, 0], (target_cache, student_cache)

    batch, total = prompts.shape[0], prompts.shape[1] + length - 1
    caches = (target.init_cache(batch, total), student.init_cache(batch, total))
    return _continue(read, caches, prompts, length=length, temperature=temperature, key=key)


def _continue(
    read: Callable,
    cache: Any,
    prompts: Int[Array, "B P"],
    *,
    length: int,
    temperature: float | Array,
    key: Array,
) -> Int[Array, "B total"]:
    """Continues prompts by `read`: (tokens [B, L], positions, cache) -> (logits [B, V], cache).

    The logits are those after the last of the tokens; other arguments are as of `generate`.
    """
    batch, start = prompts.shape
    keys = jax.random.split(key, batch)

    def next_token(tokens, positions, cache):
        logits, cache = read(tokens, positions, cache)
        step_keys = jax.vmap(jax.random.fold_in)(keys, positions[:, -1])
        return jax.vmap(warps.draw)(step_keys, warps.warp(logits, warps.Warp(temperature))), cache

    def step(carry, position):
        token, cache = carry
        token, cache = next_token(token[:, None], jnp.broadcast_to(position, (batch, 1)), cache)
        return (token, cache), token

    positions = jnp.broadcast_to(jnp.arange(start)[None], prompts.shape)
    first, cache = next_token(prompts, positions, cache)
    _, rest = jax.lax.scan(step, (first, cache), start + jnp.arange(length - 1))
    return jnp.concatenate([prompts, first[:, None], rest.T], axis=1)
