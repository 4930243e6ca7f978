"""TFDS data sets that a test writes, and short documents."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds


def write_tfds(
    directory: pathlib.Path,
    splits: Mapping[str, Sequence[str | bytes]],
    *,
    name: str = "tiny_text",
    feature: str = "text",
    file_format: str = "array_record",
) -> None:
    """Prepares the data set `name` below `directory`: records {`feature`: text, number: int}."""
    features = {feature: tfds.features.Text(), "number": tfds.features.Scalar(dtype=np.int64)}
    records = {
        split: [{feature: text, "number": number} for number, text in enumerate(texts)]
        for split, texts in splits.items()
    }
    _write(directory, name, features, records, file_format)


def write_tfds_images(
    directory: pathlib.Path,
    splits: Mapping[str, np.ndarray],
    *,
    name: str,
    classes: int,
    feature: str = "image",
    first: int = 0,
) -> None:
    """Prepares a set of images [n, H, W, C] as PNG, whose classes are their numbers in turn; that
    of the first is `first`."""
    some = next(iter(splits.values()))
    sizes = {images.shape[1:] for images in splits.values()}
    size = some.shape[1:] if len(sizes) == 1 else (None, None, some.shape[-1])
    image = tfds.features.Image(shape=size, dtype=some.dtype.type, encoding_format="png")
    features = {feature: image, "label": tfds.features.ClassLabel(num_classes=classes)}
    records = {split: [] for split in splits}
    for split, images in splits.items():
        for number, pixels in enumerate(images):
            picture = PIL.Image.fromarray(pixels.squeeze())
            label = number % classes if number else first
            records[split].append({feature: picture, "label": label})
    _write(directory, name, features, records, "array_record")


def _write(directory, name, features, records, file_format):
    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        url_infos = None

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(part) for split, part in records.items()}

        def _generate_examples(self, part):
            yield from enumerate(part)

    Builder.name = name
    tfds.display_progress_bar(enable=False)
    Builder(data_dir=str(directory), file_format=file_format).download_and_prepare()


def sentences(count: int) -> list[str]:
    """Different short documents, of 60 to a few hundred bytes."""
    sentence = "the quick brown fox jumps over it. "
    return [f"Document {i}: " + sentence * (2 + i % 7) for i in range(count)]
