"""Losses in blocks of rows: the same values and derivatives as with all rows at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import jaxdiv
from jaxdiv.divergences import blocks

RNG = np.random.default_rng(21)
V, ROWS = 16, (3, 5)  # in blocks of 4 rows the last one overlaps its neighbor
TEACHER = jnp.asarray(2 * RNG.normal(size=(*ROWS, V)), jnp.float32)
STUDENT = TEACHER + jnp.asarray(RNG.normal(size=(*ROWS, V)), jnp.float32)
LABELS = jnp.asarray(RNG.integers(12, size=ROWS))
WHERE = jnp.arange(V) < 12
TEXTS = (
    "ce", "ce_argmax", "ce_data(smoothing=0.1)", "ce_top_k(k=3)", "kl", "rkl", "jeffreys", "akl",
    "jsd", "skl", "alpha(alpha=2)", "renyi", "renyi(alpha=3)", "bhattacharyya", "neyman", "tv",
    "negative_acceptance", "nla", "lk_hybrid(rate=1)", "0.5*kl + 0.5*ce_data + 1e-3*z_loss",
)  # fmt: skip


def _numbers(text, temperature, where):
    """Returns value, gradient and Hessian product."""
    loss = jaxdiv.get(text)
    labels = LABELS if loss.needs_labels else None

    def total(student):
        values = loss(student, TEACHER, labels=labels, temperature=temperature, where=where)
        return values.sum(), values

    def gradient(student):
        return jax.grad(total, has_aux=True)(student)[0]

    return total(STUDENT)[1], *jax.jvp(gradient, (STUDENT,), (jnp.cos(STUDENT),))


@pytest.mark.parametrize("text", TEXTS)
def test_blocks_change_nothing(monkeypatch, text):
    for temperature, where in ((1.0, None), (2.0, WHERE)):
        whole = _numbers(text, temperature, where)
        monkeypatch.setattr(blocks, "BLOCK", 4 * V)
        for got, expected in zip(_numbers(text, temperature, where), whole, strict=True):
            assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
        monkeypatch.undo()


def test_blocks_are_taken_and_pass_through_transformations(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 4 * V)
    loss = jaxdiv.get("kl")
    assert "while" in str(jax.make_jaxpr(loss)(STUDENT, TEACHER))
    plain = loss(STUDENT, TEACHER)
    many = jax.jit(jax.vmap(loss))(jnp.stack([STUDENT, TEACHER]), jnp.stack([TEACHER, TEACHER]))
    assert_allclose(many[0], plain, rtol=1e-6)
    assert_array_equal(many[1], 0)
    twice = jax.vmap(loss, in_axes=(0, None))(jnp.stack([STUDENT, TEACHER]), TEACHER)
    assert_allclose(twice, many, rtol=1e-6)
    # A parameter that is an array, and rows that only broadcast, are computed all at once.
    by_array = jaxdiv.jensen_shannon(STUDENT, TEACHER, beta=np.array(0.3))
    by_number = jaxdiv.get("jsd(beta=0.3)")(STUDENT, TEACHER)
    assert_allclose(by_array, by_number, rtol=1e-6)
    assert_allclose(loss(STUDENT, TEACHER[0, 0])[0, 0], plain[0, 0], rtol=1e-6)
    with pytest.raises(ValueError, match="same classes, got 16 and 15"):
        loss(STUDENT, TEACHER[..., 1:])
    with pytest.raises(ValueError, match=r"rows' shape \(3, 5\), got \(3, 4\)"):
        jaxdiv.cross_entropy_data(STUDENT, LABELS[:, 1:])
    # So are rows that `where` multiplies.
    masks = jnp.stack([WHERE, ~WHERE])[:, None, None]
    masked, expected = loss(STUDENT, TEACHER, where=masks)[0], loss(STUDENT, TEACHER, where=WHERE)
    assert_allclose(masked, expected, rtol=1e-6)
    message = r"`where` must broadcast to the logits \(3, 5, 16\), got \(15,\)"
    with pytest.raises(ValueError, match=message):
        loss(STUDENT, TEACHER, where=WHERE[1:])


@pytest.mark.parametrize("text", TEXTS)
def test_a_row_that_is_not_a_number_has_a_gradient_of_0(monkeypatch, text):
    monkeypatch.setattr(blocks, "BLOCK", 4 * V)
    loss, student = jaxdiv.get(text), STUDENT.at[1, 2].set(jnp.nan)
    values, pull = jax.vjp(lambda s: loss(s, TEACHER, labels=LABELS), student)
    gradient = pull(jnp.ones_like(values))[0]
    assert np.isnan(values).sum() == 1
    assert np.isfinite(gradient).all()
    assert_array_equal(gradient[1, 2], 0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_blocks_of_half_precision_logits(monkeypatch, dtype):
    student, teacher = STUDENT.astype(dtype), TEACHER.astype(dtype)
    both = jax.value_and_grad(lambda s: jaxdiv.get("kl")(s, teacher).sum())
    expected, expected_gradient = both(student)
    monkeypatch.setattr(blocks, "BLOCK", 4 * V)
    assert "while" in str(jax.make_jaxpr(both)(student))
    value, gradient = both(student)
    assert_allclose(value, expected, rtol=1e-6)
    assert gradient.dtype == dtype
    gradients = gradient.astype(float), expected_gradient.astype(float)
    assert_allclose(*gradients, rtol=1e-2, atol=1e-6)


def test_temporary_memory_does_not_grow_with_the_rows():
    logits = jax.ShapeDtypeStruct((512, 131072), jnp.float32)
    for text in ("kl", "tv", "jsd", "nla", "ce"):
        loss = jax.value_and_grad(lambda s, t, text=text: jaxdiv.get(text)(s, t).sum())
        compiled = jax.jit(loss).lower(logits, logits).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < logits.size * 4 / 8, text
