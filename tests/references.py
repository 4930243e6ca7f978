"""Every loss and its gradient in plain float64 NumPy, from the definitions; never imports
jaxdiv."""

import numpy as np


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _sum(values):
    return np.sum(values, -1)


def _times(weight, value):
    """Multiplies; 0 where the weight is 0, whatever the value."""
    return np.where(weight == 0, 0, weight * np.where(weight == 0, 0, value))


def _pair(student, teacher):
    a, b = log_softmax(teacher), log_softmax(student)
    with np.errstate(invalid="ignore"):
        return a, b, np.exp(a), np.exp(b), np.where(np.isneginf(a) & np.isneginf(b), 0, b - a)


def log_ratio(student, teacher):
    """Returns log(q/p), [..., V]."""
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
    return weight * _forward_kl(student, teacher) + (1 - weight) * _total_variation(
        student, teacher
    )


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
    return _sum(alpha * p + (1 - alpha) * q - np.exp(alpha * a + (1 - alpha) * b)) / (
        alpha * (1 - alpha)
    )


def affinity(student, teacher, alpha):
    """Returns log Σ p^α·q^(1-α)."""
    a, b, *_ = _pair(student, teacher)
    weighted_a, weighted_b = alpha * a, (1 - alpha) * b
    with np.errstate(invalid="ignore"):
        log = np.where(np.isneginf(a if alpha >= 0.5 else b), -np.inf, weighted_a + weighted_b)
    top = np.maximum(log.max(-1, keepdims=True), -1e300)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        return np.where(
            np.isposinf(top[..., 0]), np.inf, top[..., 0] + np.log(_sum(np.exp(log - top)))
        )


def renyi(student, teacher, alpha=0.5):
    with np.errstate(over="ignore", invalid="ignore"):
        change = -alpha * (1 - alpha) * alpha_divergence(student, teacher, alpha)
        close = np.log1p(np.clip(change, -0.5, 0.5))
    return np.where(np.abs(change) < 0.5, close, affinity(student, teacher, alpha)) / (alpha - 1)


def _chi_squared(student, teacher):
    """Σ (q-p)²/q."""
    a, b, _, q, r = _pair(student, teacher)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        far = np.exp(2 * a - b) * np.expm1(r) ** 2
        near = _times(q, np.expm1(-r) ** 2)
    return _sum(np.where(r < -1, np.where(np.isneginf(b) & ~np.isneginf(a), np.inf, far), near))


def head_share(student, teacher, head=0.5):
    """Returns the head's share of Σ|q-p| by row, equal probabilities together."""
    _, _, p, q, _ = _pair(student, teacher)
    shares = np.zeros(p.shape[:-1])
    for index in np.ndindex(shares.shape):
        values, counts = np.unique(p[index], return_counts=True)
        inside = np.cumsum((values * counts)[::-1])[::-1] <= head
        least = values[inside].min(initial=values[-1])
        gap = np.abs(q[index] - p[index])
        shares[index] = gap[p[index] >= least].sum() / gap.sum() if gap.sum() else 0
    return shares


def _adaptive_kl(student, teacher):
    share = head_share(student, teacher)
    return _times(share, _forward_kl(student, teacher)) + _times(
        1 - share, _reverse_kl(student, teacher)
    )


def _largest(teacher, k):
    return teacher >= np.sort(teacher, -1)[..., -k][..., None]


def _top_3(student, teacher):
    _, b, p, _, _ = _pair(student, teacher)
    return _sum(np.where(_largest(teacher, 3), _times(p, -b), 0))


def _uniform(student):
    log_q = log_softmax(student)
    present = np.isfinite(log_q)
    return -np.where(present, log_q, 0).sum(-1) / present.sum(-1)


def _smoothed(loss, smoothing=0.1):
    return lambda s, t: (1 - smoothing) * loss(s, t) + smoothing * _uniform(s)


def _squared_hellinger(student, teacher):
    _, _, p, q, _ = _pair(student, teacher)
    return _sum((np.sqrt(p) - np.sqrt(q)) ** 2) / 2


def _argmax(student, teacher):
    return label_loss(student, np.argmax(teacher, -1))


# By text that `jaxdiv.get` takes.
VALUES = {
    "adaptive_kl": _adaptive_kl,
    "alpha_divergence": alpha_divergence,
    "bhattacharyya": lambda s, t: renyi(s, t) / 2,
    "cross_entropy": _cross_entropy,
    "cross_entropy(smoothing=0.1)": _smoothed(_cross_entropy),
    "cross_entropy_argmax": _argmax,
    "cross_entropy_argmax(smoothing=0.1)": _smoothed(_argmax),
    "cross_entropy_top_k(k=3)": _top_3,
    "forward_kl": _forward_kl,
    "jeffreys": lambda s, t: _forward_kl(s, t) + _reverse_kl(s, t),
    "jensen_shannon": jensen_shannon,
    "lk_hybrid": lk_hybrid,
    "negative_acceptance": lambda s, t: -np.exp(_log_acceptance(s, t)),
    "negative_log_acceptance": lambda s, t: -_log_acceptance(s, t),
    "neyman_chi_squared": lambda s, t: _chi_squared(t, s),
    "pearson_chi_squared": _chi_squared,
    "renyi": renyi,
    "renyi(alpha=2)": lambda s, t: renyi(s, t, 2.0),
    "reverse_jensen_shannon(beta=0.3)": lambda s, t: jensen_shannon(s, t, 0.7),
    "reverse_kl": _reverse_kl,
    "skew_kl": skew_kl,
    "skew_reverse_kl": lambda s, t: skew_kl(t, s),
    "squared_hellinger": _squared_hellinger,
    "total_variation": _total_variation,
}


def log_normalizer(logits):
    top = logits.max(-1)
    return top + np.log(_sum(np.exp(logits - top[..., None])))


def _normalized(weights):
    return weights / weights.sum(-1, keepdims=True)


# q·dD/dq of each, from the chain rule of the definition; the softmax adds -q·Σ of it.
_BY_LOG_Q = {
    "alpha_divergence": lambda p, q, r: -2 * np.sqrt(p * q),
    "bhattacharyya": lambda p, q, r: -_normalized(np.sqrt(p * q)) / 2,
    "skew_kl": lambda p, q, r: -0.9 * p * q / (0.1 * p + 0.9 * q),
    "skew_reverse_kl": lambda p, q, r: (
        q * (np.log(q / (0.1 * q + 0.9 * p)) - 0.1 * q / (0.1 * q + 0.9 * p))
    ),
    "squared_hellinger": lambda p, q, r: -np.sqrt(p * q) / 2,
    "cross_entropy": lambda p, q, r: -p,
    "forward_kl": lambda p, q, r: -p,
    "reverse_kl": lambda p, q, r: q * (r + 1),
    "jeffreys": lambda p, q, r: -p + q * (r + 1),
    "jensen_shannon": lambda p, q, r: 0.5 * q * np.log(q / (0.5 * p + 0.5 * q)),
    "negative_acceptance": lambda p, q, r: 0.5 * q * np.sign(r),
    "negative_log_acceptance": lambda p, q, r: (
        -q * np.where(r < 0, 1, np.where(r == 0, 0.5, 0)) / np.minimum(p, q).sum(-1, keepdims=True)
    ),
    "neyman_chi_squared": lambda p, q, r: 2 * q * (q - p) / p,
    "pearson_chi_squared": lambda p, q, r: (q - p) * (q + p) / q,
    "renyi": lambda p, q, r: -_normalized(np.sqrt(p * q)),
    "renyi(alpha=2)": lambda p, q, r: -_normalized(p * p / q),
    "reverse_jensen_shannon(beta=0.3)": lambda p, q, r: 0.3 * q * np.log(q / (0.7 * p + 0.3 * q)),
    "total_variation": lambda p, q, r: 0.5 * q * np.sign(r),
}


def gradient(name, student, teacher):
    """Returns dD/dz by the student's finite logits, [..., V]."""
    _, _, p, q, r = _pair(student, teacher)
    if name == "cross_entropy_argmax":
        return q - (np.arange(q.shape[-1]) == np.argmax(teacher, -1)[..., None])
    if name.endswith("(smoothing=0.1)"):
        present = np.isfinite(student)
        whole = gradient(name.removesuffix("(smoothing=0.1)"), student, teacher)
        return 0.9 * whole + 0.1 * (q - present / present.sum(-1, keepdims=True))
    if name == "cross_entropy_top_k(k=3)":
        top = np.where(_largest(teacher, 3), p, 0)
        return q * top.sum(-1, keepdims=True) - top
    if name == "adaptive_kl":
        share = head_share(student, teacher)[..., None]
        return share * gradient("forward_kl", student, teacher) + (1 - share) * gradient(
            "reverse_kl", student, teacher
        )
    if name == "lk_hybrid":
        weight = _hybrid_weight(student, teacher, 3.0)[..., None]
        return weight * gradient("forward_kl", student, teacher) + (1 - weight) * gradient(
            "total_variation", student, teacher
        )
    by_log_q = _BY_LOG_Q[name](p, q, r)
    return by_log_q - q * by_log_q.sum(-1, keepdims=True)
