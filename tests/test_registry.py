"""Losses from text: names, sums, parameters, temperatures, refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import jaxdiv
from jaxdiv import divergences
from jaxdiv.divergences.registry import ENTRIES

RNG = np.random.default_rng(2)
STUDENT, TEACHER = (jnp.asarray(x, jnp.float32) for x in RNG.normal(size=(2, 20, 64)))
LABELS = jnp.asarray(RNG.integers(64, size=20))
ALIASES = {
    "ce": "cross_entropy", "ce_argmax": "cross_entropy_argmax", "ce_data": "cross_entropy_data",
    "ce_top_k": "cross_entropy_top_k", "kl": "forward_kl", "rkl": "reverse_kl",
    "akl": "adaptive_kl", "jsd": "jensen_shannon", "rjsd": "reverse_jensen_shannon",
    "skl": "skew_kl", "srkl": "skew_reverse_kl", "alpha": "alpha_divergence",
    "hellinger": "squared_hellinger", "pearson": "pearson_chi_squared",
    "neyman": "neyman_chi_squared", "tv": "total_variation", "nla": "negative_log_acceptance",
}  # fmt: skip


def _value(text, **options):
    return jaxdiv.get(text)(STUDENT, TEACHER, labels=LABELS, **options)


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_aliases_are_their_functions(alias, name):
    target = LABELS if name == "cross_entropy_data" else TEACHER
    assert_array_equal(_value(alias), getattr(jaxdiv, name)(STUDENT, target))
    assert_array_equal(_value(alias), _value(name))


def test_the_registry_and_the_front_agree():
    assert jaxdiv.names() == tuple(sorted(ENTRIES))
    assert jaxdiv.__all__ == sorted(jaxdiv.__all__)
    for name in jaxdiv.names():
        assert name in jaxdiv.__all__
        assert ENTRIES[name].function is getattr(jaxdiv, name)
        assert jaxdiv.get(name).needs_labels == (name == "cross_entropy_data")
    assert all(hasattr(jaxdiv, name) for name in jaxdiv.__all__)


def test_sums_and_parameters():
    jsd = jaxdiv.jensen_shannon(STUDENT, TEACHER, beta=0.2)
    expected = 0.7 * jaxdiv.forward_kl(STUDENT, TEACHER) + 0.3 * jsd
    assert_allclose(_value(" 0.7*kl + .3 * jsd( beta = 0.2 ) "), expected, rtol=1e-6)
    expected = _value("kl") + 0.1 * _value("ce_data")
    assert_allclose(_value("kl+1e-1*ce_data"), expected, rtol=1e-6)
    assert_allclose(_value("lk_hybrid(rate=0)"), _value("kl"), rtol=1e-6)
    assert jaxdiv.get("kl + ce_data").needs_labels


def test_a_loss_is_frozen_hashable_and_keeps_its_text():
    loss = jaxdiv.get("  0.7*kl + 0.3*tv ")
    assert loss.text == "0.7*kl + 0.3*tv"
    assert {loss: 1}[jaxdiv.get("0.7*kl + 0.3*tv")] == 1
    assert loss != jaxdiv.get("0.7*kl + 0.4*tv")
    with pytest.raises(dataclasses.FrozenInstanceError):
        loss.text = "kl"


@pytest.mark.parametrize("text", [name for name in jaxdiv.names() if name != "cross_entropy_data"])
def test_the_factor_keeps_the_gradients_size(text):
    def total(student, temperature):
        return jaxdiv.get(text)(student, TEACHER, temperature=temperature).sum()

    near, far = (jnp.linalg.norm(jax.grad(total)(STUDENT, t)) for t in (20.0, 40.0))
    assert_allclose(far / near, 1, atol=0.05)


@pytest.mark.parametrize(
    ("text", "power"),
    [("ce", 2), ("kl", 2), ("jsd", 2), ("tv", 1), ("nla", 1), ("ce_argmax", 1), ("ce_data", 0)],
)
def test_the_factor_by_name(text, power):
    divisor = 4 if power else 1
    value = jaxdiv.get(text)(STUDENT / divisor, TEACHER / divisor, labels=LABELS)
    assert_allclose(_value(text, temperature=4.0), 4.0**power * value, rtol=1e-6)


def test_each_part_of_a_sum_has_its_own_factor():
    options = {"temperature": 3.0}
    expected = 0.5 * _value("kl", **options) + 2 * _value("tv", **options) + _value("ce_data")
    assert_allclose(_value("0.5*kl + 2*tv + ce_data", **options), expected, rtol=1e-6)
    kl, tv = (jaxdiv.get(text)(STUDENT / 3, TEACHER / 3) for text in ("kl", "tv"))
    weight = jnp.exp(-3 * (1 - tv))
    expected = 9 * weight * kl + 3 * (1 - weight) * tv
    assert_allclose(_value("lk_hybrid", **options), expected, rtol=1e-6)


def test_a_traced_temperature_is_clipped_and_a_constant():
    def total(student, temperature):
        return jaxdiv.get("kl + tv")(student, TEACHER, temperature=temperature).sum()

    by_student = jax.jit(jax.value_and_grad(total))
    traced = jax.jit(lambda t: _value("kl + tv", temperature=t))(jnp.float32(2.5))
    assert_allclose(traced, _value("kl + tv", temperature=2.5), rtol=1e-6)
    for temperature in (1e20, 1e-40):
        for number in by_student(STUDENT, jnp.float32(temperature)):
            assert np.isfinite(number).all(), temperature
    assert np.isnan(by_student(STUDENT, jnp.float32(-1.0))[0])
    message = "`temperature` is a constant, by which no loss has a derivative"
    with pytest.raises(ValueError, match=message):
        jax.grad(total, argnums=1)(STUDENT, jnp.float32(2.0))


BETA, WEIGHT = (
    r"`beta` of `jsd` must be in \(0, 1\), got",
    r"weight must be in \[1e-30, 1e\+30\], got",
)
WHOLE = r"`k` of `ce_top_k` must be in \[1, 1e\+09\), a whole number, got"
REFUSED = {
    "klx": r"unknown loss `klx`; did you mean `kl`\? Known: adaptive_kl \(akl\), alpha_divergence",
    "0.5*kl + jds": r"unknown loss `jds`; did you mean `jsd`\?",
    "zzzzzz": r"unknown loss `zzzzzz`; Known: ",
    "": r"must have a name, got empty text",
    "-1*kl": rf"{WEIGHT} -1 in",
    "0*kl": rf"{WEIGHT} 0 in",
    "1e999*kl": rf"{WEIGHT} 1e999 in",
    "1e-50*kl": rf"{WEIGHT} 1e-50 in",  # 0 in float32, and NaN times infinity
    "\u0663*kl": "can't read `\u0663\\*kl` at",
    "ce_top_k(k=\u0663)": "can't read `k=\u0663` in",
    "kl()": r"nothing stands in the parentheses of `kl\(\)`; write `kl`",
    "ce_top_k(k=1e300)": rf"{WHOLE} 1e300",
    None: r"must be text, such as `kl`, got None",
    "nan*kl": r"can't read `nan\*kl` at `\*kl`|unknown loss `nan`",
    "kl tv": r"can't read `kl tv` at `tv`",
    "kl +": r"can't read `kl \+` at ``|at the end",
    "kl - tv": r"can't read `kl - tv` at `- tv`",
    "kl)": r"can't read `kl\)` at `\)`",
    "__import__('os')": r"unknown loss `__import__`|can't read",
    "jsd(beta=2)": rf"{BETA} 2",
    "jsd(beta=0)": rf"{BETA} 0",
    "jsd(beta=nan)": rf"{BETA} nan",
    "lk_hybrid(rate=inf)": r"`rate` of `lk_hybrid` must be in \[0, inf\), got inf",
    "jsd(alpha=.5)": r"`jsd` has no parameter `alpha`; known: beta",
    "kl(beta=.5)": r"`kl` has no parameter `beta`; known: none",
    "jsd(beta=.5, beta=.4)": r"`beta` appears twice",
    "jsd(.5)": r"can't read `.5` in `jsd\(.5\)`; write jsd\(parameter=number\)",
    "ce_top_k(k=2.5)": rf"{WHOLE} 2.5",
    "alpha(alpha=7)": r"`alpha` of `alpha` must be in \[-4, 5\], got 7",
    "jsd( )": r"nothing stands in the parentheses of `jsd\( \)`; write `jsd`",
    "jsd(beta=.5": r"can't read `jsd\(beta=.5` at `\(beta=.5`",
}


@pytest.mark.parametrize(("text", "message"), REFUSED.items())
def test_bad_text_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match=message) as error:
        jaxdiv.get(text)
    assert "\n" not in str(error.value)


def test_missing_labels_and_wrong_temperatures_are_refused():
    with pytest.raises(ValueError, match=r"`ce_data` needs `labels`, got None"):
        jaxdiv.get("ce_data")(STUDENT, TEACHER)
    for text in ("kl", "ce_data + 0.1*tv"):
        with pytest.raises(ValueError, match=r"` needs the teacher's logits, got None"):
            jaxdiv.get(text)(STUDENT, None, labels=LABELS)
    for temperature in (0, -1.0, 1e20, 1e-40, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"`temperature` must be in \[1e-06, 1e\+06\], got"):
            _value("kl", temperature=temperature)


def test_a_loss_of_labels_alone_needs_no_teacher():
    value = jaxdiv.get("ce_data + 1e-4*z_loss")(STUDENT, None, labels=LABELS, vocab_size=60)
    expected = jaxdiv.get("ce_data + 1e-4*z_loss")(STUDENT[:, :60], TEACHER[:, :60], labels=LABELS)
    assert_array_equal(value, expected)


def test_split():
    text = " ce, jsd(beta=0.3) ,0.5*kl+0.5*tv"
    assert jaxdiv.split(text) == ("ce", "jsd(beta=0.3)", "0.5*kl+0.5*tv")
    for wrong, message in [
        ("", "name between commas"),
        ("ce,,kl", "name between commas"),
        ("ce, kl,ce", "once, got `ce` and `ce`"),
        ("jsd,tv,jensen_shannon(beta=0.5)", r"once, got `jsd` and `jensen_shannon\(beta=0.5\)`"),
        ("kl+tv,tv + 1*kl", r"once, got `kl\+tv` and `tv \+ 1\*kl`"),
        ("ce,klx", "unknown loss `klx`"),
    ]:
        with pytest.raises(ValueError, match=message):
            jaxdiv.split(wrong)


def test_a_mirror_is_the_loss_with_both_sides_exchanged():
    mirrored = [name for name, entry in ENTRIES.items() if entry.mirror(**entry.defaults)]
    assert len(mirrored) >= 16
    for name in mirrored:
        exchanged = divergences.mirror(jaxdiv.get(name))(TEACHER, STUDENT)
        assert_allclose(exchanged, _value(name), rtol=2e-5, err_msg=name)
