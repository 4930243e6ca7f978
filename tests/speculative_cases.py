"""Small targets and drafts that differ strongly, and the check that decoded texts have the target's
distribution."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy import stats

from jaxdiv import models, speculative

DRAWS, BATCH = 200_000, 50_000
_NUMERICS = {"padded_vocabulary": 0, "rope_base": 100.0, "norm_epsilon": 1e-5, "dtype": "float32"}
_CONFIG = {"depth": 2, "width": 8, "heads": 2, "kv_heads": 1, "mlp_width": 12, **_NUMERICS}
_STUDENTS = {
    "kangaroo": {"kind": "kangaroo", "exit_layer": 1, "heads": 2, "kv_heads": 1},
    "decoder": _CONFIG | {"kind": "decoder", "depth": 1},
}


@functools.cache
def target(vocabulary=4, width=8):
    """A decoder whose distributions are neither flat nor certain."""
    config = _CONFIG | {"width": width}
    return _sharper(
        nnx.jit(lambda: models.build_teacher(config, vocabulary, nnx.Rngs(3)))(), factor=1.5
    )


@functools.cache
def student(kind, vocabulary=4, width=8, *, adversarial=False, drafts=None):
    """An untrained draft, of the tokens `drafts` alone if they are given; an adversarial one thinks
    least likely what it should think likeliest."""
    draft_vocabulary = models.DraftVocabulary.of(drafts, vocabulary) if drafts else None
    config, teacher = _STUDENTS[kind] | {"width": width}, _CONFIG | {"width": width}
    build = functools.partial(models.build_student, config, teacher, vocabulary)
    draft = nnx.jit(lambda: build(nnx.Rngs(1), draft_vocabulary))()
    if kind == "decoder":
        _sharper(draft.decoder, factor=2.0)
    if adversarial:
        draft.norm.scale[...] = -draft.norm.scale[...]
    return draft


def _sharper(decoder, *, factor):
    decoder.head[...] = decoder.head[...] * factor
    return decoder


def draft_of(kind, *sizes, **options):
    """The student of a kind; `lookup` and None are no students."""
    return kind if kind in (None, speculative.LOOKUP) else student(kind, *sizes, **options)


def prompts(number, vocabulary, *, seed=0, lengths=(2, 7)):
    """`number` prompts of different lengths."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocabulary, rng.integers(*lengths)).tolist() for _ in range(number)]


def together(decoded):
    """The texts of equal length as an array [B, n]."""
    return np.stack(decoded.tokens)


def assert_same(one, other):
    """Two decodings have the same texts, token for token."""
    assert len(one.tokens) == len(other.tokens)
    for a, b in zip(one.tokens, other.tokens, strict=True):
        np.testing.assert_array_equal(a, b)


def warped(logits, *, temperature=1.0, top_k=None, top_p=None):
    """The distribution that is sampled from, in NumPy and float64, without ties: [..., V]."""
    logits = np.asarray(logits, np.float64) / temperature
    falling = np.argsort(-logits, axis=-1)
    ranked = np.take_along_axis(logits - logits.max(axis=-1, keepdims=True), falling, axis=-1)
    ranked = np.exp(ranked)
    if top_k is not None:
        ranked[..., top_k:] = 0
    ranked /= ranked.sum(axis=-1, keepdims=True)
    if top_p is not None:
        ranked[np.cumsum(ranked, axis=-1) - ranked >= top_p] = 0
        ranked /= ranked.sum(axis=-1, keepdims=True)
    chances = np.empty_like(ranked)
    np.put_along_axis(chances, falling, ranked, axis=-1)
    return chances


def joint(decoder, prompt, tokens, **how):
    """The chance of each continuation of `prompt`, from the target without a cache: [V ** tokens],
    in their order."""
    classes = decoder.embedding.shape[0]
    every = np.array(list(itertools.product(range(classes), repeat=tokens)))
    whole = np.concatenate([np.tile(prompt, (len(every), 1)), every], axis=1)
    logits = jax.jit(lambda t: decoder(t).logits)(jnp.asarray(whole))[:, len(prompt) - 1 : -1]
    chances = np.take_along_axis(warped(logits, **how), every[..., None], axis=-1)
    return chances[..., 0].prod(axis=-1)


def cells(tokens, classes):
    """The number of each continuation [B, n] in the order of `joint`."""
    return tokens @ classes ** np.arange(tokens.shape[1])[::-1]


def p_value(draws, chances):
    """The chi-square test that draws of cells [B] have these chances; rare cells are pooled."""
    counts = np.bincount(draws, minlength=len(chances)).astype(float)
    assert not counts[chances == 0].any(), "a text that cannot be"
    expected = chances * len(draws)
    rare = expected < 5
    if expected[rare].sum() < 5:  # with the smallest of the others
        rare |= expected <= expected[~rare].min()
    merged = [np.append(x[~rare], x[rare].sum()) for x in (counts, expected)]
    return stats.chisquare(merged[0], merged[1] * merged[0].sum() / merged[1].sum()).pvalue


def decode(draft, prompts, *, seed, **options):
    """The texts [B, n] of many prompts, of `BATCH` at once, each with a seed of its own."""
    texts = []
    for start in range(0, len(prompts), BATCH):
        part = slice(start, start + BATCH)
        options_of_part = {
            name: value[part] if isinstance(value, list) else value
            for name, value in options.items()
        }
        seeds = seed + np.arange(start, start + len(prompts[part]))
        decoded = speculative.decode(target(), draft, prompts[part], seeds=seeds, **options_of_part)
        texts += decoded.tokens
    return np.stack(texts)


def lossless(draft, *, gamma, draws=DRAWS, prompt=(2, 1), **options):
    """The p-value of gamma + 3 tokens of `draws` texts, which take at least two rounds."""
    texts = decode(draft, [prompt] * draws, seed=7, max_tokens=gamma + 3, gamma=gamma, **options)
    how = {name: options[name] for name in ("temperature", "top_k", "top_p") if name in options}
    return p_value(cells(texts, 4), joint(target(), prompt, gamma + 3, **how))
