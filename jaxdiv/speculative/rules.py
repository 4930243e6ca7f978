"""Which drafts a round accepts: the walk from the root of the tree, by the rule's name.

p is the target's distribution at a node, q the draft's that its children were drawn from. All rules
but `typical` leave the target's distribution as it is.

| rule | drafts | a candidate x is accepted |
|---|---|---|
| `sampling` | samples | with chance min(1, p(x) / q(x)); else the next is tried on what is left of p |
| `greedy_draft` | the likeliest tokens | if a sample of p is x |
| `exact_match` | samples | if a sample of p is x |
| `coupled` | samples by the very noise that samples p | if the sample of p is x |
| `typical` | the likeliest tokens | if p(x) exceeds a threshold that falls with p's entropy: **lossy** |

At temperature 0 all of them are greedy decoding, token for token.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdiv import acceptance, warps
from jaxdiv.speculative.trees import Tree


@dataclasses.dataclass(frozen=True)
class AcceptanceRule:
    """How a round drafts and accepts.

    Attributes:
      noise: what orders the candidates of a node: `own` noise (samples), the target's (`shared`),
        or None: the order of the draft's logits.
      verify: (_Node) -> (chosen [W] bool, at most one; p left over [V], what the next token is
        drawn from if none).
      keeps_q: whether `verify` reads q.
      lossless: whether the text has the target's distribution.
    """

    noise: str | None
    verify: object
    keeps_q: bool = False
    lossless: bool = True


class _Node(NamedTuple):
    """One step of the walk: p [V], q [V] or None, candidates [W], which of them count [W], uniforms
    [W], a key."""

    p: jax.Array
    q: jax.Array | None
    candidates: jax.Array
    valid: jax.Array
    uniforms: jax.Array
    key: jax.Array


def _rejection(node):
    """Recursive rejection sampling without replacement (arXiv 2402.14160, algorithm 2); of one
    child, 2211.17192.

    A candidate that q gives no mass, as after it has run out of classes, counts as a certain one.
    """
    p, q = node.p, node.q
    chosen, open_ = [], jnp.array(True)
    for x, valid, uniform in zip(node.candidates, node.valid, node.uniforms, strict=True):
        point = jax.nn.one_hot(x, p.shape[-1], dtype=p.dtype)
        drawn_from = jnp.where(q[x] > 0, q, point)
        accept = open_ & valid & (uniform * drawn_from[x] < p[x])
        chosen.append(accept)
        open_ &= ~accept
        left, total = _normalized(jnp.maximum(p - drawn_from, 0))
        p = jnp.where(open_ & valid & (total > 0), left, p)
        q = _normalized(q * (1 - point))[0]
    return jnp.stack(chosen), p


def _match(node):
    """The sample of p that the walk ends with unless a candidate is it."""
    x = warps.draw(node.key, jnp.log(node.p))
    return _first(node.valid & (node.candidates == x)), node.p


def _typical(node):
    return _first(
        node.valid & (node.p[node.candidates] > acceptance.typical_threshold(node.p))
    ), node.p


def _normalized(weights):
    total = jnp.sum(weights)
    return weights / jnp.where(total > 0, total, 1), total


def _first(accepted):
    return accepted & (jnp.cumsum(accepted) == 1)


RULES = {
    "sampling": AcceptanceRule("own", _rejection, keeps_q=True),
    "greedy_draft": AcceptanceRule(None, _match),
    "exact_match": AcceptanceRule("own", _match),
    "coupled": AcceptanceRule("shared", _match),
    "typical": AcceptanceRule(None, _typical, lossless=False),
}


class Verdict(NamedTuple):
    """What a round adds to a text.

    Attributes:
      path: [D] the nodes that were accepted, in order; 0 behind the last.
      accepted: how many.
      token: the target's own token after them.
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
      rule: of `RULES`.
      tree: of N drafts.
      tokens: [N + 1], each node's token.
      valid: [N + 1], whether it was drafted.
      p: [N + 1, V], the target's distribution of the token after each node, temperature and cuts
        applied.
      q: [N + 1, V], the draft's; None if the rule does not keep it.
      position: of the root in the text.
      keys: the sequence's.
    """
    children = jnp.asarray(tree.children)

    def step(carry, depth):
        node, open_, left = carry
        nodes = children[node]
        chosen, rest = rule.verify(
            _Node(
                p=p[node],
                q=None if q is None else q[node],
                candidates=tokens[nodes],
                valid=(nodes > 0) & valid[nodes] & open_,
                uniforms=jax.random.uniform(keys.accept(position + depth), nodes.shape),
                key=keys.target(position + depth),
            )
        )
        left = jnp.where(open_, rest, left)
        open_ = jnp.any(chosen)
        node = jnp.where(open_, jnp.sum(jnp.where(chosen, nodes, 0)), node)
        return (node, open_, left), jnp.where(open_, node, 0)

    start = (jnp.array(0), jnp.array(True), jnp.zeros_like(p[0]))
    (node, all_accepted, left), path = jax.lax.scan(step, start, jnp.arange(tree.depth))
    accepted = jnp.sum(path > 0)
    left = jnp.where(all_accepted, p[node], left)
    return Verdict(path, accepted, warps.draw(keys.target(position + accepted), jnp.log(left)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Keys:
    """The randomness of one sequence, by position in its text: a round's unused draws may be used
    by a later one.

    Nothing that a text depends on is drawn twice: what is drawn for the positions behind a round's
      last token decides
    nothing in it.
    """

    key: jax.Array

    def target(self, position: jax.Array) -> jax.Array:
        """For the token after `position`; plain generation uses the same."""
        return jax.random.fold_in(self.key, position)

    def draft(self, position: jax.Array, node: jax.Array | int) -> jax.Array:
        """For the candidates after a node at `position`."""
        return jax.random.fold_in(jax.random.fold_in(self._other(1), position), node)

    def accept(self, position: jax.Array) -> jax.Array:
        """For the acceptance of the token after `position`."""
        return jax.random.fold_in(self._other(2), position)

    def _other(self, role):
        # No position is so large.
        return jax.random.fold_in(self.key, 2**31 + role)
