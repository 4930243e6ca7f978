"""Values and gradients of every loss against float64 definitions, at edges, under transforms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import jaxdiv
from tests import cases, references

LOSSES = [
    *(name for name in jaxdiv.names() if name != "cross_entropy_top_k"),
    "ce_top_k(k=4)", "ce_data(smoothing=0.2)", "alpha(alpha=5)", "alpha(alpha=-4)",
    "alpha(alpha=0.9)", "alpha(alpha=0)", "renyi(alpha=0.2)", "renyi(alpha=5)", "jsd(beta=0.1)",
    "skl(alpha=0.6)", "lk_hybrid(rate=1)", "0.7*kl + 0.3*tv",
]  # fmt: skip
SOFT = sorted(references.VALUES)
# Losses that are 0, with a gradient of 0, where student and teacher agree.
DIVERGENCES = [t for t in SOFT if not t.startswith(("cross_entropy", "negative_acceptance"))]
RNG = np.random.default_rng(1)


def _loss(text, labels):
    loss = jaxdiv.get(text)
    return lambda student, teacher: loss(
        student, teacher, labels=labels if loss.needs_labels else None
    )


def _value_and_gradient(text, student, teacher, labels=None):
    loss, teacher = _loss(text, labels), jnp.asarray(teacher)
    values, pull = jax.vjp(lambda s: loss(s, teacher), jnp.asarray(student))
    return np.asarray(values, np.float64), np.asarray(pull(jnp.ones_like(values))[0], np.float64)


def _error(got, expected):
    size = np.linalg.norm(expected, axis=-1)
    return np.linalg.norm(got - expected, axis=-1) / np.maximum(size, 1e-30)


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
    if name.startswith("cross_entropy"):  # q - p, exact to the precision of a probability
        assert_allclose(gradient, expected, atol=3e-7)
    else:
        # At a kink, r = 0, rounding may decide the side.
        assert _error(gradient, expected)[ratio.min(-1) > 1e-6].max(initial=0) < 4e-6
        assert _error(gradient, expected).max() < 1e-2


@pytest.mark.parametrize("name", SOFT)
def test_compiled_with_a_temperature_agrees(name):
    """Tests a division that XLA may fuse with maximum and exponential, rounded in two ways."""
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
        assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_digits_survive_near_equality(name):
    teacher = RNG.normal(size=(4, 131072)).astype(np.float32)
    distances = np.array([[1e-1], [1e-2], [1e-3], [1e-4]])
    student = (teacher + distances * RNG.normal(size=teacher.shape)).astype(np.float32)
    value, gradient = _value_and_gradient(name, student, teacher)
    assert_allclose(value, references.VALUES[name](student, teacher), rtol=2e-6)
    assert _error(gradient, references.gradient(name, student, teacher)).max() < 2e-6


# All edges as one stack, so that tests share what they compile.
EDGES = {**cases.FINITE, **cases.SUPPORT}
EDGE_STUDENT, EDGE_TEACHER = cases.stacked(EDGES)
EDGE_LABELS = jnp.asarray(cases.labels(EDGES))


@functools.cache
def _at_edges(text):
    return _value_and_gradient(text, EDGE_STUDENT, EDGE_TEACHER, EDGE_LABELS)


@pytest.mark.parametrize("name", SOFT)
def test_edges_agree_with_the_definition(name):
    count = len(cases.FINITE)
    value, gradient = (x[:count] for x in _at_edges(name))
    expected = references.VALUES[name](EDGE_STUDENT[:count], EDGE_TEACHER[:count])
    inside = expected < np.finfo(np.float32).max
    assert inside.sum() >= len(expected) - 2
    # float64 itself has no digits of values near its own 1e-16.
    assert_allclose(value[inside], expected[inside], rtol=2e-5, atol=1e-13)
    assert np.isposinf(value[~inside]).all()
    assert np.isfinite(gradient).all()
    size = np.abs(gradient).sum(-1)
    # Where both sides share nothing, a bounded loss is flat, and only the rounding of q remains.
    sloped = inside & (size > 3e-7)
    assert sloped.sum() >= 4
    assert_allclose((gradient.sum(-1) / size.clip(1e-30))[sloped], 0, atol=1e-5)


# Losses whose float64 definition takes a logarithm of 0.
_DISJOINT = {"negative_log_acceptance": np.inf, "negative_acceptance": 0}


@pytest.mark.parametrize("name", SOFT)
def test_missing_classes_are_infinite_only_where_defined(name):
    rows = [i for i, case in enumerate(EDGES) if case in cases.SUPPORT and case != "nothing"]
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = references.VALUES[name](EDGE_STUDENT[rows], EDGE_TEACHER[rows])
    if name in _DISJOINT:
        expected[list(cases.SUPPORT).index("disjoint")] = _DISJOINT[name]
    assert_allclose(_at_edges(name)[0][rows], expected, rtol=2e-6)


@pytest.mark.parametrize("text", LOSSES)
def test_nothing_is_nan_at_the_edges(text):
    """Tests value, gradient and Hessian product."""
    loss = _loss(text, EDGE_LABELS)
    direction = jnp.asarray(RNG.normal(size=EDGE_STUDENT.shape), jnp.float32)

    def gradient(s):
        return jax.grad(lambda s: loss(s, EDGE_TEACHER).sum())(s)

    product = jax.jvp(gradient, (jnp.asarray(EDGE_STUDENT),), (direction,))
    for array in (_at_edges(text)[0], *product):
        assert not np.isnan(array).any()


@pytest.mark.parametrize("text", LOSSES)
def test_nan_and_infinite_logits_have_no_loss(text):
    """Tests that a metric of them is never 0, which would look like a perfect student."""
    student = jnp.zeros((3, 512)).at[0].set(jnp.nan).at[1, 7].set(jnp.nan).at[2, 7].set(jnp.inf)
    teacher = jnp.broadcast_to(jnp.linspace(0.0, 5.0, 512), student.shape)
    assert np.isnan(jax.jit(_loss(text, jnp.full(3, 4)))(student, teacher)).all()


@pytest.mark.parametrize("text", LOSSES)
def test_jit_vmap_and_both_agree_with_plain(text):
    def row(s, t, label):
        return _loss(text, label)(s, t)

    def every(*arrays):  # as one program, which halves the time to compile
        return row(*arrays), jax.vmap(row)(*arrays)

    arrays, count = (EDGE_STUDENT, EDGE_TEACHER, EDGE_LABELS), len(cases.FINITE)
    for values in (*jax.jit(every)(*arrays), jax.vmap(row)(*arrays)):
        expected = _at_edges(text)[0][:count]
        assert_allclose(values[:count], expected, rtol=1e-6, atol=1e-30)


# The weights of lk_hybrid and adaptive_kl are constants for the gradient alone.
TWICE_EXACT = [name for name in SOFT if name not in ("lk_hybrid", "adaptive_kl")]


@pytest.mark.parametrize("name", TWICE_EXACT)
def test_hessian_agrees_with_differences_of_the_gradient(name):
    with jax.enable_x64(True):
        teacher = RNG.normal(size=8)
        student = teacher + RNG.normal(size=8)
        step = 1e-5 * np.eye(8)
        ahead, behind = (
            references.gradient(name, student + sign * step, np.tile(teacher, (8, 1)))
            for sign in (1, -1)
        )
        hessian = _hessian(name, student, teacher)
    assert_allclose(hessian, (ahead - behind) / 2e-5, rtol=1e-6, atol=1e-8)


def _hessian(text, student, teacher):
    return jax.hessian(lambda s: jaxdiv.get(text)(s, jnp.asarray(teacher)))(jnp.asarray(student))


FISHER_FACTORS = {
    "ce": 1, "kl": 1, "rkl": 1, "jeffreys": 2, "jsd": 0.25, "jsd(beta=0.3)": 0.21,
    "rjsd(beta=0.3)": 0.21, "alpha": 1, "alpha(alpha=0.2)": 1, "alpha(alpha=0.999)": 1,
    "alpha(alpha=-3)": 1, "hellinger": 0.25, "skl": 0.81, "srkl(alpha=0.4)": 0.36,
    "renyi(alpha=0.3)": 0.3, "renyi(alpha=3)": 3, "bhattacharyya": 0.25, "pearson": 2, "neyman": 2,
    "akl": 1,
}  # fmt: skip


@pytest.mark.parametrize(("text", "factor"), FISHER_FACTORS.items())
def test_curvature_at_equality_is_fisher_information(text, factor):
    with jax.enable_x64(True):
        logits = RNG.normal(size=8)
        hessian, q = _hessian(text, logits, logits), jax.nn.softmax(jnp.asarray(logits))
    expected = factor * (np.diag(q) - np.outer(q, q))
    assert_allclose(hessian, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", SOFT)
def test_float64_stays_float64(name):
    with jax.enable_x64(True):
        teacher = RNG.normal(size=(5, 50)) * 2
        student = teacher + 0.3 * RNG.normal(size=teacher.shape)
        value, gradient = _value_and_gradient(name, student, teacher)
    assert_allclose(value, references.VALUES[name](student, teacher), rtol=1e-12)
    assert _error(gradient, references.gradient(name, student, teacher)).max() < 1e-12


@pytest.mark.parametrize("text", LOSSES)
def test_absent_classes_axis_types_and_constant_teacher(text):
    student, teacher = RNG.normal(size=(2, 3, 10)).astype(np.float32)
    where, labels = np.arange(10) < 7, np.full(3, 4)
    loss = functools.partial(jaxdiv.get(text), labels=labels)
    expected = loss(student[:, :7], teacher[:, :7])
    assert_allclose(loss(student, teacher, where=where), expected, rtol=2e-6)
    by_axis = loss(student.T, teacher.T, axis=0, where=where[:, None])
    assert_allclose(by_axis, expected, rtol=2e-6)
    low = [jnp.asarray(side, jnp.bfloat16) for side in (student, teacher)]
    value, rounded = loss(*low), loss(*(x.astype(jnp.float32) for x in low))
    assert value.dtype == jnp.float32
    assert_allclose(value, rounded, rtol=1e-6)
    by_teacher = jax.grad(lambda t: loss(jnp.asarray(student), t).sum())(jnp.asarray(teacher))
    assert not jnp.any(by_teacher)


def test_identities():
    teacher = RNG.normal(size=(50, 40)).astype(np.float32)
    student = (teacher + 2 * RNG.normal(size=teacher.shape)).astype(np.float32)

    def close(text, expected, rtol=2e-6, **exchanged):
        sides = (teacher, student) if exchanged else (student, teacher)
        assert_allclose(jaxdiv.get(text)(*sides), expected, rtol=rtol, err_msg=text)

    exchanged = {"exchanged": True}
    kl, tv = jaxdiv.forward_kl(student, teacher), jaxdiv.total_variation(student, teacher)
    entropy = jaxdiv.cross_entropy(teacher, teacher)
    assert_allclose(jaxdiv.cross_entropy(student, teacher) - entropy, kl, rtol=1e-5)
    close("rkl", kl, **exchanged)
    accepted = jnp.exp(-jaxdiv.negative_log_acceptance(student, teacher))
    assert_allclose(accepted, 1 - tv, rtol=2e-6)
    assert (tv <= jnp.sqrt(kl / 2)).all()
    close("jsd(beta=0.7)", jaxdiv.jensen_shannon(student, teacher, beta=0.3), **exchanged)
    hellinger = jaxdiv.squared_hellinger(student, teacher)
    close("0.25*alpha", hellinger)
    close("hellinger", hellinger, **exchanged)
    for end, limit in ((kl, 1), (jaxdiv.reverse_kl(student, teacher), 0)):
        close(f"alpha(alpha={abs(limit - 1e-6)})", end, rtol=2e-5)
        exact = jaxdiv.alpha_divergence(student, teacher, alpha=limit)
        assert_array_equal(exact, end)
    close("srkl", jaxdiv.skew_kl(student, teacher), **exchanged)
    for text in DIVERGENCES:
        assert_array_equal(jaxdiv.get(text)(teacher, teacher), 0)


def test_parameters_and_labels_reach_the_value():
    student, teacher = RNG.normal(size=(2, 6, 12)).astype(np.float32)
    expected = {
        "jsd(beta=0.2)": references.jensen_shannon(student, teacher, beta=0.2),
        "skl(alpha=0.7)": references.skew_kl(student, teacher, alpha=0.7),
        "lk_hybrid(rate=0.5)": references.lk_hybrid(student, teacher, rate=0.5),
        "ce_data": references.label_loss(student, np.arange(6)),
    }
    for text, value in expected.items():
        actual = jaxdiv.get(text)(student, teacher, labels=np.arange(6))
        assert_allclose(actual, value, rtol=2e-6, err_msg=text)
    for alpha in (0.05, 0.45, 0.6, 0.97):
        value = jaxdiv.get(f"alpha(alpha={alpha})")(student, teacher)
        exact = references.alpha_divergence(student, teacher, alpha=alpha)
        assert_allclose(value, exact, rtol=3e-6)


@pytest.mark.parametrize("text", LOSSES)
def test_a_row_of_nan_without_weight_spoils_no_other(text):
    student, teacher = RNG.normal(size=(2, 3, 10)).astype(np.float32)
    loss, weights = _loss(text, jnp.arange(3)), jnp.array([1.0, 0.0, 0.0])

    def gradient(student, teacher):
        mean = lambda s: jaxdiv.reductions.token_mean(loss(s, teacher), weights)  # noqa: E731
        return jax.grad(mean)(jnp.asarray(student))

    expected = jax.grad(lambda s: loss(s, teacher)[0])(jnp.asarray(student))
    for side in (0, 1):
        pair = [student.copy(), teacher.copy()]
        pair[side][1] = np.nan
        assert_allclose(gradient(*pair), expected, rtol=1e-6, atol=1e-8)


def test_parameters_near_their_ends_are_as_exact_as_others():
    rows = np.array([[0.0, 0.3, 1.0], [2.0, -1.0, 0.5], [0.0, -30.0, 30.0]], np.float32)
    teacher = np.array([[0.0, 1.0, -np.inf], [0.0, 1.0, 0.0], [20.0, 0.0, -20.0]], np.float32)
    for text, limit in [
        ("alpha(alpha=0.9999999)", "kl"),
        ("alpha(alpha=1e-300)", "rkl"),
        ("renyi(alpha=0.9999999)", "kl"),
        ("lk_hybrid(rate=0)", "kl"),
    ]:
        value, expected = (jaxdiv.get(name)(rows, teacher) for name in (text, limit))
        assert_allclose(value, expected, rtol=2e-5)
    apart = [np.array([[0.0, -np.inf]]), np.array([[-np.inf, 0.0]])]
    assert_allclose(jaxdiv.get("skl(alpha=1e-6)")(*apart), -np.log(1e-6), rtol=1e-6)
    lacking = [np.array([[0.0, 0.0, -np.inf]]), np.array([[0.0, 0.0, -2.0]])]
    hybrid, variation = (jaxdiv.get(text)(*lacking) for text in ("lk_hybrid(rate=300)", "tv"))
    assert_allclose(hybrid, variation, rtol=1e-6)
    total = lambda s: jaxdiv.get("jsd(beta=1e-17)")(s, teacher).sum()  # noqa: E731
    assert np.isfinite(jax.grad(total)(jnp.asarray(rows))).all()


def test_an_empty_student_is_infinitely_far():
    assert np.isposinf(jaxdiv.forward_kl(np.full((9, 7), -np.inf), RNG.normal(size=(9, 7)))).all()


def test_a_confident_class_keeps_its_digits():
    loss = lambda s: jaxdiv.reverse_kl(s, jnp.array([-5.0, 0.0]))  # noqa: E731
    gradient, q = jax.grad(loss)(jnp.array([0.0, -18.0])), np.exp(-18.0) / (1 + np.exp(-18.0))
    assert_allclose(gradient, q * (1 - q) * 23 * np.array([1, -1]), rtol=1e-5)


def test_z_loss_is_the_squared_normalizer():
    rows = [[1.0, 2.0, 3.0], [0.0, -np.inf, 7.0], [-np.inf] * 3, [900.0, 0.0, 0.0]]
    student = np.array(rows, np.float32)
    value, gradient = _value_and_gradient("z_loss", student, student)
    empty = np.isneginf(student).all(-1)
    whole = np.where(empty[:, None], 0.0, student)
    normalizer = np.where(empty, 0, references.log_normalizer(whole))
    q = np.where(empty[:, None], 0, np.exp(references.log_softmax(whole)))
    assert_allclose(value, normalizer**2, rtol=1e-6)
    assert_allclose(gradient, 2 * normalizer[:, None] * q, rtol=1e-5, atol=1e-30)
    hessian = jax.hessian(jaxdiv.z_loss)(jnp.asarray(student[0]))
    fisher = np.diag(q[0]) - np.outer(q[0], q[0])
    expected = 2 * np.outer(q[0], q[0]) + 2 * normalizer[0] * fisher
    assert_allclose(hessian, expected, rtol=1e-5)
    sides = student[:1], student[:1]
    whole, ce = (jaxdiv.get(t)(*sides, temperature=2.0) for t in ("ce + 1e-4*z_loss", "ce"))
    assert_allclose(whole, ce + 1e-4 * value[:1], rtol=1e-6)


def _refuse(function, *arrays, **options):
    return lambda: function(*map(np.zeros, arrays), **options)


REFUSED = {
    "same classes, got 3 and 4": _refuse(jaxdiv.forward_kl, 3, 4),
    "got a scalar": _refuse(jaxdiv.forward_kl, (), 4),
    r"`beta` must be in \(0, 1\), got 1.0": _refuse(jaxdiv.jensen_shannon, 3, 3, beta=1.0),
    r"`alpha` must be in \(0, 1\), got 0.0": _refuse(jaxdiv.skew_kl, 3, 3, alpha=0.0),
    r"`alpha` must be in \[-4, 5\], got 6": _refuse(jaxdiv.alpha_divergence, 3, 3, alpha=6),
    r"`alpha` must be in \(0, 5\], got 0.0": _refuse(jaxdiv.renyi, 3, 3, alpha=0.0),
    r"`head` must be in \(0, 1\), got 1.0": _refuse(jaxdiv.adaptive_kl, 3, 3, head=1.0),
    r"`smoothing` must be in \[0, 1\), got": _refuse(jaxdiv.cross_entropy, 3, 3, smoothing=1.0),
    "number from 1 to the 3 classes, got 4": _refuse(jaxdiv.cross_entropy_top_k, 3, 3, k=4),
    r"`rate` must be in \[0, inf\), got -1.0": _refuse(jaxdiv.lk_hybrid, 3, 3, rate=-1.0),
    "`labels` must be integers": _refuse(jaxdiv.cross_entropy_data, (2, 3), 2),
    r"rows' shape \(2,\), got \(3,\)": (
        lambda: jaxdiv.cross_entropy_data(np.zeros((2, 3)), np.zeros(3, int))
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_wrong_arguments_are_refused(message):
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()
