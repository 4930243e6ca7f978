"""The numbered steps in a folder of checkpoints, on a disk or in a bucket, and their checksums.

On a disk a step is put together aside and gets its name once it is whole. Nothing can be renamed in
a bucket: there a step is put together in its place and counts once its manifest exists, which is
written last and removed first. Of several processes only the first calls what changes anything.
"""

import hashlib
import os
import pathlib
import re
import shutil

from jaxdiv import files

MANIFEST = "manifest.json"
_ASIDE = ".aside-"  # prefix of a step that is incomplete or being removed
_KIND = "sha256"


class StepFolders:
    """The steps below `folder`, each of which is whole, damaged or absent.

    A step is checked once, since whoever opens a folder reads from it at once.
    """

    def __init__(self, folder: pathlib.PurePath):
        self._in_bucket = files.in_bucket(folder)
        self.folder = folder if self._in_bucket else folder.absolute()
        self._faults: dict[int, str | None] = {}

    def open(self) -> None:
        """Creates the folder and removes what killed runs have left aside."""
        if not self._in_bucket:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in self.folder.glob(f"{_ASIDE}*"):
                shutil.rmtree(path)

    def numbers(self) -> list[int]:
        """Returns the numbers of all steps, whole or damaged, ascending."""
        paths = self.folder.iterdir() if not self._in_bucket or self.folder.exists() else ()
        return sorted(int(path.name) for path in paths if re.fullmatch("0|[1-9][0-9]*", path.name))

    def path(self, step: int) -> pathlib.PurePath:
        """Returns the folder of a step."""
        return self.folder / str(step)

    def fault(self, step: int) -> str | None:
        """Returns what is wrong with a step by its manifest, or None if it is whole."""
        if step not in self._faults:
            self._faults[step] = manifest_fault(self.path(step))
        return self._faults[step]

    def latest(self) -> int | None:
        """Returns the newest whole step, or None."""
        return next((step for step in reversed(self.numbers()) if self.fault(step) is None), None)

    def draft(self, step: int) -> pathlib.PurePath:
        """Returns the folder in which `step` is put together."""
        return self.path(step) if self._in_bucket else self.folder / f"{_ASIDE}{step}"

    def begin(self, step: int) -> bool:
        """Clears the draft's place; returns False, and changes nothing, if the step is whole."""
        if step in self.numbers() and self.fault(step) is None:
            return False
        if self._in_bucket:  # of what a killed run or a damaged step left
            self._remove(step)
        return True

    def commit(self, step: int, keep: int | None) -> None:
        """Makes the draft count as the step, and removes steps before it.

        These are damaged ones, and whole ones but the newest `keep`, unless that is None.
        """
        write_manifest(self.draft(step))
        if not self._in_bucket:
            if self.path(step).exists():
                self._remove(step)
            os.replace(self.draft(step), self.path(step))
        self._faults[step] = None
        whole = [number for number in self.numbers() if not self._faults.get(number)]
        damaged = [number for number, fault in self._faults.items() if fault and number < step]
        for number in [*(whole[:-keep] if keep else []), *damaged]:
            self._remove(number)

    def abandon(self, step: int) -> None:
        """Removes the draft after an error; in a bucket the next save clears it."""
        if not self._in_bucket:
            shutil.rmtree(self.draft(step), ignore_errors=True)

    def _remove(self, step: int) -> None:
        """Removes a step, which never counts while half of it is removed."""
        if self._in_bucket:
            (self.path(step) / MANIFEST).unlink(missing_ok=True)
            files.empty(self.path(step))
        else:
            aside = self.folder / f"{_ASIDE}old-{step}"
            os.replace(self.path(step), aside)
            shutil.rmtree(aside, ignore_errors=True)
        self._faults.pop(step, None)


def write_manifest(folder: pathlib.PurePath) -> None:
    """Writes the checksums of every file below `folder` to its manifest, atomically."""
    paths = sorted(files.below(folder).items())
    checksums = {name: _digest(path) for name, path in paths if name != MANIFEST}
    files.write_json(folder / MANIFEST, {_KIND: checksums})


def manifest_fault(folder: pathlib.PurePath) -> str | None:
    """Returns a message on the first file that is missing or differs from its checksum, or None.

    Files that the manifest does not list are ignored. No file outside of `folder` is opened.

    Raises:
      OSError: the folder is in a bucket that can't be reached, so that nothing is known of it.
    """
    try:
        manifest = files.read_json(folder / MANIFEST)
        checksums = manifest.get(_KIND) if isinstance(manifest, dict) else None
        if not isinstance(checksums, dict) or not checksums:
            return f"{folder / MANIFEST} lists no {_KIND} checksums"
        paths = files.below(folder)
        for name, digest in checksums.items():
            if name not in paths:
                return f"{folder / name} is missing"
            if _digest(paths[name]) != digest:
                return f"{folder / name} is not what was saved, by its {_KIND}"
    except FileNotFoundError:
        return f"{folder / MANIFEST} is missing, so its save did not end"
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and files.in_bucket(folder):
            raise
        return str(error)
    return None


def _digest(path):
    digest = hashlib.new(_KIND)
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()
