"""Opens a corpus by name: Python's standard library, a prepared TFDS data set, or a user's own
files."""

import contextlib
import difflib
import glob
import hashlib
import os
import pathlib
from collections.abc import Iterator

import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder

from jaxdiv.data import documents, python_stdlib

PYTHON_STDLIB = "python_stdlib"


def open_documents(*, source: str, feature: str, files: str, directory: str) -> documents.Documents:
    """The corpus that `files` names, or else `source`. Nothing is ever downloaded.

    Args:
      source: `python_stdlib`, prepared in `directory` if it is not there yet, or the name of a TFDS
        data set prepared there as array_record. Its own train, validation and test are kept; a
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
    if source == PYTHON_STDLIB:
        return python_stdlib.open_stdlib(directory=directory)
    return _open_tfds(source, feature, directory)


def _open_files(pattern):
    pattern = os.path.expanduser(pattern)
    paths = [pathlib.Path(path) for path in sorted(set(glob.glob(pattern, recursive=True)))]
    paths = [path for path in paths if not path.is_dir()]
    if not paths:
        raise ValueError(
            f"`files` matches no file, got {pattern!r}; a pattern looks like 'texts/**/*.txt'"
        )
    parent = _fixed_parent(pattern)
    reading = documents.read((path.relative_to(parent).as_posix(), path) for path in paths)
    if not reading.texts:
        raise ValueError(
            f"`files` must match UTF-8 text, got {pattern!r}, whose {len(paths)} files hold none"
        )
    splits = documents.split_by_hash(reading.texts)
    return documents.Documents.of(splits, [reading])


def _fixed_parent(pattern):
    """The folder that every match lies in: the parts before the first one with a wildcard."""
    parts = pathlib.Path(pattern).parts
    fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return pathlib.Path(*parts[:fixed])


def _open_tfds(name, feature, directory):
    builder = find(name, directory, PYTHON_STDLIB)
    _check_feature(builder.info, name, feature)
    readings = {}
    with naming_faults(name, builder):
        found = builder.as_data_source(file_format="array_record")
        texts = {
            split: [record[feature] for record in found[split]]
            for split in documents.SPLITS
            if split in found
        }
    for split, records in texts.items():
        readings[split] = documents.read(
            (hashlib.sha256(text).hexdigest(), text) for text in records
        )
    splits = {split: reading.texts for split, reading in readings.items()}
    missing = [split for split in documents.SPLITS if not splits.get(split)]
    if "train" in missing:
        raise ValueError(
            f"TFDS data set `{name}` has no text in a split `train`; it has {_list(builder.info.splits)}"
        )
    splits |= documents.split_by_hash(splits["train"], missing)
    return documents.Documents.of(splits, list(readings.values()))


def find(name: str, directory: str, own: str) -> read_only_builder.ReadOnlyBuilder:
    """The builder of a data set on disk, from its files alone, so that TensorFlow is never
    imported.

    Args:
      name: of the data set.
      directory: a TFDS data folder. Empty: TFDS's own.
      own: the name of the one that need not be prepared.

    Raises:
      ValueError: it is not in the folder, or in another format than array_record.
    """
    try:
        builder = read_only_builder.builder_from_files(name, data_dir=directory or None)
    except (ValueError, tfds.core.DatasetNotFoundError):
        raise ValueError(_not_found(name, directory, own)) from None
    formats = {builder.info.file_format, *builder.info.alternative_file_formats}
    if tfds.core.FileFormat.ARRAY_RECORD not in formats:
        raise ValueError(
            f"TFDS data set `{name}` must be in array_record, is in {builder.info.file_format.value}; where TensorFlow "
            f"is installed: tfds convert_format --dataset_version_dir={builder.data_dir} --out_file_format=array_record"
        )
    return builder


@contextlib.contextmanager
def naming_faults(name: str, builder: read_only_builder.ReadOnlyBuilder) -> Iterator[None]:
    """Whatever the block raises as it reads the data set is a ValueError that names it."""
    try:
        yield
    except (
        Exception
    ) as error:  # array_record and TFDS have many names for a file that is none of theirs
        raise ValueError(
            f"TFDS data set `{name}` in {builder.data_dir} can't be read: {error}"
        ) from None


def _not_found(name, directory, own):
    known = tfds.list_builders(with_community_datasets=False)
    folder = directory or str(tfds.core.constants.DATA_DIR)
    if name.split("/")[0].split(":")[0] in known:
        return (
            f"TFDS data set `{name}` is not prepared in {folder} (some names need a config: name/config); prepare it, "
            "for which many need TensorFlow (pip install tensorflow): "
            f'python -c "import tensorflow_datasets as tfds; '
            f"tfds.builder('{name}', data_dir='{folder}', file_format='array_record').download_and_prepare()\""
        )
    nearest = difflib.get_close_matches(name, [own, *known], n=1)
    hint = f"; did you mean `{nearest[0]}`?" if nearest else ""
    return f"`source` must be {own} or a TFDS data set prepared in {folder}, got `{name}`{hint}"


def _check_feature(info, name, feature):
    texts = [key for key, value in info.features.items() if isinstance(value, tfds.features.Text)]
    if feature not in texts:
        raise ValueError(
            f"TFDS data set `{name}` has no text feature `{feature}`; it has {_list(texts)}"
        )


def _list(names):
    return ", ".join(names) or "none"
