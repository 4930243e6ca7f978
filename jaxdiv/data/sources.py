"""Opens a corpus: Python's own sources, a prepared TFDS data set, or a user's own files.

A further built-in corpus is an opener with one line in `BUILTIN`; a further format of files goes
into `_open_files`.
"""

import glob
import hashlib
import os
import pathlib
import platform
import re
import sysconfig

import tensorflow_datasets as tfds

from jaxdiv.data import chats, documents, tfds_sets
from jaxdiv.data.documents import SPLITS, Documents, Text

PYTHON_STDLIB = "python_stdlib"
# Folders of the standard library that hold no sources of its own, or tests.
EXCLUDED = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
)


def open_documents(*, source: str, feature: str, files: str, directory: str) -> Documents:
    """Opens the corpus that `files` names, or else `source`. Nothing is ever downloaded.

    Args:
      source: `python_stdlib`, prepared in `directory` if it is not there yet, or the name of a TFDS
        data set prepared there as array_record. Its own train, validation and test stay; a
        validation or test that it lacks is cut from train, a tenth each, by a hash of the text.
      feature: the text feature of a TFDS data set.
      files: a glob, `**` for any depth; cut 80/10/10. Each file is a document of UTF-8 text, split
        by a hash of the path relative to the glob's fixed part; or each line of JSON-lines files
        and each row of Parquet files is a chat, split by a hash of its content. Empty: use
        `source`.
      directory: a TFDS data folder. Empty: TFDS's own.

    Raises:
      ValueError: nothing matches, the name, feature or format is not there, or no text can be read.
    """
    if files:
        return _open_files(files)
    if source in BUILTIN:
        return BUILTIN[source](directory=directory)
    return _open_tfds(source, feature, directory)


def _open_files(pattern: str) -> Documents:
    """Opens the files that match the glob `pattern`, texts or chats."""
    pattern = os.path.expanduser(pattern)
    paths = [pathlib.Path(path) for path in sorted(set(glob.glob(pattern, recursive=True)))]
    paths = [path for path in paths if not path.is_dir()]
    if not paths:
        raise ValueError(
            f"`files` matches no file, got {pattern!r}; a pattern looks like 'texts/**/*.txt'"
        )
    # The folder of all matches: the parts before the first one with a wildcard.
    parts = pathlib.Path(pattern).parts
    fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    parent = pathlib.Path(*parts[:fixed])
    of_chats = [path for path in paths if path.suffix in (chats.LINES, chats.PARQUET)]
    if of_chats:
        if others := sorted(set(paths) - set(of_chats)):
            raise ValueError(
                f"`files` must match chats or texts, got {pattern!r}, which matches {of_chats[0]} "
                f"and {others[0]}"
            )
        records = chats.read(paths, parent)
        if not records.texts:
            fault = f"; the first is {records.unreadable[0]}" if records.unreadable else ""
            raise ValueError(f"`files` must match chats, got {pattern!r}, which has none{fault}")
        return Documents.of(documents.split_by_hash(records.texts), [records], chats=True)
    records = documents.read((path.relative_to(parent).as_posix(), path) for path in paths)
    if not records.texts:
        raise ValueError(
            f"`files` must match UTF-8 text, got {pattern!r}, whose {len(paths)} files hold none"
        )
    return Documents.of(documents.split_by_hash(records.texts), [records])


def _open_tfds(name: str, feature: str, directory: str) -> Documents:
    """Opens a TFDS data set; texts are named by their hash, so equal ones share a split."""
    features = {feature: ("text feature", tfds.features.Text)}
    builder = tfds_sets.find(name, directory, builtin=PYTHON_STDLIB, features=features)
    records = {
        split: documents.read((hashlib.sha256(text).hexdigest(), text) for (text,) in values)
        for split, values in tfds_sets.read(builder, feature).items()
    }
    splits = {split: part.texts for split, part in records.items()}
    missing = [split for split in SPLITS if not splits.get(split)]
    if "train" in missing:
        raise ValueError(
            f"TFDS data set `{name}` has no text in a split `train`; it has "
            f"{', '.join(builder.info.splits) or 'none'}"
        )
    splits |= documents.split_by_hash(splits["train"], missing)
    return Documents.of(splits, list(records.values()))


def open_stdlib(*, directory: str, root: pathlib.Path | None = None) -> Documents:
    """Opens the sources of Python's standard library, as a TFDS data set of records {path, text}.

    Args:
      directory: the TFDS data folder where the set is prepared unless it is there. Empty: TFDS's
        own.
      root: the library's folder; that of the running Python if None.

    Raises:
      ValueError: no sources below `root`, `directory` can't be written, or its copy is damaged.
    """
    root = root or pathlib.Path(sysconfig.get_paths()["stdlib"])
    paths = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - EXCLUDED)
        paths += [pathlib.Path(folder, name) for name in sorted(names) if name.endswith(".py")]
    records = documents.read((path.relative_to(root).as_posix(), path) for path in paths)
    if not records.texts:
        raise ValueError(f"no Python sources below {root}; use `files` or another `source`")
    splits = documents.split_by_hash(records.texts)
    fingerprint = documents.fingerprint(splits)
    # The name has a hash of the content: the library of another Python is another data set.
    python = f"{platform.python_implementation()}_{platform.python_version()}".lower()
    builder = tfds_sets.prepare(
        PYTHON_STDLIB,
        directory,
        config=f"{re.sub('[^a-z0-9]+', '_', python)}_{fingerprint}",
        description="Sources of Python's standard library, without its tests.",
        features={"path": tfds.features.Text(), "text": tfds.features.Text()},
        splits={
            split: ((item.name, {"path": item.name, "text": item.text}) for item in texts)
            for split, texts in splits.items()
        },
    )
    try:
        prepared = {
            split: [Text(path.decode(), text.decode()) for path, text in values]
            for split, values in tfds_sets.read(builder, "path", "text").items()
        }
        is_whole = documents.fingerprint(prepared) == fingerprint
    except ValueError:
        is_whole = False
    if not is_whole:
        raise ValueError(
            f"the copy of {PYTHON_STDLIB} in {builder.data_dir} is damaged; delete that folder"
        )
    return Documents.of(prepared, [records])


# Corpora that are prepared on first use: functions of the TFDS data folder.
BUILTIN = {PYTHON_STDLIB: open_stdlib}
