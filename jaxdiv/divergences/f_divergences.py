"""The f-divergences, each Σφ over the classes with φ from terms.py. All take the student first."""

import jax

from jaxdiv.divergences import terms
from jaxdiv.divergences.blocks import in_blocks
from jaxdiv.divergences.engine import divergence
from jaxdiv.divergences.inputs import prepare

ALPHA_RANGE = (-4.0, 5.0)  # beyond, values leave float32 as soon as student and teacher differ


@in_blocks
def forward_kl(student_logits, teacher_logits, *, axis: int = -1, where=None) -> jax.Array:
    """KL(teacher ‖ student) = Σ p·log(p/q), nats a row.

    A class that the teacher lacks (-inf) counts 0; one that only the student lacks makes it
    infinite.

    Args:
      student_logits: [..., V], any float type; computed in float32 at least.
      teacher_logits: [..., V], a constant.
      axis: the classes.
      where: classes that exist, broadcast to the logits; the others are as if absent on both sides.

    Returns:
      [...] in [0, inf].

    Raises:
      ValueError: if the logits do not have the same classes.

    Source: Kullback and Leibler (1951); Hinton et al., arXiv 1503.02531, section 2.

    >>> round(float(forward_kl(jax.numpy.array([0.0, 0.0]), jax.numpy.log(jax.numpy.array([0.75, 0.25])))), 6)
    0.130812
    """
    return _between(terms.FORWARD_KL, student_logits, teacher_logits, axis, where)


@in_blocks
def reverse_kl(student_logits, teacher_logits, *, axis: int = -1, where=None) -> jax.Array:
    """KL(student ‖ teacher) = Σ q·log(q/p), nats a row, [...] in [0, inf]; arguments as in
    `forward_kl`.

    Infinite where the student has mass on a class that the teacher lacks.

    Source: MiniLLM, arXiv 2306.08543, equation 1.
    """
    return _between(terms.REVERSE_KL, student_logits, teacher_logits, axis, where)


@in_blocks
def jeffreys(student_logits, teacher_logits, *, axis: int = -1, where=None) -> jax.Array:
    """KL(teacher ‖ student) + KL(student ‖ teacher) = Σ (q-p)·log(q/p), nats a row, [...] in [0,
    inf].

    Symmetric; infinite where one side lacks a class of the other. Arguments as in `forward_kl`.

    Source: Jeffreys (1946), An invariant form for the prior probability in estimation problems.
    """
    return _between(terms.JEFFREYS, student_logits, teacher_logits, axis, where)


@in_blocks
def jensen_shannon(
    student_logits, teacher_logits, *, beta: float = 0.5, axis: int = -1, where=None
) -> jax.Array:
    """β·KL(teacher ‖ M) + (1-β)·KL(student ‖ M) with M = β·teacher + (1-β)·student, nats a row.

    Other arguments as in `forward_kl`. Symmetric at β = ½. Divided by β it tends to forward KL as β
    tends to 0, and divided by 1-β to reverse KL as β tends to 1.

    Args:
      beta: the teacher's weight, in (0, 1).

    Returns:
      [...] in [0, H(β)], H(½) = log 2.

    Raises:
      ValueError: if `beta` is not in (0, 1).

    Source: Lin (1991), equation 4.1; as a distillation loss Agarwal et al., arXiv 2306.13649,
      equation 1.
    """
    if not 0 < beta < 1:
        raise ValueError(
            f"`beta` must be in (0, 1), got {beta}; the limits are kl (0) and rkl (1)."
        )
    return _between(terms.jensen_shannon(float(beta)), student_logits, teacher_logits, axis, where)


@in_blocks
def reverse_jensen_shannon(
    student_logits, teacher_logits, *, beta: float = 0.5, axis: int = -1, where=None
) -> jax.Array:
    """`jensen_shannon` with β on the student: β·KL(student ‖ M) + (1-β)·KL(teacher ‖ M), M =
    β·student + (1-β)·teacher.

    Source: the generalized JSD of libraries that take β from the student's side; Lin (1991),
      equation 4.1.
    """
    return jensen_shannon(student_logits, teacher_logits, beta=1 - beta, axis=axis, where=where)


@in_blocks
def skew_kl(
    student_logits, teacher_logits, *, alpha: float = 0.1, axis: int = -1, where=None
) -> jax.Array:
    """KL(teacher ‖ α·teacher + (1-α)·student), nats a row, [...] in [0, -log α].

    Other arguments as in `forward_kl`, to which it tends as α tends to 0.

    Args:
      alpha: the teacher's weight in the mixture, in (0, 1).

    Raises:
      ValueError: if `alpha` is not in (0, 1).

    Source: DistiLLM, arXiv 2402.03898, definition 1.
    """
    return _between(terms.skew_kl(_weight(alpha)), student_logits, teacher_logits, axis, where)


@in_blocks
def skew_reverse_kl(
    student_logits, teacher_logits, *, alpha: float = 0.1, axis: int = -1, where=None
) -> jax.Array:
    """KL(student ‖ α·student + (1-α)·teacher), nats a row, [...] in [0, -log α]; as `skew_kl`
    otherwise.

    It tends to reverse KL as α tends to 0.

    Source: DistiLLM, arXiv 2402.03898, section 3.1.
    """
    return _between(
        terms.skew_reverse_kl(_weight(alpha)), student_logits, teacher_logits, axis, where
    )


def _weight(alpha):
    if not 0 < alpha < 1:
        raise ValueError(f"`alpha` must be in (0, 1), got {alpha}; the limit 0 is kl or rkl.")
    return float(alpha)


@in_blocks
def alpha_divergence(
    student_logits, teacher_logits, *, alpha: float = 0.5, axis: int = -1, where=None
) -> jax.Array:
    """(1 - Σ p^α·q^(1-α))/(α(1-α)), a row, [...] in [0, inf]; arguments as in `forward_kl`.

    Forward KL at α = 1, reverse KL at α = 0; at most 1/(α(1-α)) between. Beyond, it is infinite
    where one side lacks a class of the other or the value can't be held, and its gradient is cut
    where its sum would overflow.

    Args:
      alpha: in [-4, 5].

    Raises:
      ValueError: if `alpha` is not in [-4, 5].

    Source: Amari, Differential-Geometrical Methods in Statistics (1985), section 3.5.
    """
    low, high = ALPHA_RANGE
    if not low <= alpha <= high:
        raise ValueError(f"`alpha` must be in [{low:g}, {high:g}], got {alpha}.")
    return _between(
        terms.alpha_divergence(float(alpha)), student_logits, teacher_logits, axis, where
    )


@in_blocks
def pearson_chi_squared(student_logits, teacher_logits, *, axis: int = -1, where=None) -> jax.Array:
    """Σ (q-p)²/q, the student in the denominator as the model is in Pearson's test; a row, [...] in
    [0, inf].

    Twice the α-divergence at α = 2. It leaves float32 where a log ratio passes 88: +inf then, with
    a gradient that is cut, not NaN. Arguments as in `forward_kl`.

    Source: Pearson (1900). Some papers exchange the two names, as Nielsen and Nock, arXiv
      1309.3029, do.
    """
    return _between(terms.PEARSON_CHI_SQUARED, student_logits, teacher_logits, axis, where)


@in_blocks
def neyman_chi_squared(student_logits, teacher_logits, *, axis: int = -1, where=None) -> jax.Array:
    """Σ (q-p)²/p, the teacher in the denominator; a row, [...] in [0, inf]; otherwise as
    `pearson_chi_squared`.

    Twice the α-divergence at α = -1. Source: Neyman (1949).
    """
    return _between(terms.NEYMAN_CHI_SQUARED, student_logits, teacher_logits, axis, where)


@in_blocks
def squared_hellinger(student_logits, teacher_logits, *, axis: int = -1, where=None) -> jax.Array:
    """½·Σ (√p - √q)² = 1 - Σ √(pq), a row, [...] in [0, 1]; symmetric. Arguments as in
    `forward_kl`.

    Source: Hellinger (1909); a quarter of the α-divergence at α = ½.
    """
    return _between(terms.SQUARED_HELLINGER, student_logits, teacher_logits, axis, where)


@in_blocks
def total_variation(student_logits, teacher_logits, *, axis: int = -1, where=None) -> jax.Array:
    """½·Σ|q-p| = 1 - Σ min(p, q), [...] in [0, 1]: the chance that a sampled draft is rejected.

    Symmetric. Where p = q the subgradient 0 is taken. Arguments as in `forward_kl`.

    Source: Leviathan et al., arXiv 2211.17192, definition 3.2 and theorem 3.5.
    """
    return _between(terms.TOTAL_VARIATION, student_logits, teacher_logits, axis, where)


def _between(term, student_logits, teacher_logits, axis, where):
    student, teacher = prepare(student_logits, teacher_logits, axis=axis, where=where)
    return divergence(term, student, teacher)
