"""A sharp teacher, untrained students and random batches, for tests of training steps."""

import functools

import jax
import jax.numpy as jnp
import optax

from configs import smoke
from jaxdiv import models
from jaxdiv.training.state import Model, population

V = 64
CONFIG = smoke.get_config().to_dict()


@functools.cache
def teacher(padded_vocabulary: int = 0) -> Model:
    """Returns an untrained teacher, sharper than at its initial values, where all distributions are
    nearly flat and every loss the same."""
    config = {**_shared(), "padded_vocabulary": padded_vocabulary}
    model = population(lambda rngs: models.build_teacher(config, V, rngs), [0]).student(0)
    return model.with_params(jax.tree.map(lambda x: 3 * x, model.params))


@functools.cache
def students(kind: str = "kangaroo", padded_vocabulary: int = 0) -> Model:
    """Returns untrained students of two seeds."""
    config = {**CONFIG["student"], "kind": kind}
    shared = {**_shared(), "padded_vocabulary": padded_vocabulary}
    return population(lambda rngs: models.build_student(config, shared, V, rngs), [0, 1])


def _shared():
    return {**CONFIG["teacher"], "dtype": "float32"}


def batches(count: int, rows: int = 4, length: int = 16):
    """Yields batches of random tokens above 0, with weights that differ."""
    for key in jax.random.split(jax.random.key(3), count):
        tokens = jax.random.randint(key, (rows, length + 1), 1, V)
        weights = jnp.ones((rows, length)).at[:, 5].set(0.0).at[1, 9].set(2.0)
        yield {"inputs": tokens[:, :-1], "labels": tokens[:, 1:], "weights": weights}


def distance(a, b) -> float:
    """Returns the relative distance of two trees of parameters, by norm."""
    return float(optax.tree.norm(jax.tree.map(jnp.subtract, a, b)) / optax.tree.norm(b))
