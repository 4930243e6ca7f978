"""Cases in which other libraries' distillation losses were wrong; ours must not be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import jaxdiv
from jaxdiv import reductions, targets
from tests import references

RNG = np.random.default_rng(31)
TEACHER = (3 * RNG.normal(size=(4, 6, 30))).astype(np.float32)
STUDENT = (TEACHER + RNG.normal(size=TEACHER.shape)).astype(np.float32)
DIVERGENCES = (
    "kl", "rkl", "jsd", "jsd(beta=0.9)", "skl", "tv", "alpha", "renyi", "hellinger", "pearson",
    "nla",
)  # fmt: skip


def test_a_zero_target_has_a_gradient():
    """Known from optax.losses.kl_divergence: NaN gradients, and NaN if both sides lack a class."""
    student = jnp.asarray(STUDENT[0, 0]).at[3].set(-jnp.inf)
    teacher = jnp.asarray(TEACHER[0, 0]).at[jnp.array([3, 5])].set(-jnp.inf)
    value, gradient = jax.value_and_grad(jaxdiv.forward_kl)(student, teacher)
    others = np.delete(np.arange(30), 3)
    expected = jaxdiv.forward_kl(student[others], teacher[others])
    assert_allclose(value, expected, rtol=1e-6)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("text", DIVERGENCES)
def test_types_that_differ_leave_it_above_0(text):
    """Known from ms-swift #10156: a negative JSD of a bfloat16 teacher and a float32 student."""
    low = jnp.asarray(TEACHER, jnp.bfloat16)
    assert (jaxdiv.get(text)(low.astype(jnp.float32), low) == 0).all()
    assert (jaxdiv.get(text)(jnp.asarray(TEACHER), low) >= 0).all()


@pytest.mark.parametrize("text", DIVERGENCES)
def test_a_truncated_teacher_leaves_it_above_0(text):
    """Known from verl #7856: a top-k KL without the tail goes below 0."""
    assert (jaxdiv.get(text)(STUDENT, targets.top_k(jnp.asarray(TEACHER), 3)) >= 0).all()


@pytest.mark.parametrize("text", DIVERGENCES)
def test_each_row_has_its_own_cotangent(text):
    """Known from Liger #968: gradients of unreduced values were those of their sum."""
    weights = jnp.asarray(RNG.uniform(size=(4, 6)), jnp.float32)
    loss = jaxdiv.get(text)
    weighted = jax.grad(lambda s: jnp.vdot(weights, loss(s, TEACHER)))(jnp.asarray(STUDENT))
    plain = jax.grad(lambda s: loss(s, TEACHER).sum())(jnp.asarray(STUDENT))
    assert_allclose(weighted, weights[..., None] * plain, rtol=1e-5, atol=1e-7)


def test_an_underflowed_mixture_is_no_nan():
    """Known from Liger #769: log of a mixture whose parts both underflow."""
    student, teacher = jnp.array([200.0, 0.0, -50.0]), jnp.array([180.0, 0.0, -60.0])
    value, gradient = jax.value_and_grad(jaxdiv.jensen_shannon)(student, teacher)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_unequal_vocabularies_are_cut_not_padded():
    """Known from Liger, whose padding takes mass, and TRL #2215, which fails on these sizes."""
    sizes = (151936, 152064)
    student, teacher = (jnp.asarray(RNG.normal(size=(1, n)), jnp.float32) for n in sizes)
    expected = references.VALUES["forward_kl"](student[:, :151643], teacher[:, :151643])
    value = jaxdiv.get("kl")(student, teacher, vocab_size=151643)
    assert_allclose(value, expected, rtol=2e-6)
    with pytest.raises(ValueError, match="vocab_size"):
        jaxdiv.get("kl")(student, teacher)


def test_beta_weighs_the_teacher():
    """Known from TRL #3043: β was the student's; a small β must give β·KL(teacher ‖ student)."""
    value = jaxdiv.jensen_shannon(STUDENT, TEACHER, beta=1e-4) / 1e-4
    assert_allclose(value, jaxdiv.forward_kl(STUDENT, TEACHER), rtol=2e-2)
    assert not np.allclose(value, jaxdiv.reverse_kl(STUDENT, TEACHER), rtol=2e-2)


def test_micro_batches_and_ignored_positions():
    """Known from TRL #6006 (the split mattered) and Liger #974 (ignored positions counted)."""
    weights = (RNG.uniform(size=(4, 6)) < 0.5).astype(np.float32)
    student = jnp.asarray(np.where(weights[..., None] > 0, STUDENT, np.nan))
    values = jaxdiv.forward_kl(student, TEACHER)
    cuts = [reductions.token_sum(values[i : i + 1], weights[i : i + 1]) for i in range(4)]
    expected = (references.VALUES["forward_kl"](STUDENT, TEACHER) * weights).sum() / weights.sum()
    pooled = reductions.mean(*map(sum, zip(*cuts, strict=True)))
    assert_allclose(pooled, expected, rtol=1e-6)
    assert_allclose(reductions.token_mean(values, weights), expected, rtol=1e-6)
