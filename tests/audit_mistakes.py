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


def sides(student, teacher, temperature=1.0):
    lp, lq = log_softmax(stop(teacher) / temperature), log_softmax(student / temperature)
    return jnp.exp(lp), lp, jnp.exp(lq), lq


def hard(student, labels):
    return -jnp.take_along_axis(log_softmax(student), labels[..., None], -1)[..., 0]


PLANTED = {}


def plant(name, loss, *codes, intended=None):
    PLANTED[name] = (loss, set(codes), intended)


def planted(*codes, intended=None):
    """Decorates a loss with a mistake; its name says which."""

    def add(loss):
        plant(loss.__name__.replace("_", " "), loss, *codes, intended=intended)
        return loss

    return add


# Softmax and logarithm


def double(formula, which, t):
    def loss(student, teacher):
        student = softmax(student / t) if "student" in which else student / t
        teacher = softmax(teacher / t) if "teacher" in which else teacher / t
        return t**2 * mean(formula(*sides(student, teacher)))

    plant(f"double softmax {formula.__name__} {which} {t}", loss, "double_softmax")


double(kl, "student", 1.0)
double(rkl, "teacher", 1.0)
double(jsd, "student teacher", 1.0)
double(tv, "student", 1.0)
double(skl, "student teacher", 2.0)
double(nla, "student", 1.0)
double(ce, "student", 3.0)


def raw_log(formula, side):
    def loss(student, teacher):
        p, lp, q, lq = sides(student, teacher)
        parts = (p, lp, q, student) if side == "student" else (p, stop(teacher), q, lq)
        return mean(formula(*parts))

    plant(f"log_softmax missing {formula.__name__} {side}", loss, "log_softmax_missing")


for _formula in (kl, rkl, ce, hellinger):
    raw_log(_formula, "student")
raw_log(kl, "teacher")


def probability_for_log(formula, side, t):
    def loss(student, teacher):
        p, lp, q, lq = sides(student, teacher, t)
        return t**2 * jnp.sum(formula(*((p, lp, q, q) if side == "student" else (p, p, q, lq))))

    # Of Jeffreys it can't be told from a second softmax: log softmax(q) is q less a constant, which
    # p - q sums away.
    plant(f"log missing {formula.__name__} {side} {t}", loss, "log_missing", "double_softmax")


probability_for_log(kl, "student", 1.0)
probability_for_log(rkl, "teacher", 1.0)
probability_for_log(kl, "student", 2.0)
probability_for_log(jeffreys, "student", 1.0)


def takes_probabilities(formula, least=None):
    def loss(student, teacher):
        p, q = stop(teacher), student
        p, q = (p, q) if least is None else (jnp.clip(p, least), jnp.clip(q, least))
        return mean(formula(p, jnp.log(p), q, jnp.log(q)))

    return loss


for _formula in (kl, jsd, hellinger):
    plant(
        f"probabilities expected {_formula.__name__}",
        takes_probabilities(_formula),
        "softmax_missing",
        "nan_on_ordinary_logits",
    )
_raw = ("softmax_missing", "shift_variant")
plant("probabilities expected, clipped", takes_probabilities(kl, 1e-7), *_raw)
plant("tv of logits", lambda s, t: mean(tv(stop(t), stop(t), s, s)), *_raw)


@planted("exp_missing")
def log_taken_twice_exp_missing(student, teacher):
    _, lp, q, lq = sides(student, teacher)
    return mean(kl(lp, lp, q, lq))


@planted("nan_on_ordinary_logits")
def log_taken_twice_nan(student, teacher):
    p, lp, q, lq = sides(student, teacher)
    return mean(kl(p, jnp.log(lp), q, jnp.log(lq)))


@planted("log_missing", intended="kl")
def probabilities_taken_for_log_targets(student, teacher):
    p, _, q, lq = sides(student, teacher)
    return mean(kl(jnp.exp(p), p, q, lq))


@planted("exp_missing")
def log_targets_taken_for_probabilities(student, teacher):
    _, lp, q, lq = sides(student, teacher)
    return mean(kl(lp, jnp.log(lp), q, lq))


# Arguments and direction

_swapped = "swapped_arguments"
plant("swapped, gradient to the teacher", lambda s, t: mean(kl(*sides(t, s))), _swapped)
plant("swapped, tv", lambda s, t: jnp.sum(tv(*sides(t, s))), _swapped)
plant("everything detached", lambda s, t: mean(kl(*sides(stop(s), t))), "no_gradient")
plant("sign flipped", lambda s, t: -mean(jsd(*sides(s, t))), "sign_flipped")


def attached(formula, t, power=2):
    def loss(student, teacher):
        lp, lq = log_softmax(teacher / t), log_softmax(student / t)
        return t**power * mean(formula(jnp.exp(lp), lp, jnp.exp(lq), lq))

    name = formula.__name__
    plant(f"teacher not detached {name} {t}", loss, "teacher_not_detached", intended=name)


attached(kl, 1.0)
attached(jsd, 2.0)
attached(tv, 1.0, power=1)
attached(hellinger, 4.0)
attached(rkl, 1.0)


@planted("jsd_direction")
def jsd_from_the_mixture(student, teacher):
    p, lp, q, lq = sides(student, teacher)
    log_m = to_mixture(p, lp, q, lq, 0.5)[2]
    return mean(0.5 * jnp.sum(jnp.exp(log_m) * (2 * log_m - lp - lq), -1))


@planted("jsd_direction")
def jsd_with_one_part_from_the_mixture(student, teacher):
    p, lp, q, lq = sides(student, teacher)
    by_p, _, log_m = to_mixture(p, lp, q, lq, 0.3)
    return mean(0.3 * by_p + 0.7 * jnp.sum(jnp.exp(log_m) * (log_m - lq), -1))


@planted("jsd_weights")
def jsd_weights_interchanged(student, teacher):
    by_p, by_q, _ = to_mixture(*sides(student, teacher), 0.2)
    return mean(0.8 * by_p + 0.2 * by_q)


@planted("student_entropy_dropped")
def reverse_kl_without_entropy(student, teacher):
    _, lp, q, _ = sides(student, teacher)
    return -mean(jnp.sum(q * lp, -1))


@planted("absolute_terms")
def absolute_terms(student, teacher):
    p, lp, _, lq = sides(student, teacher)
    return mean(jnp.sum(jnp.abs(p * (lp - lq)), -1))


# Temperature


def wrong_factor(formula, t, power, label):
    def loss(student, teacher):
        return mean(t**power * formula(*sides(student, teacher, t)))

    name = formula.__name__
    plant(f"{label} {name} {t}", loss, "temperature_factor", intended=name)


wrong_factor(kl, 2.0, 0, "T² missing")
wrong_factor(jsd, 4.0, 0, "T² missing")
wrong_factor(hellinger, 3.0, 0, "T² missing")
wrong_factor(skl, 2.0, 0, "T² missing")
wrong_factor(rkl, 2.0, 1, "T for T²")
wrong_factor(tv, 4.0, 0, "T missing")


def one_sided(formula, t_student, t_teacher, factor):
    def loss(student, teacher):
        return factor * mean(formula(*sides(student / t_student, teacher / t_teacher)))

    name = f"T on one side {formula.__name__} {t_student} {t_teacher}"
    plant(name, loss, "temperature_one_side")


one_sided(kl, 1.0, 2.0, 4.0)
one_sided(jsd, 4.0, 1.0, 16.0)
one_sided(tv, 2.0, 1.0, 1.0)
one_sided(ce, 1.0, 3.0, 1.0)


@planted("labels_factor", intended="ce_data + kl")
def factor_on_labels_too(student, teacher, labels):
    return 4 * mean(hard(student, labels) + kl(*sides(student, teacher, 2.0)))


@planted("temperature_on_labels")
def labels_at_temperature(student, teacher, labels):
    return mean(0.5 * hard(student / 2, labels) + 2 * kl(*sides(student, teacher, 2.0)))


@planted("temperature_factor")
def factor_missing_in_a_sum_with_labels(student, teacher, labels):
    return mean(0.5 * hard(student, labels) + 0.5 * kl(*sides(student, teacher, 4.0)))


# Positions and classes

plant("labels shifted", lambda s, labels: mean(hard(s[:, 1:], labels[:, :-1])), "labels_shifted")
plant("labels rolled", lambda s, labels: mean(hard(s, jnp.roll(labels, -1, 1))), "labels_shifted")


@planted("positions_shifted", intended="kl")
def teacher_rolled(student, teacher):
    return mean(kl(*sides(student, jnp.roll(teacher, 1, axis=1))))


@planted("positions_shifted", intended="jsd")
def student_and_teacher_cut_apart(student, teacher):
    return mean(jsd(*sides(student[:, 1:], teacher[:, :-1])))


def softmax_over(axis, formula, reduce=mean, teacher_axis=None):
    def loss(student, teacher):
        lp = log_softmax(stop(teacher), axis=teacher_axis or axis)
        lq = log_softmax(student, axis=axis)
        return reduce(formula(jnp.exp(lp), lp, jnp.exp(lq), lq))

    return loss


plant("softmax over positions kl", softmax_over(1, kl), "softmax_axis")
plant("softmax over the batch tv", softmax_over(0, tv), "softmax_axis")
plant("softmax over positions ce", softmax_over(-2, ce, jnp.sum), "softmax_axis")
_one = softmax_over(1, kl, teacher_axis=-1)
plant("softmax over positions, student alone", _one, "softmax_axis")


@planted("classes_misaligned")
def classes_rolled(student, teacher):
    return mean(kl(*sides(student, jnp.roll(teacher, 1, -1))))


@planted("classes_dropped")
def last_class_left_out(student, teacher):
    return mean(kl(*sides(student[..., :-1], teacher[..., :-1])))


def top_k(k, formula):
    def loss(student, teacher):
        least = jax.lax.top_k(stop(teacher), k)[0][..., -1:]
        student, teacher = (jnp.where(teacher >= least, x, -1e9) for x in (student, teacher))
        return mean(formula(*sides(student, teacher)))

    plant(f"top-{k} renormalized {formula.__name__}", loss, "top_k")


top_k(5, kl)
top_k(3, jsd)
top_k(20, kl)


@planted("top_k")
def top_8_not_renormalized(student, teacher):
    parts = sides(student, teacher)
    chosen = jax.lax.top_k(parts[0], 8)[1]
    return mean(kl(*(jnp.take_along_axis(part, chosen, -1) for part in parts)))


def padded(multiple, formula):
    def loss(student, teacher):
        width = [(0, 0)] * (student.ndim - 1) + [(0, -student.shape[-1] % multiple)]
        return mean(formula(*sides(jnp.pad(student, width), jnp.pad(teacher, width))))

    plant(f"padded to {multiple}, {formula.__name__}", loss, "padded_vocabulary")


padded(8, kl)
padded(64, tv)


# Reduction and mask


@planted("mean_over_vocabulary", intended="kl")
def mean_over_vocabulary_kl(student, teacher):
    p, lp, _, lq = sides(student, teacher)
    return mean(p * (lp - lq))


@planted("mean_over_vocabulary", intended="ce")
def mean_over_vocabulary_ce(student, teacher):
    p, _, _, lq = sides(student, teacher, 2.0)
    return -4 * mean(p * lq)


@planted("batchmean", intended="kl")
def batchmean(student, teacher):
    return jnp.sum(kl(*sides(student, teacher))) / student.shape[0]


@planted("reduction_unusual", intended="rkl")
def divided_by_batch_twice(student, teacher):
    return mean(rkl(*sides(student, teacher))) / student.shape[0]


@planted("dropped_count", intended="kl")
def last_position_dropped_but_counted(student, teacher):
    count = student.shape[0] * student.shape[1]
    return jnp.sum(kl(*sides(student, teacher))[:, :-1]) / count


@planted("mask_ignored", intended="kl")
def mask_ignored(student, teacher, mask):
    return mean(kl(*sides(student, teacher)))


@planted("mask_count", intended="jsd")
def mask_counted(student, teacher, mask):
    return mean(jsd(*sides(student, teacher)) * mask)


@planted("mask_leak")
def mask_leaks(student, teacher, mask):
    values = kl(*sides(student, teacher))
    return jnp.sum(values * mask) / jnp.sum(mask) + 0.1 * mean(values)


@planted("mask_shifted")
def mask_shifted(student, teacher, mask):
    return jnp.sum(tv(*sides(student, teacher))[:, 1:] * mask[:, :-1]) / jnp.sum(mask)


@planted("mask_shifted")
def mask_rolled(student, teacher, mask):
    return jnp.sum(kl(*sides(student, teacher)) * jnp.roll(mask, -1, 1)) / jnp.sum(mask)


# Numbers


def clamped(size, clip, formula):
    def loss(student, teacher):
        p, q = softmax(stop(teacher)), softmax(student)
        log_p, log_q = (jnp.log(jnp.maximum(x, size) if clip else x + size) for x in (p, q))
        return mean(formula(p, log_p, q, log_q))

    plant(f"log clamped at {size} {clip} {formula.__name__}", loss, "clamped_log")


clamped(1e-8, False, kl)
clamped(1e-6, True, rkl)
clamped(1e-4, False, ce)
clamped(1e-10, True, kl)
clamped(1e-3, True, kl)


@planted("nan_at_large_logits")
def log_of_softmax(student, teacher):
    p, q = softmax(stop(teacher)), softmax(student)
    return mean(kl(p, jnp.log(p), q, jnp.log(q)))


@planted("nan_at_large_logits", "float16_overflow")
def exp_overflows(student, teacher):
    p, q = (jnp.exp(x) / jnp.sum(jnp.exp(x), -1, keepdims=True) for x in (stop(teacher), student))
    return mean(tv(p, p, q, q))


@planted("low_precision", intended="kl")
def teacher_in_float16(student, teacher):
    return mean(kl(*sides(student, teacher.astype(jnp.float16))))


def in_half(dtype, loss, label, *codes):
    def half(student, teacher):
        return loss(student.astype(dtype), teacher.astype(dtype)).astype(jnp.float32)

    plant(label, half, *codes)


in_half(jnp.bfloat16, lambda s, t: mean(kl(*sides(s, t))), "bfloat16 inside", "low_precision")
in_half(jnp.float16, lambda s, t: mean(ce(*sides(s, t))), "float16 inside", "low_precision")
in_half(jnp.float16, exp_overflows, "float16 exp", "low_precision", "nan_at_large_logits")


@planted("nan_gradient")
def nan_gradient_at_equality(student, teacher):
    return mean(jnp.sqrt(2 * hellinger(*sides(student, teacher))))


# Weights and batches


def through_weight(rate, intended=None):
    def loss(student, teacher):
        p, lp, q, lq = sides(student, teacher)
        weight = jnp.exp(-rate * jnp.sum(jnp.minimum(p, q), -1))
        return mean(weight * kl(p, lp, q, lq) + (1 - weight) * tv(p, lp, q, lq))

    name = f"gradient through the weight, rate {rate}"
    plant(name, loss, "gradient_through_weight", intended=intended)


through_weight(3.0, intended="lk_hybrid")
through_weight(5.0)


@planted("wrong_gradient", intended="rkl")
def students_probabilities_detached(student, teacher):
    p, lp, q, lq = sides(student, teacher)
    return mean(rkl(p, lp, stop(q), lq))


@planted("batch_dependence")
def normalized_by_the_batch(student, teacher):
    values = kl(*sides(student, teacher))
    return mean(values * stop(values / mean(values)))


@planted("batch_order", intended="jsd")
def depends_on_the_batchs_order(student, teacher):
    weights = jnp.arange(1.0, 1 + student.shape[0])[:, None]
    return mean(weights * jsd(*sides(student, teacher)))


@planted("rows_interact", "batch_dependence")
def reads_another_sequence(student, teacher):
    return mean(kl(*sides(student - 0.1 * jnp.roll(student, 1, axis=0), teacher)))
