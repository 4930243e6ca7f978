"""A TFDS data set that a test writes itself."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow_datasets as tfds


def write_tfds(
    directory: pathlib.Path,
    splits: Mapping[str, Sequence[str | bytes]],
    *,
    name: str = "tiny_text",
    feature: str = "text",
    file_format: str = "array_record",
) -> None:
    """Prepares the data set `name` below `directory`: records {`feature`: text, number: int} in `splits`."""

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        url_infos = None

        def _info(self):
            features = {feature: tfds.features.Text(), "number": tfds.features.Scalar(dtype=np.int64)}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(texts) for split, texts in splits.items()}

        def _generate_examples(self, texts):
            for number, text in enumerate(texts):
                yield number, {feature: text, "number": number}

    Builder.name = name
    tfds.display_progress_bar(enable=False)
    Builder(data_dir=str(directory), file_format=file_format).download_and_prepare()


def sentences(count: int) -> list[str]:
    """Different short documents, of 60 to a few hundred bytes."""
    return [f"Document {i}: " + "the quick brown fox jumps over it. " * (2 + i % 7) for i in range(count)]
