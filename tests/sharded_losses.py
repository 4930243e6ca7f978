"""A program with 8 host devices: losses and fused losses, with rows or tokens over one axis and
classes over the other, are as on one device."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import jaxdiv
from experiments.tpu import cost_model

TOKENS, WIDTH, CLASSES, CHUNK = (8, 9), 12, 1024, 8
TEXTS = (
    "ce", "ce_argmax", "kl", "rkl", "jsd(beta=0.3)", "tv", "nla", "lk_hybrid", "renyi", "pearson",
    "akl", "z_loss",
)  # fmt: skip
MESHES = {"data and tensor": (2, 4), "data": (8, 1), "tensor": (1, 8)}


def total(student, teacher, weights, *, loss="kl", **options):
    options = {"weights": weights, "chunk": CHUNK, **options}
    return jaxdiv.linear_divergence(loss, *student, *teacher, **options).sum()


def check(name, shape, inputs, expected):
    mesh = jax.make_mesh(shape, ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    tokens, head = (jax.NamedSharding(mesh, jax.P(*axes)) for axes in (("data",), (None, "tensor")))
    spread = jax.device_put(inputs, ((tokens, head), (tokens, head), tokens))
    with jax.set_mesh(mesh):
        for mode in ("one_pass", "remat"):
            run = functools.partial(total, mode=mode, tokens_over="data")
            compiled = jax.jit(jax.value_and_grad(run)).lower(*spread).compile()
            pairs = zip(*map(jax.tree.leaves, (compiled(*spread), expected)), strict=True)
            for leaf, right in pairs:
                assert_allclose(leaf, right, rtol=1e-4, atol=1e-6, err_msg=f"{name}, {mode}")
            assert_allclose(run(*spread), expected[0], rtol=1e-4)
            if name == "tensor" and mode == "one_pass":
                check_traffic(compiled.as_text())
            # No device holds the logits of all tokens, or a chunk's of all classes if sharded.
            most = max(CHUNK, WIDTH) * CLASSES // shape[1]
            for rows, classes in re.findall(r"f32\[(\d+),(\d+)\]", compiled.as_text()):
                assert int(rows) * int(classes) <= most, (name, mode, rows, classes)


def check_traffic(program):
    """Checks that a token sends its gradient by hidden states and a few numbers beside it."""
    tokens = TOKENS[0] * TOKENS[1]
    collectives = cost_model.estimate(program).collectives.values()
    sent = sum(kind.size for kind in collectives) / (4 * tokens)
    assert WIDTH < sent < WIDTH + 12, sent


def check_fused():
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


def check_losses():
    rng = np.random.default_rng(0)
    teacher = jnp.asarray(rng.normal(size=(8, 64)), jnp.float32)
    student = teacher + jnp.asarray(rng.normal(size=(8, 64)), jnp.float32)
    sharding = jax.NamedSharding(jax.make_mesh((4, 2), ("data", "tensor")), jax.P("data", "tensor"))

    @jax.jit
    def every(student, teacher):
        def one(text):
            return jax.value_and_grad(lambda s: jaxdiv.get(text)(s, teacher).sum())(student)

        return {text: one(text) for text in TEXTS}

    plain = every(student, teacher)
    spread = every(*(jax.device_put(side, sharding) for side in (student, teacher)))
    for text in TEXTS:
        assert_allclose(spread[text][0], plain[text][0], rtol=2e-6, err_msg=text)
        assert_allclose(spread[text][1], plain[text][1], rtol=1e-5, atol=2e-7, err_msg=text)


if __name__ == "__main__":
    assert jax.device_count() == 8
    check_losses()
    check_fused()
