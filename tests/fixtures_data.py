"""TFDS data sets that a test writes, and short documents."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds

from jaxdiv.data import tfds_sets


def write_tfds(
    directory: pathlib.Path,
    splits: Mapping[str, Sequence[str | bytes]],
    *,
    name: str = "tiny_text",
    feature: str = "text",
) -> None:
    """Prepares the data set `name` below `directory`: records {`feature`: text, number: int}."""
    features = {feature: tfds.features.Text(), "number": tfds.features.Scalar(dtype=np.int64)}
    records = {
        split: [(number, {feature: text, "number": number}) for number, text in enumerate(texts)]
        for split, texts in splits.items()
    }
    tfds_sets.prepare(name, str(directory), description="", features=features, splits=records)


def write_tfds_images(
    directory: pathlib.Path,
    splits: Mapping[str, np.ndarray],
    *,
    name: str,
    classes: int,
    first: int = 0,
) -> None:
    """Prepares a set of images [n, H, W, C] as PNG, whose classes are their numbers in turn; that
    of the first is `first`."""
    shapes = {images.shape[1:] for images in splits.values()}
    channels, dtype = next((images.shape[-1], images.dtype.type) for images in splits.values())
    shape = shapes.pop() if len(shapes) == 1 else (None, None, channels)
    image = tfds.features.Image(shape=shape, dtype=dtype, encoding_format="png")
    records = {
        split: [
            (
                number,
                {
                    "image": PIL.Image.fromarray(pixels.squeeze()),
                    "label": number % classes if number else first,
                },
            )
            for number, pixels in enumerate(images)
        ]
        for split, images in splits.items()
    }
    features = {"image": image, "label": tfds.features.ClassLabel(num_classes=classes)}
    tfds_sets.prepare(name, str(directory), description="", features=features, splits=records)


def sentences(count: int) -> list[str]:
    """Different short documents, of 60 to a few hundred bytes."""
    sentence = "the quick brown fox jumps over it. "
    return [f"Document {i}: " + sentence * (2 + i % 7) for i in range(count)]
