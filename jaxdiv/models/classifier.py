"""A small convolutional network, teacher and student of image classes: an image is a row of one
prediction."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxdiv.models import meshes
from jaxdiv.models.decoder import TeacherOutput, project
from jaxdiv.models.layers import rms_norm

Pictures = Float[Array | np.ndarray, "B H W C"]


class Classifier(nnx.Module):
    """Stages of convolution, RMSNorm, ReLU and a halving of both sides; each has twice the channels
    of the one before.

    Args:
      vocab_size: V, classes.
      channels: of the images.
      depth: stages.
      width: channels of the first.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        channels: int,
        depth: int,
        width: int,
        norm_epsilon: float = 1e-5,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.vocab_size, self.dtype = vocab_size, jnp.dtype(dtype)
        widths = [channels, *(width * 2**stage for stage in range(depth))]
        self.stages = nnx.List(
            [
                nnx.Conv(inputs, outputs, (3, 3), use_bias=False, dtype=self.dtype, rngs=rngs)
                for inputs, outputs in itertools.pairwise(widths)
            ]
        )
        self.norms = nnx.List(
            [rms_norm(outputs, norm_epsilon, self.dtype, rngs) for outputs in widths[1:]]
        )
        self.head = nnx.Param(
            jax.random.normal(rngs.params(), (widths[-1], vocab_size)) * widths[-1] ** -0.5
        )

    def __call__(self, images: Pictures, *, exit_layer: None = None) -> TeacherOutput:
        """As `Decoder`'s, but that no hidden state is handed out."""
        return TeacherOutput(self.features(images), None, self.head[...], self.vocab_size)

    def features(self, images: Pictures) -> Float[Array, "B 1 D"]:
        """What the head multiplies."""
        hidden = meshes.by_rows(images.astype(self.dtype))
        for conv, norm in zip(self.stages, self.norms, strict=True):
            graphdef, params = nnx.split(conv)
            conv = nnx.merge(graphdef, meshes.gathered(params, self.dtype))
            hidden = _halved(nnx.relu(norm(conv(hidden))))
        return jnp.mean(hidden, axis=(1, 2))[:, None]


def _halved(images):
    """The largest of each 2 x 2 pixels; a side of one stays."""
    sides = tuple(min(2, side) for side in images.shape[1:3])
    return nnx.max_pool(images, sides, strides=sides, padding="SAME")


class ClassifierStudent(nnx.Module):
    """An independent small classifier; see `jaxdiv.models.students` for what a student has."""

    exit_layer = None

    def __init__(self, classifier: Classifier):
        self.classifier = classifier

    def features(self, images: Pictures, teacher: TeacherOutput) -> Float[Array, "B 1 D"]:
        return self.classifier.features(images)

    def head(self, teacher: TeacherOutput) -> Float[Array, "D V"]:
        return self.classifier.head[...]

    def logits(
        self, features: Float[Array, "B 1 D"], teacher: TeacherOutput
    ) -> Float[Array, "B 1 V"]:
        return project(features, self.head(teacher), self.classifier.vocab_size)

    def __call__(self, images: Pictures, teacher: TeacherOutput) -> Float[Array, "B 1 V"]:
        return self.logits(self.features(images, teacher), teacher)
