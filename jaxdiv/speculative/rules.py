"""Rules of acceptance: which drafts a round accepts on its walk from the root of the tree.

p is the target's distribution at a node, q the draft's, which its children are drawn from. All
rules but `typical` are lossless: the text has the target's distribution.

| rule | drafts | a candidate x is accepted |
|---|---|---|
| `sampling` | samples | with chance min(1, p(x) / q(x)); else its sibling, on the residual of p |
| `greedy_draft` | the likeliest tokens | if a sample of p is x |
| `exact_match` | samples | if a sample of p is x |
| `coupled` | samples by the noise that samples p | if the sample of p is x |
| `typical` | the likeliest tokens | if p(x) > a threshold that falls with p's entropy: **lossy** |

At temperature 0 every rule is greedy decoding, token for token.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdiv import acceptance, schema, warps
from jaxdiv.speculative.trees import Tree

INDEPENDENT, SHARED = "independent", "shared"  # noise of the draft


@dataclasses.dataclass(frozen=True)
class AcceptanceRule:
    """The way in which a round drafts and accepts.

    Attributes:
      noise: what orders a node's candidates: the draft's noise (`INDEPENDENT` of the target's),
        the target's (`SHARED`), or None for the order of the draft's logits.
      verify: a function of a `_Node` that returns which candidate is accepted, at most one ([W]
        bool), and the distribution of the next token if none is ([V]).
      keeps_q: whether `verify` reads q.
      lossless: whether the text has the target's distribution.
    """

    noise: str | None
    verify: Callable
    keeps_q: bool = False
    lossless: bool = True


class _Node(NamedTuple):
    """Inputs of one step of the walk: p [V], q [V] or None, candidates [W], which of them were
    drafted [W], uniforms [W], and a key."""

    p: jax.Array
    q: jax.Array | None
    candidates: jax.Array
    valid: jax.Array
    uniforms: jax.Array
    key: jax.Array


def _rejection(node: _Node) -> tuple[jax.Array, jax.Array]:
    """Performs recursive rejection sampling without replacement (arXiv 2402.14160, algorithm 2).

    With one child it is that of arXiv 2211.17192. A candidate without mass in q, which remains when
    q has no more classes, counts as certain.
    """
    p, q = node.p, node.q
    chosen, open_ = [], jnp.array(True)
    for x, valid, uniform in zip(node.candidates, node.valid, node.uniforms, strict=True):
        point = jax.nn.one_hot(x, p.shape[-1], dtype=p.dtype)
        drawn_from = jnp.where(q[x] > 0, q, point)
        accept = open_ & valid & (uniform * drawn_from[x] < p[x])
        chosen.append(accept)
        open_ &= ~accept
        residual, total = _normalize(jnp.maximum(p - drawn_from, 0))
        p = jnp.where(open_ & valid & (total > 0), residual, p)
        q = _normalize(q * (1 - point))[0]
    return jnp.stack(chosen), p


def _match(node: _Node) -> tuple[jax.Array, jax.Array]:
    """Accepts the candidate that is the sample of p."""
    x = warps.draw(node.key, jnp.log(node.p))
    return _first(node.valid & (node.candidates == x)), node.p


def _typical(node: _Node) -> tuple[jax.Array, jax.Array]:
    """Accepts the first candidate whose probability exceeds a threshold (arXiv 2401.10774)."""
    likely = node.p[node.candidates] > acceptance.typical_threshold(node.p)
    return _first(node.valid & likely), node.p


def _normalize(weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    total = jnp.sum(weights)
    return weights / jnp.where(total > 0, total, 1), total


def _first(accepted: jax.Array) -> jax.Array:
    return accepted & (jnp.cumsum(accepted) == 1)


RULES = {
    schema.SAMPLING: AcceptanceRule(INDEPENDENT, _rejection, keeps_q=True),
    schema.GREEDY_DRAFT: AcceptanceRule(None, _match),
    schema.EXACT_MATCH: AcceptanceRule(INDEPENDENT, _match),
    schema.COUPLED: AcceptanceRule(SHARED, _match),
    schema.TYPICAL: AcceptanceRule(None, _typical, lossless=False),
}


class Verdict(NamedTuple):
    """Tokens that a round adds to a text.

    Attributes:
      path: [D], the accepted nodes in order; 0 after the last.
      accepted: their number.
      token: the target's token after them.
    """

    path: jax.Array
    accepted: jax.Array
    token: jax.Array


def walk(
    rule: AcceptanceRule,
    tree: Tree,
    *,
    tokens: jax.Array,
    valid: jax.Array,
    p: jax.Array,
    q: jax.Array | None,
    position: jax.Array,
    keys: "Keys",
) -> Verdict:
    """Verifies one sequence's drafts.

    Args:
      rule: a value of `RULES`.
      tree: of N drafts.
      tokens: [N + 1], each node's token.
      valid: [N + 1], whether it was drafted.
      p: [N + 1, V], the target's distribution after each node, with temperature and cuts.
      q: [N + 1, V], the draft's; None if the rule does not read it.
      position: of the root in the text.
      keys: of the sequence.
    """
    children = jnp.asarray(tree.children)

    def step(carry, depth):
        node, open_, residual = carry
        nodes = children[node]
        chosen, new_residual = rule.verify(
            _Node(
                p=p[node],
                q=None if q is None else q[node],
                candidates=tokens[nodes],
                valid=(nodes > 0) & valid[nodes] & open_,
                uniforms=jax.random.uniform(keys.accept(position + depth), nodes.shape),
                key=keys.target(position + depth),
            )
        )
        residual = jnp.where(open_, new_residual, residual)
        open_ = jnp.any(chosen)
        node = jnp.where(open_, jnp.sum(jnp.where(chosen, nodes, 0)), node)
        return (node, open_, residual), jnp.where(open_, node, 0)

    start = (jnp.array(0), jnp.array(True), jnp.zeros_like(p[0]))
    (node, all_accepted, residual), path = jax.lax.scan(step, start, jnp.arange(tree.depth))
    accepted = jnp.sum(path > 0)
    residual = jnp.where(all_accepted, p[node], residual)
    token = warps.draw(keys.target(position + accepted), jnp.log(residual))
    return Verdict(path, accepted, token)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Keys:
    """Randomness of one sequence, by position in its text.

    A later round draws again at positions after an earlier round's last token. The text does not
    depend on the first of these draws, so it uses no draw twice.
    """

    key: jax.Array

    def target(self, position: jax.Array) -> jax.Array:
        """Returns the key of the token after `position`; plain decoding uses the same."""
        return jax.random.fold_in(self.key, position)

    def draft(self, position: jax.Array, node: jax.Array | int) -> jax.Array:
        """Returns the key of the candidates after a node at `position`."""
        return jax.random.fold_in(jax.random.fold_in(self._role_key(1), position), node)

    def accept(self, position: jax.Array) -> jax.Array:
        """Returns the key of the acceptance of the token after `position`."""
        return jax.random.fold_in(self._role_key(2), position)

    def _role_key(self, role: int) -> jax.Array:
        # No position is that large.
        return jax.random.fold_in(self.key, 2**31 + role)
