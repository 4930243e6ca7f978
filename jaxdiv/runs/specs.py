"""A run's config as frozen specs, of which each part of the code takes the one that it needs.

A config is read once, by `RunSpec.from_config(config)`, after `jaxdiv.runs.config.check`. Fields
that decide no result are left out when specs are compared.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jaxdiv
from jaxdiv import schema
from jaxdiv.runs import config_keys


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """The texts or images of a run: the keys of `config.data` but those of `OnPolicySpec`."""

    kind: str
    source: str
    feature: str
    label: str
    channels: int
    directory: str = dataclasses.field(compare=False)
    files: str
    vocabulary: int
    sequence_length: int

    @property
    def is_images(self) -> bool:
        """True if each row is an image with one prediction, rather than tokens."""
        return self.kind == config_keys.IMAGES


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
class TeacherSpec:
    """The teacher model: the sizes of `config.teacher`, with what decides its arrays' types.

    Attributes:
      checkpoint: folder that the teacher is taken from; empty if this run trains it.
      dtype: type of activations.
      channels: of images.
      last_step: the step of its checkpoint in the run's folder; 0 if it was taken over.
    """

    kind: str
    checkpoint: str
    depth: int
    width: int
    heads: int
    kv_heads: int
    mlp_width: int
    padded_vocabulary: int
    rope_base: float
    norm_epsilon: float
    dtype: str
    channels: int
    last_step: int


@dataclasses.dataclass(frozen=True)
class StudentSpec:
    """The student model: the sizes of `config.student`."""

    kind: str
    exit_layer: int
    depth: int
    width: int
    heads: int
    kv_heads: int
    mlp_width: int


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer with its schedule: the keys of `config.teacher.optimizer`."""

    name: str
    learning_rate: float
    warmup_steps: int
    final_fraction: float
    weight_decay: float
    beta1: float
    beta2: float
    epsilon: float
    clip_norm: float


@dataclasses.dataclass(frozen=True)
class CheckpointSpec:
    """`every`: steps between checkpoints; `keep`: the number of newest ones that stay on disk."""

    every: int
    keep: int


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
    checkpoint: CheckpointSpec = dataclasses.field(compare=False)
    log_every: int = dataclasses.field(compare=False)


@dataclasses.dataclass(frozen=True)
class EvaluationSpec:
    """The measurement of acceptance: the keys of `config.evaluation`, with lists as tuples.

    `rules` begins with `sampling`, by which losses are ranked; `seed` decides the teacher's text.
    """

    temperatures: tuple[float, ...]
    contexts: tuple[str, ...]
    rules: tuple[str, ...]
    documents: int
    document_tokens: int
    prompt_tokens: int
    generated_tokens: int
    seed: int


@dataclasses.dataclass(frozen=True)
class MeshSpec:
    """Devices along each axis of the mesh; `config_keys.REST` for all that the others leave."""

    student: int
    data: int
    fsdp: int
    tensor: int


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """All of a run's config.

    Attributes:
      losses: parsed, in the config's order.
      seeds: of the initial values of each loss's students.
      seed: of the data order, the teacher and sampled text.
      temperature: of distillation.
      on_policy: None if students read the corpus alone.
      teacher_stage: also describes the batches of a teacher that was taken over.
    """

    losses: tuple[jaxdiv.Loss, ...]
    seeds: tuple[int, ...]
    seed: int
    temperature: float
    dtype: str
    data: DataSpec
    on_policy: OnPolicySpec | None
    teacher: TeacherSpec
    student: StudentSpec
    teacher_stage: StageSpec
    student_stage: StageSpec
    evaluation: EvaluationSpec
    mesh: MeshSpec = dataclasses.field(compare=False)

    @classmethod
    def from_config(cls, config: Mapping) -> "RunSpec":
        """Reads a config that has passed `jaxdiv.runs.config.check`.

        Raises ValueError for unknown losses, or learning rates of losses that the run lacks.
        """
        losses = parse_losses(config["losses"])
        seeds = tuple(config["seed"] + i for i in range(config["seeds"]))
        teacher, student, evaluation = (config[k] for k in ("teacher", "student", "evaluation"))
        return cls(
            losses=losses,
            seeds=seeds,
            seed=config["seed"],
            temperature=config["temperature"],
            dtype=config["dtype"],
            data=_pick(DataSpec, config["data"]),
            on_policy=_on_policy(config),
            teacher=_pick(
                TeacherSpec,
                teacher,
                dtype=config["dtype"],
                channels=config["data"]["channels"],
                last_step=0 if teacher["checkpoint"] else teacher["steps"],
            ),
            student=_pick(StudentSpec, student),
            teacher_stage=_stage(config, "teacher", ("teacher",), (config["seed"],)),
            student_stage=_stage(config, "student", tuple(loss.text for loss in losses), seeds),
            evaluation=_pick(
                EvaluationSpec,
                evaluation,
                temperatures=tuple(evaluation["temperatures"]),
                contexts=config_keys.names_in(evaluation["contexts"]),
                rules=parse_rules(evaluation["rules"]),
                seed=config["seed"],
            ),
            mesh=_pick(MeshSpec, config["mesh"]),
        )


def _pick(spec, group, **values):
    """Builds `spec` from `values`, and its other fields from the keys of the config's group."""
    names = [field.name for field in dataclasses.fields(spec) if field.name not in values]
    return spec(**{name: group[name] for name in names}, **values)


def _stage(
    config: Mapping, name: str, members: tuple[str, ...], seeds: tuple[int, ...]
) -> StageSpec:
    stage = config[name]
    optimizer = _pick(OptimizerSpec, stage["optimizer"])
    rates = {}
    if name == "student":
        rates = parse_learning_rates(stage["learning_rates"], members)
    return _pick(
        StageSpec,
        stage,
        name=name,
        members=members,
        optimizers=tuple(
            dataclasses.replace(optimizer, learning_rate=rates.get(member, optimizer.learning_rate))
            for member in members
        ),
        seeds=seeds,
        data_seed=config["seed"],
        sequence_length=config["data"]["sequence_length"],
        checkpoint=_pick(CheckpointSpec, config["checkpoint"]),
        log_every=config["log"]["every"],
    )


def _on_policy(config: Mapping) -> OnPolicySpec | None:
    data, rows = config["data"], 0
    if data["context"] != config_keys.CORPUS:
        rows = round(data["context_share"] * config["student"]["batch_size"])
    if not rows:
        return None
    return OnPolicySpec(
        writer=data["context"],
        rows=rows,
        prompt_tokens=data["context_prompt"],
        sequence_length=data["sequence_length"],
        seed=config["seed"],
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
        config_keys.check_value(
            f"`config.student.learning_rates` of {name}", config_keys.POSITIVE, rates[name]
        )
    return rates
