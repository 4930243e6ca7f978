"""The handwritten digits that come with scikit-learn, 1,797 images of 8 x 8, as a TFDS data set."""

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds

from jaxdiv.data import tfds_sets
from jaxdiv.data.documents import fraction

NAME = "digits"
_BRIGHTNESS = 15  # pixels are 0..16


class Digits(tfds_sets.LocalBuilder, skip_registration=True):
    """One record {image, label} a digit, as array_record; a hash puts a fifth into the test."""

    name = NAME

    def _info(self):
        image = tfds.features.Image(shape=(8, 8, 1), encoding_format="png")
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits of scikit-learn.",
            features=tfds.features.FeaturesDict(
                {"image": image, "label": tfds.features.ClassLabel(num_classes=10)}
            ),
        )

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(test=False),
            "test": self._generate_examples(test=True),
        }

    def _generate_examples(self, test):
        from sklearn.datasets import load_digits  # takes seconds, which other data do not need

        digits = load_digits()
        for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
            if (fraction(str(number)) >= 0.8) == test:
                image = PIL.Image.fromarray((pixels * _BRIGHTNESS).astype(np.uint8))
                yield number, {"image": image, "label": int(label)}


def prepare(directory: str) -> None:
    """Writes the data set to the TFDS folder `directory` unless it is there.

    Raises ValueError if it can't.
    """
    with tfds_sets.preparing(NAME, directory):
        Digits(data_dir=directory or None, file_format="array_record").download_and_prepare()
