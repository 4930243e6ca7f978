"""The sources of the running Python's standard library, as a TFDS data set."""

import os
import pathlib
import platform
import re
import sysconfig
from collections.abc import Mapping, Sequence

import tensorflow_datasets as tfds

from jaxdiv.data import documents, tfds_sets
from jaxdiv.data.documents import Documents, Text

NAME = "python_stdlib"
EXCLUDED = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
)


class PythonStdlib(tfds_sets.LocalBuilder, skip_registration=True):
    """One record {path, text} a file, written as array_record."""

    def __init__(self, *, splits: Mapping[str, Sequence[Text]], data_dir: str | None):
        self._splits = splits
        # The name has a hash of the content: the library of another Python is another data set.
        python = f"{platform.python_implementation()}_{platform.python_version()}".lower()
        name = f"{re.sub('[^a-z0-9]+', '_', python)}_{documents.fingerprint(splits)}"
        self.BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name, version=self.VERSION)]
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self):
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description="Sources of Python's standard library, without its tests.",
            features=tfds.features.FeaturesDict({"path": text, "text": text}),
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(texts) for split, texts in self._splits.items()}

    def _generate_examples(self, texts):
        for path, text in texts:
            yield path, {"path": path, "text": text}


def open_stdlib(*, directory: str, root: pathlib.Path | None = None) -> Documents:
    """Prepares the data set in `directory` unless it is there, and reads it.

    Args:
      directory: a TFDS data folder. Empty: TFDS's own.
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
    with tfds_sets.preparing(NAME, directory):
        builder = PythonStdlib(splits=splits, data_dir=directory or None)
        builder.download_and_prepare()
    try:
        data = builder.as_data_source()
        prepared = {
            split: [
                Text(record["path"].decode(), record["text"].decode()) for record in data[split]
            ]
            for split in documents.SPLITS
        }
    except Exception:  # array_record and TFDS have many errors for a damaged file
        prepared = None
    if prepared is None or documents.fingerprint(prepared) != documents.fingerprint(splits):
        raise ValueError(f"the copy of {NAME} in {builder.data_dir} is damaged; delete that folder")
    return Documents.of(prepared, [records])
