"""The project's sources and pages, wherever the package under test is installed."""

import pathlib

import jaxdiv
from tests import runs

PACKAGE = pathlib.Path(jaxdiv.__file__).resolve().parent
PAGES = sorted(
    [*runs.ROOT.glob("*.md"), *runs.ROOT.glob("docs/*.md"), *runs.ROOT.glob("experiments/**/*.md")]
)


def modules(*folders: str) -> list[pathlib.Path]:
    """Returns the Python files of top-level folders such as "jaxdiv", sorted."""
    return sorted(path for folder in folders for path in located(folder).rglob("*.py"))


def located(name: str) -> pathlib.Path:
    """Returns where a path of the checkout, such as "jaxdiv/audit", lies."""
    first, *rest = pathlib.PurePath(name).parts
    return (PACKAGE if first == "jaxdiv" else runs.ROOT / first).joinpath(*rest)


def label(path: pathlib.Path) -> str:
    """Returns the path from the checkout's root."""
    base = PACKAGE.parent if path.is_relative_to(PACKAGE) else runs.ROOT
    return str(path.relative_to(base))
