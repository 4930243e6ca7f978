"""Opens a corpus: a built-in one, a prepared TFDS data set, or a user's own files.

A further built-in corpus is a module with its opener and one line in `BUILTIN`; a further format
of files goes into `_open_files`.
"""

import glob
import hashlib
import os
import pathlib

import tensorflow_datasets as tfds

from jaxdiv.data import documents, python_stdlib, tfds_sets
from jaxdiv.data.documents import SPLITS, Documents

PYTHON_STDLIB = python_stdlib.NAME
# Corpora that are prepared on first use: functions of the TFDS data folder.
BUILTIN = {PYTHON_STDLIB: python_stdlib.open_stdlib}


def open_documents(*, source: str, feature: str, files: str, directory: str) -> Documents:
    """Opens the corpus that `files` names, or else `source`. Nothing is ever downloaded.

    Args:
      source: `python_stdlib`, prepared in `directory` if it is not there yet, or the name of a TFDS
        data set prepared there as array_record. Its own train, validation and test stay; a
        validation or test that it lacks is cut from train, a tenth each, by a hash of the text.
      feature: the text feature of a TFDS data set.
      files: a glob of UTF-8 text files, `**` for any depth; cut 80/10/10 by a hash of the path
        relative to the glob's fixed part. Empty: use `source`.
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
    """Opens the files that match the glob `pattern`, each one document of UTF-8 text."""
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
    records = documents.read((path.relative_to(parent).as_posix(), path) for path in paths)
    if not records.texts:
        raise ValueError(
            f"`files` must match UTF-8 text, got {pattern!r}, whose {len(paths)} files hold none"
        )
    return Documents.of(documents.split_by_hash(records.texts), [records])


def _open_tfds(name: str, feature: str, directory: str) -> Documents:
    """Opens a TFDS data set; texts are named by their hash, so equal ones share a split."""
    builder = tfds_sets.find(name, directory, PYTHON_STDLIB)
    features = builder.info.features.items()
    text_features = [key for key, value in features if isinstance(value, tfds.features.Text)]
    if feature not in text_features:
        raise ValueError(
            f"TFDS data set `{name}` has no text feature `{feature}`; it has "
            f"{', '.join(text_features) or 'none'}"
        )
    with tfds_sets.reading(name, builder):
        data = builder.as_data_source(file_format="array_record")
        texts = {
            split: [record[feature] for record in data[split]] for split in SPLITS if split in data
        }
    records = {
        split: documents.read((hashlib.sha256(text).hexdigest(), text) for text in texts[split])
        for split in texts
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
