"""Restricted targets: every loss on kept classes against float64 NumPy, dense and fused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import jaxdiv
from jaxdiv import targets
from jaxdiv.divergences.registry import ENTRIES
from tests import references

RNG = np.random.default_rng(5)
N, V, D, T = 6, 40, 10, 1.7
IDS = np.sort(RNG.choice(V, size=12, replace=False))
K = len(IDS)
HIDDEN, HEAD = RNG.normal(size=(N, D)), RNG.normal(size=(D, K)) / 3
STUDENT = HIDDEN @ HEAD
TEACHER_HIDDEN, TEACHER_HEAD = RNG.normal(size=(N, D)), RNG.normal(size=(D, V)) / 2
TEACHER = TEACHER_HIDDEN @ TEACHER_HEAD
LABELS = np.array([3, -1, 0, 7, -1, 11])  # positions among the kept classes
WEIGHTS = np.array([0.5, 1.0, 0.0, 2.0, 0.3, 1.1])
MIXED = ".5*kl + .5*ce_data"
TOP_3 = "cross_entropy_top_k(k=3)"
LOSSES = (*(name for name in jaxdiv.names() if name != "cross_entropy_top_k"), TOP_3, MIXED)
FUSED = (*("forward_kl", "jensen_shannon", "total_variation", "lk_hybrid"), MIXED)
DEFINITIONS = references.VALUES | {"reverse_jensen_shannon": references.jensen_shannon}


def reference(text, student, at=STUDENT):
    """Computes values [N] at T from the definitions; constant weights are those of `at`."""
    if text == MIXED:
        return (reference("forward_kl", student) + reference("cross_entropy_data", student)) / 2
    if text == "z_loss":
        return references.log_normalizer(student) ** 2
    if text == "cross_entropy_data":
        return np.where(LABELS < 0, 0, references.label_loss(student, np.maximum(LABELS, 0)))
    scale = T ** ENTRIES[text.partition("(")[0]].temperature_power
    p = np.exp(references.log_softmax(TEACHER / T))[:, IDS]
    accepted, accepted_at = (
        np.minimum(p, np.exp(references.log_softmax(side / T))).sum(-1) for side in (student, at)
    )
    sides = student / T, TEACHER[:, IDS] / T
    if text == "lk_hybrid":
        weight = np.exp(-3 * accepted_at)
        kl = DEFINITIONS["forward_kl"](*sides)
        return T**2 * weight * kl + T * (1 - weight) * (1 - accepted)
    if text == "adaptive_kl":
        weight = references.head_share(at / T, sides[1])
        kl, reverse = (DEFINITIONS[name](*sides) for name in ("forward_kl", "reverse_kl"))
        return scale * (weight * kl + (1 - weight) * reverse)
    of_acceptance = {
        "total_variation": 1 - accepted,
        "negative_acceptance": -accepted,
        "negative_log_acceptance": -np.log(accepted),
    }
    return scale * (of_acceptance[text] if text in of_acceptance else DEFINITIONS[text](*sides))


def slope(text, step=1e-6):
    """Computes the gradient [N, K] of `reference` by central differences."""
    moves = step * np.eye(K)
    both = [(reference(text, STUDENT + move), reference(text, STUDENT - move)) for move in moves]
    return np.stack([(up - down) / (2 * step) for up, down in both], -1)


def target(dtype=jnp.float32):
    return targets.restricted(jnp.asarray(TEACHER, dtype), IDS, temperature=T)


def test_values_and_gradients_are_those_of_the_definitions():
    @jax.jit
    def run(student):
        def value(student, text):
            return jaxdiv.get(text)(student, target(), labels=LABELS, temperature=T)

        return [jax.vjp(lambda s, text=text: value(s, text), student) for text in LOSSES]

    for text, (values, pull) in zip(LOSSES, run(jnp.asarray(STUDENT, jnp.float32)), strict=True):
        assert_allclose(values, reference(text, STUDENT), rtol=1e-5, atol=1e-6, err_msg=text)
        (gradient,) = pull(jnp.ones(N))
        assert_allclose(gradient, slope(text), rtol=1e-4, atol=2e-5, err_msg=text)


def test_fused_losses_are_the_dense_ones_by_weights_and_chunk():
    hidden, head, teacher_hidden, teacher_head, weights = (
        jnp.asarray(x, jnp.float32) for x in (HIDDEN, HEAD, TEACHER_HIDDEN, TEACHER_HEAD, WEIGHTS)
    )
    # What stands where the weight is 0 counts nothing.
    states = targets.Restricted(
        teacher_hidden.at[2].set(jnp.nan), target().normalizer.at[2].set(jnp.nan), T
    )

    @jax.jit
    def run(hidden, head):
        def total(hidden, head, text):
            values = jaxdiv.linear_divergence(
                text, hidden, head, states, teacher_head[:, IDS],
                labels=LABELS, weights=weights, temperature=T, chunk=4,
            )  # fmt: skip
            return values.sum(), values

        of = jax.grad(total, argnums=(0, 1), has_aux=True)
        return [of(hidden, head, text) for text in FUSED]

    for text, ((by_hidden, by_head), values) in zip(FUSED, run(hidden, head), strict=True):
        by_logits = WEIGHTS[:, None] * slope(text)
        assert_allclose(values, WEIGHTS * reference(text, STUDENT), rtol=1e-5, atol=1e-6)
        assert_allclose(by_hidden, by_logits @ HEAD.T, rtol=1e-4, atol=5e-5, err_msg=text)
        assert_allclose(by_head, HIDDEN.T @ by_logits, rtol=1e-4, atol=5e-5, err_msg=text)


@pytest.mark.parametrize("text", ["tv", "nla", "lk_hybrid", "kl"])
def test_nothing_outside_gives_the_unrestricted_values(text):
    student, teacher = jnp.asarray(STUDENT), jnp.asarray(TEACHER[:, :K])
    whole = targets.restricted(teacher, jnp.arange(K))
    assert_allclose(jaxdiv.get(text)(student, whole), jaxdiv.get(text)(student, teacher), rtol=2e-5)
    # Rounding may leave the normalizer below that of the kept classes.
    below = targets.Restricted(teacher, whole.normalizer - 1e-3)
    assert_allclose(jaxdiv.get(text)(student, below), jaxdiv.get(text)(student, teacher), rtol=2e-5)


@pytest.mark.parametrize("mass", [1e-3, 1e-30, 0.0])
@pytest.mark.parametrize("text", ["tv", "negative_acceptance", "nla", "lk_hybrid"])
def test_acceptance_is_at_most_the_kept_mass_however_small(text, mass):
    """At p(K) = 0 nothing is accepted, and values and gradients stay finite."""
    student, teacher = jnp.asarray(STUDENT, jnp.float32), jnp.asarray(TEACHER[:, IDS], jnp.float32)
    normalizer = targets.log_sum_exp(teacher) - (np.log(mass) if mass else -np.inf)
    value, pull = jax.vjp(
        lambda s: jaxdiv.get(text)(s, targets.Restricted(teacher, normalizer)), student
    )
    bound = {"tv": 1 - mass, "negative_acceptance": -mass, "nla": -np.log(max(mass, 2e-35))}
    if text in bound:
        assert (value >= bound[text] - 1e-6 * abs(bound[text]) - 1e-7).all()
    assert np.isfinite(value).all()
    assert np.isfinite(pull(jnp.ones(N))[0]).all()


def test_only_acceptance_losses_need_the_normalizer():
    student = jnp.asarray(STUDENT)
    without = targets.Restricted(target().logits, None)
    needing = {name for name in jaxdiv.names() if jaxdiv.get(name).is_of_acceptance}
    assert needing == {
        *("total_variation", "negative_acceptance", "negative_log_acceptance", "lk_hybrid")
    }
    for name in jaxdiv.names():
        if name in needing:
            with pytest.raises(ValueError, match="true probabilities"):
                jaxdiv.get(name)(student, without, labels=LABELS)
        else:
            assert np.isfinite(jaxdiv.get(name)(student, without, labels=LABELS)).all()
    with pytest.raises(ValueError, match=r"made at temperature 1.7, the loss is at 1.0"):
        jaxdiv.get("tv")(student, target())
    with pytest.raises(ValueError, match=r"must have the rows' shape \(6,\), got \(5,\)"):
        jaxdiv.get("tv")(student, targets.Restricted(without.logits, jnp.zeros(5)))
    with pytest.raises(ValueError, match="same classes, got 12 and 11"):
        jaxdiv.get("kl")(student, targets.Restricted(without.logits[:, 1:], None))
