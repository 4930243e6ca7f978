"""Checksums of all files of a folder, by which damage is noticed before anything is read from
it."""

import hashlib
import pathlib

from jaxdiv import files

NAME = "manifest.json"
_KIND = "sha256"
_PART = 2**20  # bytes that are read at once


def write(folder: pathlib.PurePath) -> None:
    """Lists every file below `folder` with its checksum, atomically, in the folder's manifest."""
    files.write_json(
        folder / NAME,
        {_KIND: {name: _digest(path) for name, path in sorted(_files(folder).items())}},
    )


def fault(folder: pathlib.PurePath) -> str | None:
    """The first file below `folder` that is missing or not as `write` found it, in words; None if
    all are whole.

    Files that the manifest does not list are none of its business. No file outside of `folder` is
    opened.

    Raises OSError if the folder is in a bucket that can't be read from.
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
    except OSError as error:
        if files.in_bucket(folder):  # which is out of reach for now, and may hold what it held
            raise
        return str(error)
    except ValueError as error:
        return str(error)
    return None


def _files(folder):
    return {name: path for name, path in files.below(folder).items() if name != NAME}


def _digest(path):
    digest = hashlib.new(_KIND)
    with path.open("rb") as file:
        while part := file.read(_PART):
            digest.update(part)
    return digest.hexdigest()
