"""How often a target accepts a draft's tokens, by named rule, and the tokens a target call that
follow.

The rules differ and so do their rankings of drafts: `sampling` (rejection sampling of sampled
  drafts), `greedy_draft`
(the draft's likeliest token, verified by sampling the target), `greedy_match` (both greedy),
`exact_match` (two samples that must be equal), `typical` (the draft's likeliest token, if the
target's chance of it is above a threshold: lossy). The first five functions give a position's
chance over all next tokens; those ending in `_given` give it for the token that the target did
output, which is what decoding along a text needs. The draft is the student and the target the
teacher, q and p below.

Tokens a target call: a lossless decoder's output is a text of the target. Given that text, drafts
  are accepted
independently, so the positions where rounds of gamma drafts begin are a renewal process on it, and
the expected number of target calls is a sum, free of decoding's noise.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp

from jaxdiv import schema, warps


def sampling(
    student_logits: jax.Array, teacher_logits: jax.Array, *, temperature: float = 1.0
) -> jax.Array:
    """Acceptance of sampled drafts by rejection sampling: sum of min(p, q).

    Args:
      student_logits: [..., V], the draft's.
      teacher_logits: [..., V], the target's.
      temperature: of both sides; 0 is greedy.

    Returns:
      [...], in [0, 1] up to rounding (2e-7); 1 minus the total variation. At temperature 0 it is
      `greedy_match`. NaN where a logit is NaN, as every rule here.

    Source: Leviathan et al. 2023 (arXiv 2211.17192), Corollary 3.6.
    """
    student, teacher = _both(student_logits, teacher_logits, temperature)
    # Vectorised, XLA's minimum takes the number where the other is NaN.
    whole = jnp.sum(student, axis=-1) + jnp.sum(teacher, axis=-1)
    return jnp.where(jnp.isnan(whole), whole, jnp.sum(jnp.minimum(student, teacher), axis=-1))


def greedy_draft(
    student_logits: jax.Array, teacher_logits: jax.Array, *, temperature: float = 1.0
) -> jax.Array:
    """Acceptance of greedy drafts by a sampling target: p(argmax q); shapes and range as
    `sampling`."""
    chance = _at(
        warps.probabilities(teacher_logits, temperature=temperature),
        jnp.argmax(student_logits, axis=-1),
    )
    return _unless_nan(chance, student_logits, teacher_logits)


def greedy_match(student_logits: jax.Array, teacher_logits: jax.Array) -> jax.Array:
    """Acceptance of greedy drafts by a greedy target: 1 where argmax p = argmax q, else 0; shapes
    as `sampling`."""
    match = _float(jnp.argmax(student_logits, axis=-1) == jnp.argmax(teacher_logits, axis=-1))
    return _unless_nan(match, student_logits, teacher_logits)


def exact_match(
    student_logits: jax.Array, teacher_logits: jax.Array, *, temperature: float = 1.0
) -> jax.Array:
    """Acceptance where the target's sample must equal the draft's: sum of p q; shapes and range as
    `sampling`."""
    student, teacher = _both(student_logits, teacher_logits, temperature)
    return jnp.sum(student * teacher, axis=-1)


def typical(
    student_logits: jax.Array, teacher_logits: jax.Array, *, temperature: float = 1.0
) -> jax.Array:
    """Acceptance of greedy drafts by a threshold, which is lossy: 1 where p(argmax q) exceeds it;
    shapes as `sampling`.

    Source: Medusa (arXiv 2401.10774, section 2.3.1), whose threshold is `typical_threshold`. At
      temperature 0 it is
    `greedy_match`.
    """
    target = warps.probabilities(teacher_logits, temperature=temperature)
    chance = _at(target, jnp.argmax(student_logits, axis=-1))
    return _unless_nan(_float(chance > typical_threshold(target)), student_logits, teacher_logits)


def typical_threshold(target: jax.Array, *, epsilon: float = 0.09, delta: float = 0.3) -> jax.Array:
    """min(epsilon, delta·exp(-H(p))) of probabilities p [..., V], with the constants of Medusa's
    code."""
    entropy = -jnp.sum(jax.scipy.special.xlogy(target, target), axis=-1)
    return jnp.minimum(epsilon, delta * jnp.exp(-entropy))


# The rules that depend on a temperature; at 0 each is `greedy_match`.
BY_TEMPERATURE: Mapping[str, Callable] = MappingProxyType(
    {
        schema.SAMPLING: sampling,
        schema.GREEDY_DRAFT: greedy_draft,
        schema.EXACT_MATCH: exact_match,
        schema.TYPICAL: typical,
    }
)
RULES = (*BY_TEMPERATURE, schema.GREEDY_MATCH)


def sampling_given(
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    tokens: jax.Array,
    *,
    temperature: float = 1.0,
) -> jax.Array:
    """Chance that the token x which the target output was an accepted draft: min(1, q(x) / p(x)).

    Its mean over x ~ p is `sampling`.

    Args:
      student_logits: [..., V], the draft's.
      teacher_logits: [..., V], the target's.
      tokens: [...] integers, drawn from the target at the same temperature.
      temperature: of both sides; 0 is greedy.

    Returns:
      [...], in [0, 1].
    """
    warps.check_temperature(temperature)
    if temperature == 0:
        return greedy_given(student_logits, tokens)
    surplus = _log_probability(student_logits, tokens, temperature) - _log_probability(
        teacher_logits, tokens, temperature
    )
    return jnp.exp(jnp.minimum(surplus, 0.0))


def greedy_given(student_logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Chance that the token x which the target output was an accepted greedy draft: 1 where x =
    argmax q, else 0.

    Holds for a sampling and for a greedy target. `student_logits` [..., V], `tokens` [...]; returns
    [...].
    """
    return _unless_nan(_float(jnp.argmax(student_logits, axis=-1) == tokens), student_logits)


def renewal(
    accept: jax.Array, valid: jax.Array, *, gamma: int, sure: jax.Array | None = None
) -> jax.Array:
    """Chance that a round (one target call: gamma drafts, then the target's own token) begins at
    each position.

    A position is at offset 0 to gamma of its round. From an offset below gamma the round goes on if
    the draft is accepted, else the next round begins; after offset gamma, the target's own token,
    it always does. A draft that was not sure is the round's last: the position after it is at
    offset gamma.

    Args:
      accept: [..., n], chance of acceptance given the text: `sampling_given` or `greedy_given`.
      valid: integers, tokens of each text, [...] or what broadcasts to it; what lies behind is
        ignored, even NaN.
      gamma: drafts a round at most, at least 1.
      sure: [..., n] bool, whether drafting goes on after the draft at this position: Kangaroo's
        threshold (arXiv 2404.18911) asks whether the draft's largest probability there is at least
        eta. It may depend on the text before the position, not on its token. None for always.

    Returns:
      [..., n], in [0, 1]; 1 at the first position, 0 behind the text.

    Raises:
      ValueError: gamma is below 1.
    """
    if gamma < 1:
        raise ValueError(f"`gamma` must be at least 1, got {gamma}.")
    inside = _left(accept, valid) > 0

    def advance(at_offset, here):
        chance, sure = here
        accepted = at_offset[:-1] * chance[None]
        begins = jnp.sum(at_offset[:-1] * (1 - chance)[None], axis=0) + at_offset[-1]
        unsure = jnp.sum(jnp.where(sure[None], 0, accepted), axis=0)
        goes_on = jnp.where(sure[None], accepted, 0).at[-1].add(unsure)
        return jnp.concatenate([begins[None], goes_on]), at_offset[0]

    chances = jnp.moveaxis(jnp.where(inside, accept, 0), -1, 0)
    first = jnp.zeros((gamma + 1, *chances.shape[1:]), chances.dtype).at[0].set(1)
    _, begins = jax.lax.scan(advance, first, (chances, jnp.moveaxis(_sure(accept, sure), -1, 0)))
    return jnp.where(inside, jnp.moveaxis(begins, 0, -1), 0)


def calls(
    accept: jax.Array, valid: jax.Array, *, gamma: int, sure: jax.Array | None = None
) -> jax.Array:
    """Expected number of target calls that begin inside each text, [...]; arguments as `renewal`.

    Tokens a target call is the texts' pooled `valid` by their pooled `calls`, never a mean of
    ratios. The prompt's own pass is no call.
    """
    return jnp.sum(renewal(accept, valid, gamma=gamma, sure=sure), axis=-1)


def accepted_at(
    accept: jax.Array, valid: jax.Array, *, gamma: int, sure: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Acceptance by position in the draft, as decoding would count it; arguments as `renewal`.

    Only rounds that have room for gamma drafts in the text count.

    Returns:
      accepted: [..., gamma], expected number of rounds that accepted the draft at this position and
        all before it.
      rounds: [..., gamma], expected number of rounds, the same for every position.
    """
    left = _left(accept, valid)
    begins = jnp.where(left >= gamma, renewal(accept, valid, gamma=gamma, sure=sure), 0)
    accept, sure = jnp.where(left > 0, accept, 0), _sure(accept, sure)
    accepted, alive = [], begins
    for offset in range(gamma):
        alive = alive * _ahead(accept, offset)
        accepted.append(jnp.sum(alive, axis=-1))
        alive = jnp.where(_ahead(sure, offset), alive, 0)
    rounds = jnp.sum(begins, axis=-1, keepdims=True)
    accepted = jnp.stack(accepted, axis=-1)
    return accepted, jnp.broadcast_to(rounds, accepted.shape)


def tokens_per_call_iid(alpha: jax.Array | float, gamma: int) -> jax.Array | float:
    """Tokens a target call if every draft were accepted alike: (1 - alpha^(gamma + 1)) / (1 -
    alpha).

    For comparison only: real acceptance varies from position to position. 1 at alpha = 0, gamma + 1
      at alpha = 1.

    Source: Leviathan et al. 2023 (arXiv 2211.17192), equation 1.
    """
    total = 1.0
    for _ in range(gamma):
        total = 1.0 + alpha * total
    return total


def _both(student_logits, teacher_logits, temperature):
    return (
        warps.probabilities(student_logits, temperature=temperature),
        warps.probabilities(teacher_logits, temperature=temperature),
    )


def _at(values, index):
    return jnp.take_along_axis(values, index[..., None], axis=-1)[..., 0]


def _left(accept, valid):
    """Tokens of the text from each position on, [..., n]; 0 and less behind it."""
    positions = jax.lax.broadcasted_iota(jnp.int32, accept.shape, accept.ndim - 1)
    return jnp.broadcast_to(valid, accept.shape[:-1])[..., None] - positions


def _sure(accept, sure):
    """Whether drafting goes on, [..., n], where nothing was said too."""
    return jnp.ones(accept.shape, bool) if sure is None else jnp.broadcast_to(sure, accept.shape)


def _ahead(values, offset):
    """values[..., i + offset] at i, 0 beyond the end."""
    rest = values[..., offset:]
    missing = values.shape[-1] - rest.shape[-1]
    return jnp.pad(rest, [(0, 0)] * (values.ndim - 1) + [(0, missing)])


def _log_probability(logits, tokens, temperature):
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    scaled = (logits - jnp.max(logits, axis=-1, keepdims=True)) / temperature
    return _at(scaled, tokens) - jax.nn.logsumexp(scaled, axis=-1)


def _unless_nan(chance, *logits):
    for array in logits:
        chance = jnp.where(jnp.any(jnp.isnan(array), axis=-1), jnp.nan, chance)
    return chance


def _float(condition):
    return condition.astype(jnp.float32)
