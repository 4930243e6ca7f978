"""Checksums of all files of a folder, by which damage is noticed before anything is read from it."""

import hashlib
import pathlib

from jaxdiv import files

NAME = "manifest.json"
_KIND = "sha256"


def write(folder: pathlib.Path) -> None:
    """Lists every file below `folder` with its checksum, atomically, in the folder's manifest."""
    files.write_json(folder / NAME, {_KIND: {name: _digest(path) for name, path in sorted(_files(folder).items())}})


def fault(folder: pathlib.Path) -> str | None:
    """The first file below `folder` that is missing or not as `write` found it, in words; None if all are whole.

    Files that the manifest does not list are none of its business. No file outside of `folder` is opened.
    """
    try:
        manifest = files.read_json(folder / NAME)
        listed, found = manifest.get(_KIND) if isinstance(manifest, dict) else None, _files(folder)
        if not isinstance(listed, dict) or not listed:
            return f"{folder / NAME} lists no {_KIND} checksums"
        for name, digest in listed.items():
            if name not in found:
                return f"{folder / name} is missing"
            if _digest(found[name]) != digest:
                return f"{folder / name} is not what was saved, by its {_KIND}"
    except FileNotFoundError:
        return f"{folder / NAME} is missing, so its save did not end"
    except (OSError, ValueError) as error:
        return str(error)
    return None


def _files(folder):
    paths = (path for path in folder.rglob("*") if path.is_file() and path != folder / NAME)
    return {path.relative_to(folder).as_posix(): path for path in paths}


def _digest(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, _KIND).hexdigest()
