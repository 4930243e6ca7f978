"""Losses and gradients against PyTorch's, in double precision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import jaxdiv
from experiments.benchmarks import peers

torch = pytest.importorskip("torch")
functional = torch.nn.functional
pytestmark = pytest.mark.slow

RNG = np.random.default_rng(3)
ROWS, CLASSES = 6, 40
TEACHER = 2 * RNG.normal(size=(ROWS, CLASSES))
STUDENT = TEACHER + RNG.normal(size=TEACHER.shape)
LABELS = RNG.integers(0, CLASSES, ROWS)


def _jaxdiv(text, temperature):
    loss = jaxdiv.get(text)
    labels = jnp.asarray(LABELS) if loss.needs_labels else None
    values, pull = jax.vjp(
        lambda s: loss(s, jnp.asarray(TEACHER), labels=labels, temperature=temperature),
        jnp.asarray(STUDENT),
    )
    return values, pull(jnp.ones_like(values))[0]


def _torch(function, target):
    student = torch.tensor(STUDENT, requires_grad=True)
    values = function(student, target)
    return values.detach().numpy(), torch.autograd.grad(values.sum(), student)[0].numpy()


def _check(text, function, target=None, temperature=1.0):
    target = torch.tensor(TEACHER) if target is None else target
    with jax.enable_x64(True):
        value, gradient = _jaxdiv(text, temperature)
    expected, by_student = _torch(function, target)
    assert_allclose(value, expected, rtol=1e-10, atol=1e-10)
    assert_allclose(gradient, by_student, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("loss", sorted(peers.load("torch")))
def test_losses_and_gradients_agree(loss):
    function = peers.load("torch")[loss]
    _check(loss, function, torch.tensor(LABELS) if loss == "cross_entropy_data" else None)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.7])
def test_generalized_jensen_shannon_has_beta_on_the_teacher(beta):
    """Tests TRL's form, β·KL(teacher ‖ M) + (1-β)·KL(student ‖ M), and that on probabilities."""
    trl = functools.partial(peers.load("torch")["jensen_shannon"], beta=beta)
    _check(f"jsd(beta={beta})", trl)

    def on_probabilities(student, teacher):
        q, p = student.softmax(-1), teacher.softmax(-1)
        mixture = beta * p + (1 - beta) * q
        by_teacher = (p * (p / mixture).log()).sum(-1)
        return beta * by_teacher + (1 - beta) * (q * (q / mixture).log()).sum(-1)

    _check(f"jsd(beta={beta})", on_probabilities)


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_beta_on_the_student_is_one_minus_beta(beta):
    """Tests libraries with β·KL(student ‖ M) + (1-β)·KL(teacher ‖ M) (TRL #3043)."""

    def other_way(student, teacher):
        log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
        mixture = (beta * log_q.exp() + (1 - beta) * log_p.exp()).log()
        of_student, of_teacher = (
            functional.kl_div(mixture, side, reduction="none", log_target=True).sum(-1)
            for side in (log_q, log_p)
        )
        return beta * of_student + (1 - beta) * of_teacher

    _check(f"jsd(beta={1 - beta})", other_way)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("loss", ["skew_kl", "skew_reverse_kl"])
def test_skew_divergences_agree_at_every_weight(loss, alpha):
    function = functools.partial(peers.load("torch")[loss], alpha=alpha)
    _check(f"{loss}(alpha={alpha})", function)


@pytest.mark.parametrize("temperature", [0.5, 2.0, 4.0])
def test_temperature_is_hintons(temperature):
    """Tests T²·KL of softened rows, as in PyTorch's knowledge-distillation tutorial."""

    def softened(student, teacher):
        log_q, log_p = ((x / temperature).log_softmax(-1) for x in (student, teacher))
        kl = functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
        return temperature**2 * kl

    _check("kl", softened, temperature=temperature)
