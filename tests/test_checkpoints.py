"""Checkpoints: what comes back is what went in, or an error that names the array."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxdiv.training.checkpoints import Checkpoints
from jaxdiv.training.state import TrainState, initial_state, population


def build(rngs):
    return nnx.Linear(3, 4, rngs=rngs)


def states():
    """Two states of one shape; one is trained in place of the other."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return [initial_state(population(build, seeds), optimizer, losses=2) for seeds in ([0, 1], [2, 3])]


def equal(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_steps_come_back_whole_or_in_part(tmp_path):
    first, second = states()
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step, state in ((1, second), (2, second), (3, first)):
            checkpoints.save(step, state, {"batches": {"next_index": step}})
        checkpoints.save(3, second, {})
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.isdigit()) == ["2", "3"]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 3
        state, progress = checkpoints.restore(second)
        assert isinstance(state, TrainState)
        assert equal(state, first)
        assert not equal(state, second)
        assert progress == {"batches": {"next_index": 3}}
        part, _ = checkpoints.restore({"params": {1: first.params[1]}, "alive": {1: first.alive[1]}}, step=2)
        assert equal(part["params"][1], second.params[1])


def test_other_shapes_types_and_names_are_refused(tmp_path):
    state = states()[0]
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(FileNotFoundError, match="train first"):
            checkpoints.restore(state)
        checkpoints.save(1, state, {})
        with pytest.raises(ValueError, match=r"step is int32\[\], not float32\[\]"):
            checkpoints.restore({"step": jnp.zeros(())})
        with pytest.raises(ValueError, match=r"alive\.0 is bool\[2\], not bool\[3\]"):
            checkpoints.restore({"alive": {0: jnp.zeros(3, bool)}})
        with pytest.raises(ValueError, match=r"no array params\.7"):
            checkpoints.restore({"params": {7: jnp.zeros(3)}})


# Orbax's own threads outlive what they failed to read.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("lost", ["state", "progress", "state/d", "state/_METADATA"])
def test_a_step_that_lacks_something_is_named(tmp_path, lost):
    state = states()[0]
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
    path = tmp_path / "1" / lost
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with (
        Checkpoints(tmp_path, read_only=True) as checkpoints,
        pytest.raises(ValueError, match=rf"checkpoint {tmp_path}/1 can't be read"),
    ):
        checkpoints.restore(state)


def test_a_save_keeps_its_values_when_the_state_is_donated_at_once(tmp_path):
    values = jnp.arange(1_000_000, dtype=jnp.float32)
    bump = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": values}, {})
        bump(values).block_until_ready()
    with Checkpoints(tmp_path) as checkpoints:
        restored, _ = checkpoints.restore({"x": jax.ShapeDtypeStruct((1_000_000,), jnp.float32)})
    assert np.array_equal(restored["x"], np.arange(1_000_000))
