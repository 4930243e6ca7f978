"""The numbered steps in a folder of checkpoints, on a disk or in a bucket.

On a disk a step is put together aside and gets its name once it is whole. Nothing can be renamed in
a bucket: there a step is put together in its place and counts once its manifest exists, which is
written last and removed first. Of several processes only the first calls what changes anything.
"""

import os
import pathlib
import re
import shutil

from jaxdiv import files
from jaxdiv.runs import manifests

_ASIDE = ".aside-"  # prefix of a step that is incomplete or being removed


class StepFolders:
    """Paths of the steps below `folder`, and the changes that keep each step whole or absent."""

    def __init__(self, folder: pathlib.PurePath):
        self._in_bucket = files.in_bucket(folder)
        self.folder = folder if self._in_bucket else folder.absolute()

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

    def draft(self, step: int) -> pathlib.PurePath:
        """Returns the folder in which `step` is put together."""
        return self.path(step) if self._in_bucket else self.folder / f"{_ASIDE}{step}"

    def clear_draft(self, step: int) -> None:
        """Removes what a killed run or a damaged step left where `step` will be put together."""
        if self._in_bucket:
            self.remove(step)

    def commit(self, step: int) -> None:
        """Makes the draft, whose manifest is written, count as the step."""
        if not self._in_bucket:
            if self.path(step).exists():
                self.remove(step)
            os.replace(self.draft(step), self.path(step))

    def abandon(self, step: int) -> None:
        """Removes the draft after an error; in a bucket the next save clears it."""
        if not self._in_bucket:
            shutil.rmtree(self.draft(step), ignore_errors=True)

    def remove(self, step: int) -> None:
        """Removes a step, which never counts while half of it is removed."""
        if self._in_bucket:
            (self.path(step) / manifests.NAME).unlink(missing_ok=True)
            files.empty(self.path(step))
        else:
            aside = self.folder / f"{_ASIDE}old-{step}"
            os.replace(self.path(step), aside)
            shutil.rmtree(aside, ignore_errors=True)
