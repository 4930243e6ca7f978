"""Registry of the models that a run's config names by their `kind`."""

from collections.abc import Mapping
from typing import Any

from flax import nnx
from ml_collections import ConfigDict

from jaxdiv.models.classifier import Classifier, ClassifierStudent
from jaxdiv.models.decoder import Decoder
from jaxdiv.models.draft_vocabulary import DraftVocabulary
from jaxdiv.models.kangaroo import KangarooAdapter
from jaxdiv.models.layers import FAMILY_OPTIONS, DecoderOptions
from jaxdiv.models.student import DecoderStudent, Student

CLASSIFIER, KANGAROO = "classifier", "kangaroo"
Config = Mapping | ConfigDict


def build_teacher(config: Config, vocab_size: int, rngs: nnx.Rngs) -> Decoder | Classifier:
    """Builds the teacher of `config`: a classifier if its `kind` says so, else a decoder.

    A decoder reads depth, width, heads, kv_heads, mlp_width, padded_vocabulary, rope_base,
    norm_epsilon and dtype, and those of `FAMILY_OPTIONS` that are there; a classifier channels,
    depth, width, norm_epsilon and dtype.
    """
    if config.get("kind") == CLASSIFIER:
        return _classifier(config, config, vocab_size, rngs)
    family = {key: config[key] for key in FAMILY_OPTIONS if key in config}
    return _decoder(config, config, vocab_size, rngs, **family)


def build_student(
    config: Config,
    teacher_config: Config,
    vocab_size: int,
    rngs: nnx.Rngs,
    vocabulary: DraftVocabulary | None = None,
) -> Student:
    """Builds the student of `config` for a teacher of `teacher_config`, whose numerics it shares.

    Args:
      config: `kind`, and the keys that this kind reads: `kangaroo` heads, kv_heads and exit_layer;
        `decoder` depth, width, heads, kv_heads and mlp_width; `classifier` depth and width.
      teacher_config: as of `build_teacher`.
      vocab_size: V, tokens or classes.
      rngs: of the initial parameters.
      vocabulary: the tokens that it can draft; None for all.

    Raises:
      ValueError: unknown kind, an exit layer beyond the teacher's depth, or heads that don't fit
        the width.
    """
    kind = config["kind"]
    if kind not in STUDENTS:
        raise ValueError(f"`kind` must be one of {', '.join(STUDENTS)}, got {kind!r}")
    student = STUDENTS[kind](config, teacher_config, vocab_size, rngs)
    if vocabulary is not None:
        student.restrict(vocabulary)
    return student


def _decoder(
    config: Config, shared: Config, vocab_size: int, rngs: nnx.Rngs, **family: Any
) -> Decoder:
    """Builds a decoder of `config`'s sizes; `shared`, the teacher's config, has the rest."""
    sizes = {key: config[key] for key in ("depth", "width", "heads", "kv_heads", "mlp_width")}
    numerics = ("padded_vocabulary", "rope_base", "norm_epsilon", "dtype")
    sizes |= {key: shared[key] for key in numerics}
    return Decoder(DecoderOptions(vocab_size=vocab_size, **sizes, **family), rngs=rngs)


def _classifier(config: Config, shared: Config, vocab_size: int, rngs: nnx.Rngs) -> Classifier:
    """Builds a classifier of `config`'s sizes; `shared`, the teacher's config, has the rest."""
    sizes = {key: config[key] for key in ("depth", "width")}
    sizes |= {key: shared[key] for key in ("channels", "norm_epsilon", "dtype")}
    return Classifier(vocab_size=vocab_size, **sizes, rngs=rngs)


def _kangaroo(config: Config, shared: Config, vocab_size: int, rngs: nnx.Rngs) -> KangarooAdapter:
    """Builds the adapter of `config` for the teacher of `shared`."""
    exit_layer, depth = config["exit_layer"], shared["depth"]
    if not 1 <= exit_layer <= depth:
        raise ValueError(
            f"`exit_layer` must be in 1..{depth}, the teacher's depth, got {exit_layer}"
        )
    sizes = {key: config[key] for key in ("heads", "kv_heads", "exit_layer")}
    sizes |= {key: shared[key] for key in ("width", "rope_base", "norm_epsilon", "dtype")}
    return KangarooAdapter(**sizes, rngs=rngs)


# Each builds a student from (its config, the teacher's config, vocab_size, rngs).
STUDENTS = {
    KANGAROO: _kangaroo,
    "decoder": lambda *arguments: DecoderStudent(_decoder(*arguments)),
    CLASSIFIER: lambda *arguments: ClassifierStudent(_classifier(*arguments)),
}
