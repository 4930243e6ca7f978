"""Checkpoints: what comes back is what went in, or an error that names the array."""

import concurrent.futures
import errno
import json
import os
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxdiv.runs import step_folders
from jaxdiv.runs.checkpoints import Checkpoints
from jaxdiv.training.state import TrainState, population


def build(rngs):
    return nnx.Linear(3, 4, rngs=rngs)


def states():
    """Two states of one shape but other values."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return [
        TrainState.create([population(build, seeds).params] * 2, [optimizer] * 2)
        for seeds in ([0, 1], [2, 3])
    ]


def equal(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    same = all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in pairs)
    return same and jax.tree.structure(a) == jax.tree.structure(b)


def test_steps_come_back_whole_or_in_part(tmp_path):
    first, second = states()
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step, state in ((1, second), (2, second), (3, first)):
            checkpoints.save(step, state.to_checkpoint(), {"batches": {"next_index": step}})
        checkpoints.save(3, second.to_checkpoint(), {})
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.isdigit()) == ["2", "3"]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 3
        tree, progress = checkpoints.restore(second.to_checkpoint())
        state = TrainState.from_checkpoint(tree)
        assert equal(state, first)
        assert not equal(state, second)
        assert progress == {"batches": {"next_index": 3}}
        target = {"params": {1: first.params[1]}, "alive": {1: first.finite[1]}}
        part, _ = checkpoints.restore(target, step=2)
        assert equal(part["params"][1], second.params[1])


def test_other_shapes_types_and_names_are_refused(tmp_path):
    state = states()[0]
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(FileNotFoundError, match="train first"):
            checkpoints.restore(state.to_checkpoint())
        checkpoints.save(1, state.to_checkpoint(), {})
        with pytest.raises(ValueError, match=r"step is int32\[\], not float32\[\]"):
            checkpoints.restore({"step": jnp.zeros(())})
        with pytest.raises(ValueError, match=r"alive\.0 is bool\[2\], not bool\[3\]"):
            checkpoints.restore({"alive": {0: jnp.zeros(3, bool)}})
        with pytest.raises(ValueError, match=r"no array params\.7"):
            checkpoints.restore({"params": {7: jnp.zeros(3)}})


def damage(path, how):
    """Damages a step: flips a bit of its largest file, cuts it, or removes a file or folder."""
    largest = max(path.rglob("*"), key=lambda file: file.is_file() and file.stat().st_size)
    if how == "flipped":
        content = bytearray(largest.read_bytes())
        content[len(content) // 2] ^= 1
        largest.write_bytes(content)
    elif how == "cut":
        os.truncate(largest, largest.stat().st_size - 1)
    elif (path / how).is_dir():
        shutil.rmtree(path / how)
    else:
        (path / how).unlink()


@pytest.mark.parametrize("how", ["flipped", "cut", "state", "progress.json", "manifest.json"])
def test_a_damaged_step_is_named_passed_over_and_replaced(tmp_path, how):
    old, new = states()
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(1, old, {"next": 1})
        checkpoints.save(2, new, {"next": 2})
    damage(tmp_path / "2", how)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.latest() == 1
        message = rf"checkpoint {tmp_path}/2 is damaged: {tmp_path}/2/"
        for read in (lambda: checkpoints.restore(new, step=2), lambda: checkpoints.require(2)):
            with pytest.raises(ValueError, match=message):
                read()
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert re.match(message, "".join(checkpoints.damaged()))
        state, progress = checkpoints.restore(new)
        assert equal(state, old)
        assert progress == {"next": 1}
        checkpoints.save(2, new, {"next": 2})
        checkpoints.wait()
        assert checkpoints.damaged() == []
        assert equal(checkpoints.restore(old)[0], new)


def test_any_flipped_bit_is_noticed(tmp_path):
    old, new = states()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, old, {"next": 1})
        checkpoints.save(2, new, {"next": 2})
    draw = np.random.default_rng(0)
    paths = sorted(path for path in (tmp_path / "2").rglob("*") if path.is_file())
    for path in [*paths, *draw.choice(paths, 100)]:
        content = bytearray(path.read_bytes())
        bit = int(draw.integers(8 * len(content)))
        flipped = content.copy()
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with Checkpoints(tmp_path, read_only=True) as checkpoints:
            assert checkpoints.latest() == 1 or (
                # White space of the manifest is all that may change unseen.
                path.name == step_folders.MANIFEST and json.loads(flipped) == json.loads(content)
            )
        path.write_bytes(content)


def test_damaged_steps_are_named_and_go_once_training_is_past_them(tmp_path):
    state = states()[0]
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state, {})
    damage(tmp_path / "3", "cut")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() is None
        assert len(checkpoints.damaged()) == 1
        with pytest.raises(ValueError, match=rf"{tmp_path}/3 is damaged"):
            checkpoints.restore(state)
        for step in (1, 2):
            checkpoints.save(step, state, {})
    (tmp_path / ".aside-4").mkdir()
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest() == 2
        checkpoints.save(4, state, {})
    assert sorted(os.listdir(tmp_path)) == ["2", "4"]


def test_a_failed_save_is_reported_and_leaves_nothing(tmp_path, monkeypatch):
    state = states()[0]

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, state.to_checkpoint(), {})
        checkpoints.wait()
        monkeypatch.setattr(step_folders, "write_manifest", full)
        checkpoints.save(2, state.to_checkpoint(), {})
        concurrent.futures.wait([checkpoints._saving])
        message = rf"checkpoint {tmp_path}/2 can't be saved.*No space left"
        with pytest.raises(OSError, match=message):
            checkpoints.raise_error()
        assert (checkpoints.latest(), os.listdir(tmp_path)) == (1, ["1"])
        monkeypatch.undo()
        checkpoints.save(2, state.to_checkpoint(), {})
        checkpoints.wait()
        assert (checkpoints.latest(), os.listdir(tmp_path)) == (2, ["2"])


def test_a_save_keeps_its_values_when_the_state_is_donated_at_once(tmp_path):
    values = jnp.arange(1_000_000, dtype=jnp.float32)
    bump = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": values}, {})
        bump(values).block_until_ready()
    with Checkpoints(tmp_path) as checkpoints:
        restored, _ = checkpoints.restore({"x": jax.ShapeDtypeStruct((1_000_000,), jnp.float32)})
    assert np.array_equal(restored["x"], np.arange(1_000_000))
