"""Models from a run's config."""

from collections.abc import Mapping

import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from jaxdiv.models.classifier import Classifier, ClassifierStudent
from jaxdiv.models.decoder import Decoder
from jaxdiv.models.students import DecoderStudent, KangarooAdapter, Student

Config = Mapping | ConfigDict
CLASSIFIER = "classifier"


def build_teacher(config: Config, vocab_size: int, rngs: nnx.Rngs) -> Decoder | Classifier:
    """The model of `config`, whose kind is `classifier` or, which it need not say, `decoder`.

    A decoder reads depth, width, heads, kv_heads, mlp_width, padded_vocabulary and the numerics
    rope_base, norm_epsilon and dtype; a classifier channels, depth, width, norm_epsilon and dtype.
    """
    make = _classifier if config.get("kind") == CLASSIFIER else _decoder
    return make(config, config, vocab_size, rngs)


def build_student(
    config: Config, teacher_config: Config, vocab_size: int, rngs: nnx.Rngs
) -> Student | ClassifierStudent:
    """The student of `config` for a teacher of `teacher_config`, whose padded_vocabulary and
    numerics it takes.

    `config.kind` is `kangaroo` (reads heads, kv_heads, exit_layer), `decoder` (depth, width, heads,
    kv_heads, mlp_width) or, of a teacher that is one, `classifier` (depth, width).

    Raises:
      ValueError: unknown kind, an exit layer beyond the teacher's depth, or heads that don't fit
        the width.
    """
    kind = config["kind"]
    if kind not in _KINDS:
        raise ValueError(f"`kind` must be one of {', '.join(_KINDS)}, got {kind!r}")
    return _KINDS[kind](config, teacher_config, vocab_size, rngs)


def _kangaroo(config, teacher_config, vocab_size, rngs):
    exit_layer, depth = config["exit_layer"], teacher_config["depth"]
    if not 1 <= exit_layer <= depth:
        raise ValueError(
            f"`exit_layer` must be in 1..{depth}, the teacher's depth, got {exit_layer}"
        )
    return KangarooAdapter(
        width=teacher_config["width"],
        heads=config["heads"],
        kv_heads=config["kv_heads"],
        exit_layer=exit_layer,
        rope_base=teacher_config["rope_base"],
        norm_epsilon=teacher_config["norm_epsilon"],
        dtype=jnp.dtype(teacher_config["dtype"]),
        rngs=rngs,
    )


def _independent(config, teacher_config, vocab_size, rngs):
    return DecoderStudent(_decoder(config, teacher_config, vocab_size, rngs))


def _of_images(config, teacher_config, vocab_size, rngs):
    return ClassifierStudent(_classifier(config, teacher_config, vocab_size, rngs))


_KINDS = {"kangaroo": _kangaroo, "decoder": _independent, CLASSIFIER: _of_images}


def _decoder(config, shared, vocab_size, rngs):
    return Decoder(
        vocab_size=vocab_size,
        padded_vocabulary=shared["padded_vocabulary"],
        depth=config["depth"],
        width=config["width"],
        heads=config["heads"],
        kv_heads=config["kv_heads"],
        mlp_width=config["mlp_width"],
        rope_base=shared["rope_base"],
        norm_epsilon=shared["norm_epsilon"],
        dtype=jnp.dtype(shared["dtype"]),
        rngs=rngs,
    )


def _classifier(config, shared, vocab_size, rngs):
    return Classifier(
        vocab_size=vocab_size,
        channels=shared["channels"],
        depth=config["depth"],
        width=config["width"],
        norm_epsilon=shared["norm_epsilon"],
        dtype=jnp.dtype(shared["dtype"]),
        rngs=rngs,
    )
