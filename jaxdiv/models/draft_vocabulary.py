"""A draft vocabulary: the tokens that a student can draft, of all that its target has."""

import dataclasses
import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32, Int64


@dataclasses.dataclass(frozen=True)
class DraftVocabulary:
    """K of a target's V tokens, by ascending id.

    Hashable, so that modules hold it as a static attribute.

    Attributes:
      packed: the ids as bytes of int32, which Python hashes once.
      vocab_size: V.
    """

    packed: bytes
    vocab_size: int

    @classmethod
    def of(cls, ids: Sequence[int] | np.ndarray, vocab_size: int) -> "DraftVocabulary":
        """Returns the vocabulary of token ids [K], in any order.

        Raises:
          ValueError: an id is not in 0..V-1 or stands there twice, or there are fewer than two.
        """
        ids = np.sort(np.asarray(ids, np.int64))
        if len(ids) < 2 or ids[0] < 0 or ids[-1] >= vocab_size or not np.diff(ids).all():
            raise ValueError(
                f"a draft vocabulary must have at least two different ids in 0..{vocab_size - 1}, "
                f"got {len(ids)}"
            )
        return cls(ids.astype(np.int32).tobytes(), vocab_size)

    @property
    def ids(self) -> Int32[np.ndarray, " K"]:
        """The target's id of each of the student's classes."""
        return np.frombuffer(self.packed, np.int32)

    @property
    def size(self) -> int:
        """K."""
        return len(self.ids)

    @property
    def offsets(self) -> Int64[np.ndarray, " K"]:
        """Servers' `d2t`: class i is the target's token i + offsets[i]."""
        return self.ids - np.arange(self.size)

    @property
    def mask(self) -> Bool[np.ndarray, " V"]:
        """Servers' `t2d`: whether the student can draft a token."""
        return self._class_of >= 0

    @functools.cached_property
    def _class_of(self) -> Int32[np.ndarray, " V"]:
        classes = np.full(self.vocab_size, -1, np.int32)
        classes[self.ids] = np.arange(self.size)
        return classes

    def classes(self, tokens: Int[Array, "*batch"]) -> Int[Array, "*batch"]:
        """Returns the student's class of each token; -1 for one that it can't draft."""
        return jnp.asarray(self._class_of)[tokens]

    def columns(self, head: Float[Array, "D P"]) -> Float[Array, "D K"]:
        """Returns the columns of a head over the target's tokens; one that was cut, as it is."""
        if head.shape[1] == self.size:
            return head
        # Rows of the transpose: those of a tied head lie together in the embedding.
        return jnp.take(head.T, self.ids, axis=0, mode="clip").T

    def scatter(self, logits: Float[Array, "*batch K"]) -> Float[Array, "*batch V"]:
        """Returns logits of the target's tokens; -inf for those that the student can't draft."""
        # A gather runs in parallel where a scatter would go class by class.
        whole = jnp.take(logits, np.maximum(self._class_of, 0), axis=-1, mode="clip")
        return jnp.where(self.mask, whole, -jnp.inf)
