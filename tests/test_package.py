"""The package as a whole: what it needs, which way its imports go, and that README says what is
there."""

import ast
import collections
import doctest
import importlib.util
import os
import re
import sys

import pytest

import jaxdiv
from jaxdiv.audit import table as audit_table
from jaxdiv.divergences import table
from jaxdiv.divergences.registry import ENTRIES
from tests import runs, sources

README = (runs.ROOT / "README.md").read_text(encoding="utf-8")
SOURCES = sources.modules("jaxdiv", "experiments")
# A room may import from lower floors alone, and its own modules.
FLOORS = {
    7: ["experiments"],
    6: ["jaxdiv.evaluation"],
    5: ["jaxdiv.training", "jaxdiv.reporting"],
    4: ["jaxdiv.speculative", "jaxdiv.runs"],
    3: ["jaxdiv.models", "jaxdiv.data"],
    2: ["jaxdiv.fused", "jaxdiv.contributions", "jaxdiv.audit", "jaxdiv.acceptance"],
    1: [
        *("jaxdiv.divergences", "jaxdiv.reductions", "jaxdiv.schema"),
        *("jaxdiv.files", "jaxdiv.statistics", "jaxdiv.warps"),
    ],
    0: ["jaxdiv.targets"],  # of the first floor's rooms the one that divergences may import
}


def place(module):
    """Returns (floor, room) of a module or of a name in it; None outside the project."""
    for floor, rooms in FLOORS.items():
        for room in rooms:
            if module == room or module.startswith(f"{room}."):
                return floor, room
    return None


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", SOURCES, ids=sources.label)
def test_imports_go_down(path):
    module = sources.label(path).removesuffix(".py").replace("/", ".")
    here = place(module)
    if here is None:
        assert module == "jaxdiv.__init__"
        return
    for name in imported(path):
        there = place(name)
        assert name.split(".")[0] != "tests", f"{module} imports {name}"
        assert there is None or there == here or there[0] < here[0], f"{module} imports {name}"


def test_importing_jaxdiv_needs_jax_alone():
    code = "import jaxdiv, sys; print(*{name.split('.')[0] for name in sys.modules})"
    done = runs.end(runs.start_code(code))
    assert done.returncode == 0, done.stderr
    needed_by_extras = {"flax", "optax", "orbax", "grain", "tensorflow_datasets", "absl"}
    needed_by_extras |= {"pandas", "matplotlib", "rich"}
    assert not needed_by_extras & set(done.stdout.split())


def check_examples(test):
    failures = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=failures.append)
    assert not failures, "".join(failures)


def test_readmes_example_prints_what_it_says():
    blocks = re.findall(r"^```python\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    parser = doctest.DocTestParser()
    test = parser.get_doctest("\n".join(blocks), {}, "README.md", "README.md", 0)
    assert len(test.examples) > 4
    check_examples(test)


@pytest.mark.parametrize(
    "name", [n for n in jaxdiv.names() if ">>>" in (ENTRIES[n].function.__doc__ or "")]
)
def test_examples_of_docstrings_print_what_they_say(name):
    function = ENTRIES[name].function
    names = dict(vars(sys.modules[function.__module__]))
    for test in doctest.DocTestFinder(recurse=False).find(function, name, globs=names):
        check_examples(test)


def test_the_docs_tables_are_the_codes():
    for name, markdown in (("losses", table.markdown()), ("audit", audit_table.markdown())):
        assert markdown in (runs.ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


def test_every_program_is_listed():
    folder = runs.ROOT / "experiments"
    listed = set(re.findall(r"`(\w+)`", (folder / "README.md").read_text(encoding="utf-8")))
    programs = [p for p in folder.rglob("*.py") if "cli.run(" in p.read_text(encoding="utf-8")]
    names = {p.parent.name if p.stem == "__main__" else p.stem for p in programs} - {"cli"}
    assert names <= listed, names - listed


def test_readme_names_what_is_there():
    for module in re.findall(r"python -m ((?:experiments|jaxdiv)[\w.]*)", README):
        assert importlib.util.find_spec(module), module
    for name in re.findall(r"--config=(\S+\.py)|`(\w+/[\w/.]+)`", README):
        name = "".join(name)
        assert name.startswith("runs/") or (runs.ROOT / name).exists(), name
    assert README.count("\n") <= 110
    assert len(README.split()) <= 900


@pytest.mark.parametrize("page", sources.PAGES, ids=sources.label)
def test_docs_name_and_link_what_is_there(page):
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:jaxdiv|experiments|configs|tests|docs)/[\w/.]+)`", text):
        assert page.name == "CHANGELOG.md" or sources.located(path).exists(), path
    for link in re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", text):
        place = os.path.relpath((page.parent / link).resolve(), runs.ROOT)
        assert sources.located(place).exists(), link


LARGEST = {"internal": 8, "public": 10}  # numbers of arguments


@pytest.mark.parametrize("path", SOURCES, ids=sources.label)
def test_functions_take_few_arguments(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = sum(argument.arg != "self" for argument in arguments)
            limit = LARGEST["internal" if node.name.startswith("_") else "public"]
            assert count <= limit, f"{path}:{node.lineno} {node.name} takes {count} arguments"


def test_classes_have_names_of_their_own():
    places = collections.defaultdict(list)
    for path in SOURCES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                places[node.name].append(sources.label(path))
    shared = {name: files for name, files in places.items() if len(files) > 1}
    assert not shared
