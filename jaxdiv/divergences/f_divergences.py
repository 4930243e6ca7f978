"""The f-divergences, each a sum over classes of a term of terms.py; all take the student first."""

import jax

from jaxdiv.divergences import terms
from jaxdiv.divergences.blocks import in_blocks
from jaxdiv.divergences.engine import divergence
from jaxdiv.divergences.inputs import prepare

# Beyond these, values leave float32 as soon as student and teacher differ.
ALPHA_RANGE = (-4.0, 5.0)


@in_blocks
def forward_kl(student_logits, teacher_logits, *, axis: int = -1, where=None) -> jax.Array:
    """Computes the forward KL divergence KL(teacher ‖ student) = Σ p·log(p/q), nats a row.

    The baseline of distillation, and mode covering: the student must give mass to whatever the
    teacher may say. A class that the teacher lacks (-inf) counts 0; one that only the student lacks
    makes it infinite.

    Args:
      student_logits: [..., V], any float type; computed in float32 at least.
      teacher_logits: [..., V], a constant.
      axis: the axis of the classes.
      where: classes that exist, broadcast to the logits; the others are absent on both sides.

    Returns:
      [...] in [0, inf].

    Raises:
      ValueError: if the logits do not have the same classes.

    Source: Kullback and Leibler (1951); Hinton et al., arXiv 1503.02531, section 2.

    >>> teacher = jax.numpy.log(jax.numpy.array([0.75, 0.25]))
    >>> round(float(forward_kl(jax.numpy.zeros(2), teacher)), 6)
    0.130812
    """
    return _between(terms.FORWARD_KL, student_logits, teacher_logits, axis, where)


@in_blocks
def reverse_kl(student_logits, teacher_logits, *, axis: int = -1, where=None) -> jax.Array:
    """Computes the reverse KL divergence KL(student ‖ teacher) = Σ q·log(q/p), nats a row.

    Mode seeking: the student avoids what the teacher never says, and gives up modes for that.
    In [0, inf]; infinite where the student has mass on a class that the teacher lacks. Arguments as
    in `forward_kl`.

    Source: MiniLLM, arXiv 2306.08543, equation 1.
    """
    return _between(terms.REVERSE_KL, student_logits, teacher_logits, axis, where)


@in_blocks
def jeffreys(student_logits, teacher_logits, *, axis: int = -1, where=None) -> jax.Array:
    """Computes Jeffreys' divergence, both KLs added: Σ (q-p)·log(q/p), nats a row.

    It penalizes missing and invented mass alike, without a bound. In [0, inf] and symmetric;
    infinite where one side lacks a class of the other. Arguments as in `forward_kl`.

    Source: Jeffreys (1946), An invariant form for the prior probability in estimation problems.
    """
    return _between(terms.JEFFREYS, student_logits, teacher_logits, axis, where)


@in_blocks
def jensen_shannon(
    student_logits, teacher_logits, *, beta: float = 0.5, axis: int = -1, where=None
) -> jax.Array:
    """Computes β·KL(teacher ‖ M) + (1-β)·KL(student ‖ M), M = β·teacher + (1-β)·student, in nats.

    A smooth neighbor of total variation, bounded in value and gradient: no class can make it
    infinite. Symmetric at β = ½. Divided by β it tends to forward KL as β tends to 0, divided by
    1-β to reverse KL as β tends to 1. Other arguments as in `forward_kl`.

    Args:
      beta: weight of the teacher, in (0, 1).

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
    """Computes β·KL(student ‖ M) + (1-β)·KL(teacher ‖ M), M = β·student + (1-β)·teacher.

    `jensen_shannon` with β on the student, for configs of libraries that count β from that side.

    Source: Lin (1991), equation 4.1.
    """
    return jensen_shannon(student_logits, teacher_logits, beta=1 - beta, axis=axis, where=where)


@in_blocks
def skew_kl(
    student_logits, teacher_logits, *, alpha: float = 0.1, axis: int = -1, where=None
) -> jax.Array:
    """Computes the skew KL divergence KL(teacher ‖ α·teacher + (1-α)·student), nats a row.

    Forward KL made safe: the mixture lacks no class of the teacher, so that value, in [0, -log α],
    and gradient stay bounded. It tends to forward KL as α tends to 0. Other arguments as in
    `forward_kl`.

    Args:
      alpha: weight of the teacher in the mixture, in (0, 1).

    Raises:
      ValueError: if `alpha` is not in (0, 1).

    Source: DistiLLM, arXiv 2402.03898, definition 1.
    """
    return _between(terms.skew_kl(_weight(alpha)), student_logits, teacher_logits, axis, where)


@in_blocks
def skew_reverse_kl(
    student_logits, teacher_logits, *, alpha: float = 0.1, axis: int = -1, where=None
) -> jax.Array:
    """Computes the skew reverse KL KL(student ‖ α·student + (1-α)·teacher), nats a row.

    Mode seeking as reverse KL, which it tends to as α tends to 0, but bounded, in [0, -log α].
    Arguments and errors as in `skew_kl`.

    Source: DistiLLM, arXiv 2402.03898, section 3.1.
    """
    term = terms.skew_reverse_kl(_weight(alpha))
    return _between(term, student_logits, teacher_logits, axis, where)


def _weight(alpha):
    if not 0 < alpha < 1:
        raise ValueError(f"`alpha` must be in (0, 1), got {alpha}; the limit 0 is kl or rkl.")
    return float(alpha)


@in_blocks
def alpha_divergence(
    student_logits, teacher_logits, *, alpha: float = 0.5, axis: int = -1, where=None
) -> jax.Array:
    """Computes Amari's α-divergence (1 - Σ p^α·q^(1-α))/(α(1-α)), one value a row.

    A dial from mode seeking (reverse KL, α = 0) to mode covering (forward KL, α = 1). Between them
    it is at most 1/(α(1-α)). Beyond, in [0, inf], it is infinite where one side lacks a class of
    the other or the value overflows, and the gradient is clipped where its sum would overflow.
    Other arguments as in `forward_kl`.

    Args:
      alpha: the dial, in [-4, 5].

    Raises:
      ValueError: if `alpha` is not in [-4, 5].

    Source: Amari, Differential-Geometrical Methods in Statistics (1985), section 3.5.
    """
    low, high = ALPHA_RANGE
    if not low <= alpha <= high:
        raise ValueError(f"`alpha` must be in [{low:g}, {high:g}], got {alpha}.")
    term = terms.alpha_divergence(float(alpha))
    return _between(term, student_logits, teacher_logits, axis, where)


@in_blocks
def pearson_chi_squared(student_logits, teacher_logits, *, axis: int = -1, where=None) -> jax.Array:
    """Computes Pearson's χ² = Σ (q-p)²/q, with the student in the denominator, one value a row.

    It weighs classes that the student underrates most of all, without a bound; for comparisons, as
    it trains worse drafts than KL (docs/choosing-a-loss.md). In [0, inf]; where a log ratio passes
    88 it is inf with a clipped gradient, not NaN. Twice the α-divergence at α = 2. Arguments as in
    `forward_kl`.

    Source: Pearson (1900). Some papers exchange the two names, as Nielsen and Nock, arXiv
      1309.3029, do.
    """
    return _between(terms.PEARSON_CHI_SQUARED, student_logits, teacher_logits, axis, where)


@in_blocks
def neyman_chi_squared(student_logits, teacher_logits, *, axis: int = -1, where=None) -> jax.Array:
    """Computes Neyman's χ² = Σ (q-p)²/p, with the teacher in the denominator, one value a row.

    It weighs classes that the student overrates most of all; otherwise as `pearson_chi_squared`.
    Twice the α-divergence at α = -1.

    Source: Neyman (1949).
    """
    return _between(terms.NEYMAN_CHI_SQUARED, student_logits, teacher_logits, axis, where)


@in_blocks
def squared_hellinger(student_logits, teacher_logits, *, axis: int = -1, where=None) -> jax.Array:
    """Computes the squared Hellinger distance ½·Σ (√p - √q)² = 1 - Σ √(pq), one value a row.

    Bounded, in [0, 1], symmetric and smooth: no class can dominate value or gradient. Arguments as
    in `forward_kl`.

    Source: Hellinger (1909); a quarter of the α-divergence at α = ½.
    """
    return _between(terms.SQUARED_HELLINGER, student_logits, teacher_logits, axis, where)


@in_blocks
def total_variation(student_logits, teacher_logits, *, axis: int = -1, where=None) -> jax.Array:
    """Computes the total variation ½·Σ|q-p| = 1 - Σ min(p, q), one value a row.

    It is the chance that rejection sampling rejects a sampled draft: minimizing it maximizes
    acceptance. Its gradient vanishes where p and q share nothing. In [0, 1] and symmetric. Where
    p = q the subgradient 0 is taken. Arguments as in `forward_kl`.

    Source: Leviathan et al., arXiv 2211.17192, definition 3.2 and theorem 3.5.
    """
    return _between(terms.TOTAL_VARIATION, student_logits, teacher_logits, axis, where)


def _between(term, student_logits, teacher_logits, axis, where):
    student, teacher = prepare(student_logits, teacher_logits, axis=axis, where=where)
    return divergence(term, student, teacher)
