"""Values and gradients of every loss in the registry against float64 definitions, at the edges and
under transforms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiv
from tests import cases, references

LOSSES = [
    *(name for name in jaxdiv.names() if name != "cross_entropy_top_k"),
    "ce_top_k(k=4)",
    "ce_data(smoothing=0.2)",
    "alpha(alpha=5)",
    "alpha(alpha=-4)",
    "renyi(alpha=0.2)",
    "renyi(alpha=5)",
    "jsd(beta=0.1)",
    "skl(alpha=0.6)",
    "alpha(alpha=0.9)",
    "alpha(alpha=0)",
    "lk_hybrid(rate=1)",
    "0.7*kl + 0.3*tv",
]
SOFT = sorted(references.VALUES)
# What is 0, with a gradient of 0, where student and teacher agree.
DIVERGENCES = [t for t in SOFT if not t.startswith(("cross_entropy", "negative_acceptance"))]
RNG = np.random.default_rng(1)


def _loss(text, labels):
    loss = jaxdiv.get(text)
    return lambda student, teacher: loss(
        student, teacher, labels=labels if loss.needs_labels else None
    )


def _value_and_gradient(text, student, teacher, labels=None):
    values, pull = jax.vjp(
        lambda s: _loss(text, labels)(s, jnp.asarray(teacher)), jnp.asarray(student)
    )
    return np.asarray(values, np.float64), np.asarray(pull(jnp.ones_like(values))[0], np.float64)


def _error(got, expected):
    return np.linalg.norm(got - expected, axis=-1) / np.maximum(
        np.linalg.norm(expected, axis=-1), 1e-30
    )


@pytest.mark.parametrize("name", SOFT)
@pytest.mark.parametrize(
    "size", [3, 1001, 151936, *(pytest.param(n, marks=pytest.mark.slow) for n in (32000, 128256))]
)
def test_random_logits_agree_with_the_definition(name, size):
    rows = max(2, 20000 // size)
    teacher = RNG.normal(size=(rows, size)).astype(np.float32)
    student = (teacher + RNG.normal(size=teacher.shape)).astype(np.float32)
    value, gradient = _value_and_gradient(name, student, teacher)
    expected = references.VALUES[name](student, teacher)
    ratio = np.abs(references.log_ratio(student, teacher))
    assert (np.abs(value / expected - 1) / np.maximum(1, ratio.max(-1))).max() < 2e-6
    expected = references.gradient(name, student, teacher)
    if name.startswith(
        "cross_entropy"
    ):  # q - p as it stands, right to the precision of a probability
        np.testing.assert_allclose(gradient, expected, atol=3e-7)
    else:
        # At a kink, r = 0, rounding may decide the side.
        assert _error(gradient, expected)[ratio.min(-1) > 1e-6].max(initial=0) < 4e-6
        assert _error(gradient, expected).max() < 1e-2


@pytest.mark.parametrize("name", SOFT)
def test_compiled_with_a_temperature_inside_agrees_with_the_definition(name):
    """XLA may fuse the division once with the maximum and once with the exponential, and round it
    in two ways."""
    teacher = RNG.normal(size=(40, 40)).astype(np.float32)
    student = (teacher + RNG.normal(size=teacher.shape)).astype(np.float32)
    entry = jaxdiv.get(name).parts[0].entry
    function = functools.partial(entry.function, **dict(jaxdiv.get(name).parts[0].parameters))
    temperatures = (0.7, 1.5, 3.0)
    values = jax.jit(lambda s, t: [function(s / x, t / x) for x in temperatures])(student, teacher)
    for value, temperature in zip(values, temperatures, strict=True):
        expected = references.VALUES[name](
            *(np.float64(side) / temperature for side in (student, teacher))
        )
        np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("distance", [1e-1, 1e-2, 1e-3, 1e-4])
def test_digits_survive_where_student_and_teacher_nearly_agree(name, distance):
    teacher = RNG.normal(size=(2, 131072)).astype(np.float32)
    student = (teacher + distance * RNG.normal(size=teacher.shape)).astype(np.float32)
    value, gradient = _value_and_gradient(name, student, teacher)
    np.testing.assert_allclose(value, references.VALUES[name](student, teacher), rtol=2e-6)
    assert _error(gradient, references.gradient(name, student, teacher)).max() < 2e-6


@pytest.mark.parametrize("name", SOFT)
def test_edges_agree_with_the_definition(name):
    student, teacher = cases.stacked(cases.FINITE)
    value, gradient = _value_and_gradient(name, student, teacher)
    expected = references.VALUES[name](student, teacher)
    held = expected < np.finfo(np.float32).max
    assert held.sum() >= len(expected) - 2
    # float64 itself has no digits of values near its own 1e-16.
    np.testing.assert_allclose(value[held], expected[held], rtol=2e-5, atol=1e-13)
    assert np.isposinf(value[~held]).all()
    assert np.isfinite(gradient).all()
    size = np.abs(gradient).sum(-1)
    # Where student and teacher share nothing, a bounded loss is flat: what is left is the rounding
    # of q.
    sloped = held & (size > 3e-7)
    assert sloped.sum() >= 4
    np.testing.assert_allclose((gradient.sum(-1) / size.clip(1e-30))[sloped], 0, atol=1e-5)


# Where the float64 definition takes a logarithm of nothing.
_DISJOINT = {"negative_log_acceptance": np.inf, "negative_acceptance": 0}


@pytest.mark.parametrize("name", SOFT)
def test_missing_classes_are_infinite_only_where_the_definition_is(name):
    student, teacher = cases.stacked({k: v for k, v in cases.SUPPORT.items() if k != "nothing"})
    value, _ = _value_and_gradient(name, student, teacher)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = references.VALUES[name](student, teacher)
    if name in _DISJOINT:
        expected[list(cases.SUPPORT).index("disjoint")] = _DISJOINT[name]
    np.testing.assert_allclose(value, expected, rtol=2e-6)


@pytest.mark.parametrize("text", LOSSES)
def test_nothing_is_nan_in_value_gradient_and_hessian_product(text):
    every = {**cases.FINITE, **cases.SUPPORT}
    student, teacher = map(jnp.asarray, cases.stacked(every))
    loss = _loss(text, jnp.asarray(cases.labels(every)))
    direction = jnp.asarray(RNG.normal(size=student.shape), jnp.float32)

    def gradient(s):
        return jax.grad(lambda s: loss(s, teacher).sum())(s)

    product = jax.jvp(gradient, (student,), (direction,))
    for array in (loss(student, teacher), *product):
        assert not np.isnan(array).any(axis=-1).any()


@pytest.mark.parametrize("text", LOSSES)
def test_what_is_not_a_number_has_no_loss(text):
    """A metric of 0 would look like a perfect student."""
    student = jnp.zeros((3, 512)).at[0].set(jnp.nan).at[1, 7].set(jnp.nan).at[2, 7].set(jnp.inf)
    teacher = jnp.broadcast_to(jnp.linspace(0.0, 5.0, 512), student.shape)
    assert np.isnan(jax.jit(_loss(text, jnp.full(3, 4)))(student, teacher)).all()


@pytest.mark.parametrize("text", LOSSES)
def test_jit_vmap_and_both_agree_with_plain(text):
    student, teacher = map(jnp.asarray, cases.stacked(cases.FINITE))
    labels = jnp.asarray(cases.labels(cases.FINITE))
    plain = _loss(text, labels)(student, teacher)

    def row(s, t, label):
        return _loss(text, label)(s, t)

    compiled = jax.jit(
        lambda *sides: (row(*sides), jax.vmap(row)(*sides))
    )  # as one program: half the compiling
    for transformed in (
        *compiled(student, teacher, labels),
        jax.vmap(row)(student, teacher, labels),
    ):
        np.testing.assert_allclose(transformed, plain, rtol=1e-6, atol=1e-30)


# Weights of lk_hybrid and adaptive_kl are held constant in their gradients alone.
@pytest.mark.parametrize(
    "name", [name for name in SOFT if name not in ("lk_hybrid", "adaptive_kl")]
)
def test_hessian_agrees_with_differences_of_the_gradient(name):
    with jax.enable_x64(True):
        teacher = RNG.normal(size=8)
        student = teacher + RNG.normal(size=8)
        step = 1e-5 * np.eye(8)
        ahead, behind = (
            references.gradient(name, student + sign * step, np.tile(teacher, (8, 1)))
            for sign in (1, -1)
        )
        function = _loss(name, None)
        hessian = jax.hessian(lambda s: function(s, jnp.asarray(teacher)))(jnp.asarray(student))
    np.testing.assert_allclose(hessian, (ahead - behind) / 2e-5, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("text", "factor"),
    [
        ("ce", 1),
        ("kl", 1),
        ("rkl", 1),
        ("jeffreys", 2),
        ("jsd", 0.25),
        ("jsd(beta=0.3)", 0.21),
        ("alpha", 1),
        ("alpha(alpha=0.2)", 1),
        ("alpha(alpha=0.999)", 1),
        ("hellinger", 0.25),
        ("skl", 0.81),
        ("srkl(alpha=0.4)", 0.36),
        ("alpha(alpha=-3)", 1),
        ("renyi(alpha=0.3)", 0.3),
        ("renyi(alpha=3)", 3),
        ("bhattacharyya", 0.25),
        ("pearson", 2),
        ("neyman", 2),
        ("rjsd(beta=0.3)", 0.21),
        ("akl", 1),
    ],
)
def test_curvature_at_equality_is_fisher_information(text, factor):
    with jax.enable_x64(True):
        logits = jnp.asarray(RNG.normal(size=6))
        hessian = jax.hessian(lambda s: _loss(text, None)(s, logits))(logits)
        q = jax.nn.softmax(logits)
    np.testing.assert_allclose(
        hessian, factor * (np.diag(q) - np.outer(q, q)), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("name", SOFT)
def test_float64_stays_float64(name):
    with jax.enable_x64(True):
        teacher = RNG.normal(size=(5, 50)) * 2
        student = teacher + 0.3 * RNG.normal(size=teacher.shape)
        value, gradient = _value_and_gradient(name, student, teacher)
    np.testing.assert_allclose(value, references.VALUES[name](student, teacher), rtol=1e-12)
    assert _error(gradient, references.gradient(name, student, teacher)).max() < 1e-12


@pytest.mark.parametrize("text", LOSSES)
def test_absent_classes_axis_types_and_the_constant_teacher(text):
    student, teacher = RNG.normal(size=(2, 3, 10)).astype(np.float32)
    where, labels = np.arange(10) < 7, np.full(3, 4)
    loss = jaxdiv.get(text)
    expected = loss(student[:, :7], teacher[:, :7], labels=labels)
    np.testing.assert_allclose(
        loss(student, teacher, labels=labels, where=where), expected, rtol=2e-6
    )
    by_axis = loss(student.T, teacher.T, labels=labels, axis=0, where=where[:, None])
    np.testing.assert_allclose(by_axis, expected, rtol=2e-6)
    low = [jnp.asarray(side, jnp.bfloat16) for side in (student, teacher)]
    value = loss(*low, labels=labels)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(
        value, loss(*(x.astype(jnp.float32) for x in low), labels=labels), rtol=1e-6
    )
    assert not jnp.any(
        jax.grad(lambda t: loss(jnp.asarray(student), t, labels=labels).sum())(jnp.asarray(teacher))
    )


def test_identities():
    teacher = RNG.normal(size=(50, 40)).astype(np.float32)
    student = (teacher + 2 * RNG.normal(size=teacher.shape)).astype(np.float32)
    entropy = jaxdiv.cross_entropy(teacher, teacher)
    kl, tv = jaxdiv.forward_kl(student, teacher), jaxdiv.total_variation(student, teacher)
    np.testing.assert_allclose(jaxdiv.cross_entropy(student, teacher) - entropy, kl, rtol=1e-5)
    np.testing.assert_allclose(jaxdiv.reverse_kl(teacher, student), kl, rtol=2e-6)
    np.testing.assert_allclose(
        jnp.exp(-jaxdiv.negative_log_acceptance(student, teacher)), 1 - tv, rtol=2e-6
    )
    assert (tv <= jnp.sqrt(kl / 2)).all()
    skewed = jaxdiv.jensen_shannon(student, teacher, beta=0.3)
    np.testing.assert_allclose(skewed, jaxdiv.jensen_shannon(teacher, student, beta=0.7), rtol=2e-6)
    np.testing.assert_allclose(
        jaxdiv.jensen_shannon(student, teacher, beta=1e-6) / 1e-6, kl, rtol=1e-3
    )
    hellinger = jaxdiv.squared_hellinger(student, teacher)
    np.testing.assert_allclose(hellinger, jaxdiv.alpha_divergence(student, teacher) / 4, rtol=2e-6)
    np.testing.assert_allclose(hellinger, jaxdiv.squared_hellinger(teacher, student), rtol=2e-6)
    for alpha, end in ((1 - 1e-6, kl), (1e-6, jaxdiv.reverse_kl(student, teacher))):
        np.testing.assert_allclose(
            jaxdiv.alpha_divergence(student, teacher, alpha=alpha), end, rtol=2e-5
        )
        np.testing.assert_array_equal(
            jaxdiv.alpha_divergence(student, teacher, alpha=round(alpha)), end
        )
    np.testing.assert_allclose(jaxdiv.skew_kl(student, teacher, alpha=1e-6), kl, rtol=1e-3)
    np.testing.assert_allclose(
        jaxdiv.skew_reverse_kl(teacher, student), jaxdiv.skew_kl(student, teacher), rtol=2e-6
    )
    for text in DIVERGENCES:
        np.testing.assert_array_equal(jaxdiv.get(text)(teacher, teacher), 0)


def test_parameters_and_labels_reach_the_value():
    student, teacher = RNG.normal(size=(2, 6, 12)).astype(np.float32)
    value = jaxdiv.get("jsd(beta=0.2)")(student, teacher)
    np.testing.assert_allclose(
        value, references.jensen_shannon(student, teacher, beta=0.2), rtol=2e-6
    )
    value = jaxdiv.get("skl(alpha=0.7)")(student, teacher)
    np.testing.assert_allclose(value, references.skew_kl(student, teacher, alpha=0.7), rtol=2e-6)
    for alpha in (0.05, 0.45, 0.6, 0.97):
        value = jaxdiv.get(f"alpha(alpha={alpha})")(student, teacher)
        np.testing.assert_allclose(
            value, references.alpha_divergence(student, teacher, alpha=alpha), rtol=3e-6
        )
    value = jaxdiv.get("lk_hybrid(rate=0.5)")(student, teacher)
    np.testing.assert_allclose(value, references.lk_hybrid(student, teacher, rate=0.5), rtol=2e-6)
    labels = np.arange(6)
    np.testing.assert_allclose(
        jaxdiv.cross_entropy_data(student, labels),
        references.label_loss(student, labels),
        rtol=2e-6,
    )


@pytest.mark.parametrize("text", LOSSES)
def test_a_row_that_is_not_a_number_spoils_no_other_and_nothing_where_it_has_no_weight(text):
    student, teacher = RNG.normal(size=(2, 3, 12)).astype(np.float32)
    loss = _loss(text, jnp.arange(3))
    expected = jax.grad(lambda s: loss(s, teacher)[0])(jnp.asarray(student))
    for side in (0, 1):
        pair = [student.copy(), teacher.copy()]
        pair[side][1] = np.nan
        gradient = jax.grad(
            lambda s, t=pair[1]: jaxdiv.reductions.token_mean(
                loss(s, t), jnp.array([1.0, 0.0, 0.0])
            )
        )(jnp.asarray(pair[0]))
        np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-8)


def test_parameters_near_their_ends_are_as_exact_as_others():
    rows = np.array([[0.0, 0.3, 1.0], [2.0, -1.0, 0.5], [0.0, -30.0, 30.0]], np.float32)
    teacher = np.array([[0.0, 1.0, -np.inf], [0.0, 1.0, 0.0], [20.0, 0.0, -20.0]], np.float32)
    for text, limit in [
        ("alpha(alpha=0.9999999)", "kl"),
        ("alpha(alpha=1e-300)", "rkl"),
        ("renyi(alpha=0.9999999)", "kl"),
        ("lk_hybrid(rate=0)", "kl"),
    ]:
        np.testing.assert_allclose(
            jaxdiv.get(text)(rows, teacher), jaxdiv.get(limit)(rows, teacher), rtol=2e-5
        )
    apart = [np.array([[0.0, -np.inf]]), np.array([[-np.inf, 0.0]])]
    np.testing.assert_allclose(jaxdiv.get("skl(alpha=1e-6)")(*apart), -np.log(1e-6), rtol=1e-6)
    lacking = [np.array([[0.0, 0.0, -np.inf]]), np.array([[0.0, 0.0, -2.0]])]
    np.testing.assert_allclose(
        jaxdiv.get("lk_hybrid(rate=300)")(*lacking), jaxdiv.total_variation(*lacking), rtol=1e-6
    )
    assert np.isfinite(
        jax.grad(lambda s: jaxdiv.get("jsd(beta=1e-17)")(s, teacher).sum())(jnp.asarray(rows))
    ).all()


def test_an_empty_student_is_infinitely_far_and_a_confident_class_keeps_its_digits():
    assert np.isposinf(jaxdiv.forward_kl(np.full((9, 7), -np.inf), RNG.normal(size=(9, 7)))).all()
    gradient = jax.grad(lambda s: jaxdiv.reverse_kl(s, jnp.array([-5.0, 0.0])))(
        jnp.array([0.0, -18.0])
    )
    q = np.exp(-18.0) / (1 + np.exp(-18.0))
    np.testing.assert_allclose(gradient, q * (1 - q) * 23 * np.array([1, -1]), rtol=1e-5)


def test_z_loss_is_the_squared_normalizer_and_twice_differentiable():
    student = np.array(
        [[1.0, 2.0, 3.0], [0.0, -np.inf, 7.0], [-np.inf] * 3, [900.0, 0.0, 0.0]], np.float32
    )
    value, gradient = _value_and_gradient("z_loss", student, student)
    empty = np.isneginf(student).all(-1)
    whole = np.where(empty[:, None], 0.0, student)
    normalizer = np.where(empty, 0, references.log_normalizer(whole))
    q = np.where(empty[:, None], 0, np.exp(references.log_softmax(whole)))
    np.testing.assert_allclose(value, normalizer**2, rtol=1e-6)
    np.testing.assert_allclose(gradient, 2 * normalizer[:, None] * q, rtol=1e-5, atol=1e-30)
    hessian = jax.hessian(jaxdiv.z_loss)(jnp.asarray(student[0]))
    fisher = np.diag(q[0]) - np.outer(q[0], q[0])
    np.testing.assert_allclose(
        hessian, 2 * np.outer(q[0], q[0]) + 2 * normalizer[0] * fisher, rtol=1e-5
    )
    np.testing.assert_allclose(
        jaxdiv.get("ce + 1e-4*z_loss")(student[:1], student[:1], temperature=2.0),
        jaxdiv.get("ce")(student[:1], student[:1], temperature=2.0) + 1e-4 * value[:1],
        rtol=1e-6,
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: jaxdiv.forward_kl(np.zeros(3), np.zeros(4)), r"same classes, got 3 and 4"),
        (lambda: jaxdiv.forward_kl(np.zeros(()), np.zeros(4)), r"got a scalar"),
        (
            lambda: jaxdiv.jensen_shannon(np.zeros(3), np.zeros(3), beta=1.0),
            r"`beta` must be in \(0, 1\), got 1.0",
        ),
        (
            lambda: jaxdiv.skew_kl(np.zeros(3), np.zeros(3), alpha=0.0),
            r"`alpha` must be in \(0, 1\), got 0.0",
        ),
        (
            lambda: jaxdiv.alpha_divergence(np.zeros(3), np.zeros(3), alpha=6),
            r"`alpha` must be in \[-4, 5\], got 6",
        ),
        (
            lambda: jaxdiv.renyi(np.zeros(3), np.zeros(3), alpha=0.0),
            r"`alpha` must be in \(0, 5\], got 0.0",
        ),
        (
            lambda: jaxdiv.adaptive_kl(np.zeros(3), np.zeros(3), head=1.0),
            r"`head` must be in \(0, 1\), got 1.0",
        ),
        (
            lambda: jaxdiv.cross_entropy(np.zeros(3), np.zeros(3), smoothing=1.0),
            r"`smoothing` must be in \[0, 1\), got",
        ),
        (
            lambda: jaxdiv.cross_entropy_top_k(np.zeros(3), np.zeros(3), k=4),
            r"whole number from 1 to the 3 classes, got 4",
        ),
        (
            lambda: jaxdiv.lk_hybrid(np.zeros(3), np.zeros(3), rate=-1.0),
            r"`rate` must be in \[0, inf\), got -1.0",
        ),
        (
            lambda: jaxdiv.cross_entropy_data(np.zeros((2, 3)), np.zeros(2)),
            r"`labels` must be integers",
        ),
        (
            lambda: jaxdiv.cross_entropy_data(np.zeros((2, 3)), np.zeros(3, int)),
            r"rows' shape \(2,\), got \(3,\)",
        ),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
