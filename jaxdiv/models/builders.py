"""Registry of the models that a run's config names by their `kind`."""

from flax import nnx

from jaxdiv.models import classifier, decoder, decoder_student, kangaroo
from jaxdiv.models.classifier import Classifier
from jaxdiv.models.decoder import Config, Decoder
from jaxdiv.models.student import Student

CLASSIFIER = "classifier"

# Each builds a model from (its config, the teacher's config, vocab_size, rngs). A new draft model
# is one file of this folder and one line here.
STUDENTS = {
    "kangaroo": kangaroo.build,
    "decoder": decoder_student.build,
    CLASSIFIER: classifier.build_student,
}


def build_teacher(config: Config, vocab_size: int, rngs: nnx.Rngs) -> Decoder | Classifier:
    """Builds the teacher of `config`: a classifier if its `kind` says so, else a decoder.

    A decoder reads depth, width, heads, kv_heads, mlp_width, padded_vocabulary, rope_base,
    norm_epsilon and dtype; a classifier channels, depth, width, norm_epsilon and dtype.
    """
    build = classifier.build if config.get("kind") == CLASSIFIER else decoder.build
    return build(config, config, vocab_size, rngs)


def build_student(
    config: Config, teacher_config: Config, vocab_size: int, rngs: nnx.Rngs
) -> Student:
    """Builds the student of `config` for a teacher of `teacher_config`, whose numerics it shares.

    Args:
      config: `kind`, and the keys that this kind reads: `kangaroo` heads, kv_heads and exit_layer;
        `decoder` depth, width, heads, kv_heads and mlp_width; `classifier` depth and width.
      teacher_config: as of `build_teacher`.
      vocab_size: V, tokens or classes.
      rngs: of the initial parameters.

    Raises:
      ValueError: unknown kind, an exit layer beyond the teacher's depth, or heads that don't fit
        the width.
    """
    kind = config["kind"]
    if kind not in STUDENTS:
        raise ValueError(f"`kind` must be one of {', '.join(STUDENTS)}, got {kind!r}")
    return STUDENTS[kind](config, teacher_config, vocab_size, rngs)
