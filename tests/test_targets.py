"""What a teacher hands over: each form against dense rows, its bounds, its bias, and the
refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiv
from jaxdiv import targets
from tests import references

RNG = np.random.default_rng(8)
V, K = 40, 6
TEACHER = jnp.asarray(2 * RNG.normal(size=(5, V)), jnp.float32)
STUDENT = TEACHER + jnp.asarray(RNG.normal(size=(5, V)), jnp.float32)
LABELS = jnp.asarray(RNG.integers(V, size=5))
BOUNDED = [
    *(
        "kl",
        "rkl",
        "jeffreys",
        "jsd",
        "jsd(beta=0.1)",
        "rjsd",
        "skl",
        "srkl",
        "alpha",
        "alpha(alpha=2)",
        "renyi",
    ),
    *(
        "renyi(alpha=2)",
        "bhattacharyya",
        "hellinger",
        "pearson",
        "neyman",
        "tv",
        "negative_acceptance",
        "nla",
    ),
]
TERMS = [
    "kl",
    "rkl",
    "jeffreys",
    "jsd(beta=0.3)",
    "skl",
    "srkl",
    "alpha",
    "hellinger",
    "pearson",
    "neyman",
    "tv",
]


def _call(text, teacher, student=STUDENT, **options):
    return jaxdiv.get(text)(student, teacher, **options)


def _summed(logits, kept):
    """The kept classes and the log-sum-exp of the others, in float64."""
    logits = np.asarray(logits, np.float64)
    rest = np.ones(logits.shape, bool)
    np.put_along_axis(rest, kept, False, -1)
    tail = np.log(np.where(rest, np.exp(logits), 0).sum(-1, keepdims=True))
    return np.concatenate([np.take_along_axis(logits, kept, -1), tail], -1)


@pytest.mark.parametrize("text", BOUNDED)
def test_top_k_with_its_tail_is_the_coarser_divergence_and_a_lower_bound(text):
    target = targets.top_k(TEACHER, K)
    kept = np.argsort(-np.asarray(TEACHER), -1)[:, :K]
    coarse = [jnp.asarray(_summed(side, kept), jnp.float32) for side in (STUDENT, TEACHER)]
    np.testing.assert_allclose(_call(text, target), jaxdiv.get(text)(*coarse), rtol=2e-5)
    assert (_call(text, target) <= _call(text, TEACHER) + 1e-6).all()
    # With every class kept the tail is empty and nothing is lost.
    np.testing.assert_allclose(
        _call(text, targets.top_k(TEACHER, V)), _call(text, TEACHER), rtol=2e-5
    )


def test_the_gradient_by_top_k_is_that_of_the_coarser_loss():
    kept = np.argsort(-np.asarray(TEACHER), -1)[:, :K]
    p, q = (np.exp(references.log_softmax(_summed(side, kept))) for side in (TEACHER, STUDENT))
    soft = np.exp(references.log_softmax(STUDENT))
    expected = soft * (1 - p[:, -1:] / q[:, -1:])
    np.put_along_axis(expected, kept, q[:, :-1] - p[:, :-1], -1)
    gradient = jax.grad(lambda s: _call("kl", targets.top_k(TEACHER, K), s).sum())(STUDENT)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_cutting_the_tail_off_is_another_loss():
    cut = targets.renormalized_top_k(TEACHER, K)
    kept = np.argsort(-np.asarray(TEACHER), -1)[:, :K]
    within = np.exp(references.log_softmax(np.take_along_axis(np.asarray(TEACHER), kept, -1)))
    log_q = np.take_along_axis(references.log_softmax(STUDENT), kept, -1)
    np.testing.assert_allclose(
        _call("kl", cut), (within * (np.log(within) - log_q)).sum(-1), rtol=1e-5
    )
    # The whole row's best student is not its best.
    assert (jnp.abs(jax.grad(lambda s: _call("kl", cut, s).sum())(TEACHER)).sum(-1) > 1e-2).all()


def test_a_serving_stacks_log_probabilities_are_a_top_k():
    kept = jnp.argsort(-TEACHER, axis=-1)[:, :K]
    log_p = jnp.take_along_axis(jax.nn.log_softmax(TEACHER), kept, axis=-1)
    given = targets.top_k_of_log_probabilities(kept, log_p)
    np.testing.assert_allclose(
        _call("kl", given), _call("kl", targets.top_k(TEACHER, K)), rtol=1e-4
    )
    # A row that came with fewer classes: the absent one counts to the tail, whatever its index.
    fewer = targets.TopK(
        given.indices.at[0, -1].set(given.indices[0, 0]),
        given.logits.at[0, -1].set(-jnp.inf),
        given.tail,
    )
    value = jaxdiv.get("kl")(STUDENT, fewer)
    assert np.isfinite(value).all()
    np.testing.assert_allclose(value[1:], _call("kl", given)[1:], rtol=1e-6)


@pytest.mark.parametrize("text", ["kl", "ce", "ce_data", "tv", "jsd(beta=0.3)", "nla"])
def test_labels_are_a_teacher_that_is_certain(text):
    certain = jnp.where(jax.nn.one_hot(LABELS, V, dtype=bool), 0.0, -jnp.inf)
    value = _call(text, targets.Labels(LABELS))
    np.testing.assert_allclose(value, _call(text, certain, labels=LABELS), rtol=2e-6)
    gradient = jax.grad(lambda s: _call(text, targets.Labels(LABELS), s).sum())(STUDENT)
    expected = jax.grad(lambda s: _call(text, certain, s, labels=LABELS).sum())(STUDENT)
    np.testing.assert_allclose(gradient, expected, atol=3e-7)
    assert not np.isnan(
        jax.grad(lambda s: _call("rkl", targets.Labels(LABELS), s).sum())(STUDENT)
    ).any()


@pytest.mark.parametrize("text", ["ce", *TERMS])
def test_every_class_once_and_weighted_by_p_is_the_whole_divergence(text):
    """The mean over samples is unbiased when Σ p(x)·(value of sample x) is the loss, and so for the
    gradient."""
    log_p = jax.nn.log_softmax(TEACHER[0])

    def expected(student):
        each = targets.Samples(jnp.arange(V)[:, None], log_p[:, None])
        return jnp.sum(jnp.exp(log_p) * jaxdiv.get(text)(jnp.broadcast_to(student, (V, V)), each))

    value, gradient = jax.value_and_grad(expected)(STUDENT[0])
    whole, slope = jax.value_and_grad(lambda s: jaxdiv.get(text)(s, TEACHER[0]))(STUDENT[0])
    np.testing.assert_allclose(value, whole, rtol=2e-5)
    np.testing.assert_allclose(gradient, slope, atol=2e-5 * float(jnp.abs(slope).max()) + 1e-7)


def test_samples_are_averaged_over_their_axis():
    drawn = jax.random.categorical(jax.random.key(0), TEACHER[:, None], shape=(5, 7))
    log_q = np.take_along_axis(references.log_softmax(STUDENT), np.asarray(drawn), -1)
    np.testing.assert_allclose(_call("ce", targets.Samples(drawn)), -log_q.mean(-1), rtol=1e-5)


def test_log_probabilities_are_logits():
    np.testing.assert_allclose(
        _call("kl", jax.nn.log_softmax(TEACHER)), _call("kl", TEACHER), rtol=1e-5
    )


def test_padding_takes_no_mass():
    wide, wider = (
        jnp.pad(STUDENT, ((0, 0), (0, 3))),
        jnp.pad(TEACHER, ((0, 0), (0, 8)), constant_values=5.0),
    )
    value = jaxdiv.get("kl")(wide, wider, vocab_size=V)
    np.testing.assert_array_equal(value, _call("kl", TEACHER))
    gradient = jax.grad(lambda s: jaxdiv.get("kl")(s, wider, vocab_size=V).sum())(wide)
    np.testing.assert_array_equal(gradient[:, V:], 0)
    sparse = jaxdiv.get("kl")(wide, targets.top_k(TEACHER, V), vocab_size=V)
    np.testing.assert_allclose(sparse, _call("kl", TEACHER), rtol=2e-5)


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
        np.testing.assert_allclose(transformed(STUDENT, target), plain, rtol=1e-6)
    np.testing.assert_allclose(loss(STUDENT.T, target, axis=0), plain, rtol=1e-6)
    low = loss(STUDENT.astype(jnp.bfloat16), target)
    assert low.dtype == jnp.float32


def test_a_temperature_belongs_to_the_target():
    hot = targets.top_k(TEACHER, V, temperature=2.0)
    np.testing.assert_allclose(
        _call("kl", hot, temperature=2.0), _call("kl", TEACHER, temperature=2.0), rtol=2e-5
    )
    with pytest.raises(ValueError, match=r"made at temperature 2.0, the loss is at 1.0"):
        _call("kl", hot)
    np.testing.assert_allclose(
        _call("tv", targets.Labels(LABELS), temperature=2.0),
        2 * jaxdiv.total_variation(STUDENT / 2, jnp.log(jax.nn.one_hot(LABELS, V))),
        rtol=1e-6,
    )


@pytest.mark.parametrize(
    ("text", "teacher", "options", "message"),
    [
        (
            "ce_argmax",
            targets.top_k(TEACHER, K),
            {},
            "`cross_entropy_argmax` looks at single classes",
        ),
        ("akl", targets.top_k(TEACHER, K), {}, "`adaptive_kl` looks at single classes"),
        (
            "ce(smoothing=0.1)",
            targets.top_k(TEACHER, K),
            {},
            "`cross_entropy` with smoothing spreads over all classes",
        ),
        (
            "kl",
            targets.Samples(LABELS[:, None]),
            {},
            "`forward_kl` needs the samples' `log_probabilities`",
        ),
        (
            "nla",
            targets.Samples(LABELS[:, None]),
            {},
            "`negative_log_acceptance` is no mean over the teacher's samples",
        ),
        ("kl", targets.Labels(LABELS * 1.0), {}, "classes must be integers, got float32"),
        (
            "kl",
            targets.Labels(LABELS[:2]),
            {},
            r"`Labels` must have the rows' shape \(5,\), got \(2,\)",
        ),
        (
            "kl",
            targets.Labels(LABELS[:, None]),
            {},
            r"`Labels` must have the rows' shape \(5,\), got \(5, 1\)",
        ),
        ("kl", targets.top_k(TEACHER[:2], K), {}, r"must have rows \(5,\), got indices \(2, 6\)"),
        (
            "ce",
            targets.Samples(LABELS[:2, None]),
            {},
            r"must have rows \(5,\), got classes \(2, 1\)",
        ),
        (
            "kl",
            TEACHER,
            {"vocab_size": V + 1},
            r"`vocab_size` 41 must be from 1 to the classes of logits \(5, 40\)",
        ),
        (
            "kl",
            TEACHER[:, :-1],
            {},
            "same classes, got 40 and 39 on axis -1; cut both .* as `vocab_size` does",
        ),
    ],
)
def test_what_a_target_cannot_give_is_refused_with_its_reason(text, teacher, options, message):
    with pytest.raises(ValueError, match=message):
        _call(text, teacher, **options)


def test_a_top_k_beyond_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match="`k` must be from 1 to the 40 classes, got 41"):
        targets.top_k(TEACHER, V + 1)


def test_a_label_below_0_is_none_and_not_one_from_the_end():
    """-100 marks positions to be ignored elsewhere: NaN here, which a weight of 0 leaves out."""
    for target in (
        targets.Labels(jnp.array([-1, -100, 1])),
        targets.Samples(jnp.array([[-1], [-100], [1]])),
    ):
        student = jnp.zeros((3, 200))
        value = jaxdiv.get("ce")(student, target)
        assert list(np.isnan(value)) == [True, True, False]
        mean = lambda s, target=target: jaxdiv.reductions.token_mean(  # noqa: E731
            jaxdiv.get("ce")(s, target), jnp.array([0.0, 0.0, 1.0])
        )
        assert np.isfinite(jax.grad(mean)(student)).all()


def test_a_servers_log_probabilities_that_sum_to_1_leave_divergences_finite():
    logits = 4 * jax.random.normal(jax.random.key(0), (50,))
    kept = jax.lax.top_k(logits, 49)[1]
    given = targets.top_k_of_log_probabilities(
        kept, jax.nn.log_softmax(logits)[kept].astype(jnp.bfloat16)
    )
    for text in ("kl", "rkl", "jeffreys", "neyman"):
        value = jaxdiv.get(text)(jnp.zeros(50), given)
        assert np.isfinite(value), text
        assert value.dtype == jnp.float32
