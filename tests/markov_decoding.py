"""Speculative decoding as papers write it, in NumPy, of a target and a draft that are Markov
chains."""

import numpy as np


def chains(rng, classes):
    """Transition matrices [V, V] of a target and of a draft that resembles it more in some states
    than in others."""
    target = rng.normal(scale=1.5, size=(classes, classes))
    draft = target + np.linspace(0.2, 2.5, classes)[:, None] * rng.normal(size=target.shape)
    return softmax(target), softmax(draft)


def softmax(logits):
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def sample(rng, rows):
    """One class from each of [M, V] distributions."""
    return np.minimum(
        (rng.random(len(rows))[:, None] > np.cumsum(rows, axis=-1)).sum(axis=-1), rows.shape[-1] - 1
    )


def plain_text(rng, target, texts, length):
    """[texts, length] tokens of the target alone; the token before the first is 0."""
    tokens = np.zeros((texts, length + 1), int)
    for i in range(length):
        tokens[:, i + 1] = sample(rng, target[tokens[:, i]])
    return tokens[:, 1:]


def speculative_text(rng, target, draft, texts, length, gamma, *, eta=0.0):
    """Decodes by rounds: gamma drafts, verified one by one, then the residual's token or the bonus.

    With `eta` a round drafts no more after a token at whose position the draft's largest
    probability was below it.

    Returns:
      tokens: [texts, length]; calls: [texts] rounds that begin inside; rounds: [texts] those whose
      gamma drafts all lie inside; accepted: [texts, gamma] how many of these accepted the draft at
      each position and all before it.
    """
    tokens = np.zeros((texts, length + gamma + 2), int)
    position, calls, rounds = np.zeros(texts, int), np.zeros(texts, int), np.zeros(texts, int)
    accepted = np.zeros((texts, gamma), int)
    while (active := np.flatnonzero(position < length)).size:
        start = position[active]
        proposal, count = _round(rng, target, draft, tokens[active, start], gamma, eta)
        # tokens[:, i + 1] is position i; later rounds overwrite what was rejected.
        for offset in range(gamma + 1):
            tokens[active, start + offset + 1] = proposal[:, offset]
        inside = start + gamma <= length
        calls[active] += 1
        rounds[active] += inside
        accepted[active] += inside[:, None] & (np.arange(gamma) < count[:, None])
        position[active] += count + 1
    return tokens[:, 1 : length + 1], calls, rounds, accepted


def _round(rng, target, draft, last, gamma, eta):
    """Tokens [M, gamma + 1] of one round, of which the first count + 1 are valid, and count [M]."""
    path = [last]
    for _ in range(gamma):
        path.append(sample(rng, draft[path[-1]]))
    path = np.stack(path, axis=1)
    before, drafted = path[:, :-1], path[:, 1:]
    passes = rng.random(drafted.shape) * draft[before, drafted] < target[before, drafted]
    sure = np.cumprod(draft[before].max(axis=-1) >= eta, axis=1)
    drafts = 1 + sure[:, :-1].sum(axis=1)
    count = np.minimum(np.cumprod(passes, axis=1).sum(axis=1), drafts)
    row = path[np.arange(len(last)), count]
    residual = np.maximum(target[row] - np.where((count < drafts)[:, None], draft[row], 0), 0)
    proposal = np.concatenate([drafted, np.zeros((len(last), 1), int)], axis=1)
    proposal[np.arange(len(last)), count] = sample(
        rng, residual / residual.sum(axis=1, keepdims=True)
    )
    return proposal, count
