"""Trees of drafts: how they are written, and their tables against walks by hand."""

import numpy as np
import pytest

from jaxdiv import speculative
from jaxdiv.speculative import drafting

TREES = ["0", "0,1,2", "0,00,000", "0,1,00,01", "0,1,2,00,01,10,000,001,100", "10,0,1,11,00,110,2"]


def by_hand(text):
    """Paths in the order of the nodes, which is by length and then by digits."""
    return ["", *sorted(text.split(","), key=lambda path: (len(path), path))]


@pytest.mark.parametrize("text", TREES)
def test_tables_agree_with_the_paths(text):
    tree, paths = speculative.parse(text), by_hand(text)
    assert tree.size == len(paths) - 1
    assert tree.depth == max(map(len, paths))
    np.testing.assert_array_equal(tree.depths, [len(path) for path in paths])
    np.testing.assert_array_equal(tree.ranks, [int(path[-1:] or 0) for path in paths])
    for node, path in enumerate(paths):
        np.testing.assert_array_equal(
            tree.ancestors[node], [path.startswith(other) for other in paths]
        )
        children = [i for i, other in enumerate(paths) if other and other[:-1] == path]
        assert tree.children[node][: len(children)].tolist() == children
        assert (tree.children[node][len(children) :] == -1).all()
    for depth in range(tree.depth + 1):
        level = tree.level(depth)
        assert level.tolist() == [i for i, path in enumerate(paths) if len(path) == depth]
        np.testing.assert_array_equal(level, level[0] + np.arange(len(level)))


@pytest.mark.parametrize("gamma", [0, 1, 5])
def test_a_chain_is_a_tree_of_single_children(gamma):
    chain = speculative.chain(gamma)
    assert (chain.size, chain.depth) == (gamma, gamma)
    np.testing.assert_array_equal(chain.ancestors, np.tri(gamma + 1, dtype=bool))
    np.testing.assert_array_equal(chain.children, [[i] for i in [*range(1, gamma + 1), -1]])
    if gamma:
        assert chain == speculative.parse(",".join("0" * n for n in range(1, gamma + 1)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0,x", "a tree is paths of digits separated by commas, as 0,1,00,01; got 'x' in '0,x'"),
        ("", "a tree is paths of digits separated by commas, as 0,1,00,01; got '' in ''"),
        ("0,,1", "got '' in '0,,1'"),
        ("0,²", "got '²' in '0,²'"),
        ("0,1,0", "the tree has the path 0 twice: '0,1,0'"),
        ("0,10", "the tree's path 10 needs the path 1 too: '0,10'"),
        ("0,2", "the tree's path 2 needs the path 1 too: '0,2'"),
        ("0,01", "the tree's path 01 needs the path 00 too: '0,01'"),
    ],
)
def test_what_is_no_tree_is_refused(text, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        speculative.parse(text)
    assert message in str(error.value)


def test_spaces_and_order_do_not_matter():
    tree = speculative.Tree((0, 0, 1))
    assert speculative.parse(" 00, 0 ,1") == speculative.parse("0,1,00") == tree


@pytest.mark.parametrize(
    ("parents", "message"),
    [
        ((1,), "before its children"),
        ((0, -1), "before its children"),
        ((0, 0, 2, 1), "in order of their parents"),
    ],
)
def test_nodes_out_of_order_are_refused(parents, message):
    with pytest.raises(ValueError, match=message):
        speculative.Tree(parents)


def test_nodes_see_the_text_and_their_ancestors_alone():
    tree, last, slots = speculative.parse("0,1,00,01,10"), np.array([3, 0]), 12
    nodes = np.arange(tree.size + 1)
    where = drafting.places(tree, nodes, last, slots)
    for row, root in enumerate(last):
        np.testing.assert_array_equal(where["slots"][row], root + nodes)
        np.testing.assert_array_equal(where["positions"][row], root + tree.depths)
        for node in nodes:
            slots_of_ancestors = root + np.flatnonzero(tree.ancestors[node])
            visible = np.flatnonzero(where["visible"][row, node])
            np.testing.assert_array_equal(visible, [*range(root), *slots_of_ancestors])
