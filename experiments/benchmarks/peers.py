"""Peers to time and check losses against: other libraries' losses, and those one writes in a line.

A peer takes student logits [N, V] in float32 or float64 and teacher logits [N, V], or labels [N]
for `ce_data`, and returns one value a row. Losses go by their full names; parameters have jaxdiv's
defaults.
"""

import dataclasses
import importlib
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

import jaxdiv

JAX, TORCH = "jax", "torch"


@dataclasses.dataclass(frozen=True)
class Library:
    """Attributes: name; framework, whose arrays the losses take; losses, by full name."""

    name: str
    framework: str
    losses: Mapping[str, Callable]


def load(name: str) -> Library:
    """Returns a library with its losses.

    Raises:
      ValueError: if it is unknown.
      ImportError: if it can't be imported.
    """
    if name not in _MAKERS:
        raise ValueError(f"unknown library `{name}`; known: {', '.join(_MAKERS)}")
    return Library(name, TORCH if name == "torch" else JAX, _MAKERS[name]())


def names() -> tuple[str, ...]:
    """Returns the names that `load` knows, jaxdiv's first."""
    return tuple(_MAKERS)


def _jaxdiv():
    return {name: getattr(jaxdiv, name) for name in jaxdiv.names()}


def _jnp():
    """Returns the losses as one writes them with jax.nn.log_softmax."""
    log_softmax, softmax = jax.nn.log_softmax, jax.nn.softmax

    def forward_kl(s, t):
        return jnp.sum(softmax(t) * (log_softmax(t) - log_softmax(s)), -1)

    def skew_kl(s, t):
        p, q = softmax(t), softmax(s)
        return jnp.sum(p * (log_softmax(t) - jnp.log(0.1 * p + 0.9 * q)), -1)

    def jensen_shannon(s, t):
        p, q = softmax(t), softmax(s)
        m = jnp.log(0.5 * p + 0.5 * q)
        return 0.5 * jnp.sum(p * (log_softmax(t) - m), -1) + 0.5 * jnp.sum(
            q * (log_softmax(s) - m), -1
        )

    def total_variation(s, t):
        return 0.5 * jnp.sum(jnp.abs(softmax(s) - softmax(t)), -1)

    def lk_hybrid(s, t):
        variation = total_variation(s, t)
        weight = jnp.exp(-3.0 * (1 - jax.lax.stop_gradient(variation)))
        return weight * forward_kl(s, t) + (1 - weight) * variation

    def of_label(s, labels):
        return -jnp.take_along_axis(log_softmax(s), labels[:, None], -1)[:, 0]

    return {
        "alpha_divergence": lambda s, t: (
            4 * (1 - jnp.sum(jnp.exp(0.5 * (log_softmax(s) + log_softmax(t))), -1))
        ),
        "cross_entropy": lambda s, t: -jnp.sum(softmax(t) * log_softmax(s), -1),
        "cross_entropy_argmax": lambda s, t: of_label(s, jnp.argmax(t, -1)),
        "cross_entropy_data": of_label,
        "forward_kl": forward_kl,
        "jeffreys": lambda s, t: jnp.sum(
            (softmax(s) - softmax(t)) * (log_softmax(s) - log_softmax(t)), -1
        ),
        "jensen_shannon": jensen_shannon,
        "lk_hybrid": lk_hybrid,
        "negative_log_acceptance": lambda s, t: (
            -jnp.log(jnp.sum(jnp.minimum(softmax(s), softmax(t)), -1))
        ),
        "reverse_kl": lambda s, t: forward_kl(t, s),
        "skew_kl": skew_kl,
        "skew_reverse_kl": lambda s, t: skew_kl(t, s),
        "squared_hellinger": lambda s, t: (
            0.5 * jnp.sum((jnp.sqrt(softmax(s)) - jnp.sqrt(softmax(t))) ** 2, -1)
        ),
        "total_variation": total_variation,
    }


def _optax():
    losses = importlib.import_module("optax.losses")
    log_softmax, softmax = jax.nn.log_softmax, jax.nn.softmax
    by_label = losses.softmax_cross_entropy_with_integer_labels

    def forward_kl(s, t):
        return losses.kl_divergence(log_softmax(s), softmax(t))

    return {
        "cross_entropy": lambda s, t: losses.softmax_cross_entropy(s, softmax(t)),
        "cross_entropy_argmax": lambda s, t: by_label(s, jnp.argmax(t, -1)),
        "cross_entropy_data": by_label,
        "forward_kl": forward_kl,
        "reverse_kl": lambda s, t: forward_kl(t, s),
        "jeffreys": lambda s, t: forward_kl(s, t) + forward_kl(t, s),
    }


def _distrax():
    categorical = importlib.import_module("distrax").Categorical

    def forward_kl(s, t):
        return categorical(logits=t).kl_divergence(categorical(logits=s))

    return {
        "cross_entropy": lambda s, t: categorical(logits=t).cross_entropy(categorical(logits=s)),
        "cross_entropy_data": lambda s, labels: -categorical(logits=s).log_prob(labels),
        "forward_kl": forward_kl,
        "reverse_kl": lambda s, t: forward_kl(t, s),
    }


def _torch():
    """Returns losses of torch.nn.functional, and mixtures as TRL (generalised JSD) and DistiLLM
    have them."""
    torch = importlib.import_module("torch")
    functional = importlib.import_module("torch.nn.functional")

    def log_softmax(x):
        return functional.log_softmax(x, -1)

    def softmax(x):
        return functional.softmax(x, -1)

    def kl_from_logs(of, log_p):
        """Computes KL(p ‖ of), with torch's order of arguments."""
        return functional.kl_div(of, log_p, reduction="none", log_target=True).sum(-1)

    def forward_kl(s, t):
        return kl_from_logs(log_softmax(s), log_softmax(t))

    def log_mixture(weight, a, b):
        return torch.logsumexp(torch.stack([a + math.log(weight), b + math.log1p(-weight)]), 0)

    def jensen_shannon(s, t, beta=0.5):
        a, b = log_softmax(t), log_softmax(s)
        mixture = log_mixture(beta, a, b)
        return beta * kl_from_logs(mixture, a) + (1 - beta) * kl_from_logs(mixture, b)

    def skew_kl(s, t, alpha=0.1):
        p = softmax(t)
        mixture = torch.log(alpha * p + (1 - alpha) * softmax(s))
        return (p * (log_softmax(t) - mixture)).sum(-1)

    def total_variation(s, t):
        return 0.5 * (softmax(s) - softmax(t)).abs().sum(-1)

    def lk_hybrid(s, t):
        variation = total_variation(s, t)
        weight = torch.exp(-3.0 * (1 - variation.detach()))
        return weight * forward_kl(s, t) + (1 - weight) * variation

    return {
        "alpha_divergence": lambda s, t: (
            4 * (1 - torch.exp(0.5 * (log_softmax(s) + log_softmax(t))).sum(-1))
        ),
        "cross_entropy": lambda s, t: functional.cross_entropy(s, softmax(t), reduction="none"),
        "cross_entropy_argmax": lambda s, t: functional.cross_entropy(
            s, t.argmax(-1), reduction="none"
        ),
        "cross_entropy_data": lambda s, labels: functional.cross_entropy(
            s, labels.long(), reduction="none"
        ),
        "forward_kl": forward_kl,
        "jeffreys": lambda s, t: forward_kl(s, t) + forward_kl(t, s),
        "jensen_shannon": jensen_shannon,
        "lk_hybrid": lk_hybrid,
        "negative_log_acceptance": lambda s, t: (
            -torch.log(torch.minimum(softmax(s), softmax(t)).sum(-1))
        ),
        "reverse_kl": lambda s, t: forward_kl(t, s),
        "skew_kl": skew_kl,
        "skew_reverse_kl": lambda s, t, **options: skew_kl(t, s, **options),
        "squared_hellinger": lambda s, t: (
            0.5 * (softmax(s).sqrt() - softmax(t).sqrt()).square().sum(-1)
        ),
        "total_variation": total_variation,
    }


_MAKERS = {"jaxdiv": _jaxdiv, "jnp": _jnp, "optax": _optax, "distrax": _distrax, "torch": _torch}
