"""Images with their classes, from TFDS data sets, and batches of them."""

import dataclasses
import hashlib
import os
from collections.abc import Mapping

import grain
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float64, Int32, UInt8

from jaxdiv.data import arrays, digits, orders, tfds_sets
from jaxdiv.data.documents import SPLITS, fraction

DIGITS = digits.NAME
# Data sets that are prepared on first use: functions of the TFDS data folder.
BUILTIN = {DIGITS: digits.prepare}


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """Images, `pixels` [n, H, W, C], with their classes, `labels` [n]."""

    pixels: UInt8[np.ndarray, "n H W C"]
    labels: Int32[np.ndarray, " n"]

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over pixels and labels."""
        return hashlib.sha256(self.pixels.tobytes() + self.labels.tobytes()).hexdigest()[:16]

    def take(self, numbers: np.ndarray | slice) -> "LabelledImages":
        """Returns the images of these numbers."""
        return LabelledImages(self.pixels[numbers], self.labels[numbers])

    def batch(self) -> dict[str, np.ndarray]:
        """Returns inputs [n, H, W, C] in 0..1, labels and weights [n, 1]: one row an image."""
        return {
            "inputs": self.pixels.astype(np.float32) / 255,
            "labels": self.labels[:, None],
            "weights": np.ones((len(self.labels), 1), np.float32),
        }

    def save(self, path: str | os.PathLike) -> None:
        """Writes an npz file, atomically."""
        arrays.save(path, pixels=self.pixels, labels=self.labels)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "LabelledImages":
        """Reads a file that `save` wrote. Raises ValueError, naming the file, if it is another."""
        pixels, labels = arrays.load(path, "images", "pixels", "labels")
        if (pixels.dtype, pixels.ndim, labels.dtype, labels.shape) != (
            *(np.uint8, 4, np.int32),
            pixels.shape[:1],
        ):
            raise ValueError(
                f"can't read images from {path}: it holds no images with their classes"
            )
        return cls(pixels, labels)


@dataclasses.dataclass(frozen=True)
class ImageDataset:
    """Images by split, each in the order of a hash, and the number of classes."""

    splits: Mapping[str, LabelledImages]
    classes: int

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over all splits."""
        joined = "".join(self.splits[split].fingerprint for split in SPLITS)
        return hashlib.sha256(joined.encode()).hexdigest()[:16]


def open_images(*, source: str, feature: str, label: str, directory: str) -> ImageDataset:
    """Opens a TFDS data set of images that is prepared in `directory` as array_record.

    `digits` is prepared on first use. A set's own train, validation and test stay; a validation or
    test that it lacks is cut from train, a tenth each, by a hash of the image. Nothing is ever
    downloaded.

    Args:
      source: `digits`, or the name of a data set.
      feature: of the images, which have one size.
      label: of the classes.
      directory: a TFDS data folder. Empty: TFDS's own.

    Raises:
      ValueError: the name, a feature or the format is not there, images are not of one size in
        bytes, or one has no class.
    """
    if source in BUILTIN:
        BUILTIN[source](directory)
    builder = tfds_sets.find(source, directory, DIGITS)
    classes = _check_features(builder.info, source, feature, label)
    splits = {}
    with tfds_sets.reading(source, builder):
        data = builder.as_data_source(file_format="array_record")
        for split in [split for split in SPLITS if split in data]:
            records = [(record[feature], int(record[label])) for record in data[split]]
            pixels = np.stack([image for image, _ in records]).astype(np.uint8)
            labels = np.array([number for _, number in records], np.int32)
            images = LabelledImages(pixels, labels)
            splits[split] = images.take(np.argsort(_hash_order(images), kind="stable"))
    for split, images in splits.items():
        # TFDS has -1 for an image without a class.
        outside = np.flatnonzero((images.labels < 0) | (images.labels >= classes))
        if outside.size:
            raise ValueError(
                f"TFDS data set `{source}`, split `{split}`: {outside.size} images have no class "
                f"in 0..{classes - 1}, the first {images.labels[outside[0]]}"
            )
    if "train" not in splits:
        raise ValueError(
            f"TFDS data set `{source}` has no split `train`; it has "
            f"{', '.join(builder.info.splits)}"
        )
    return ImageDataset(_add_missing(splits), classes)


def _check_features(info: tfds.core.DatasetInfo, source: str, feature: str, label: str) -> int:
    """Returns the number of classes. Raises ValueError for a missing or unsuitable feature."""
    features = dict(info.features.items())
    for name, kind, plural in (
        (feature, tfds.features.Image, "images"),
        (label, tfds.features.ClassLabel, "classes"),
    ):
        candidates = [key for key, value in features.items() if isinstance(value, kind)]
        if name not in candidates:
            raise ValueError(
                f"TFDS data set `{source}` has no {plural} `{name}`; it has "
                f"{', '.join(candidates) or 'none'}"
            )
    shape, dtype = features[feature].shape, features[feature].np_dtype
    if not all(shape) or dtype != np.uint8:
        raise ValueError(
            f"the images of TFDS data set `{source}` must have one size, in uint8; they have "
            f"{shape}, in {np.dtype(dtype)}"
        )
    return features[label].num_classes


def _hash_order(images: LabelledImages) -> Float64[np.ndarray, " n"]:
    """Hashes each image to a number in [0, 1)."""
    return np.array(
        [fraction(hashlib.sha256(image.tobytes()).hexdigest()) for image in images.pixels]
    )


def _add_missing(splits: Mapping[str, LabelledImages]) -> dict[str, LabelledImages]:
    """Cuts a missing validation or test split from train."""
    train, places = splits["train"], _hash_order(splits["train"])
    parts, rest = dict(splits), np.ones(len(places), bool)
    for name, low, high in (("validation", 0.8, 0.9), ("test", 0.9, 1.0)):
        if name not in splits:
            inside = (places >= low) & (places < high)
            parts[name], rest = train.take(inside), rest & ~inside
    return parts | {"train": train.take(rest)}


def batches(
    images: LabelledImages, *, batch_size: int, seed: int, rows: slice | None = None
) -> grain.DatasetIterator:
    """Iterates endlessly over training batches as of `LabelledImages.batch`.

    Arguments, order and state are those of `pipeline.batches`. Raises ValueError for fewer images
    than rows.
    """
    count = len(images.labels)
    if count < batch_size:
        raise ValueError(
            f"a batch of {batch_size} needs as many images, got {count}; use a smaller batch_size"
        )
    rows = rows or slice(None)
    return orders.endless(
        count, batch_size, seed, lambda numbers: images.take(numbers[rows]).batch()
    )
