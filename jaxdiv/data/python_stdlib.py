"""The sources of the running Python's standard library as a TFDS data set."""

import os
import pathlib
import platform
import re
import sysconfig
from collections.abc import Mapping, Sequence

import tensorflow_datasets as tfds

from jaxdiv.data import documents

EXCLUDED = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
)


class PythonStdlib(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """One record {path, text} a file, written as array_record; `splits` are the texts of each
    split."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos = (
        None  # nothing is downloaded; TFDS's own look-up wants importlib_resources, undeclared
    )

    def __init__(self, *, splits: Mapping[str, Sequence[documents.Text]], data_dir: str | None):
        self._splits = splits
        # Named by content: a copy prepared from another Python is another data set.
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

    def _log_download_bytes(self):
        """Nothing is downloaded, and a library does not print."""

    def _log_download_done(self):
        """As above."""


def open_stdlib(*, directory: str, root: pathlib.Path | None = None) -> documents.Documents:
    """Prepares the data set in `directory` (empty: TFDS's own) unless it stands there, and reads
    it.

    Args:
      directory: a TFDS data folder.
      root: the library's folder; that of the running Python if None.

    Raises:
      ValueError: no sources below `root`, `directory` can't be written, or its copy is damaged.
    """
    root = root or pathlib.Path(sysconfig.get_paths()["stdlib"])
    reading = documents.read((path.relative_to(root).as_posix(), path) for path in _sources(root))
    if not reading.texts:
        raise ValueError(f"no Python sources below {root}; use `files` or another `source`")
    splits = documents.split_by_hash(reading.texts)
    try:
        builder = PythonStdlib(splits=splits, data_dir=directory or None)
        _prepare(builder)
    except (OSError, RuntimeError) as error:  # a full disk is a RuntimeError of array_record's
        raise ValueError(
            f"can't prepare python_stdlib in {directory or 'the TFDS folder'}: {error}"
        ) from None
    try:
        prepared = _records(builder)
    except Exception:  # array_record and TFDS have many names for a file that is none of theirs
        prepared = None
    if prepared is None or documents.fingerprint(prepared) != documents.fingerprint(splits):
        raise ValueError(
            f"the copy of python_stdlib in {builder.data_dir} is damaged; delete that folder"
        )
    return documents.Documents.of(prepared, [reading])


def _prepare(builder):
    tfds.display_progress_bar(enable=False)
    builder.download_and_prepare()


def _sources(root):
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(set(folders) - EXCLUDED)
        yield from (pathlib.Path(folder, name) for name in sorted(files) if name.endswith(".py"))


def _records(builder):
    sources = builder.as_data_source()
    return {
        split: [
            documents.Text(record["path"].decode(), record["text"].decode())
            for record in sources[split]
        ]
        for split in documents.SPLITS
    }
