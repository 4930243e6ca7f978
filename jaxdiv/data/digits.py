"""The handwritten digits that come with scikit-learn, 1,797 images of 8 x 8, as a TFDS data set."""

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds

from jaxdiv.data import documents

NAME = "digits"
_BRIGHTNESS = 15  # pixels are 0..16


class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """One record {image, label} a digit, written as array_record; a fifth, by a hash of its number,
    is the test."""

    VERSION = tfds.core.Version("1.0.0")
    name = NAME
    url_infos = (
        None  # nothing is downloaded; TFDS's own look-up wants importlib_resources, undeclared
    )

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
        from sklearn.datasets import load_digits  # seconds, which a run on other data does not need

        digits = load_digits()
        for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
            if (documents.fraction(str(number)) >= 0.8) == test:
                image = PIL.Image.fromarray((pixels * _BRIGHTNESS).astype(np.uint8))
                yield number, {"image": image, "label": int(label)}

    def _log_download_bytes(self):
        """Nothing is downloaded, and a library does not print."""

    def _log_download_done(self):
        """As above."""


def prepare(directory: str) -> None:
    """Writes the data set to the TFDS folder `directory` unless it stands there. Raises ValueError
    if it can't."""
    tfds.display_progress_bar(enable=False)
    try:
        Digits(data_dir=directory or None, file_format="array_record").download_and_prepare()
    except (OSError, RuntimeError) as error:  # a full disk is a RuntimeError of array_record's
        raise ValueError(
            f"can't prepare {NAME} in {directory or 'the TFDS folder'}: {error}"
        ) from None
