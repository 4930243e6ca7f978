"""Checksums of all files in a folder, so that damage is noticed before anything is read."""

import hashlib
import pathlib

from jaxdiv import files

NAME = "manifest.json"
_KIND = "sha256"


def write(folder: pathlib.PurePath) -> None:
    """Writes the checksums of every file below `folder` to its manifest, atomically."""
    checksums = {name: _digest(path) for name, path in sorted(_files(folder).items())}
    files.write_json(folder / NAME, {_KIND: checksums})


def fault(folder: pathlib.PurePath) -> str | None:
    """Returns a message on the first file that is missing or differs from its checksum, or None.

    Files that the manifest does not list are ignored. No file outside of `folder` is opened.

    Raises:
      OSError: the folder is in a bucket that can't be reached, so that nothing is known of it.
    """
    try:
        manifest = files.read_json(folder / NAME)
        checksums = manifest.get(_KIND) if isinstance(manifest, dict) else None
        if not isinstance(checksums, dict) or not checksums:
            return f"{folder / NAME} lists no {_KIND} checksums"
        paths = _files(folder)
        for name, digest in checksums.items():
            if name not in paths:
                return f"{folder / name} is missing"
            if _digest(paths[name]) != digest:
                return f"{folder / name} is not what was saved, by its {_KIND}"
    except FileNotFoundError:
        return f"{folder / NAME} is missing, so its save did not end"
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and files.in_bucket(folder):
            raise
        return str(error)
    return None


def _files(folder):
    return {name: path for name, path in files.below(folder).items() if name != NAME}


def _digest(path):
    digest = hashlib.new(_KIND)
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()
