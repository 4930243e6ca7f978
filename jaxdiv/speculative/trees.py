"""Which drafts a round has: a static tree of candidates, of which a chain is the simplest."""

import dataclasses
import functools

import numpy as np


@dataclasses.dataclass(frozen=True)
class Tree:
    """Nodes 1..N are drafts, each a candidate for the token after its parent; node 0 is the last
    token of the text.

    Attributes:
      parents: of nodes 1..N, level by level, so that a parent comes before its children, and
        siblings, which stand together, are in the order in which they are tried.

    Raises:
      ValueError: nodes out of that order.
    """

    parents: tuple[int, ...]

    def __post_init__(self):
        if any(not 0 <= parent <= node for node, parent in enumerate(self.parents)):
            raise ValueError(
                f"each parent must come before its children, got parents {self.parents}"
            )
        if list(self.parents) != sorted(self.parents):
            raise ValueError(
                f"the nodes must be in order of their parents, got parents {self.parents}"
            )

    @property
    def size(self) -> int:
        """Drafts."""
        return len(self.parents)

    @functools.cached_property
    def depths(self) -> np.ndarray:
        """[N + 1], tokens from the root to each node."""
        depths = [0]
        for parent in self.parents:
            depths.append(depths[parent] + 1)
        return np.array(depths)

    @property
    def depth(self) -> int:
        """The most tokens that a round can accept."""
        return int(self.depths.max())

    @functools.cached_property
    def children(self) -> np.ndarray:
        """[N + 1, W], each node's candidates in order, -1 where there are no more; W is 1 at
        least."""
        lists = [[] for _ in range(self.size + 1)]
        for node, parent in enumerate(self.parents, start=1):
            lists[parent].append(node)
        width = max(1, *map(len, lists))
        return np.array([nodes + [-1] * (width - len(nodes)) for nodes in lists])

    @functools.cached_property
    def ranks(self) -> np.ndarray:
        """[N + 1], each node's place among its siblings; 0 for the root."""
        return np.array(
            [
                0,
                *(
                    int(np.flatnonzero(self.children[p] == i)[0])
                    for i, p in enumerate(self.parents, 1)
                ),
            ]
        )

    @functools.cached_property
    def ancestors(self) -> np.ndarray:
        """[N + 1, N + 1], true where the column is on the row's way from the root, the row itself
        included."""
        seen = np.eye(self.size + 1, dtype=bool)
        for node, parent in enumerate(self.parents, start=1):
            seen[node] |= seen[parent]
        return seen

    def level(self, depth: int) -> np.ndarray:
        """The nodes at this depth, which have consecutive numbers."""
        return np.flatnonzero(self.depths == depth)


def chain(gamma: int) -> Tree:
    """`gamma` drafts, one after the other."""
    return Tree(tuple(range(gamma)))


def parse(text: str) -> Tree:
    """A tree from its paths: `0,1,00,01,10,000` (as Medusa writes its trees, arXiv 2401.10774,
    section 2.1.2).

    A path gives, for each token after the root, the candidate's rank among its siblings, a digit.
    So `0,1` are the two likeliest next tokens, and `00` is the likeliest after the first of them.

    Raises:
      ValueError: not digits, a path twice, without its parent's, or without the sibling before it.
    """
    paths = [path.strip() for path in text.split(",")]
    for path in paths:
        if not (path.isascii() and path.isdigit()):
            raise ValueError(
                f"a tree is paths of digits by commas, as 0,1,00,01; got {path!r} in {text!r}"
            )
        if paths.count(path) > 1:
            raise ValueError(f"the tree has the path {path} twice: {text!r}")
        needed = [path[:-1]] if len(path) > 1 else []
        needed += [path[:-1] + str(int(path[-1]) - 1)] if path[-1] != "0" else []
        for other in needed:
            if other not in paths:
                raise ValueError(f"the tree's path {path} needs the path {other} too: {text!r}")
    ordered = sorted(paths, key=lambda path: (len(path), path))
    number = {path: node for node, path in enumerate(ordered, start=1)} | {"": 0}
    return Tree(tuple(number[path[:-1]] for path in ordered))
