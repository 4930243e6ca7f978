"""Exactness of the losses: against mpmath, beyond float32's range, in low precision, by law."""

import hypothesis
import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from numpy.testing import assert_allclose

import jaxdiv
from tests import references, runs

RNG = np.random.default_rng(12)
LARGEST, SMALLEST = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)


def _power_mean(p, q, alpha):
    return mpmath.fsum(
        x ** mpmath.mpf(alpha) * y ** (1 - mpmath.mpf(alpha)) for x, y in zip(p, q, strict=True)
    )


def _kl(p, q):
    return mpmath.fsum(x * mpmath.log(x / y) for x, y in zip(p, q, strict=True))


def _mix(p, q, weight):
    return [weight * x + (1 - weight) * y for x, y in zip(p, q, strict=True)]


def _common(p, q):
    return mpmath.fsum(min(x, y) for x, y in zip(p, q, strict=True))


def _jensen_shannon(p, q, beta):
    mixture = _mix(p, q, beta)
    return beta * _kl(p, mixture) + (1 - beta) * _kl(q, mixture)


def _hybrid(p, q):
    weight = mpmath.exp(-3 * _common(p, q))
    return weight * _kl(p, q) + (1 - weight) * (1 - _common(p, q))


def _alpha(alpha):
    alpha = mpmath.mpf(alpha)
    return lambda p, q: (1 - _power_mean(p, q, alpha)) / (alpha * (1 - alpha))


def _renyi(alpha):
    return lambda p, q: mpmath.log(_power_mean(p, q, alpha)) / (mpmath.mpf(alpha) - 1)


# By text, of probabilities as mpmath numbers, from the definitions.
EXACT = {
    "ce": lambda p, q: -mpmath.fsum(x * mpmath.log(y) for x, y in zip(p, q, strict=True)),
    "ce_argmax": lambda p, q: -mpmath.log(q[max(range(len(p)), key=lambda i: p[i])]),
    "kl": _kl,
    "rkl": lambda p, q: _kl(q, p),
    "jeffreys": lambda p, q: _kl(p, q) + _kl(q, p),
    "jsd(beta=0.25)": lambda p, q: _jensen_shannon(p, q, mpmath.mpf("0.25")),
    "rjsd(beta=0.25)": lambda p, q: _jensen_shannon(q, p, mpmath.mpf("0.25")),
    "skl(alpha=0.125)": lambda p, q: _kl(p, _mix(p, q, mpmath.mpf("0.125"))),
    "srkl(alpha=0.125)": lambda p, q: _kl(q, _mix(q, p, mpmath.mpf("0.125"))),
    "skl(alpha=0.99999)": lambda p, q: _kl(p, _mix(p, q, mpmath.mpf(0.99999))),
    "srkl(alpha=0.99999)": lambda p, q: _kl(q, _mix(q, p, mpmath.mpf(0.99999))),
    "alpha(alpha=0.75)": _alpha(0.75),
    "alpha(alpha=-2.5)": _alpha(-2.5),
    "alpha(alpha=3)": _alpha(3),
    "renyi(alpha=0.25)": _renyi(0.25),
    "renyi(alpha=3)": _renyi(3),
    "bhattacharyya": lambda p, q: -mpmath.log(_power_mean(p, q, 0.5)),
    "hellinger": lambda p, q: 1 - _power_mean(p, q, 0.5),
    "pearson": lambda p, q: mpmath.fsum((y - x) ** 2 / y for x, y in zip(p, q, strict=True)),
    "neyman": lambda p, q: mpmath.fsum((y - x) ** 2 / x for x, y in zip(p, q, strict=True)),
    "tv": lambda p, q: mpmath.fsum(abs(y - x) for x, y in zip(p, q, strict=True)) / 2,
    "negative_acceptance": lambda p, q: -_common(p, q),
    "nla": lambda p, q: -mpmath.log(_common(p, q)),
    "lk_hybrid": _hybrid,
}


def _probabilities(logits):
    weights = [mpmath.exp(mpmath.mpf(float(z))) for z in logits]
    return [w / mpmath.fsum(weights) for w in weights]


def _exact(texts, student, teacher):
    """Returns {text: [rows] of mpmath numbers} for logits [rows, V]."""
    with mpmath.workdps(1200):
        pairs = [
            (_probabilities(t), _probabilities(s)) for s, t in zip(student, teacher, strict=True)
        ]
        return {text: [EXACT[text](p, q) for p, q in pairs] for text in texts}


def _relative_errors(values, exact):
    return np.array(
        [abs(float((mpmath.mpf(float(v)) - e) / e)) for v, e in zip(values, exact, strict=True)]
    )


def test_float64_is_exact_to_1e_12():
    teacher = np.concatenate([RNG.normal(size=(3, 7)) * 3, RNG.normal(size=(3, 7))])
    student = teacher + np.concatenate([RNG.normal(size=(3, 7)), 1e-3 * RNG.normal(size=(3, 7))])
    exact = _exact(EXACT, student, teacher)
    with jax.enable_x64(True):
        for text in EXACT:
            errors = _relative_errors(jaxdiv.get(text)(student, teacher), exact[text])
            assert errors.max() < 1e-12, text


SCALES = [10, 30, 60, 100, 200, 300, 1e4]


def test_large_logits_are_exact_while_float32_holds_the_value():
    student, teacher = (
        np.concatenate([scale * RNG.normal(size=(2, 9)) for scale in SCALES]).astype(np.float32)
        for _ in range(2)
    )
    # One rounding of a logit can move the value by as much as the largest log ratio.
    ratio = np.maximum(1, np.abs(references.log_ratio(student, teacher)).max(-1))
    exact = _exact(EXACT, student, teacher)
    for text in EXACT:
        value, pull = jax.vjp(
            lambda s, text=text: jaxdiv.get(text)(s, teacher), jnp.asarray(student)
        )
        inside = np.array([SMALLEST < abs(e) < LARGEST for e in exact[text]])
        expected = [exact[text][i] for i in np.flatnonzero(inside)]
        errors = _relative_errors(np.asarray(value)[inside], expected)
        assert (errors / ratio[inside]).max() < 2e-6, text
        beyond = np.array([np.inf if abs(e) >= LARGEST else 0 for e in exact[text]])[~inside]
        assert_allclose(value[~inside], beyond, atol=10 * SMALLEST, err_msg=text)
        assert not np.isnan(pull(jnp.ones_like(value))[0]).any(), text
        if not text.startswith(("alpha", "pearson", "neyman")):
            assert np.isfinite(value).all(), text


@pytest.mark.parametrize("scale", [0.01, 1, 5])
def test_gradients_of_skewed_mixtures_keep_their_digits(scale):
    """Compares with plain derivatives in float64: q·w and -q·(log(q/M) - α·q/M), centered."""
    alpha = 0.999
    teacher = RNG.normal(size=(4, 9)).astype(np.float32)
    student = (teacher + scale * RNG.normal(size=teacher.shape)).astype(np.float32)
    p, q = (np.exp(references.log_softmax(side)) for side in (teacher, student))
    log_mixture = np.log1p((1 - alpha) * (p / q - 1))
    slopes = {
        "skl": -(1 - alpha) * q * p / (alpha * p + (1 - alpha) * q),
        "srkl": -q * (log_mixture + alpha * q / (alpha * q + (1 - alpha) * p)),
    }
    for name, slope in slopes.items():
        expected = slope - q * slope.sum(-1, keepdims=True)
        loss = jaxdiv.get(f"{name}(alpha={alpha})")
        gradient = jax.grad(lambda s, loss=loss: loss(s, teacher).sum())(jnp.asarray(student))
        tolerance = 2e-6 * np.abs(expected).max()
        assert_allclose(gradient, expected, atol=tolerance, err_msg=name)


def test_gradients_of_chi_squared_are_right_up_to_overflow():
    """Compares with q·Σp²/q - p²/q in float64, from logits whose ratio reaches e^40."""
    teacher = np.float32([[0.0, -20.0, 3.0, 1.0], [0.0, 0.0, 30.0, 1.0]])
    student = np.float32([[0.0, -60.0, 1.0, 2.0], [40.0, 0.0, 1.0, 1.0]])
    a, b = references.log_softmax(teacher), references.log_softmax(student)
    weights, q = np.exp(2 * a - b), np.exp(b)
    total = lambda s: jaxdiv.pearson_chi_squared(s, teacher).sum()  # noqa: E731
    gradient = jax.grad(total)(jnp.asarray(student))
    assert_allclose(gradient, q * weights.sum(-1, keepdims=True) - weights, rtol=1e-4)


NAIVE = {
    "kl": lambda a, b: jnp.sum(jnp.exp(a) * (a - b), -1),
    "rkl": lambda a, b: jnp.sum(jnp.exp(b) * (b - a), -1),
    "tv": lambda a, b: 0.5 * jnp.sum(jnp.abs(jnp.exp(a) - jnp.exp(b)), -1),
    "hellinger": lambda a, b: 0.5 * jnp.sum((jnp.exp(a / 2) - jnp.exp(b / 2)) ** 2, -1),
    "ce": lambda a, b: -jnp.sum(jnp.exp(a) * b, -1),
}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_inputs_cost_only_their_rounding(dtype):
    teacher = 5 * RNG.normal(size=(8, 1001))
    pair = [jnp.asarray(z, dtype) for z in (teacher + RNG.normal(size=teacher.shape), teacher)]
    rounded = [np.asarray(z.astype(jnp.float32), np.float64) for z in pair]
    a, b = (jax.nn.log_softmax(z.astype(jnp.float32)) for z in pair[::-1])
    for text, naive in NAIVE.items():
        exact = references.VALUES[jaxdiv.get(text).parts[0].name](*rounded)
        value, plain = np.asarray(jaxdiv.get(text)(*pair)), np.asarray(naive(a, b))
        assert value.dtype == np.float32
        assert np.abs(value - exact).max() <= np.abs(plain - exact).max() + 1e-6, text
    hot = jnp.asarray([[60000.0, -60000.0, 100.0]], dtype)  # a difference leaves float16
    for text in EXACT:
        gradient = jax.grad(lambda s, text=text: jaxdiv.get(text)(s, hot[:, ::-1]).sum())(hot)
        assert not np.isnan(gradient).any(), text


LOGITS = arrays.arrays(np.float32, (2, 6), elements=st.floats(-30, 30, width=32))
DIVERGENCES = [text for text in EXACT if not text.startswith("ce")]
SETTINGS = hypothesis.settings(max_examples=60)


@jax.jit
def _all(student, teacher):
    def one(text):
        return jax.value_and_grad(lambda s: jaxdiv.get(text)(s, teacher))(student)

    return {text: one(text) for text in DIVERGENCES}


@hypothesis.given(LOGITS, st.floats(-50, 50, width=32))
@SETTINGS
def test_laws(pair, shift):
    """Tests sign, equality, shift invariance, Σ dD/dz = 0, Pinsker, acceptance = 1 - TV, orders."""
    student, teacher = map(jnp.asarray, pair)
    plain, same = _all(student, teacher), _all(teacher, teacher)
    shifted = _all(student + shift, teacher - shift)
    # The rounding error of a shift, times the largest slope of a loss, the log ratio.
    rounding = 60 * np.spacing(np.float32(80)) * 8
    ratio = max(1, np.abs(references.log_ratio(student, teacher)).max())
    for text, (value, slope) in plain.items():
        floor = -1 if text == "negative_acceptance" else 0
        assert value >= floor, text
        assert np.abs(np.asarray(same[text][0]) - floor) <= 2e-7, text
        size = float(jnp.abs(slope).sum())
        if np.isfinite(value) and size < 1e30:
            assert abs(float(slope.sum())) <= 1e-5 * size + 1e-6 * ratio, text
        if text not in ("pearson", "neyman", "alpha(alpha=-2.5)", "alpha(alpha=3)"):
            tolerance = {"rtol": rounding, "atol": rounding}
            assert_allclose(shifted[text][0], value, **tolerance, err_msg=text)
    value = {text: float(v) for text, (v, _) in plain.items()}
    assert value["tv"] <= np.sqrt(value["kl"] / 2) + 1e-6
    assert_allclose(-value["negative_acceptance"], 1 - value["tv"], atol=1e-6)
    assert_allclose(np.exp(-value["nla"]), -value["negative_acceptance"], rtol=1e-5)
    assert value["hellinger"] - 1e-6 <= value["tv"] <= np.sqrt(2 * value["hellinger"]) + 1e-6
    assert value["renyi(alpha=0.25)"] <= value["kl"] * (1 + 1e-5) + 1e-6
    assert value["kl"] <= value["renyi(alpha=3)"] * (1 + 1e-5) + 1e-6


@hypothesis.given(LOGITS, st.floats(0.05, 0.95))
@SETTINGS
def test_symmetries_and_directions(pair, weight):
    student, teacher = map(jnp.asarray, pair)
    for first, second in [
        (jaxdiv.jensen_shannon(student, teacher), jaxdiv.jensen_shannon(teacher, student)),
        (jaxdiv.total_variation(student, teacher), jaxdiv.total_variation(teacher, student)),
        (jaxdiv.pearson_chi_squared(student, teacher), jaxdiv.neyman_chi_squared(teacher, student)),
    ]:
        assert_allclose(first, second, rtol=2e-5, atol=1e-12)
    swapped = jaxdiv.get(f"rjsd(beta={weight:.3f})")(student, teacher)
    direct = jaxdiv.get(f"jsd(beta={weight:.3f})")(teacher, student)
    assert_allclose(swapped, direct, rtol=2e-5, atol=1e-12)


LIMITS = {
    "alpha(alpha=0.99999)": "kl", "alpha(alpha=1.00001)": "kl", "alpha(alpha=0.00001)": "rkl",
    "alpha(alpha=-0.00001)": "rkl", "renyi(alpha=0.99999)": "kl", "renyi(alpha=1.00001)": "kl",
    "renyi(alpha=1)": "kl", "skl(alpha=0.00001)": "kl", "srkl(alpha=0.00001)": "rkl",
    "lk_hybrid(rate=0)": "kl", "lk_hybrid(rate=1e9)": "tv", "2*alpha(alpha=2)": "pearson",
    "2*alpha(alpha=-1)": "neyman", "0.25*alpha": "hellinger", "0.5*renyi": "bhattacharyya",
    "100000*jsd(beta=0.00001)": "kl", "100000*rjsd(beta=0.00001)": "rkl",
}  # fmt: skip


@pytest.mark.parametrize(("text", "limit"), LIMITS.items())
def test_limits(text, limit):
    teacher = RNG.normal(size=(6, 50)).astype(np.float32)
    student = (teacher + RNG.normal(size=teacher.shape)).astype(np.float32)
    value, expected = (jaxdiv.get(name)(student, teacher) for name in (text, limit))
    assert_allclose(value, expected, rtol=3e-4)


def test_transformations_give_the_same():
    teacher = RNG.normal(size=(8, 33)).astype(np.float32)
    student = jnp.asarray(teacher + RNG.normal(size=teacher.shape), jnp.float32)

    @jax.jit
    def gradients(student):
        every = []
        for text in ("kl", "tv", "renyi", "nla", "akl", "ce"):
            loss = jaxdiv.get(text)
            total = lambda s, loss=loss: loss(s, teacher).sum()  # noqa: E731
            by_row = jax.vmap(jax.grad(loss))(student, teacher)
            kinds = (jax.grad(total), jax.jacfwd(total), jax.grad(jax.checkpoint(total)))
            every.append([*(kind(student) for kind in kinds), by_row])
        return every

    for expected, *others in gradients(student):
        for other in others:
            assert_allclose(other, expected, rtol=1e-5, atol=1e-7)


def test_losses_and_fused_losses_sharded_over_eight_devices_are_the_same():
    devices = "--xla_force_host_platform_device_count=8"
    process = runs.end(runs.start_python("-m", "tests.sharded_losses", XLA_FLAGS=devices))
    assert process.returncode == 0, process.stderr[-2000:]
