"""Losses with a planted mistake, in plain jnp; never imports jaxdiv.

`PLANTED` maps a name to (loss, codes of which one must be found, text of the divergence that was
intended, or None).
"""

import jax
import jax.numpy as jnp

softmax, log_softmax, stop = jax.nn.softmax, jax.nn.log_softmax, jax.lax.stop_gradient
mean = jnp.mean


# Right formulas, from probabilities and their logarithms; teacher first.


def kl(p, lp, q, lq):
    return jnp.sum(p * (lp - lq), -1)


def rkl(p, lp, q, lq):
    return jnp.sum(q * (lq - lp), -1)


def ce(p, lp, q, lq):
    return -jnp.sum(p * lq, -1)


def jeffreys(p, lp, q, lq):
    return kl(p, lp, q, lq) + rkl(p, lp, q, lq)


def to_mixture(p, lp, q, lq, beta):
    log_m = jnp.logaddexp(jnp.log(beta) + lp, jnp.log1p(-beta) + lq)
    return jnp.sum(p * (lp - log_m), -1), jnp.sum(q * (lq - log_m), -1), log_m


def jsd(p, lp, q, lq, beta=0.5):
    by_p, by_q, _ = to_mixture(p, lp, q, lq, beta)
    return beta * by_p + (1 - beta) * by_q


def tv(p, lp, q, lq):
    return 0.5 * jnp.sum(jnp.abs(p - q), -1)


def hellinger(p, lp, q, lq):
    return 0.5 * jnp.sum((jnp.exp(lp / 2) - jnp.exp(lq / 2)) ** 2, -1)


def nla(p, lp, q, lq):
    return -jax.nn.logsumexp(jnp.minimum(lp, lq), axis=-1)


def skl(p, lp, q, lq):
    return to_mixture(p, lp, q, lq, 0.1)[0]


def hard(student, labels):
    return -jnp.take_along_axis(log_softmax(student), labels[..., None], -1)[..., 0]


def sides(student, teacher, temperature=1.0, axis=-1):
    lp, lq = (log_softmax(x / temperature, axis) for x in (stop(teacher), student))
    return jnp.exp(lp), lp, jnp.exp(lq), lq


def at(formula):
    """Returns a formula as a function of logits."""
    return lambda *logits, **options: formula(*sides(*logits, **options))


KL, RKL, JSD, TV, CE = map(at, (kl, rkl, jsd, tv, ce))
PLANTED = {}


def plant(name, loss, *codes, intended=None):
    assert name not in PLANTED
    PLANTED[name] = (loss, set(codes), intended)


def plant_rows(name, formula, *codes, reduce=mean, intended=None):
    """Plants a formula of p, log p, q and log q."""
    plant(name, lambda s, t: reduce(formula(*sides(s, t))), *codes, intended=intended)


# Softmax and logarithm


def right_side(z):
    return softmax(z), log_softmax(z)


def plant_sides(name, transform, cases, *codes):
    """Plants losses of which some sides' probability and logarithm are a transform of logits.

    Cases are (formula, the transformed sides, T).
    """
    for formula, which, temperature in cases:

        def loss(student, teacher, formula=formula, which=which, t=temperature):
            p = (transform if "teacher" in which else right_side)(stop(teacher) / t)
            q = (transform if "student" in which else right_side)(student / t)
            return t**2 * mean(formula(*p, *q))

        plant(f"{name} {formula.__name__} {which} {temperature}", loss, *codes)


_both = "student teacher"
plant_sides(
    "double softmax",
    lambda z: right_side(softmax(z)),
    (
        *((kl, "student", 1.0), (rkl, "teacher", 1.0), (jsd, _both, 1.0), (tv, "student", 1.0)),
        *((skl, _both, 2.0), (nla, "student", 1.0), (ce, "student", 3.0)),
    ),
    "double_softmax",
)
plant_sides(
    "log_softmax missing",
    lambda z: (softmax(z), z),
    [*((form, "student", 1.0) for form in (kl, rkl, ce, hellinger)), (kl, "teacher", 1.0)],
    "log_softmax_missing",
)
# Of Jeffreys it can't be told from a second softmax: log softmax(q) is q less a constant, which
# p - q sums away.
plant_sides(
    "log missing",
    lambda z: (softmax(z), softmax(z)),
    ((kl, "student", 1.0), (rkl, "teacher", 1.0), (kl, "student", 2.0), (jeffreys, "student", 1.0)),
    *("log_missing", "double_softmax"),
)
plant_sides(
    "probabilities expected",
    lambda z: (z, jnp.log(z)),
    [(form, _both, 1.0) for form in (kl, jsd, hellinger)],
    *("softmax_missing", "nan_on_ordinary_logits"),
)
plant_sides(
    "probabilities expected, clipped",
    lambda z: (jnp.clip(z, 1e-7), jnp.log(jnp.clip(z, 1e-7))),
    [(kl, _both, 1.0)],
    *("softmax_missing", "shift_variant"),
)
for _size, _clip, _formula in (
    (1e-8, False, kl),
    (1e-6, True, rkl),
    (1e-4, False, ce),
    (1e-10, True, kl),
    (1e-3, True, kl),
):

    def clamped(z, size=_size, clip=_clip):
        p = softmax(z)
        return p, jnp.log(jnp.maximum(p, size) if clip else p + size)

    plant_sides(f"log clamped {_size}", clamped, [(_formula, _both, 1.0)], "clamped_log")
plant(
    "tv of logits",
    lambda s, t: mean(tv(stop(t), stop(t), s, s)),
    "softmax_missing",
    "shift_variant",
)
plant_rows("log taken twice", lambda p, lp, q, lq: kl(lp, lp, q, lq), "exp_missing")
plant_rows(
    "log taken twice, nan",
    lambda p, lp, q, lq: kl(p, jnp.log(lp), q, jnp.log(lq)),
    "nan_on_ordinary_logits",
)
plant_rows(
    "probabilities taken for log targets",
    lambda p, lp, q, lq: kl(jnp.exp(p), p, q, lq),
    "log_missing",
    intended="kl",
)
plant_rows(
    "log targets taken for probabilities",
    lambda p, lp, q, lq: kl(lp, jnp.log(lp), q, lq),
    "exp_missing",
)

# Arguments and direction

plant("swapped, gradient to the teacher", lambda s, t: mean(KL(t, s)), "swapped_arguments")
plant("swapped, tv", lambda s, t: jnp.sum(TV(t, s)), "swapped_arguments")
plant("everything detached", lambda s, t: mean(KL(stop(s), t)), "no_gradient")
plant("sign flipped", lambda s, t: -mean(JSD(s, t)), "sign_flipped")


for _formula, _t, _power in (
    (kl, 1.0, 2),
    (jsd, 2.0, 2),
    (tv, 1.0, 1),
    (hellinger, 4.0, 2),
    (rkl, 1.0, 2),
):

    def attached(student, teacher, formula=_formula, t=_t, power=_power):
        return t**power * mean(formula(*right_side(teacher / t), *right_side(student / t)))

    _name = _formula.__name__
    plant(f"attached {_name} {_t}", attached, "teacher_not_detached", intended=_name)


def mixed(name, code, beta, form):
    """Plants a wrong mixture: `form` is of KL(p‖M), KL(q‖M), KL(M‖p) and KL(M‖q)."""

    def formula(p, lp, q, lq):
        by_p, by_q, log_m = to_mixture(p, lp, q, lq, beta)
        return form(by_p, by_q, kl(jnp.exp(log_m), log_m, q, lp), kl(jnp.exp(log_m), log_m, q, lq))

    plant_rows(name, formula, code)


mixed("jsd from the mixture", "jsd_direction", 0.5, lambda p, q, to_p, to_q: (to_p + to_q) / 2)
mixed("jsd half of it", "jsd_direction", 0.3, lambda p, q, to_p, to_q: 0.3 * p + 0.7 * to_q)
mixed("jsd weights", "jsd_weights", 0.2, lambda p, q, to_p, to_q: 0.8 * p + 0.2 * q)


def reverse_kl_without_entropy(p, lp, q, lq):
    return -jnp.sum(q * lp, -1)


def absolute_terms(p, lp, q, lq):
    return jnp.sum(jnp.abs(p * (lp - lq)), -1)


plant_rows("reverse kl without entropy", reverse_kl_without_entropy, "student_entropy_dropped")
plant_rows("absolute terms", absolute_terms, "absolute_terms")

# Temperature


for _formula, _t, _power in (
    (kl, 2.0, 0),
    (jsd, 4.0, 0),
    (hellinger, 3.0, 0),
    (skl, 2.0, 0),
    (rkl, 2.0, 1),
    (tv, 4.0, 0),
):

    def wrong_factor(student, teacher, formula=_formula, t=_t, power=_power):
        return mean(t**power * at(formula)(student, teacher, t))

    _name = _formula.__name__
    plant(f"factor {_power} {_name} {_t}", wrong_factor, "temperature_factor", intended=_name)

for _formula, _t, _factor in (
    (kl, (1.0, 2.0), 4.0),
    (jsd, (4.0, 1.0), 16.0),
    (tv, (2.0, 1.0), 1.0),
    (ce, (1.0, 3.0), 1.0),
):

    def one_sided(student, teacher, formula=_formula, t=_t, factor=_factor):
        return factor * mean(at(formula)(student / t[0], teacher / t[1]))

    plant(f"T on one side {_formula.__name__}", one_sided, "temperature_one_side")

plant(
    "factor on labels, too",
    lambda s, t, labels: 4 * mean(hard(s, labels) + KL(s, t, 2.0)),
    "labels_factor",
    intended="ce_data + kl",
)
plant(
    "labels at temperature",
    lambda s, t, labels: mean(0.5 * hard(s / 2, labels) + 2 * KL(s, t, 2.0)),
    "temperature_on_labels",
)
plant(
    "factor missing in a sum with labels",
    lambda s, t, labels: mean(0.5 * hard(s, labels) + 0.5 * KL(s, t, 4.0)),
    "temperature_factor",
    intended="0.5*ce_data + 0.5*kl",
)

# Positions and classes

plant("labels shifted", lambda s, labels: mean(hard(s[:, 1:], labels[:, :-1])), "labels_shifted")
plant("labels rolled", lambda s, labels: mean(hard(s, jnp.roll(labels, -1, 1))), "labels_shifted")
plant(
    "teacher rolled",
    lambda s, t: mean(KL(s, jnp.roll(t, 1, axis=1))),
    "positions_shifted",
    intended="kl",
)
plant(
    "student and teacher cut apart",
    lambda s, t: mean(JSD(s[:, 1:], t[:, :-1])),
    "positions_shifted",
    intended="jsd",
)
plant("softmax over positions kl", lambda s, t: mean(KL(s, t, axis=1)), "softmax_axis")
plant("softmax over the batch tv", lambda s, t: mean(TV(s, t, axis=0)), "softmax_axis")
plant("softmax over positions ce", lambda s, t: jnp.sum(CE(s, t, axis=-2)), "softmax_axis")
plant(
    "softmax over positions, student alone",
    lambda s, t: mean(kl(*sides(s, t)[:2], *sides(s, t, axis=1)[2:])),
    "softmax_axis",
)
plant("classes rolled", lambda s, t: mean(KL(s, jnp.roll(t, 1, -1))), "classes_misaligned")
plant("last class out", lambda s, t: mean(KL(s[..., :-1], t[..., :-1])), "classes_dropped")


def top_k(k, formula):
    def loss(student, teacher):
        least = jax.lax.top_k(stop(teacher), k)[0][..., -1:]
        student, teacher = (jnp.where(teacher >= least, x, -1e9) for x in (student, teacher))
        return mean(formula(*sides(student, teacher)))

    plant(f"top-{k} renormalized {formula.__name__}", loss, "top_k")


top_k(5, kl)
top_k(3, jsd)
top_k(20, kl)


def top_8_not_renormalized(*parts):
    chosen = jax.lax.top_k(parts[0], 8)[1]
    return kl(*(jnp.take_along_axis(part, chosen, -1) for part in parts))


plant_rows("top-8 not renormalized", top_8_not_renormalized, "top_k")


def padded(multiple, formula):
    def loss(student, teacher):
        width = [(0, 0)] * (student.ndim - 1) + [(0, -student.shape[-1] % multiple)]
        return mean(formula(*sides(jnp.pad(student, width), jnp.pad(teacher, width))))

    plant(f"padded to {multiple}, {formula.__name__}", loss, "padded_vocabulary")


padded(8, kl)
padded(64, tv)

# Reduction and mask

_by_class = "mean_over_vocabulary"
plant_rows("mean over V kl", lambda p, lp, q, lq: p * (lp - lq), _by_class, intended="kl")


def mean_over_vocabulary_ce(student, teacher):
    p, _, _, lq = sides(student, teacher, 2.0)
    return -4 * mean(p * lq)


plant("mean over V ce", mean_over_vocabulary_ce, _by_class, intended="ce")
plant("batchmean", lambda s, t: jnp.sum(KL(s, t)) / s.shape[0], "batchmean", intended="kl")
plant(
    "divided by the batch twice",
    lambda s, t: mean(RKL(s, t)) / s.shape[0],
    "reduction_unusual",
    intended="rkl",
)
plant(
    "last position dropped but counted",
    lambda s, t: jnp.sum(KL(s, t)[:, :-1]) / s[..., 0].size,
    "dropped_count",
    intended="kl",
)
plant("mask ignored", lambda s, t, mask: mean(KL(s, t)), "mask_ignored", intended="kl")
plant("mask count", lambda s, t, mask: mean(JSD(s, t) * mask), "mask_count", intended="jsd")


def masked_mean(rows, mask):
    return jnp.sum(rows * mask) / jnp.sum(mask)


def mask_leaks(student, teacher, mask):
    rows = KL(student, teacher)
    return masked_mean(rows, mask) + 0.1 * mean(rows)


plant("mask leaks", mask_leaks, "mask_leak")
plant(
    "mask shifted",
    lambda s, t, mask: jnp.sum(TV(s, t)[:, 1:] * mask[:, :-1]) / jnp.sum(mask),
    "mask_shifted",
)
plant(
    "mask rolled", lambda s, t, mask: masked_mean(KL(s, t), jnp.roll(mask, -1, 1)), "mask_shifted"
)

# Numbers


def exp_overflows(student, teacher):
    p, q = (jnp.exp(x) / jnp.sum(jnp.exp(x), -1, keepdims=True) for x in (stop(teacher), student))
    return mean(tv(p, p, q, q))


plant_sides(
    "log of softmax",
    lambda z: (softmax(z), jnp.log(softmax(z))),
    [(kl, _both, 1.0)],
    "nan_at_large_logits",
)
plant("exp overflows", exp_overflows, "nan_at_large_logits", "float16_overflow")
plant(
    "teacher in float16",
    lambda s, t: mean(KL(s, t.astype(jnp.float16))),
    "low_precision",
    intended="kl",
)


def in_half(dtype, loss, label, *codes):
    def half(student, teacher):
        return loss(student.astype(dtype), teacher.astype(dtype)).astype(jnp.float32)

    plant(label, half, "low_precision", *codes)


in_half(jnp.bfloat16, lambda s, t: mean(KL(s, t)), "bfloat16 inside")
in_half(jnp.float16, lambda s, t: mean(CE(s, t)), "float16 inside")
in_half(jnp.float16, exp_overflows, "float16 exp", "nan_at_large_logits")
plant_rows("root of hellinger", lambda *parts: jnp.sqrt(2 * hellinger(*parts)), "nan_gradient")

# Weights and batches


def through_weight(rate, intended=None):
    def formula(p, lp, q, lq):
        weight = jnp.exp(-rate * jnp.sum(jnp.minimum(p, q), -1))
        return weight * kl(p, lp, q, lq) + (1 - weight) * tv(p, lp, q, lq)

    name = f"gradient through the weight, rate {rate}"
    plant_rows(name, formula, "gradient_through_weight", intended=intended)


through_weight(3.0, intended="lk_hybrid")
through_weight(5.0)
plant_rows(
    "student's probabilities detached",
    lambda p, lp, q, lq: rkl(p, lp, stop(q), lq),
    "wrong_gradient",
    intended="rkl",
)


def normalized_by_the_batch(student, teacher):
    values = KL(student, teacher)
    return mean(values * stop(values / mean(values)))


def depends_on_the_batchs_order(student, teacher):
    weights = jnp.arange(1.0, 1 + student.shape[0])[:, None]
    return mean(weights * JSD(student, teacher))


def reads_another_sequence(student, teacher):
    return mean(KL(student - 0.1 * jnp.roll(student, 1, axis=0), teacher))


plant("normalized by the batch", normalized_by_the_batch, "batch_dependence")
plant("depends on the batch's order", depends_on_the_batchs_order, "batch_order", intended="jsd")
plant("reads another sequence", reads_another_sequence, "rows_interact", "batch_dependence")
