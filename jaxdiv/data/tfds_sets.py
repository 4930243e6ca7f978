"""TFDS data sets on disk, without TensorFlow: find, read, or prepare them from local data."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder

from jaxdiv.data.documents import SPLITS

Records = Iterable[tuple[Any, Mapping[str, Any]]]  # (key, values by feature)


def prepare(
    name: str,
    directory: str,
    *,
    description: str,
    features: Mapping[str, tfds.features.FeatureConnector],
    splits: Mapping[str, Records],
    config: str = "",
) -> tfds.core.DatasetBuilder:
    """Writes a data set as array_record from local records, unless it is there.

    Args:
      name: of the data set.
      directory: a TFDS data folder. Empty: TFDS's own.
      description: of the data set.
      features: by name.
      splits: the records of each split, which are only iterated over to be written.
      config: of TFDS, the part of the folder's name that tells variants apart.

    Raises:
      ValueError: `directory` can't be written.
    """

    class LocalBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config, version="1.0.0")] if config else []
        # TFDS's own look-up needs importlib_resources, which it doesn't declare.
        url_infos = None

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                description=description,
                features=tfds.features.FeaturesDict(features),
            )

        def _split_generators(self, dl_manager):
            return splits

        def _generate_examples(self):
            raise NotImplementedError  # `_split_generators` has them all

        def _log_download_bytes(self):
            """Prints nothing, since a library should not print."""

        _log_download_done = _log_download_bytes

    LocalBuilder.name = name
    tfds.display_progress_bar(enable=False)
    try:
        builder = LocalBuilder(data_dir=directory or None, file_format="array_record")
        builder.download_and_prepare()
    except (OSError, RuntimeError) as error:  # array_record has RuntimeErrors, as of a full disk
        raise ValueError(
            f"can't prepare {name} in {directory or 'the TFDS folder'}: {error}"
        ) from None
    return builder


def find(
    name: str, directory: str, *, builtin: str, features: Mapping[str, tuple[str, type]]
) -> read_only_builder.ReadOnlyBuilder:
    """Returns the builder of a data set on disk, from its files alone.

    Args:
      name: of the data set.
      directory: a TFDS data folder. Empty: TFDS's own.
      builtin: the name of the source that needs no preparation, for the error message.
      features: the class of each feature that the data set must have, after a word for it.

    Raises:
      ValueError: it is not in the folder, in another format than array_record, or lacks a feature.
    """
    try:
        builder = read_only_builder.builder_from_files(name, data_dir=directory or None)
    except (ValueError, tfds.core.DatasetNotFoundError):
        names = tfds.list_builders(with_community_datasets=False)
        folder = directory or str(tfds.core.constants.DATA_DIR)
        if name.split("/")[0].split(":")[0] in names:
            raise ValueError(
                f"TFDS data set `{name}` is not prepared in {folder} (some names need a config: "
                "name/config); prepare it, for which many need TensorFlow (pip install "
                'tensorflow): python -c "import tensorflow_datasets as tfds; '
                f"tfds.builder('{name}', data_dir='{folder}', file_format='array_record')"
                '.download_and_prepare()"'
            ) from None
        nearest = difflib.get_close_matches(name, [builtin, *names], n=1)
        hint = f"; did you mean `{nearest[0]}`?" if nearest else ""
        raise ValueError(
            f"`source` must be {builtin} or a TFDS data set prepared in {folder}, got "
            f"`{name}`{hint}"
        ) from None
    formats = {builder.info.file_format, *builder.info.alternative_file_formats}
    if tfds.core.FileFormat.ARRAY_RECORD not in formats:
        raise ValueError(
            f"TFDS data set `{name}` must be in array_record, is in "
            f"{builder.info.file_format.value}; where TensorFlow is installed: tfds convert_format "
            f"--dataset_version_dir={builder.data_dir} --out_file_format=array_record"
        )
    for feature, (word, kind) in features.items():
        names = [key for key, value in builder.info.features.items() if isinstance(value, kind)]
        if feature not in names:
            raise ValueError(
                f"TFDS data set `{name}` has no {word} `{feature}`; it has "
                f"{', '.join(names) or 'none'}"
            )
    return builder


def read(builder: tfds.core.DatasetBuilder, *features: str) -> dict[str, list[tuple]]:
    """Reads the values of `features` of all records, by split; empty splits are left out.

    Raises ValueError if the data set is damaged.
    """
    try:
        data = builder.as_data_source(file_format="array_record")
        splits = {
            split: [tuple(record[feature] for feature in features) for record in data[split]]
            for split in SPLITS
            if split in data
        }
    except Exception as error:  # array_record and TFDS have many errors for a damaged file
        raise ValueError(
            f"TFDS data set `{builder.name}` in {builder.data_dir} can't be read: {error}"
        ) from None
    return {split: records for split, records in splits.items() if records}
