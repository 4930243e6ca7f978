"""Peers to time and check losses against: other libraries' losses, and those one writes in a line.

A peer takes student logits [N, V] in float32 or float64 and teacher logits [N, V], or labels [N]
for `ce_data`, and returns one value a row. Losses go by their full names; parameters have jaxdiv's
defaults.
"""

import functools
import importlib
import math
from collections.abc import Callable
from types import ModuleType

import jax
import jax.numpy as jnp

import jaxdiv

Losses = dict[str, Callable]


def load(name: str) -> Losses:
    """Returns a library's losses by their full names; those of `torch` take its tensors.

    Raises:
      ValueError: if the library is unknown.
      ImportError: if it can't be imported.
    """
    if name not in LIBRARIES:
        raise ValueError(f"unknown library `{name}`; known: {', '.join(LIBRARIES)}")
    return LIBRARIES[name]()


def on_whole_logits(loss: Callable) -> Callable:
    """Returns the loss as a function of hidden states and head, the student's and the teacher's."""

    def values(hidden, head, teacher_hidden, teacher_head):
        sides = (hidden, head), (teacher_hidden, teacher_head)
        return loss(*(jnp.matmul(*side, preferred_element_type=jnp.float32) for side in sides))

    return values


def _plain(
    xp: ModuleType,
    softmax: Callable,
    log_softmax: Callable,
    forward_kl: Callable,
    stop_gradient: Callable,
) -> Losses:
    """Returns the losses that one writes alike with `xp`, which is jax.numpy or torch."""

    def skew_kl(s, t, alpha=0.1):
        p = softmax(t)
        return (p * (log_softmax(t) - xp.log(alpha * p + (1 - alpha) * softmax(s)))).sum(-1)

    def total_variation(s, t):
        return 0.5 * xp.abs(softmax(s) - softmax(t)).sum(-1)

    def lk_hybrid(s, t):
        variation = total_variation(s, t)
        weight = xp.exp(-3.0 * (1 - stop_gradient(variation)))
        return weight * forward_kl(s, t) + (1 - weight) * variation

    return {
        "alpha_divergence": lambda s, t: (
            4 * (1 - xp.exp(0.5 * (log_softmax(s) + log_softmax(t))).sum(-1))
        ),
        "forward_kl": forward_kl,
        "lk_hybrid": lk_hybrid,
        "negative_log_acceptance": lambda s, t: -xp.log(xp.minimum(softmax(s), softmax(t)).sum(-1)),
        "reverse_kl": lambda s, t: forward_kl(t, s),
        "skew_kl": skew_kl,
        "skew_reverse_kl": lambda s, t, **options: skew_kl(t, s, **options),
        "squared_hellinger": lambda s, t: (
            0.5 * ((xp.sqrt(softmax(s)) - xp.sqrt(softmax(t))) ** 2).sum(-1)
        ),
        "total_variation": total_variation,
    }


def _jnp() -> Losses:
    """Returns the losses as one writes them with jax.nn.log_softmax."""
    log_softmax, softmax = jax.nn.log_softmax, jax.nn.softmax

    def forward_kl(s, t):
        return jnp.sum(softmax(t) * (log_softmax(t) - log_softmax(s)), -1)

    def jensen_shannon(s, t):
        p, q = softmax(t), softmax(s)
        m = jnp.log(0.5 * p + 0.5 * q)
        by_teacher = jnp.sum(p * (log_softmax(t) - m), -1)
        return 0.5 * by_teacher + 0.5 * jnp.sum(q * (log_softmax(s) - m), -1)

    def of_label(s, labels):
        return -jnp.take_along_axis(log_softmax(s), labels[:, None], -1)[:, 0]

    return _plain(jnp, softmax, log_softmax, forward_kl, jax.lax.stop_gradient) | {
        "cross_entropy": lambda s, t: -jnp.sum(softmax(t) * log_softmax(s), -1),
        "cross_entropy_argmax": lambda s, t: of_label(s, jnp.argmax(t, -1)),
        "cross_entropy_data": of_label,
        "jeffreys": lambda s, t: jnp.sum(
            (softmax(s) - softmax(t)) * (log_softmax(s) - log_softmax(t)), -1
        ),
        "jensen_shannon": jensen_shannon,
    }


def _optax() -> Losses:
    losses = importlib.import_module("optax.losses")
    by_label = losses.softmax_cross_entropy_with_integer_labels

    def forward_kl(s, t):
        return losses.kl_divergence(jax.nn.log_softmax(s), jax.nn.softmax(t))

    return {
        "cross_entropy": lambda s, t: losses.softmax_cross_entropy(s, jax.nn.softmax(t)),
        "cross_entropy_argmax": lambda s, t: by_label(s, jnp.argmax(t, -1)),
        "cross_entropy_data": by_label,
        "forward_kl": forward_kl,
        "reverse_kl": lambda s, t: forward_kl(t, s),
        "jeffreys": lambda s, t: forward_kl(s, t) + forward_kl(t, s),
    }


def _distrax() -> Losses:
    categorical = importlib.import_module("distrax").Categorical

    def forward_kl(s, t):
        return categorical(logits=t).kl_divergence(categorical(logits=s))

    return {
        "cross_entropy": lambda s, t: categorical(logits=t).cross_entropy(categorical(logits=s)),
        "cross_entropy_data": lambda s, labels: -categorical(logits=s).log_prob(labels),
        "forward_kl": forward_kl,
        "reverse_kl": lambda s, t: forward_kl(t, s),
    }


def _torch() -> Losses:
    """Returns losses of torch.nn.functional, and mixtures as TRL (generalised JSD) and DistiLLM
    have them."""
    torch = importlib.import_module("torch")
    functional = importlib.import_module("torch.nn.functional")
    softmax = functools.partial(functional.softmax, dim=-1)
    log_softmax = functools.partial(functional.log_softmax, dim=-1)
    cross_entropy = functools.partial(functional.cross_entropy, reduction="none")

    def kl_from_logs(of, log_p):
        """Computes KL(p ‖ of), with torch's order of arguments."""
        return functional.kl_div(of, log_p, reduction="none", log_target=True).sum(-1)

    def forward_kl(s, t):
        return kl_from_logs(log_softmax(s), log_softmax(t))

    def jensen_shannon(s, t, beta=0.5):
        a, b = log_softmax(t), log_softmax(s)
        mixture = torch.logsumexp(torch.stack([a + math.log(beta), b + math.log1p(-beta)]), 0)
        return beta * kl_from_logs(mixture, a) + (1 - beta) * kl_from_logs(mixture, b)

    return _plain(torch, softmax, log_softmax, forward_kl, torch.detach) | {
        "cross_entropy": lambda s, t: cross_entropy(s, softmax(t)),
        "cross_entropy_argmax": lambda s, t: cross_entropy(s, t.argmax(-1)),
        "cross_entropy_data": lambda s, labels: cross_entropy(s, labels.long()),
        "jeffreys": lambda s, t: forward_kl(s, t) + forward_kl(t, s),
        "jensen_shannon": jensen_shannon,
    }


LIBRARIES = {
    "jaxdiv": lambda: {name: getattr(jaxdiv, name) for name in jaxdiv.names()},
    "jnp": _jnp,
    "optax": _optax,
    "distrax": _distrax,
    "torch": _torch,
}
