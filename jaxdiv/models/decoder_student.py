"""The independent draft model: a small decoder that shares only the vocabulary with its teacher."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxdiv.models import decoder
from jaxdiv.models.decoder import Cache, Config, Decoder, TeacherOutput, TokenIds
from jaxdiv.models.layers import Activations
from jaxdiv.models.student import Drafter


class DecoderStudent(Drafter):
    """A decoder that drafts from the tokens alone."""

    def __init__(self, decoder: Decoder):
        self.decoder, self.vocab_size = decoder, decoder.vocab_size

    def features(self, tokens: TokenIds, teacher: TeacherOutput) -> Activations:
        """Returns what the head multiplies; the teacher is not read."""
        return self.decoder(tokens).features

    def head(self, teacher: TeacherOutput) -> Float[Array, "D P"]:
        """Returns the student's own head."""
        return self.decoder.head[...]

    def init_cache(self, batch: int, length: int) -> Cache:
        return self.decoder.init_cache(batch, length)

    def extend(
        self, tokens: TokenIds, hidden: Float[Array, "B L W"], cache: Cache, **where: jax.Array
    ) -> tuple[Activations, Cache]:
        """Extends the cache as `Drafter.extend` does; the teacher's hidden states are not read."""
        model = self.decoder
        states, cache = model.run_layers(model.embed(tokens), 0, model.depth, cache=cache, **where)
        return model.norm(states), cache

    def unrolled(self) -> "DecoderStudent":
        return DecoderStudent(self.decoder.unrolled())

    def check_target(self, target: Decoder) -> None:
        if self.vocab_size != target.vocab_size:
            raise ValueError(
                f"the draft has {self.vocab_size} tokens and the target {target.vocab_size}; both "
                "need one tokenizer."
            )


def build(
    config: Config, teacher_config: Config, vocab_size: int, rngs: nnx.Rngs
) -> DecoderStudent:
    """Builds the decoder of `config`'s sizes, with the teacher's vocabulary and numerics."""
    return DecoderStudent(decoder.build(config, teacher_config, vocab_size, rngs))
