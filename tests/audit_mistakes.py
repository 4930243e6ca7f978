"""Losses with a planted mistake, in plain jnp; never imports jaxdiv.

`PLANTED` maps a name to (loss, codes of which one must be found, text of the divergence that was
meant or None).
"""

import jax
import jax.numpy as jnp

softmax, log_softmax, stop = jax.nn.softmax, jax.nn.log_softmax, jax.lax.stop_gradient


# Right formulas, from probabilities and their logarithms; teacher first.


def kl(p, lp, q, lq):
    return jnp.sum(p * (lp - lq), -1)


def rkl(p, lp, q, lq):
    return jnp.sum(q * (lq - lp), -1)


def ce(p, lp, q, lq):
    return -jnp.sum(p * lq, -1)


def jeffreys(p, lp, q, lq):
    return kl(p, lp, q, lq) + rkl(p, lp, q, lq)


def jsd(p, lp, q, lq, beta=0.5):
    log_m = jnp.logaddexp(jnp.log(beta) + lp, jnp.log1p(-beta) + lq)
    return beta * jnp.sum(p * (lp - log_m), -1) + (1 - beta) * jnp.sum(q * (lq - log_m), -1)


def tv(p, lp, q, lq):
    return 0.5 * jnp.sum(jnp.abs(p - q), -1)


def hellinger(p, lp, q, lq):
    return 0.5 * jnp.sum((jnp.exp(lp / 2) - jnp.exp(lq / 2)) ** 2, -1)


def nla(p, lp, q, lq):
    return -jax.nn.logsumexp(jnp.minimum(lp, lq), axis=-1)


def skl(p, lp, q, lq):
    return jnp.sum(p * (lp - jnp.logaddexp(jnp.log(0.1) + lp, jnp.log(0.9) + lq)), -1)


FORMULAS = {
    "kl": kl,
    "rkl": rkl,
    "ce": ce,
    "jeffreys": jeffreys,
    "jsd": jsd,
    "tv": tv,
    "hellinger": hellinger,
    "nla": nla,
    "skl": skl,
}


def sides(student, teacher, temperature=1.0):
    lp, lq = log_softmax(stop(teacher) / temperature), log_softmax(student / temperature)
    return jnp.exp(lp), lp, jnp.exp(lq), lq


def loss_of(name, temperature=1.0, factor=None, reduce=jnp.mean):
    """The right loss, for `before` and `after` to be changed."""
    power = 1 if name in ("tv", "nla") else 2
    factor = temperature**power if factor is None else factor

    def loss(student, teacher):
        return reduce(factor * FORMULAS[name](*sides(student, teacher, temperature)))

    return loss


PLANTED = {}


def plant(name, loss, *codes, meant=None):
    PLANTED[name] = (loss, set(codes), meant)


# Softmax and logarithm


def _double(name, which, temperature=1.0):
    def loss(student, teacher):
        student = softmax(student / temperature) if "student" in which else student / temperature
        teacher = softmax(teacher / temperature) if "teacher" in which else teacher / temperature
        return temperature**2 * jnp.mean(FORMULAS[name](*sides(student, teacher)))

    return loss


for _name, _which, _t in (
    ("kl", "student", 1.0),
    ("rkl", "teacher", 1.0),
    ("jsd", "student teacher", 1.0),
    ("tv", "student", 1.0),
    ("skl", "student teacher", 2.0),
    ("nla", "student", 1.0),
    ("ce", "student", 3.0),
):
    plant(f"double softmax {_name} {_which} {_t}", _double(_name, _which, _t), "double_softmax")


def _raw_log(name, side, reduce=jnp.mean):
    def loss(student, teacher):
        p, lp, q, lq = sides(student, teacher)
        parts = (p, lp, q, student) if side == "student" else (p, stop(teacher), q, lq)
        return reduce(FORMULAS[name](*parts))

    return loss


for _name, _side in (
    ("kl", "student"),
    ("kl", "teacher"),
    ("rkl", "student"),
    ("ce", "student"),
    ("hellinger", "student"),
):
    plant(f"log_softmax missing {_name} {_side}", _raw_log(_name, _side), "log_softmax_missing")


def _prob_for_log(name, side, temperature=1.0):
    def loss(student, teacher):
        p, lp, q, lq = sides(student, teacher, temperature)
        return temperature**2 * jnp.sum(
            FORMULAS[name](*((p, lp, q, q) if side == "student" else (p, p, q, lq)))
        )

    return loss


for _name, _side, _t in (
    ("kl", "student", 1.0),
    ("rkl", "teacher", 1.0),
    ("kl", "student", 2.0),
    ("jeffreys", "student", 1.0),
):
    # Of Jeffreys it can't be told from a second softmax: log softmax(q) is q less a constant, which
    # p - q sums away.
    plant(
        f"log missing {_name} {_side} {_t}",
        _prob_for_log(_name, _side, _t),
        "log_missing",
        "double_softmax",
    )


def _takes_probabilities(name):
    def loss(student, teacher):
        q, p = student, stop(teacher)
        return jnp.mean(FORMULAS[name](p, jnp.log(p), q, jnp.log(q)))

    return loss


def _clipped_probabilities(student, teacher):
    p, q = jnp.clip(stop(teacher), 1e-7), jnp.clip(student, 1e-7)
    return jnp.mean(kl(p, jnp.log(p), q, jnp.log(q)))


for _name in ("kl", "jsd", "hellinger"):
    plant(
        f"probabilities expected {_name}",
        _takes_probabilities(_name),
        "softmax_missing",
        "nan_on_ordinary_logits",
    )
plant("probabilities expected, clipped", _clipped_probabilities, "softmax_missing", "shift_variant")
plant(
    "tv of logits",
    lambda s, t: jnp.mean(tv(stop(t), stop(t), s, s)),
    "softmax_missing",
    "shift_variant",
)


def _exp_missing(student, teacher):
    _, lp, q, lq = sides(student, teacher)
    return jnp.mean(kl(lp, lp, q, lq))


def _log_twice(student, teacher):
    p, lp, q, lq = sides(student, teacher)
    return jnp.mean(kl(p, jnp.log(lp), q, jnp.log(lq)))


plant("log taken twice, exp missing", _exp_missing, "exp_missing")
plant("log taken twice, NaN", _log_twice, "nan_on_ordinary_logits")


def _probabilities_for_log_targets(student, teacher):
    p, _, _, lq = sides(student, teacher)
    return jnp.mean(jnp.sum(jnp.exp(p) * (p - lq), -1))


def _log_targets_for_probabilities(student, teacher):
    _, lp, _, lq = sides(student, teacher)
    return jnp.mean(jnp.sum(lp * (jnp.log(lp) - lq), -1))


plant(
    "probabilities taken for log targets", _probabilities_for_log_targets, "log_missing", meant="kl"
)
plant("log targets taken for probabilities", _log_targets_for_probabilities, "exp_missing")


# Arguments and direction

plant(
    "swapped, gradient to the teacher", lambda s, t: jnp.mean(kl(*sides(t, s))), "swapped_arguments"
)
plant("swapped, tv", lambda s, t: jnp.sum(tv(*sides(t, s))), "swapped_arguments")
plant("everything detached", lambda s, t: jnp.mean(kl(*sides(stop(s), t))), "no_gradient")


def _attached(name, temperature=1.0):
    def loss(student, teacher):
        lp, lq = log_softmax(teacher / temperature), log_softmax(student / temperature)
        power = 1 if name in ("tv", "nla") else 2
        return temperature**power * jnp.mean(FORMULAS[name](jnp.exp(lp), lp, jnp.exp(lq), lq))

    return loss


for _name, _t in (("kl", 1.0), ("jsd", 2.0), ("tv", 1.0), ("hellinger", 4.0), ("rkl", 1.0)):
    plant(
        f"teacher not detached {_name} {_t}",
        _attached(_name, _t),
        "teacher_not_detached",
        meant=_name,
    )

plant("sign flipped", lambda s, t: -jnp.mean(jsd(*sides(s, t))), "sign_flipped")


def _jsd_from_mixture(student, teacher):
    _, lp, _, lq = sides(student, teacher)
    log_m = jnp.logaddexp(lp, lq) - jnp.log(2.0)
    m = jnp.exp(log_m)
    return jnp.mean(0.5 * jnp.sum(m * (log_m - lp), -1) + 0.5 * jnp.sum(m * (log_m - lq), -1))


def _jsd_half_mixed(student, teacher):
    p, lp, _, lq = sides(student, teacher)
    log_m = jnp.logaddexp(jnp.log(0.3) + lp, jnp.log(0.7) + lq)
    m = jnp.exp(log_m)
    return jnp.mean(0.3 * jnp.sum(p * (lp - log_m), -1) + 0.7 * jnp.sum(m * (log_m - lq), -1))


def _jsd_weights(student, teacher, beta=0.2):
    p, lp, q, lq = sides(student, teacher)
    log_m = jnp.logaddexp(jnp.log(beta) + lp, jnp.log1p(-beta) + lq)
    return jnp.mean(
        (1 - beta) * jnp.sum(p * (lp - log_m), -1) + beta * jnp.sum(q * (lq - log_m), -1)
    )


plant("jsd from the mixture", _jsd_from_mixture, "jsd_direction")
plant("jsd with one part from the mixture", _jsd_half_mixed, "jsd_direction")
plant("jsd weights interchanged", _jsd_weights, "jsd_weights")
plant(
    "reverse kl without entropy",
    lambda s, t: -jnp.mean(jnp.sum(sides(s, t)[2] * sides(s, t)[1], -1)),
    "student_entropy_dropped",
)
plant(
    "absolute terms",
    lambda s, t: jnp.mean(jnp.sum(jnp.abs(sides(s, t)[0] * (sides(s, t)[1] - sides(s, t)[3])), -1)),
    "absolute_terms",
)


# Temperature

for _name, _t in (("kl", 2.0), ("jsd", 4.0), ("hellinger", 3.0), ("skl", 2.0)):
    plant(
        f"T² missing {_name} {_t}",
        loss_of(_name, _t, factor=1.0),
        "temperature_factor",
        meant=_name,
    )
plant("T for T²", loss_of("rkl", 2.0, factor=2.0), "temperature_factor", meant="rkl")
plant("T missing tv", loss_of("tv", 4.0, factor=1.0), "temperature_factor", meant="tv")


def _one_sided(name, student_t, teacher_t, factor):
    def loss(student, teacher):
        return factor * jnp.mean(FORMULAS[name](*sides(student / student_t, teacher / teacher_t)))

    return loss


for _name, _s, _t, _f in (
    ("kl", 1.0, 2.0, 4.0),
    ("jsd", 4.0, 1.0, 16.0),
    ("tv", 2.0, 1.0, 1.0),
    ("ce", 1.0, 3.0, 1.0),
):
    plant(f"T on one side {_name} {_s} {_t}", _one_sided(_name, _s, _t, _f), "temperature_one_side")


def _hinton_without_factor(student, teacher, labels):
    hard = -jnp.take_along_axis(log_softmax(student), labels[..., None], -1)[..., 0]
    return jnp.mean(0.5 * hard + 0.5 * kl(*sides(student, teacher, 4.0)))


def _hinton_warm_labels(student, teacher, labels):
    hard = -jnp.take_along_axis(log_softmax(student / 2), labels[..., None], -1)[..., 0]
    return jnp.mean(0.5 * hard + 0.5 * 4 * kl(*sides(student, teacher, 2.0)))


def _factor_on_all(student, teacher, labels):
    hard = -jnp.take_along_axis(log_softmax(student), labels[..., None], -1)[..., 0]
    return 4 * jnp.mean(hard + kl(*sides(student, teacher, 2.0)))


plant("T² on labels too", _factor_on_all, "labels_factor", meant="ce_data + kl")
plant("labels at T", _hinton_warm_labels, "temperature_on_labels")
plant("T² missing in a sum with labels", _hinton_without_factor, "temperature_factor")


# Positions and classes


def _shifted_labels(student, labels):
    log = log_softmax(student)[:, 1:]
    return -jnp.mean(jnp.take_along_axis(log, labels[:, :-1, None], -1))


def _rolled_labels(student, labels):
    return -jnp.mean(
        jnp.take_along_axis(log_softmax(student), jnp.roll(labels, -1, 1)[..., None], -1)
    )


def _rolled_teacher(student, teacher):
    return jnp.mean(kl(*sides(student, jnp.roll(teacher, 1, axis=1))))


def _cut_apart(student, teacher):
    return jnp.mean(jsd(*sides(student[:, 1:], teacher[:, :-1])))


plant("labels shifted", _shifted_labels, "labels_shifted")
plant("labels rolled", _rolled_labels, "labels_shifted")
plant("teacher rolled", _rolled_teacher, "positions_shifted", meant="kl")
plant("student and teacher cut apart", _cut_apart, "positions_shifted", meant="jsd")


def _axis(name, axis, reduce=jnp.mean):
    def loss(student, teacher):
        lp, lq = log_softmax(stop(teacher), axis=axis), log_softmax(student, axis=axis)
        return reduce(FORMULAS[name](jnp.exp(lp), lp, jnp.exp(lq), lq))

    return loss


plant("softmax over positions kl", _axis("kl", 1), "softmax_axis")
plant("softmax over the batch tv", _axis("tv", 0), "softmax_axis")
plant("softmax over positions ce", _axis("ce", -2, jnp.sum), "softmax_axis")


def _one_side_axis(student, teacher):
    lp, lq = log_softmax(stop(teacher)), log_softmax(student, axis=1)
    return jnp.mean(kl(jnp.exp(lp), lp, jnp.exp(lq), lq))


plant("softmax over positions, student alone", _one_side_axis, "softmax_axis")
plant(
    "classes rolled", lambda s, t: jnp.mean(kl(*sides(s, jnp.roll(t, 1, -1)))), "classes_misaligned"
)
plant(
    "last class left out",
    lambda s, t: jnp.mean(kl(*sides(s[..., :-1], t[..., :-1]))),
    "classes_dropped",
)


def _top_k(k, name="kl"):
    def loss(student, teacher):
        least = jax.lax.top_k(stop(teacher), k)[0][..., -1:]
        keep = teacher >= least
        return jnp.mean(
            FORMULAS[name](*sides(jnp.where(keep, student, -1e9), jnp.where(keep, teacher, -1e9)))
        )

    return loss


def _top_k_cut(k):
    def loss(student, teacher):
        p, lp, _, lq = sides(student, teacher)
        chosen = jax.lax.top_k(p, k)[1]
        p, lp, lq = (jnp.take_along_axis(x, chosen, -1) for x in (p, lp, lq))
        return jnp.mean(jnp.sum(p * (lp - lq), -1))

    return loss


plant("top-5 renormalized kl", _top_k(5), "top_k")
plant("top-3 renormalized jsd", _top_k(3, "jsd"), "top_k")
plant("top-20 renormalized kl", _top_k(20), "top_k")
plant("top-8 not renormalized", _top_k_cut(8), "top_k")


def _padded(multiple, name="kl"):
    def loss(student, teacher):
        more = -student.shape[-1] % multiple
        student, teacher = (
            jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, more)]) for x in (student, teacher)
        )
        return jnp.mean(FORMULAS[name](*sides(student, teacher)))

    return loss


plant("padded to 8", _padded(8), "padded_vocabulary")
plant("padded to 64, tv", _padded(64, "tv"), "padded_vocabulary")


# Reduction and mask

plant(
    "mean over V",
    lambda s, t: jnp.mean(sides(s, t)[0] * (sides(s, t)[1] - sides(s, t)[3])),
    "mean_over_vocabulary",
    meant="kl",
)
plant(
    "mean over V ce",
    lambda s, t: -4 * jnp.mean(sides(s, t, 2.0)[0] * sides(s, t, 2.0)[3]),
    "mean_over_vocabulary",
    meant="ce",
)
plant("batchmean", lambda s, t: jnp.sum(kl(*sides(s, t))) / s.shape[0], "batchmean", meant="kl")
plant(
    "divided by B twice",
    lambda s, t: jnp.mean(rkl(*sides(s, t))) / s.shape[0],
    "reduction_unusual",
    meant="rkl",
)


def _masked(name, how):
    def loss(student, teacher, mask):
        values = FORMULAS[name](*sides(student, teacher))
        return {
            "ignored": lambda: jnp.mean(values),
            "count": lambda: jnp.mean(values * mask),
            "inverted": lambda: jnp.sum(values * (1 - mask)) / jnp.sum(1 - mask + 1e-9),
            "shifted": lambda: jnp.sum(values[:, 1:] * mask[:, :-1]) / jnp.sum(mask),
            "rolled": lambda: jnp.sum(values * jnp.roll(mask, -1, 1)) / jnp.sum(mask),
            "leak": lambda: jnp.sum(values * mask) / jnp.sum(mask) + 0.1 * jnp.mean(values),
        }[how]()

    return loss


plant("mask ignored", _masked("kl", "ignored"), "mask_ignored", meant="kl")
plant("mask counted", _masked("jsd", "count"), "mask_count", meant="jsd")
plant("mask leaks", _masked("kl", "leak"), "mask_leak")
plant("mask shifted", _masked("tv", "shifted"), "mask_shifted")
plant("mask rolled", _masked("kl", "rolled"), "mask_shifted")


def _last_counted(student, teacher):
    return jnp.sum(kl(*sides(student, teacher))[:, :-1]) / (student.shape[0] * student.shape[1])


plant("last position dropped, but counted", _last_counted, "dropped_count", meant="kl")


# Numbers


def _clamped(size, clip, name="kl"):
    def loss(student, teacher):
        p, q = softmax(stop(teacher)), softmax(student)
        log = (lambda x: jnp.log(jnp.maximum(x, size))) if clip else (lambda x: jnp.log(x + size))
        return jnp.mean(FORMULAS[name](p, log(p), q, log(q)))

    return loss


for _size, _clip, _name in (
    (1e-8, False, "kl"),
    (1e-6, True, "rkl"),
    (1e-4, False, "ce"),
    (1e-10, True, "kl"),
    (1e-3, True, "kl"),
):
    plant(f"log clamped at {_size} {_clip} {_name}", _clamped(_size, _clip, _name), "clamped_log")


def _unstable(student, teacher):
    p, q = softmax(stop(teacher)), softmax(student)
    return jnp.mean(kl(p, jnp.log(p), q, jnp.log(q)))


def _exp_overflow(student, teacher):
    p, q = (jnp.exp(x) / jnp.sum(jnp.exp(x), -1, keepdims=True) for x in (stop(teacher), student))
    return jnp.mean(tv(p, p, q, q))


def _half(dtype, name):
    def loss(student, teacher):
        return jnp.mean(
            FORMULAS[name](*sides(student.astype(dtype), teacher.astype(dtype)))
        ).astype(jnp.float32)

    return loss


def _half_teacher(student, teacher):
    return jnp.mean(kl(*sides(student, teacher.astype(jnp.float16))))


plant("teacher in float16", _half_teacher, "low_precision", meant="kl")
plant("log of softmax", _unstable, "nan_at_large_logits")
plant("exp overflows", _exp_overflow, "nan_at_large_logits", "float16_overflow")
plant("bfloat16 inside", _half(jnp.bfloat16, "kl"), "low_precision")
plant("float16 inside", _half(jnp.float16, "ce"), "low_precision")
plant(
    "float16 exp",
    lambda s, t: _exp_overflow(s.astype(jnp.float16), t.astype(jnp.float16)),
    "low_precision",
    "nan_at_large_logits",
)


def _root_gradient(student, teacher):
    return jnp.mean(jnp.sqrt(2 * hellinger(*sides(student, teacher))))


plant("NaN gradient at equality", _root_gradient, "nan_gradient")


# Weights and batches


def _hybrid(detached, rate=3.0, by_batch=False):
    def loss(student, teacher):
        p, lp, q, lq = sides(student, teacher)
        acceptance = jnp.sum(jnp.minimum(p, q), -1)
        weight = jnp.exp(-rate * (stop(acceptance) if detached else acceptance))
        return jnp.mean(weight * kl(p, lp, q, lq) + (1 - weight) * tv(p, lp, q, lq))

    return loss


plant("gradient through the weight", _hybrid(False), "gradient_through_weight", meant="lk_hybrid")
plant("gradient through the weight, rate 5", _hybrid(False, 5.0), "gradient_through_weight")


def _detached_student(student, teacher):
    _, lp, q, lq = sides(student, teacher)
    return jnp.mean(jnp.sum(stop(q) * (lq - lp), -1))


def _batch_normalized(student, teacher):
    values = kl(*sides(student, teacher))
    return jnp.mean(values * stop(values / jnp.mean(values)))


def _by_order(student, teacher):
    weights = jnp.arange(1.0, 1 + student.shape[0])[:, None]
    return jnp.mean(weights * jsd(*sides(student, teacher)))


def _with_last_row(student, teacher):
    return jnp.mean(kl(*sides(student - 0.1 * jnp.roll(student, 1, axis=0), teacher)))


plant("student's probabilities detached", _detached_student, "wrong_gradient", meant="rkl")
plant("normalized by the batch", _batch_normalized, "batch_dependence")
plant("depends on the batch's order", _by_order, "batch_order", meant="jsd")
plant("reads another sequence", _with_last_row, "rows_interact", "batch_dependence")
