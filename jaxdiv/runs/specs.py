"""A run's config as frozen specs, of which each part of the code takes the one that it needs.

The specs of groups of the config declare its keys: the check in `jaxdiv.runs.config`, the defaults
that every file in configs/ starts from and the table of docs/config.md come from them. A config is
read once, by `RunSpec.from_config(config)`, after `jaxdiv.runs.config.check`. Fields that decide no
result are left out when specs are compared.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jaxdiv
from jaxdiv import models, schema
from jaxdiv.acceptance import RULES
from jaxdiv.models.builders import STUDENTS
from jaxdiv.models.layers import ACTIVATIONS, BIASES
from jaxdiv.runs import config_keys
from jaxdiv.runs.config_keys import (
    DECAY,
    DEVICES,
    FRACTION,
    NAME,
    NOT_NEGATIVE,
    POSITIVE,
    REST,
    SWITCH,
    TEXT,
    key,
    one_of,
    some_of,
    whole,
)


def parse_losses(text: str) -> tuple[jaxdiv.Loss, ...]:
    """Returns the losses of `config.losses`. Raises ValueError for an unknown or repeated one."""
    try:
        return tuple(jaxdiv.get(name) for name in jaxdiv.split(text))
    except ValueError as error:
        raise ValueError(f"`config.losses`: {error}") from None


def parse_rules(text: str) -> tuple[str, ...]:
    """Returns the acceptance rules of a comma-separated list; `sampling` always comes first."""
    names = config_keys.names_in(text)
    return (schema.SAMPLING, *(name for name in names if name != schema.SAMPLING))


def parse_learning_rates(text: str, losses: Sequence[str]) -> dict[str, float]:
    """Returns the learning rates of `config.student.learning_rates` by loss.

    Args:
      text: parts such as `tv: 1e-2`, separated by semicolons.
      losses: the texts of the run's losses.

    Raises:
      ValueError: a part names a loss that the run lacks, one twice, or no finite number above 0.
    """
    rates: dict[str, Any] = {}
    for part in filter(str.strip, text.split(";")):
        name, _, rate = (piece.strip() for piece in part.rpartition(":"))
        if name not in losses or name in rates:
            raise ValueError(
                f"`config.student.learning_rates`: {part.strip()!r} must be LOSS: RATE of another "
                f"one of the run's losses, {', '.join(losses)}"
            )
        try:
            rates[name] = float(rate)
        except ValueError:
            rates[name] = math.nan
        config_keys.check_value(f"`config.student.learning_rates` of {name}", POSITIVE, rates[name])
    return rates


_QUALITY_TOKENS = 2**14  # of a teacher that is taken over, so that this takes seconds


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """The texts or images of a run."""

    kind: str = key(
        config_keys.TEXTS,
        one_of(config_keys.TEXTS, config_keys.IMAGES),
        "What the data are; an image is one prediction.",
    )
    source: str = key("python_stdlib", NAME, "`python_stdlib`, or a prepared TFDS data set.")
    feature: str = key("text", NAME, "The TFDS feature to read.")
    label: str = key("label", NAME, "Images: the TFDS feature with their classes.")
    channels: int = key(1, whole(1), "Images: channels.")
    directory: str = key(
        "", TEXT, "TFDS folder; empty for TFDS's own, or the run's folder.", compare=False
    )
    files: str = key(
        "", TEXT, "Glob of text files, JSON lines or Parquet to read instead of `data.source`."
    )
    chat_template: str = key(
        "", TEXT, "Of chats: `chatml` or a Jinja file; empty for the tokenizer's."
    )
    loss_on: str = key(
        "all", one_of("all", "assistant"), "Tokens of chats that are predicted and measured."
    )
    vocabulary: int = key(1024, whole(2), "Size of the BPE tokenizer; images: number of classes.")
    sequence_length: int = key(96, whole(1), "Tokens per row of a training batch.")
    context: str = key(
        config_keys.CORPUS,
        one_of(*config_keys.TRAINING_CONTEXTS),
        "Who writes the students' batches.",
    )
    context_share: float = key(0.5, FRACTION, "Share of rows that the teacher or student writes.")
    context_prompt: int = key(16, whole(1), "Tokens of the corpus that such a row begins with.")

    @property
    def is_images(self) -> bool:
        """True if each row is an image with one prediction, rather than tokens."""
        return self.kind == config_keys.IMAGES


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer with its schedule."""

    name: str = key("adamw", one_of("adamw", "sgd"), "The optimizer.")
    # Of students: above about 5e-3 training amplifies rounding so much that ce and kl, whose
    # gradients are equal, end apart.
    learning_rate: float = key(3e-3, POSITIVE, "Learning rate after the warm-up.")
    warmup_steps: int = key(20, whole(0), "Steps of linear warm-up from 0.")
    final_fraction: float = key(0.0, FRACTION, "Where the cosine ends, of the rate.")
    weight_decay: float = key(0.01, NOT_NEGATIVE, "Decoupled weight decay of all matrices.")
    beta1: float = key(0.9, DECAY, "Decay of AdamW's first moment, or SGD's momentum.")
    # Of students: in short runs under tv and nla, whose gradients are noisy, it should be near 1.
    beta2: float = key(0.999, DECAY, "Decay of AdamW's second moment.")
    epsilon: float = key(1e-8, POSITIVE, "AdamW's epsilon.")
    clip_norm: float = key(1.0, NOT_NEGATIVE, "Gradients are clipped to this norm; 0 for none.")


@dataclasses.dataclass(frozen=True)
class TeacherSpec:
    """The teacher model and its training.

    Attributes:
      dtype: type of activations.
      channels: of images.
    """

    checkpoint: str = key(
        "", TEXT, "Run, model's folder or GGUF file to take teacher, sizes and tokenizer from."
    )
    copy: str = key(
        "auto",
        one_of(*config_keys.COPIES),
        "Copy that teacher, or refer to its files; `auto` copies up to 1 GB.",
        compare=False,
    )
    parameters: str = key(
        config_keys.STORED,
        one_of(config_keys.STORED, "float32", "bfloat16"),
        "Type of its parameters but scales of norms; `stored` as in its files.",
    )
    quality_tokens: int = key(
        0, whole(0), "Test tokens that it is measured on; 0: all, or 16,384 of one taken over."
    )
    kind: str = key(
        "decoder", one_of("decoder", models.CLASSIFIER), "The classifier is for images."
    )
    depth: int = key(4, whole(1), "Layers.")
    width: int = key(192, whole(2), "Width of the hidden state.")
    heads: int = key(6, whole(1), "Attention heads.")
    kv_heads: int = key(2, whole(1), "Heads of keys and values.")
    mlp_width: int = key(512, whole(1), "Width inside the MLP.")
    padded_vocabulary: int = key(0, whole(0, 2**24), "Rows of embedding and head; 0: no padding.")
    rope_base: float = key(10000.0, POSITIVE, "Base of the rotary positions.")
    norm_epsilon: float = key(1e-5, POSITIVE, "Epsilon of all norms, also the students'.")
    head_width: int = key(0, whole(0), "Width of an attention head; 0: width / heads.")
    tied_head: bool = key(False, SWITCH, "The head is the transposed embedding.")
    rope_scaling: str = key("", TEXT, "JSON of transformers' `rope_parameters`; empty for none.")
    windows: str = key("", TEXT, "Last tokens that layers see, repeating, as `512,512,0`; 0: all.")
    window_rope_base: float = key(0.0, NOT_NEGATIVE, "Base in layers with a window; 0: the same.")
    attention_bias: str = key("", one_of(*BIASES), "Products of attention with a bias.")
    mlp_bias: bool = key(False, SWITCH, "The products of the MLP have a bias.")
    query_key_norm: bool = key(False, SWITCH, "Queries and keys have a norm.")
    post_norms: bool = key(False, SWITCH, "Attention and MLP have a norm after them, too.")
    activation: str = key("silu", one_of(*ACTIVATIONS), "Activation of the MLP's gate.")
    query_scale: float = key(0.0, NOT_NEGATIVE, "Factor of attention scores; 0: by the width.")
    embedding_scale: float = key(1.0, POSITIVE, "Factor of the embedding.")
    cache: str = key(
        "",
        TEXT,
        "Folder of teacher outputs, made once, that students train from; empty: a pass each step.",
        compare=False,
    )
    cache_rows: int = key(0, whole(0), "Rows of it to train on; 0: all that one epoch reads.")
    steps: int = key(500, whole(1), "Training steps.")
    batch_size: int = key(24, whole(1), "Rows per batch.")
    optimizer: OptimizerSpec = dataclasses.field(
        metadata={"learning_rate": 4e-3, "final_fraction": 0.1, "beta2": 0.95}
    )
    dtype: str
    channels: int

    @property
    def most_quality_tokens(self) -> int:
        """The most test tokens that its quality is measured on; 0 for all."""
        return self.quality_tokens or (_QUALITY_TOKENS if self.checkpoint else 0)

    @property
    def last_step(self) -> int:
        """The step of its checkpoint in the run's folder; 0 if it was taken over."""
        return 0 if self.checkpoint else self.steps


@dataclasses.dataclass(frozen=True)
class StudentSpec:
    """The student models and their training."""

    kind: str = key(models.KANGAROO, one_of(*STUDENTS), "The draft model.")
    exit_layer: int = key(2, whole(1), "kangaroo: reads the teacher's state after this layer.")
    heads: int = key(6, whole(1), "Attention heads.")
    kv_heads: int = key(2, whole(1), "Heads of keys and values.")
    depth: int = key(1, whole(1), "decoder, classifier: layers.")
    width: int = key(96, whole(2), "decoder, classifier: width.")
    mlp_width: int = key(256, whole(1), "decoder: width inside the MLP.")
    vocabulary: int = key(0, whole(0, 2**24), "Tokens that students can draft; 0: all.")
    steps: int = key(240, whole(1), "Training steps.")
    batch_size: int = key(12, whole(1), "Rows per batch.")
    learning_rates: str = key("", TEXT, "Rates of single losses, such as `tv: 1e-2; nla: 1e-2`.")
    optimizer: OptimizerSpec


@dataclasses.dataclass(frozen=True)
class EvaluationSpec:
    """The measurement of acceptance.

    `rules` begins with `sampling`, by which losses are ranked; `seed` decides the teacher's text.
    """

    temperatures: tuple[float, ...] = key(
        (0.25, 0.5, 1.0, 2.0, 5.0, 20.0),
        config_keys.TEMPERATURES,
        "Sampling temperatures; 0 is greedy.",
        tuple,
    )
    contexts: tuple[str, ...] = key(
        "corpus,generated,generated_greedy",
        some_of(schema.CONTEXTS),
        "What teacher and students read while acceptance is measured.",
        config_keys.names_in,
    )
    rules: tuple[str, ...] = key(
        "sampling,greedy_draft,greedy_match",
        some_of(RULES),
        "Acceptance rules; `sampling` ranks the losses and is always measured.",
        parse_rules,
    )
    documents: int = key(64, whole(2), "Held-out documents, at most.")
    document_tokens: int = key(
        288, whole(2, schema.MAX_DOCUMENT_TOKENS), "Tokens of each, at most."
    )
    prompt_tokens: int = key(32, whole(1), "Tokens of a document before the teacher's own text.")
    generated_tokens: int = key(256, whole(9), "Tokens of that text, at most.")
    seed: int


@dataclasses.dataclass(frozen=True)
class MeshSpec:
    """Devices along each axis of the mesh; `config_keys.REST` for all that the others leave."""

    student: int = key(1, DEVICES, "Devices that share the seeds of each loss.")
    data: int = key(REST, DEVICES, "Devices that share the rows of a batch.")
    fsdp: int = key(1, DEVICES, "Devices that share those rows and the parameters.")
    tensor: int = key(1, DEVICES, "Devices that share the classes of the vocabulary.")


@dataclasses.dataclass(frozen=True)
class CheckpointSpec:
    """When a stage is saved, and how many of its checkpoints stay on disk."""

    every: int = key(50, whole(1), "Steps between checkpoints.")
    keep: int = key(2, whole(1), "Newest checkpoints that are kept.")


@dataclasses.dataclass(frozen=True)
class LogSpec:
    """When the students are measured during training."""

    every: int = key(20, whole(1), "Steps between measurements on a validation batch.")


@dataclasses.dataclass(frozen=True)
class OnPolicySpec:
    """Rows of the students' batches that a model writes during training.

    Attributes:
      writer: `config_keys.TEACHER_TEXT` or `config_keys.STUDENT_TEXT`.
      rows: rows of each batch that it writes, the first ones.
      prompt_tokens: tokens of the corpus that each of them begins with.
      sequence_length: tokens per row.
      seed: decides the text, together with the step, the batch and the writer's parameters.
    """

    writer: str
    rows: int
    prompt_tokens: int
    sequence_length: int
    seed: int


@dataclasses.dataclass(frozen=True)
class StageSpec:
    """One stage of training, the teacher's or the students'.

    Attributes:
      name: `teacher` or `student`.
      members: the name of each model or loss, such as the texts of the losses.
      optimizers: each member's.
      seeds: seeds of the initial values of each member's models.
      data_seed: seed of the order of batches.
      steps: training steps.
      batch_size: rows per batch, over all processes.
      sequence_length: tokens per row.
      checkpoint: when the stage is saved.
      log_every: steps between measurements on a validation batch.
    """

    name: str
    members: tuple[str, ...]
    optimizers: tuple[OptimizerSpec, ...]
    seeds: tuple[int, ...]
    data_seed: int
    steps: int
    batch_size: int
    sequence_length: int
    checkpoint: CheckpointSpec
    log_every: int


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """All of a run's config.

    Attributes:
      losses: parsed, in the config's order.
      seeds: of the initial values of each loss's students.
    """

    losses: tuple[jaxdiv.Loss, ...] = key(
        "ce,ce_argmax,ce_data,kl,rkl,jeffreys,jsd,tv,nla,lk_hybrid",
        NAME,
        "Losses to train with, as `jaxdiv.get` takes them, separated by commas.",
        parse_losses,
    )
    seeds: tuple[int, ...] = key(
        3, whole(1), "Students per loss; student i is initialized from `seed` + i."
    )
    seed: int = key(0, whole(0, 2**31 - 1), "Seed of the data order, the teacher and sampled text.")
    temperature: float = key(1.0, POSITIVE, "Distillation temperature, of teacher and student.")
    dtype: str = key(
        "float32", one_of("float32", "bfloat16"), "Type of activations, not parameters."
    )
    data: DataSpec
    teacher: TeacherSpec
    student: StudentSpec
    evaluation: EvaluationSpec
    mesh: MeshSpec = dataclasses.field(compare=False)
    checkpoint: CheckpointSpec = dataclasses.field(compare=False)
    log: LogSpec = dataclasses.field(compare=False)

    @classmethod
    def from_config(cls, config: Mapping) -> "RunSpec":
        """Reads a config that has passed `jaxdiv.runs.config.check`.

        Raises ValueError for unknown losses.
        """
        seed, read = config["seed"], config_keys.read
        return read(
            cls,
            config,
            seeds=tuple(seed + i for i in range(config["seeds"])),
            teacher=read(
                TeacherSpec,
                config["teacher"],
                dtype=config["dtype"],
                channels=config["data"]["channels"],
            ),
            evaluation=read(EvaluationSpec, config["evaluation"], seed=seed),
        )

    @functools.cached_property
    def on_policy(self) -> OnPolicySpec | None:
        """The text that a model writes for the students; None if they read the corpus alone."""
        data, rows = self.data, 0
        if data.context != config_keys.CORPUS:
            rows = round(data.context_share * self.student.batch_size)
        if not rows:
            return None
        return OnPolicySpec(
            data.context, rows, data.context_prompt, data.sequence_length, self.seed
        )

    @functools.cached_property
    def teacher_stage(self) -> StageSpec:
        """The teacher's training; also describes the batches of a teacher that was taken over."""
        return self._stage("teacher", ("teacher",), (self.teacher.optimizer,), (self.seed,))

    @functools.cached_property
    def student_stage(self) -> StageSpec:
        """The students' training. Raises ValueError for learning rates of losses that it lacks."""
        losses, optimizer = tuple(loss.text for loss in self.losses), self.student.optimizer
        rates = dict.fromkeys(losses, optimizer.learning_rate)
        rates |= parse_learning_rates(self.student.learning_rates, losses)
        optimizers = tuple(
            dataclasses.replace(optimizer, learning_rate=rate) for rate in rates.values()
        )
        return self._stage("student", losses, optimizers, self.seeds)

    def _stage(self, name: str, members: tuple, optimizers: tuple, seeds: tuple) -> StageSpec:
        return StageSpec(
            name=name,
            members=members,
            optimizers=optimizers,
            seeds=seeds,
            data_seed=self.seed,
            steps=getattr(self, name).steps,
            batch_size=getattr(self, name).batch_size,
            sequence_length=self.data.sequence_length,
            checkpoint=self.checkpoint,
            log_every=self.log.every,
        )
