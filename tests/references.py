"""Every loss and its gradient in plain float64 NumPy, from the definitions; never imports jaxdiv."""

import numpy as np


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _sum(values):
    return np.sum(values, -1)


def _times(weight, value):
    """0 where the weight is 0, whatever the value."""
    return np.where(weight == 0, 0, weight * np.where(weight == 0, 0, value))


def _pair(student, teacher):
    a, b = log_softmax(teacher), log_softmax(student)
    with np.errstate(invalid="ignore"):
        return a, b, np.exp(a), np.exp(b), np.where(np.isneginf(a) & np.isneginf(b), 0, b - a)


def log_ratio(student, teacher):
    """log(q/p), [..., V]."""
    return _pair(student, teacher)[-1]


def _forward_kl(student, teacher):
    _, _, p, _, r = _pair(student, teacher)
    return _sum(_times(p, -r))


def _reverse_kl(student, teacher):
    _, _, _, q, r = _pair(student, teacher)
    return _sum(_times(q, r))


def jensen_shannon(student, teacher, beta=0.5):
    a, b, p, q, _ = _pair(student, teacher)
    with np.errstate(divide="ignore", invalid="ignore"):
        m = np.log(beta * p + (1 - beta) * q)
        return _sum(_times(beta * p, a - m) + _times((1 - beta) * q, b - m))


def _total_variation(student, teacher):
    _, _, p, q, _ = _pair(student, teacher)
    return _sum(np.abs(q - p)) / 2


def _log_acceptance(student, teacher):
    a, b, *_ = _pair(student, teacher)
    common = np.minimum(a, b)
    top = common.max(-1, keepdims=True)
    return top[..., 0] + np.log(_sum(np.exp(common - top)))


def _hybrid_weight(student, teacher, rate):
    return np.exp(-rate * (1 - _total_variation(student, teacher)))


def lk_hybrid(student, teacher, rate=3.0):
    weight = _hybrid_weight(student, teacher, rate)
    return weight * _forward_kl(student, teacher) + (1 - weight) * _total_variation(student, teacher)


def _cross_entropy(student, teacher):
    _, b, p, _, _ = _pair(student, teacher)
    return _sum(_times(p, -b))


def label_loss(student, labels):
    return -np.take_along_axis(log_softmax(student), np.asarray(labels)[..., None], -1)[..., 0]


def skew_kl(student, teacher, alpha=0.1):
    a, b, p, _, _ = _pair(student, teacher)
    with np.errstate(invalid="ignore"):
        return _sum(_times(p, a - np.logaddexp(np.log(alpha) + a, np.log(1 - alpha) + b)))


def alpha_divergence(student, teacher, alpha=0.5):
    a, b, p, q, _ = _pair(student, teacher)
    # The first-order part, which sums to 0, leaves digits near equality.
    return _sum(alpha * p + (1 - alpha) * q - np.exp(alpha * a + (1 - alpha) * b)) / (alpha * (1 - alpha))


def _squared_hellinger(student, teacher):
    _, _, p, q, _ = _pair(student, teacher)
    return _sum((np.sqrt(p) - np.sqrt(q)) ** 2) / 2


VALUES = {
    "alpha_divergence": alpha_divergence,
    "skew_kl": skew_kl,
    "skew_reverse_kl": lambda s, t: skew_kl(t, s),
    "squared_hellinger": _squared_hellinger,
    "cross_entropy": _cross_entropy,
    "cross_entropy_argmax": lambda s, t: label_loss(s, np.argmax(t, -1)),
    "forward_kl": _forward_kl,
    "reverse_kl": _reverse_kl,
    "jeffreys": lambda s, t: _forward_kl(s, t) + _reverse_kl(s, t),
    "jensen_shannon": jensen_shannon,
    "lk_hybrid": lk_hybrid,
    "negative_log_acceptance": lambda s, t: -_log_acceptance(s, t),
    "total_variation": _total_variation,
}

# q·dD/dq of each, from the chain rule of the definition; the softmax adds -q·Σ of it.
_BY_LOG_Q = {
    "alpha_divergence": lambda p, q, r: -2 * np.sqrt(p * q),
    "skew_kl": lambda p, q, r: -0.9 * p * q / (0.1 * p + 0.9 * q),
    "skew_reverse_kl": lambda p, q, r: q * (np.log(q / (0.1 * q + 0.9 * p)) - 0.1 * q / (0.1 * q + 0.9 * p)),
    "squared_hellinger": lambda p, q, r: -np.sqrt(p * q) / 2,
    "cross_entropy": lambda p, q, r: -p,
    "forward_kl": lambda p, q, r: -p,
    "reverse_kl": lambda p, q, r: q * (r + 1),
    "jeffreys": lambda p, q, r: -p + q * (r + 1),
    "jensen_shannon": lambda p, q, r: 0.5 * q * np.log(q / (0.5 * p + 0.5 * q)),
    "negative_log_acceptance": lambda p, q, r: (
        -q * np.where(r < 0, 1, np.where(r == 0, 0.5, 0)) / np.minimum(p, q).sum(-1, keepdims=True)
    ),
    "total_variation": lambda p, q, r: 0.5 * q * np.sign(r),
}


def gradient(name, student, teacher):
    """dD/dz of the student's finite logits, [..., V]."""
    _, _, p, q, r = _pair(student, teacher)
    if name == "cross_entropy_argmax":
        return q - (np.arange(q.shape[-1]) == np.argmax(teacher, -1)[..., None])
    if name == "lk_hybrid":
        weight = _hybrid_weight(student, teacher, 3.0)[..., None]
        return weight * gradient("forward_kl", student, teacher) + (1 - weight) * gradient(
            "total_variation", student, teacher
        )
    by_log_q = _BY_LOG_Q[name](p, q, r)
    return by_log_q - q * by_log_q.sum(-1, keepdims=True)
