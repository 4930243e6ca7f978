"""Where a folder's numbered steps are put together, and what makes one count, on a disk and in a
bucket.

Both classes have the same methods. Of several processes only the first calls those that change
anything.
"""

import os
import pathlib
import re
import shutil

from jaxdiv import files
from jaxdiv.runs import manifests

_ASIDE = ".aside-"  # before the name of a step that is not yet whole, or not wanted any more


class OnDisk:
    """A step is put together aside and gets its name once it is whole; an older one of that name
    stays till then."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder.absolute()

    def open(self) -> None:
        """Makes the folder and removes what killed runs have left aside."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(f"{_ASIDE}*"):
            shutil.rmtree(left)

    def numbers(self) -> list[int]:
        """Of all steps, whole or not, ascending."""
        return _numbers(self.folder.iterdir())

    def path(self, step: int) -> pathlib.Path:
        return self.folder / str(step)

    def draft(self, step: int) -> pathlib.Path:
        """Where `step` is put together."""
        return self.folder / f"{_ASIDE}{step}"

    def clear(self, step: int) -> None:
        """Makes place for the draft."""

    def commit(self, step: int) -> None:
        """The draft, whose manifest is written, counts from here on."""
        if self.path(step).exists():
            self.remove(step)
        os.replace(self.draft(step), self.path(step))

    def abandon(self, step: int) -> None:
        """After an error: a draft takes no room."""
        shutil.rmtree(self.draft(step), ignore_errors=True)

    def remove(self, step: int) -> None:
        """Kept from being seen half removed."""
        gone = self.folder / f"{_ASIDE}old-{step}"
        os.replace(self.path(step), gone)
        shutil.rmtree(gone, ignore_errors=True)


class InBucket:
    """Nothing can be renamed: a step is put together in its place, where its manifest, written last
    and removed first, makes it count.
    """

    def __init__(self, folder: pathlib.PurePath):
        self.folder = folder

    def open(self) -> None:
        """Folders are but parts of names."""

    def numbers(self) -> list[int]:
        return _numbers(self.folder.iterdir()) if self.folder.exists() else []

    def path(self, step: int) -> pathlib.PurePath:
        return self.folder / str(step)

    draft = path

    def clear(self, step: int) -> None:
        """Of what a killed run has left, or of a damaged step, nothing may be among the files of
        the one to come."""
        self.remove(step)

    def commit(self, step: int) -> None:
        """Its manifest is written."""

    def abandon(self, step: int) -> None:
        """What is left does not count without a manifest, and the next save clears it."""

    def remove(self, step: int) -> None:
        (self.path(step) / manifests.NAME).unlink(missing_ok=True)
        files.empty(self.path(step))


def of(folder: pathlib.PurePath) -> OnDisk | InBucket:
    """The steps below `folder`."""
    return InBucket(folder) if files.in_bucket(folder) else OnDisk(folder)


def _numbers(paths):
    return sorted(int(path.name) for path in paths if re.fullmatch("0|[1-9][0-9]*", path.name))
