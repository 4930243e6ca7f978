"""A program with 8 host devices: tokens over one axis, classes over the other, as on one device."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiv
from experiments.tpu import cost_model

TOKENS, WIDTH, CLASSES, CHUNK = (8, 9), 12, 1024, 8
MESHES = {"data and tensor": (2, 4), "data": (8, 1), "tensor": (1, 8)}


def total(student, teacher, weights, *, loss="kl", **options):
    options = {"weights": weights, "chunk": CHUNK, **options}
    return jaxdiv.linear_divergence(loss, *student, *teacher, **options).sum()


def check(name, shape, inputs, expected):
    mesh = jax.make_mesh(shape, ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    tokens, head = (
        jax.NamedSharding(mesh, spec) for spec in (jax.P("data"), jax.P(None, "tensor"))
    )
    (hidden, matrix), (teacher_hidden, teacher_matrix), weights = inputs
    put = jax.device_put
    spread = (
        (put(hidden, tokens), put(matrix, head)),
        (put(teacher_hidden, tokens), put(teacher_matrix, head)),
        put(weights, tokens),
    )
    with jax.set_mesh(mesh):
        for mode in ("one_pass", "remat"):
            run = jax.jit(
                jax.value_and_grad(lambda *x, mode=mode: total(*x, mode=mode, tokens_over="data"))
            )
            tolerance = {"rtol": 1e-4, "atol": 1e-6, "err_msg": f"{name}, {mode}"}
            for leaf, right in zip(*map(jax.tree.leaves, (run(*spread), expected)), strict=True):
                np.testing.assert_allclose(leaf, right, **tolerance)
            np.testing.assert_allclose(
                total(*spread, mode=mode, tokens_over="data"), expected[0], rtol=1e-4
            )
            compiled = run.lower(*spread).compile().as_text()
            if name == "tensor" and mode == "one_pass":
                check_traffic(compiled)
            # No device ever sees the logits of all tokens, or a chunk's of all classes where they
            # are spread.
            most = max(CHUNK, WIDTH) * CLASSES // shape[1]
            for rows, classes in re.findall(r"f32\[(\d+),(\d+)\]", compiled):
                assert int(rows) * int(classes) <= most, (name, mode, rows, classes)


def check_traffic(program):
    """Checks that a token sends its gradient by hidden states and a few numbers beside it."""
    tokens = TOKENS[0] * TOKENS[1]
    sent = sum(kind.size for kind in cost_model.estimate(program).collectives.values()) / (
        4 * tokens
    )
    assert WIDTH < sent < WIDTH + 12, sent


def main():
    assert jax.device_count() == 8
    rng = np.random.default_rng(0)
    shapes = [(*TOKENS, WIDTH), (WIDTH, CLASSES)] * 2
    hidden, matrix, *teacher = (
        jnp.asarray(rng.normal(size=shape), jnp.float32) / 3 for shape in shapes
    )
    weights = jnp.asarray(rng.uniform(size=TOKENS), jnp.float32)
    inputs = (hidden, matrix), tuple(teacher), weights
    expected = jax.jit(jax.value_and_grad(total))(*inputs)
    for name, shape in MESHES.items():
        check(name, shape, inputs, expected)
    explicit = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(explicit), pytest.raises(ValueError, match="axes are all of type Auto"):
        total(*inputs, tokens_over="data")


if __name__ == "__main__":
    main()
