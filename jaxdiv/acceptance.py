"""Acceptance of a draft's tokens by rule, and the tokens per target call that follow from it.

The rules rank drafts differently:

| rule | draft | accepted by |
|---|---|---|
| `sampling` | sampled | rejection sampling |
| `greedy_draft` | likeliest token | a sample of the target |
| `greedy_match` | likeliest token | the target's likeliest token |
| `exact_match` | sampled | a sample of the target that must be equal |
| `typical` | likeliest token | a threshold on the target's chance: lossy |

The first five functions return a position's chance over all next tokens. Those that end in `_given`
return it given the token that the target did output, for decoding along a text. The draft is the
student and the target the teacher, q and p below.

A lossless decoder's output is a text of the target. Given that text, drafts are accepted
independently, so that the positions where rounds of gamma drafts begin form a renewal process. The
expected number of target calls is then a sum, without the noise of decoding.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp

from jaxdiv import schema, warps


def sampling(
    student_logits: jax.Array, teacher_logits: jax.Array, *, temperature: float = 1.0
) -> jax.Array:
    """Computes the acceptance of sampled drafts by rejection sampling, the sum of min(p, q).

    Args:
      student_logits: [..., V], the draft's.
      teacher_logits: [..., V], the target's.
      temperature: temperature of both sides; 0 is greedy.

    Returns:
      [...] in [0, 1] up to rounding (2e-7); 1 minus the total variation. At temperature 0 it is
      `greedy_match`. NaN where a logit is NaN, as with every rule.

    Source: Leviathan et al. 2023 (arXiv 2211.17192), Corollary 3.6.
    """
    student, teacher = _both(student_logits, teacher_logits, temperature)
    # XLA's vectorised minimum returns the number where the other operand is NaN.
    whole = jnp.sum(student, axis=-1) + jnp.sum(teacher, axis=-1)
    return jnp.where(jnp.isnan(whole), whole, jnp.sum(jnp.minimum(student, teacher), axis=-1))


def greedy_draft(
    student_logits: jax.Array, teacher_logits: jax.Array, *, temperature: float = 1.0
) -> jax.Array:
    """Computes p(argmax q), the acceptance of greedy drafts by a target that samples.

    Shapes and range as in `sampling`.
    """
    target = warps.probabilities(teacher_logits, temperature=temperature)
    chance = _at(target, jnp.argmax(student_logits, axis=-1))
    return _unless_nan(chance, student_logits, teacher_logits)


def greedy_match(student_logits: jax.Array, teacher_logits: jax.Array) -> jax.Array:
    """Returns 1 where argmax p = argmax q, the acceptance of greedy drafts by a greedy target.

    Shapes as in `sampling`; 0 elsewhere.
    """
    match = _float(jnp.argmax(student_logits, axis=-1) == jnp.argmax(teacher_logits, axis=-1))
    return _unless_nan(match, student_logits, teacher_logits)


def exact_match(
    student_logits: jax.Array, teacher_logits: jax.Array, *, temperature: float = 1.0
) -> jax.Array:
    """Computes the sum of p q, the acceptance if the target's sample must equal the draft's.

    Shapes and range as in `sampling`.
    """
    student, teacher = _both(student_logits, teacher_logits, temperature)
    return jnp.sum(student * teacher, axis=-1)


def typical(
    student_logits: jax.Array, teacher_logits: jax.Array, *, temperature: float = 1.0
) -> jax.Array:
    """Returns 1 where p(argmax q) exceeds `typical_threshold`, a lossy rule for greedy drafts.

    Shapes as in `sampling`; 0 elsewhere. At temperature 0 it is `greedy_match`.

    Source: Medusa, arXiv 2401.10774, section 2.3.1.
    """
    target = warps.probabilities(teacher_logits, temperature=temperature)
    chance = _at(target, jnp.argmax(student_logits, axis=-1))
    return _unless_nan(_float(chance > typical_threshold(target)), student_logits, teacher_logits)


def typical_threshold(target: jax.Array, *, epsilon: float = 0.09, delta: float = 0.3) -> jax.Array:
    """Computes min(epsilon, delta·exp(-H(p))) of p [..., V]; defaults as in Medusa's code."""
    entropy = -jnp.sum(jax.scipy.special.xlogy(target, target), axis=-1)
    return jnp.minimum(epsilon, delta * jnp.exp(-entropy))


# Rules that depend on a temperature; at 0 each is `greedy_match`.
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
    """Computes min(1, q(x) / p(x)), the chance that the target's token x was an accepted draft.

    Its mean over x ~ p is `sampling`.

    Args:
      student_logits: [..., V], the draft's.
      teacher_logits: [..., V], the target's.
      tokens: [...] integers, drawn from the target at the same temperature.
      temperature: temperature of both sides; 0 is greedy.

    Returns:
      [...] in [0, 1].
    """
    warps.check_temperature(temperature)
    if temperature == 0:
        return greedy_given(student_logits, tokens)
    surplus = _log_probability(student_logits, tokens, temperature) - _log_probability(
        teacher_logits, tokens, temperature
    )
    return jnp.exp(jnp.minimum(surplus, 0.0))


def greedy_given(student_logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Returns 1 where x = argmax q, so that the target's token x was an accepted greedy draft.

    It holds for a sampling and for a greedy target. `student_logits` [..., V], `tokens` [...];
    returns [...], 0 elsewhere.
    """
    return _unless_nan(_float(jnp.argmax(student_logits, axis=-1) == tokens), student_logits)


def renewal(
    accept: jax.Array, valid: jax.Array, *, gamma: int, sure: jax.Array | None = None
) -> jax.Array:
    """Computes the chance that a round begins at each position of a text.

    A round is one target call: gamma drafts, then the target's own token. A position is at offset 0
    to gamma of its round. From an offset below gamma the round continues if the draft is accepted,
    else the next round begins; after offset gamma, the target's own token, it always begins. A
    draft that is not sure is its round's last: the position after it is at offset gamma.

    Args:
      accept: [..., n], chance of acceptance given the text: `sampling_given` or `greedy_given`.
      valid: integers that broadcast to [...], the tokens of each text; values behind them are
        ignored, even NaN.
      gamma: the most drafts of a round, at least 1.
      sure: [..., n] bool, whether drafting continues after the draft at this position, as with
        Kangaroo's threshold (arXiv 2404.18911): the largest probability there is at least eta. It
        may depend on the text before the position, not on its token. None for always.

    Returns:
      [..., n] in [0, 1]; 1 at the first position, 0 behind the text.

    Raises:
      ValueError: if gamma is below 1.
    """
    if gamma < 1:
        raise ValueError(f"`gamma` must be at least 1, got {gamma}.")
    inside = _remaining(accept, valid) > 0

    def advance(at_offset, position):
        chance, sure = position
        accepted = at_offset[:-1] * chance[None]
        begins = jnp.sum(at_offset[:-1] * (1 - chance)[None], axis=0) + at_offset[-1]
        unsure = jnp.sum(jnp.where(sure[None], 0, accepted), axis=0)
        continues = jnp.where(sure[None], accepted, 0).at[-1].add(unsure)
        return jnp.concatenate([begins[None], continues]), at_offset[0]

    chances = jnp.moveaxis(jnp.where(inside, accept, 0), -1, 0)
    first = jnp.zeros((gamma + 1, *chances.shape[1:]), chances.dtype).at[0].set(1)
    _, begins = jax.lax.scan(advance, first, (chances, jnp.moveaxis(_sure(accept, sure), -1, 0)))
    return jnp.where(inside, jnp.moveaxis(begins, 0, -1), 0)


def calls(
    accept: jax.Array, valid: jax.Array, *, gamma: int, sure: jax.Array | None = None
) -> jax.Array:
    """Computes the expected number of target calls that begin inside each text, [...].

    Tokens per target call are the pooled `valid` of all texts over their pooled `calls`, never a
    mean of ratios. The pass over the prompt is no call. Arguments as in `renewal`.
    """
    return jnp.sum(renewal(accept, valid, gamma=gamma, sure=sure), axis=-1)


def accepted_at(
    accept: jax.Array, valid: jax.Array, *, gamma: int, sure: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Computes acceptance by position in the draft, as decoding would count it.

    Only rounds that have room for gamma drafts in the text count. Arguments as in `renewal`.

    Returns:
      accepted: [..., gamma], expected number of rounds that accepted the draft at this position and
        all before it.
      rounds: [..., gamma], expected number of rounds, the same for every position.
    """
    remaining = _remaining(accept, valid)
    begins = jnp.where(remaining >= gamma, renewal(accept, valid, gamma=gamma, sure=sure), 0)
    accept, sure = jnp.where(remaining > 0, accept, 0), _sure(accept, sure)
    accepted, running = [], begins
    for offset in range(gamma):
        running = running * _shifted(accept, offset)
        accepted.append(jnp.sum(running, axis=-1))
        running = jnp.where(_shifted(sure, offset), running, 0)
    rounds = jnp.sum(begins, axis=-1, keepdims=True)
    accepted = jnp.stack(accepted, axis=-1)
    return accepted, jnp.broadcast_to(rounds, accepted.shape)


def tokens_per_call_iid(alpha: jax.Array | float, gamma: int) -> jax.Array | float:
    """Computes (1 - alpha^(gamma + 1)) / (1 - alpha), tokens per target call at equal acceptance.

    For comparison only: real acceptance varies from position to position. It is 1 at alpha = 0 and
    gamma + 1 at alpha = 1.

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


def _remaining(accept, valid):
    """Counts the tokens of a text from each position on, [..., n]; 0 and less behind it."""
    positions = jax.lax.broadcasted_iota(jnp.int32, accept.shape, accept.ndim - 1)
    return jnp.broadcast_to(valid, accept.shape[:-1])[..., None] - positions


def _sure(accept, sure):
    """Broadcasts `sure` to [..., n]; None is always."""
    return jnp.ones(accept.shape, bool) if sure is None else jnp.broadcast_to(sure, accept.shape)


def _shifted(values, offset):
    """Returns values[..., i + offset] at i, 0 beyond the end."""
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
