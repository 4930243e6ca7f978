"""Images with their classes, from TFDS data sets, and batches of them."""

import dataclasses
import hashlib
from collections.abc import Mapping

import grain
import numpy as np
import PIL.Image
import tensorflow_datasets as tfds
from jaxtyping import Int32, UInt8

from jaxdiv.data import arrays, pipeline, tfds_sets
from jaxdiv.data.documents import SPLITS, fraction, split_of

DIGITS = "digits"
_BRIGHTNESS = 15  # of scikit-learn's digits, whose pixels are 0..16


@dataclasses.dataclass(frozen=True)
class LabelledImages(arrays.StoredArrays):
    """Images, `pixels` [n, H, W, C], with their classes, `labels` [n]."""

    pixels: UInt8[np.ndarray, "n H W C"]
    labels: Int32[np.ndarray, " n"]

    KIND = "images"

    def __post_init__(self):
        form = (self.pixels.dtype, self.pixels.ndim, self.labels.dtype, self.labels.shape)
        if form != (np.uint8, 4, np.int32, self.pixels.shape[:1]):
            raise ValueError("these are no images with their classes")

    @property
    def names(self) -> list[str]:
        """A hash of each image, by which it is ordered and split."""
        return [hashlib.sha256(image.tobytes()).hexdigest() for image in self.pixels]

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
    features = {
        feature: ("images", tfds.features.Image),
        label: ("classes", tfds.features.ClassLabel),
    }
    builder = tfds_sets.find(source, directory, builtin=DIGITS, features=features)
    image, classes = builder.info.features[feature], builder.info.features[label].num_classes
    shape, dtype = image.shape, image.np_dtype
    if not all(shape) or dtype != np.uint8:
        raise ValueError(
            f"the images of TFDS data set `{source}` must have one size, in uint8; they have "
            f"{shape}, in {np.dtype(dtype)}"
        )
    splits = {}
    for split, records in tfds_sets.read(builder, feature, label).items():
        pixels, labels = zip(*records, strict=True)
        sizes = sorted({image.shape for image in pixels})
        if len(sizes) > 1:
            raise ValueError(
                f"TFDS data set `{source}`, split `{split}`: its images have the sizes "
                f"{', '.join(map(str, sizes[:4]))}, not one"
            )
        images = LabelledImages(np.stack(pixels).astype(np.uint8), np.array(labels, np.int32))
        # TFDS has -1 for an image without a class.
        outside = np.flatnonzero((images.labels < 0) | (images.labels >= classes))
        if outside.size:
            raise ValueError(
                f"TFDS data set `{source}`, split `{split}`: {outside.size} images have no class "
                f"in 0..{classes - 1}, the first {images.labels[outside[0]]}"
            )
        splits[split] = images.take(np.argsort([*map(fraction, images.names)], kind="stable"))
    missing = [split for split in SPLITS if split not in splits]
    if "train" in missing:
        raise ValueError(
            f"TFDS data set `{source}` has no images in a split `train`; it has "
            f"{', '.join(builder.info.splits) or 'none'}"
        )
    train = splits["train"]
    homes = np.array([split_of(name, missing) for name in train.names])
    splits |= {split: train.take(homes == split) for split in ("train", *missing)}
    return ImageDataset(splits, classes)


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
    return pipeline.endless(
        count, batch_size, seed, lambda numbers: images.take(numbers).batch(), rows
    )


def prepare_digits(directory: str) -> None:
    """Writes scikit-learn's handwritten digits, 1,797 images of 8 x 8, as a TFDS data set.

    A hash puts a fifth into the test. Raises ValueError if `directory` can't be written.
    """

    def records(split):
        from sklearn.datasets import load_digits  # takes seconds, which other data do not need

        digits = load_digits()
        for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
            if (fraction(str(number)) >= 0.8) == (split == "test"):
                image = PIL.Image.fromarray((pixels * _BRIGHTNESS).astype(np.uint8))
                yield number, {"image": image, "label": int(label)}

    tfds_sets.prepare(
        DIGITS,
        directory,
        description="Handwritten digits of scikit-learn.",
        features={
            "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
            "label": tfds.features.ClassLabel(num_classes=10),
        },
        splits={split: records(split) for split in ("train", "test")},
    )


# Data sets that are prepared on first use: functions of the TFDS data folder.
BUILTIN = {DIGITS: prepare_digits}
