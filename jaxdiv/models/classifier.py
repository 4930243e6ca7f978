"""A small convolutional network that classifies images, as teacher and as student.

An image is a row of one prediction, L = 1.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxdiv.models import meshes
from jaxdiv.models.decoder import TeacherOutput
from jaxdiv.models.student import Student

ImageBatch = Float[Array | np.ndarray, "B H W C"]


class Classifier(nnx.Module):
    """Stages of convolution, RMSNorm, ReLU and max pooling, each with twice the channels before it.

    Args:
      vocab_size: V, the number of classes.
      channels: of the images.
      depth: number of stages.
      width: channels of the first stage.
      norm_epsilon, dtype, rngs: as of `Decoder`.
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
            [
                nnx.RMSNorm(outputs, epsilon=norm_epsilon, dtype=self.dtype, rngs=rngs)
                for outputs in widths[1:]
            ]
        )
        self.head = nnx.Param(
            jax.random.normal(rngs.params(), (widths[-1], vocab_size)) * widths[-1] ** -0.5
        )

    def __call__(self, images: ImageBatch, *, exit_layer: None = None) -> TeacherOutput:
        """Returns the head, and as features the mean over the last stage's pixels, [B, 1, D].

        There is no hidden state.
        """
        hidden = meshes.shard_rows(images.astype(self.dtype))
        for conv, norm in zip(self.stages, self.norms, strict=True):
            graphdef, params = nnx.split(conv)
            conv = nnx.merge(graphdef, meshes.gather_layer(params, self.dtype))
            hidden = nnx.relu(norm(conv(hidden)))
            window = tuple(min(2, side) for side in hidden.shape[1:3])  # a side of 1 stays
            hidden = nnx.max_pool(hidden, window, strides=window, padding="SAME")
        features = jnp.mean(hidden, axis=(1, 2))[:, None]
        return TeacherOutput(features, None, self.head[...], self.vocab_size)


class ClassifierStudent(Student):
    """An independent small classifier."""

    def __init__(self, classifier: Classifier):
        self.classifier, self.vocab_size = classifier, classifier.vocab_size

    def features(self, images: ImageBatch, teacher: TeacherOutput) -> Float[Array, "B 1 D"]:
        """Returns what the head multiplies; the teacher is not read."""
        return self.classifier(images).features

    def head(self, teacher: TeacherOutput) -> Float[Array, "D V"]:
        """Returns the student's own head."""
        return self.classifier.head[...]
