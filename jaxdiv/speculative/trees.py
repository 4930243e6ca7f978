"""Static trees of a round's drafts; the simplest is a chain."""

import dataclasses
import functools

import numpy as np


@dataclasses.dataclass(frozen=True)
class Tree:
    """Candidates of a round: nodes 1..N are drafts, node 0 is the last token of the text.

    Attributes:
      parents: of nodes 1..N. The nodes are level by level; siblings are side by side, in the order
        in which they are tried.

    Raises:
      ValueError: the nodes are not in this order.
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
        """Number of drafts, N."""
        return len(self.parents)

    @functools.cached_property
    def depths(self) -> np.ndarray:
        """[N + 1], distance of each node from the root."""
        depths = [0]
        for parent in self.parents:
            depths.append(depths[parent] + 1)
        return np.array(depths)

    @property
    def depth(self) -> int:
        """Most tokens that a round can accept."""
        return int(self.depths.max())

    @functools.cached_property
    def children(self) -> np.ndarray:
        """[N + 1, W], each node's candidates in order, filled up with -1; W is at least 1."""
        lists = [[] for _ in range(self.size + 1)]
        for node, parent in enumerate(self.parents, start=1):
            lists[parent].append(node)
        width = max(1, *map(len, lists))
        return np.array([nodes + [-1] * (width - len(nodes)) for nodes in lists])

    @functools.cached_property
    def ranks(self) -> np.ndarray:
        """[N + 1], each node's rank among its siblings; 0 for the root."""
        # Siblings are side by side, so the first of them is where their parent is found.
        return np.array([0, *(i - self.parents.index(p) for i, p in enumerate(self.parents))])

    @functools.cached_property
    def ancestors(self) -> np.ndarray:
        """[N + 1, N + 1], whether the column is an ancestor of the row, or the row itself."""
        ancestors = np.eye(self.size + 1, dtype=bool)
        for node, parent in enumerate(self.parents, start=1):
            ancestors[node] |= ancestors[parent]
        return ancestors

    def level(self, depth: int) -> np.ndarray:
        """Returns the nodes at this depth, which have consecutive numbers."""
        return np.flatnonzero(self.depths == depth)


def chain(gamma: int) -> Tree:
    """Returns the tree of `gamma` drafts, one after the other."""
    return Tree(tuple(range(gamma)))


def parse(text: str) -> Tree:
    """Parses a tree from its paths, such as `0,1,00,01,10,000`.

    A path has a digit for each token after the root: the candidate's rank among its siblings. So
    `0` and `1` are the two likeliest next tokens, and `00` is the likeliest after the first of
    them. Medusa writes its trees in this way (arXiv 2401.10774, section 2.1.2).

    Raises:
      ValueError: a path is not of digits, appears twice, or lacks its parent's or a sibling's.
    """
    paths = [path.strip() for path in text.split(",")]
    for path in paths:
        if not (path.isascii() and path.isdigit()):
            raise ValueError(
                "a tree is paths of digits separated by commas, as 0,1,00,01; got "
                f"{path!r} in {text!r}"
            )
        if paths.count(path) > 1:
            raise ValueError(f"the tree has the path {path} twice: {text!r}")
        required = [path[:-1]] if len(path) > 1 else []
        required += [path[:-1] + str(int(path[-1]) - 1)] if path[-1] != "0" else []
        for other in required:
            if other not in paths:
                raise ValueError(f"the tree's path {path} needs the path {other} too: {text!r}")
    ordered = sorted(paths, key=lambda path: (len(path), path))
    number = {path: node for node, path in enumerate(ordered, start=1)} | {"": 0}
    return Tree(tuple(number[path[:-1]] for path in ordered))
