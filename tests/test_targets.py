"""Targets: each form against dense rows, its bounds, its bias, and the refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import jaxdiv
from jaxdiv import targets
from tests import references

RNG = np.random.default_rng(8)
V, K = 40, 6
TEACHER = jnp.asarray(2 * RNG.normal(size=(5, V)), jnp.float32)
STUDENT = TEACHER + jnp.asarray(RNG.normal(size=(5, V)), jnp.float32)
LABELS = jnp.asarray(RNG.integers(V, size=5))
TERMS = (
    "kl", "rkl", "jeffreys", "jsd(beta=0.3)", "skl", "srkl", "alpha", "hellinger", "pearson",
    "neyman", "tv",
)  # fmt: skip
BOUNDED = (
    *TERMS, "jsd", "jsd(beta=0.1)", "rjsd", "alpha(alpha=2)", "renyi", "renyi(alpha=2)",
    "bhattacharyya", "negative_acceptance", "nla",
)  # fmt: skip


def _call(text, teacher, student=STUDENT, **options):
    return jaxdiv.get(text)(student, teacher, **options)


def _summed(logits, top):
    """Returns the classes `top` and the log-sum-exp of the others, in float64."""
    logits = np.asarray(logits, np.float64)
    rest = np.ones(logits.shape, bool)
    np.put_along_axis(rest, top, False, -1)
    tail = np.log(np.where(rest, np.exp(logits), 0).sum(-1, keepdims=True))
    return np.concatenate([np.take_along_axis(logits, top, -1), tail], -1)


@pytest.mark.parametrize("text", BOUNDED)
def test_top_k_is_the_coarser_divergence_and_a_lower_bound(text):
    target = targets.top_k(TEACHER, K)
    top = np.argsort(-np.asarray(TEACHER), -1)[:, :K]
    coarse = [jnp.asarray(_summed(side, top), jnp.float32) for side in (STUDENT, TEACHER)]
    assert_allclose(_call(text, target), jaxdiv.get(text)(*coarse), rtol=2e-5)
    assert (_call(text, target) <= _call(text, TEACHER) + 1e-6).all()
    # With all classes in the top the tail is empty, and the divergence is exact.
    whole = _call(text, targets.top_k(TEACHER, V))
    assert_allclose(whole, _call(text, TEACHER), rtol=2e-5)


def test_the_gradient_by_top_k_is_that_of_the_coarser_loss():
    top = np.argsort(-np.asarray(TEACHER), -1)[:, :K]
    p, q = (np.exp(references.log_softmax(_summed(side, top))) for side in (TEACHER, STUDENT))
    soft = np.exp(references.log_softmax(STUDENT))
    expected = soft * (1 - p[:, -1:] / q[:, -1:])
    np.put_along_axis(expected, top, q[:, :-1] - p[:, :-1], -1)
    gradient = jax.grad(lambda s: _call("kl", targets.top_k(TEACHER, K), s).sum())(STUDENT)
    assert_allclose(gradient, expected, atol=1e-6)


def test_cutting_the_tail_off_is_another_loss():
    cut = targets.renormalized_top_k(TEACHER, K)
    top = np.argsort(-np.asarray(TEACHER), -1)[:, :K]
    within = np.exp(references.log_softmax(np.take_along_axis(np.asarray(TEACHER), top, -1)))
    log_q = np.take_along_axis(references.log_softmax(STUDENT), top, -1)
    expected = (within * (np.log(within) - log_q)).sum(-1)
    assert_allclose(_call("kl", cut), expected, rtol=1e-5)
    # The best student of the whole row is not its minimum.
    assert (jnp.abs(jax.grad(lambda s: _call("kl", cut, s).sum())(TEACHER)).sum(-1) > 1e-2).all()


def test_a_serving_stacks_log_probabilities_are_a_top_k():
    top = jnp.argsort(-TEACHER, axis=-1)[:, :K]
    log_p = jnp.take_along_axis(jax.nn.log_softmax(TEACHER), top, axis=-1)
    target = targets.top_k_of_log_probabilities(top, log_p)
    expected = _call("kl", targets.top_k(TEACHER, K))
    assert_allclose(_call("kl", target), expected, rtol=1e-4)
    # A row that came with fewer classes: the absent one counts to the tail, whatever its index.
    indices = target.indices.at[0, -1].set(target.indices[0, 0])
    fewer = targets.TopK(indices, target.logits.at[0, -1].set(-jnp.inf), target.tail)
    value = jaxdiv.get("kl")(STUDENT, fewer)
    assert np.isfinite(value).all()
    assert_allclose(value[1:], _call("kl", target)[1:], rtol=1e-6)


@pytest.mark.parametrize("text", ["kl", "ce", "ce_data", "tv", "jsd(beta=0.3)", "nla"])
def test_labels_are_a_teacher_that_is_certain(text):
    certain = jnp.where(jax.nn.one_hot(LABELS, V, dtype=bool), 0.0, -jnp.inf)
    value = _call(text, targets.Labels(LABELS))
    assert_allclose(value, _call(text, certain, labels=LABELS), rtol=2e-6)
    gradient = jax.grad(lambda s: _call(text, targets.Labels(LABELS), s).sum())(STUDENT)
    expected = jax.grad(lambda s: _call(text, certain, s, labels=LABELS).sum())(STUDENT)
    assert_allclose(gradient, expected, atol=3e-7)
    by_student = jax.grad(lambda s: _call("rkl", targets.Labels(LABELS), s).sum())(STUDENT)
    assert not np.isnan(by_student).any()


@pytest.mark.parametrize("text", ["ce", *TERMS])
def test_samples_are_unbiased_in_value_and_gradient(text):
    """Checks that Σ p(x)·(value of sample x) is the loss, and so its gradient."""
    log_p = jax.nn.log_softmax(TEACHER[0])

    def expected(student):
        each = targets.Samples(jnp.arange(V)[:, None], log_p[:, None])
        return jnp.sum(jnp.exp(log_p) * jaxdiv.get(text)(jnp.broadcast_to(student, (V, V)), each))

    value, gradient = jax.value_and_grad(expected)(STUDENT[0])
    whole, slope = jax.value_and_grad(lambda s: jaxdiv.get(text)(s, TEACHER[0]))(STUDENT[0])
    assert_allclose(value, whole, rtol=2e-5)
    assert_allclose(gradient, slope, atol=2e-5 * float(jnp.abs(slope).max()) + 1e-7)


def test_samples_are_averaged_over_their_axis():
    drawn = jax.random.categorical(jax.random.key(0), TEACHER[:, None], shape=(5, 7))
    log_q = np.take_along_axis(references.log_softmax(STUDENT), np.asarray(drawn), -1)
    assert_allclose(_call("ce", targets.Samples(drawn)), -log_q.mean(-1), rtol=1e-5)


def test_log_probabilities_are_logits():
    value = _call("kl", jax.nn.log_softmax(TEACHER))
    assert_allclose(value, _call("kl", TEACHER), rtol=1e-5)


def test_padding_takes_no_mass():
    wide = jnp.pad(STUDENT, ((0, 0), (0, 3)))
    wider = jnp.pad(TEACHER, ((0, 0), (0, 8)), constant_values=5.0)
    value = jaxdiv.get("kl")(wide, wider, vocab_size=V)
    assert_array_equal(value, _call("kl", TEACHER))
    gradient = jax.grad(lambda s: jaxdiv.get("kl")(s, wider, vocab_size=V).sum())(wide)
    assert_array_equal(gradient[:, V:], 0)
    sparse = jaxdiv.get("kl")(wide, targets.top_k(TEACHER, V), vocab_size=V)
    assert_allclose(sparse, _call("kl", TEACHER), rtol=2e-5)


@pytest.mark.parametrize("kind", ["top_k", "labels", "samples"])
def test_targets_pass_through_jit_vmap_and_axes(kind):
    target = {
        "top_k": targets.top_k(TEACHER, K),
        "labels": targets.Labels(LABELS),
        "samples": targets.Samples(LABELS[:, None]),
    }[kind]
    loss = jaxdiv.get("ce")
    plain = loss(STUDENT, target)
    for transformed in (jax.jit(loss), jax.vmap(loss), jax.jit(jax.vmap(loss))):
        assert_allclose(transformed(STUDENT, target), plain, rtol=1e-6)
    assert_allclose(loss(STUDENT.T, target, axis=0), plain, rtol=1e-6)
    low = loss(STUDENT.astype(jnp.bfloat16), target)
    assert low.dtype == jnp.float32


def test_a_temperature_belongs_to_the_target():
    hot = targets.top_k(TEACHER, V, temperature=2.0)
    value = _call("kl", hot, temperature=2.0)
    assert_allclose(value, _call("kl", TEACHER, temperature=2.0), rtol=2e-5)
    with pytest.raises(ValueError, match=r"made at temperature 2.0, the loss is at 1.0"):
        _call("kl", hot)
    value = _call("tv", targets.Labels(LABELS), temperature=2.0)
    expected = 2 * jaxdiv.total_variation(STUDENT / 2, jnp.log(jax.nn.one_hot(LABELS, V)))
    assert_allclose(value, expected, rtol=1e-6)


SAMPLES, TOP = targets.Samples(LABELS[:, None]), targets.top_k(TEACHER, K)
REFUSED = {
    "`cross_entropy_argmax` looks at single classes": ("ce_argmax", TOP),
    "`adaptive_kl` looks at single classes": ("akl", TOP),
    "`cross_entropy` with smoothing spreads over all classes": ("ce(smoothing=0.1)", TOP),
    "`forward_kl` needs the samples' `log_probabilities`": ("kl", SAMPLES),
    "`negative_log_acceptance` is no mean over the teacher's samples": ("nla", SAMPLES),
    "classes must be integers, got float32": ("kl", targets.Labels(LABELS * 1.0)),
    r"`Labels` must have the rows' shape \(5,\), got \(2,\)": ("kl", targets.Labels(LABELS[:2])),
    r"the rows' shape \(5,\), got \(5, 1\)": ("kl", targets.Labels(LABELS[:, None])),
    r"must have rows \(5,\), got indices \(2, 6\)": ("kl", targets.top_k(TEACHER[:2], K)),
    r"must have rows \(5,\), got classes \(2, 1\)": ("ce", targets.Samples(LABELS[:2, None])),
    r"same classes, got 40 and 39 on axis -1; cut both .* as `vocab_size` does": (
        "kl",
        TEACHER[:, :-1],
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_impossible_targets_are_refused(message):
    with pytest.raises(ValueError, match=message):
        _call(*REFUSED[message])


def test_sizes_beyond_the_vocabulary_are_refused():
    with pytest.raises(ValueError, match="`k` must be from 1 to the 40 classes, got 41"):
        targets.top_k(TEACHER, V + 1)
    message = r"`vocab_size` 41 must be from 1 to the classes of logits \(5, 40\)"
    with pytest.raises(ValueError, match=message):
        _call("kl", TEACHER, vocab_size=V + 1)


def test_a_label_below_0_is_nan_which_a_weight_of_0_ignores():
    student, classes = jnp.zeros((3, 200)), jnp.array([-1, -100, 1])
    for target in (targets.Labels(classes), targets.Samples(classes[:, None])):
        value = jaxdiv.get("ce")(student, target)
        assert list(np.isnan(value)) == [True, True, False]

        def mean(student, target=target):
            values = jaxdiv.get("ce")(student, target)
            return jaxdiv.reductions.token_mean(values, jnp.array([0.0, 0.0, 1.0]))

        assert np.isfinite(jax.grad(mean)(student)).all()


def test_log_probabilities_that_sum_to_1_stay_finite():
    logits = 4 * jax.random.normal(jax.random.key(0), (50,))
    top = jax.lax.top_k(logits, 49)[1]
    log_p = jax.nn.log_softmax(logits)[top].astype(jnp.bfloat16)
    target = targets.top_k_of_log_probabilities(top, log_p)
    for text in ("kl", "rkl", "jeffreys", "neyman"):
        value = jaxdiv.get(text)(jnp.zeros(50), target)
        assert np.isfinite(value), text
        assert value.dtype == jnp.float32
