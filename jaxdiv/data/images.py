"""Images with their classes, from TFDS data sets, and batches of them."""

import dataclasses
import hashlib
import os
from collections.abc import Mapping

import grain
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int32, UInt8

from jaxdiv import files
from jaxdiv.data import digits, documents, orders, sources

DIGITS = digits.NAME


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """pixels: [n, H, W, C]; labels: [n], their classes."""

    pixels: UInt8[np.ndarray, "n H W C"]
    labels: Int32[np.ndarray, " n"]

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over pixels and labels."""
        return hashlib.sha256(self.pixels.tobytes() + self.labels.tobytes()).hexdigest()[:16]

    def take(self, numbers: np.ndarray | slice) -> "LabelledImages":
        return LabelledImages(self.pixels[numbers], self.labels[numbers])

    def batch(self) -> dict[str, np.ndarray]:
        """inputs [n, H, W, C] in 0..1; labels and weights [n, 1], one prediction an image."""
        return {
            "inputs": self.pixels.astype(np.float32) / 255,
            "labels": self.labels[:, None],
            "weights": np.ones((len(self.labels), 1), np.float32),
        }

    def save(self, path: str | os.PathLike) -> None:
        """Writes an npz file, atomically."""
        with files.replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, pixels=self.pixels, labels=self.labels)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "LabelledImages":
        """Reads what `save` wrote. Raises ValueError, naming the file, if it holds anything
        else."""
        try:
            with (
                files.path_of(path).open("rb") as file,
                np.load(file, allow_pickle=False) as arrays,
            ):
                pixels, labels = arrays["pixels"], arrays["labels"]
                wanted = (np.uint8, 4, np.int32, (len(pixels),))
        except (
            Exception
        ) as error:  # zipfile, zlib and NumPy have many names for a file that is none of theirs
            raise ValueError(
                f"can't read images from {path}: {type(error).__name__}: {error}"
            ) from None
        if (pixels.dtype, pixels.ndim, labels.dtype, labels.shape) != wanted:
            raise ValueError(
                f"can't read images from {path}: it holds no images with their classes"
            )
        return cls(pixels, labels)


@dataclasses.dataclass(frozen=True)
class ImageDataset:
    """A data set: its images by split, each in the order of a hash, and how many classes there
    are."""

    splits: Mapping[str, LabelledImages]
    classes: int

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over all splits."""
        parts = "".join(self.splits[split].fingerprint for split in documents.SPLITS)
        return hashlib.sha256(parts.encode()).hexdigest()[:16]


def open_images(*, source: str, feature: str, label: str, directory: str) -> ImageDataset:
    """A TFDS data set of images, prepared in `directory` as array_record; `digits` is prepared if
    it is not there.

    Its own train, validation and test are kept; a validation or test that it lacks is cut from
    train, a tenth each, by a hash of the image. Nothing is ever downloaded.

    Args:
      source: `digits`, or the name of a data set.
      feature: the images', all of one size.
      label: the classes'.
      directory: a TFDS data folder. Empty: TFDS's own.

    Raises:
      ValueError: the name, a feature or the format is not there, images are not of one size in
        bytes, or one has no class.
    """
    if source == DIGITS:
        digits.prepare(directory)
    builder = sources.find(source, directory, DIGITS)
    classes = _classes(builder.info, source, feature, label)
    with sources.naming_faults(source, builder):
        found = builder.as_data_source(file_format="array_record")
        splits = {
            split: _read(found[split], feature, label)
            for split in documents.SPLITS
            if split in found
        }
    for split, part in splits.items():
        _check_labels(part.labels, classes, f"TFDS data set `{source}`, split `{split}`")
    if "train" not in splits:
        raise ValueError(
            f"TFDS data set `{source}` has no split `train`; it has {', '.join(builder.info.splits)}"
        )
    return ImageDataset(_with_missing(splits), classes)


def batches(
    images: LabelledImages, *, batch_size: int, seed: int, rows: slice | None = None
) -> grain.DatasetIterator:
    """Endless training batches, as `LabelledImages.batch` has them; arguments, order and state as of
    `pipeline.batches`.

    Raises ValueError for fewer images than rows.
    """
    count = len(images.labels)
    if count < batch_size:
        raise ValueError(
            f"a batch of {batch_size} needs as many images, got {count}; use a smaller batch_size"
        )
    mine = rows or slice(None)
    return orders.endless(
        count, batch_size, seed, lambda numbers: images.take(numbers[mine]).batch()
    )


def _classes(info, source, feature, label):
    found = dict(info.features.items())
    pictures = [name for name, value in found.items() if isinstance(value, tfds.features.Image)]
    labels = [name for name, value in found.items() if isinstance(value, tfds.features.ClassLabel)]
    for name, known, kind in ((feature, pictures, "images"), (label, labels, "classes")):
        if name not in known:
            raise ValueError(
                f"TFDS data set `{source}` has no {kind} `{name}`; it has {', '.join(known) or 'none'}"
            )
    shape, dtype = found[feature].shape, found[feature].np_dtype
    if not all(shape) or dtype != np.uint8:
        raise ValueError(
            f"the images of TFDS data set `{source}` must have one size, in uint8; they have {shape}, in "
            f"{np.dtype(dtype)}"
        )
    return found[label].num_classes


def _check_labels(labels, classes, name):
    outside = np.flatnonzero(
        (labels < 0) | (labels >= classes)
    )  # TFDS has -1 for an image whose class is not told
    if outside.size:
        raise ValueError(
            f"{name}: {outside.size} images have no class in 0..{classes - 1}, the first {labels[outside[0]]}"
        )


def _read(records, feature, label):
    pairs = [(record[feature], int(record[label])) for record in records]
    pixels = np.stack([image for image, _ in pairs]).astype(np.uint8)
    return _ordered(LabelledImages(pixels, np.array([label for _, label in pairs], np.int32)))


def _ordered(images):
    return images.take(np.argsort(_places(images), kind="stable"))


def _places(images):
    """A number in [0, 1) an image, by a hash of it."""
    return np.array(
        [documents.fraction(hashlib.sha256(image.tobytes()).hexdigest()) for image in images.pixels]
    )


def _with_missing(splits):
    train, places = splits["train"], _places(splits["train"])
    ends = {"validation": (0.8, 0.9), "test": (0.9, 1.0)}
    cut = {
        name: (places >= low) & (places < high)
        for name, (low, high) in ends.items()
        if name not in splits
    }
    kept = ~np.any(list(cut.values()), axis=0) if cut else np.ones(len(places), bool)
    return {
        **splits,
        "train": train.take(kept),
        **{name: train.take(which) for name, which in cut.items()},
    }
