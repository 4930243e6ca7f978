"""The language of code and docs: how docstrings open, which words are no names, and how long a
paragraph may be."""

import ast
import re

import pytest

from tests import sources

SOURCES = sources.modules("jaxdiv", "experiments", "configs", "tests")

# A docstring is a sentence with a verb, or names a thing; it doesn't begin in the middle of one.
OPENINGS = re.compile(
    r"(?:Of|As|What|Whether|Where|Less|That|Those|Which|How|Why|Who|Its|Theirs|Ours)\b|[a-z(]"
)
# Names say what a thing is, not what was done to it.
PARTICIPLES = {
    *("made", "found", "told", "given", "own", "kept", "held", "seen", "known", "wanted"),
    *("asked", "lost", "taken", "meant", "learnt", "theirs", "ours", "mine"),
}
LONGEST_PARAGRAPH = 80  # words


def names(tree):
    """Yields (line, name) of every function, argument, variable and field that a module defines."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.lineno, node.name
            case ast.arg():
                yield node.lineno, node.arg
            case ast.Name(ctx=ast.Store()):
                yield node.lineno, node.id
            case ast.Attribute(ctx=ast.Store()):
                yield node.lineno, node.attr


def docstrings(tree):
    """Yields (line, docstring) of a module, its classes and its functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "lineno", 1), text


def paragraphs(text):
    """Yields the paragraphs and list items of a Markdown page, without code, tables, headings."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", text):
        if block.strip() and not block.lstrip().startswith(("|", "#")):
            yield block.strip()


@pytest.mark.parametrize("path", SOURCES, ids=sources.label)
def test_code_reads_as_english(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    faults = [f"{line}: {text[:50]!r}" for line, text in docstrings(tree) if OPENINGS.match(text)]
    faults += [f"{line}: {name}" for line, name in names(tree) if name.strip("_") in PARTICIPLES]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("path", sources.PAGES, ids=sources.label)
def test_paragraphs_are_short(path):
    for block in paragraphs(path.read_text(encoding="utf-8")):
        assert len(block.split()) <= LONGEST_PARAGRAPH, block


def test_a_fault_is_noticed():
    tree = ast.parse('def found(made):\n    """Of no use."""\n    self.told = 1')
    assert OPENINGS.match(next(docstrings(tree))[1])
    assert {name for _, name in names(tree)} & PARTICIPLES == {"found", "made", "told"}
    assert max(len(block.split()) for block in paragraphs("# A\n\n" + "word " * 81)) == 81
