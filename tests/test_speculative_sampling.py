"""The joint distribution of decoded tokens against the target's exact one, computed without a cache
in float64.

A family of tests fails at the level 1e-3: Holm's correction rejects some hypothesis of m if and
only if the smallest p-value is below the level by m.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiv import speculative
from tests import speculative_cases as cases

LEVEL = 1e-3
WIDE, LOPSIDED = speculative.parse("0,1,2,00,01,10"), speculative.parse("0,1,2,10,11,20")

# draft, gamma and options of the decoding; these four cover the most
CASES = {
    "chain": ("kangaroo", 2, {}),
    "decoder, top-p": ("decoder", 1, {"top_p": 0.7}),
    "tree": ("decoder", 2, {"tree": speculative.parse("0,1,00,01")}),
    "eta, T=2": ("decoder", 2, {"eta": 0.45, "temperature": 2.0}),
}
MORE = {
    "tree, fewer classes than candidates": ("kangaroo", 2, {"tree": WIDE, "top_k": 2}),
    "chain of 1": ("kangaroo", 1, {}),
    "chain of the decoder": ("decoder", 2, {}),
    "T=0.7": ("decoder", 2, {"temperature": 0.7}),
    "T=2": ("kangaroo", 2, {"temperature": 2.0}),
    "top-k": ("decoder", 2, {"top_k": 3}),
    "top-k and top-p": ("kangaroo", 2, {"top_k": 3, "top_p": 0.8}),
    "eta": ("kangaroo", 2, {"eta": 0.55}),
    "wide tree": ("decoder", 2, {"tree": WIDE, "temperature": 0.7}),
    "lopsided tree, top-p": ("kangaroo", 2, {"tree": LOPSIDED, "top_p": 0.8}),
    "greedy drafts": ("decoder", 2, {"rule": "greedy_draft"}),
    "greedy drafts in a tree": ("decoder", 2, {"rule": "greedy_draft", "tree": WIDE}),
    "exact match": ("kangaroo", 2, {"rule": "exact_match"}),
    "exact match in a tree": ("decoder", 2, {"rule": "exact_match", "tree": WIDE}),
    "coupled": ("decoder", 2, {"rule": "coupled"}),
    "coupled in a tree": ("kangaroo", 2, {"rule": "coupled", "tree": WIDE}),
    "lookup": (speculative.LOOKUP, 2, {}),
    "plain": (None, 2, {}),
}
FAMILY = len(CASES) + len(MORE) + 4  # those of the last two tests


@pytest.mark.parametrize(
    "case", [*CASES, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)]
)
def test_texts_follow_the_targets_joint_distribution(case):
    kind, gamma, options = (CASES | MORE)[case]
    assert cases.lossless(cases.draft_of(kind), gamma=gamma, **options) > LEVEL / FAMILY


@pytest.mark.slow
def test_texts_follow_their_own_distribution_among_others():
    """Two kinds of texts take turns, each with its prompt, temperature and cuts."""
    ways = [
        {"prompt": (2, 1), "temperature": 0.7, "top_p": 1.0, "top_k": 4},
        {"prompt": (0, 3, 1, 1, 2), "temperature": 2.0, "top_p": 0.9, "top_k": 3},
    ]
    batch = {name: [way[name] for way in ways] * cases.DRAWS for name in ways[0]}
    texts = cases.decode(
        cases.student("decoder"),
        batch.pop("prompt"),
        seed=0,
        max_tokens=5,
        gamma=2,
        tree=speculative.parse("0,1,00"),
        **batch,
    )
    for number, way in enumerate(ways):
        draws = cases.cells(texts[number::2], 4)
        assert cases.p_value(draws, cases.joint(cases.target(), tokens=5, **way)) > LEVEL / FAMILY


@pytest.mark.slow
def test_two_tokens_of_many_classes_fall_into_their_buckets():
    """Pairs by the target's chance of them, and by the draft's surplus for their first token."""
    prompt, classes = (5, 900), 1024
    target, student = cases.target(classes, 16), cases.student("kangaroo", classes, 16)
    prompts = jnp.tile(jnp.array(prompt), (classes, 1))
    whole = jnp.concatenate([prompts, jnp.arange(classes)[:, None]], axis=1)
    output = jax.jit(lambda tokens: target(tokens, exit_layer=1))(whole)
    p = cases.warped(output.logits)
    q = cases.warped(student(whole, output))
    chances = (p[0, 1][:, None] * p[:, 2]).ravel()
    surplus = np.repeat(q[0, 1] / p[0, 1], classes)
    pairs = []
    for part in range(10):
        seeds = np.arange(cases.DRAWS // 10) + part * cases.DRAWS
        options = {"max_tokens": 2, "gamma": 1, "seeds": seeds}
        pairs += speculative.decode(target, student, [prompt] * len(seeds), **options).tokens
    draws = cases.cells(np.stack(pairs), classes)
    for measure in (chances, surplus):
        order = np.argsort(measure)
        bucket = np.empty(len(chances), int)
        bucket[order] = np.minimum(np.cumsum(chances[order]) * 50, 49).astype(int)
        masses = np.bincount(bucket, chances, minlength=50)
        assert cases.p_value(bucket[draws], masses / masses.sum()) > LEVEL / FAMILY
