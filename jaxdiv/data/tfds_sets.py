"""TFDS data sets on disk, without TensorFlow: find, read, or prepare them from local data."""

import contextlib
import difflib
from collections.abc import Iterator

import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder


class LocalBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set that is written from local data, without any download."""

    VERSION = tfds.core.Version("1.0.0")
    # TFDS's own look-up needs importlib_resources, which it doesn't declare.
    url_infos = None

    def _log_download_bytes(self):
        """Prints nothing, since a library should not print."""

    _log_download_done = _log_download_bytes


@contextlib.contextmanager
def preparing(name: str, directory: str) -> Iterator[None]:
    """Turns the errors of a block that prepares the data set `name` into ValueErrors."""
    tfds.display_progress_bar(enable=False)
    try:
        yield
    except (OSError, RuntimeError) as error:  # array_record has RuntimeErrors, as of a full disk
        raise ValueError(
            f"can't prepare {name} in {directory or 'the TFDS folder'}: {error}"
        ) from None


@contextlib.contextmanager
def reading(name: str, builder: tfds.core.DatasetBuilder) -> Iterator[None]:
    """Turns the errors of a block that reads the data set into ValueErrors that name it."""
    try:
        yield
    except Exception as error:  # array_record and TFDS have many errors for a damaged file
        raise ValueError(
            f"TFDS data set `{name}` in {builder.data_dir} can't be read: {error}"
        ) from None


def find(name: str, directory: str, builtin: str) -> read_only_builder.ReadOnlyBuilder:
    """Returns the builder of a data set on disk, from its files alone.

    Args:
      name: of the data set.
      directory: a TFDS data folder. Empty: TFDS's own.
      builtin: the name of the source that needs no preparation, for the error message.

    Raises:
      ValueError: it is not in the folder, or in another format than array_record.
    """
    try:
        builder = read_only_builder.builder_from_files(name, data_dir=directory or None)
    except (ValueError, tfds.core.DatasetNotFoundError):
        raise ValueError(_not_found(name, directory, builtin)) from None
    formats = {builder.info.file_format, *builder.info.alternative_file_formats}
    if tfds.core.FileFormat.ARRAY_RECORD not in formats:
        raise ValueError(
            f"TFDS data set `{name}` must be in array_record, is in "
            f"{builder.info.file_format.value}; where TensorFlow is installed: tfds convert_format "
            f"--dataset_version_dir={builder.data_dir} --out_file_format=array_record"
        )
    return builder


def _not_found(name: str, directory: str, builtin: str) -> str:
    """Returns the message for a data set that is not on disk, with a remedy."""
    names = tfds.list_builders(with_community_datasets=False)
    folder = directory or str(tfds.core.constants.DATA_DIR)
    if name.split("/")[0].split(":")[0] in names:
        return (
            f"TFDS data set `{name}` is not prepared in {folder} (some names need a config: "
            "name/config); prepare it, for which many need TensorFlow (pip install tensorflow): "
            'python -c "import tensorflow_datasets as tfds; '
            f"tfds.builder('{name}', data_dir='{folder}', file_format='array_record')"
            '.download_and_prepare()"'
        )
    nearest = difflib.get_close_matches(name, [builtin, *names], n=1)
    hint = f"; did you mean `{nearest[0]}`?" if nearest else ""
    return f"`source` must be {builtin} or a TFDS data set prepared in {folder}, got `{name}`{hint}"
