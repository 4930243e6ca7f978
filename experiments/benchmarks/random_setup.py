"""Shared set-up of training benchmarks: an untrained teacher and a batch of random tokens."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdiv.runs.specs import RunSpec
from jaxdiv.training import students
from jaxdiv.training.state import Model, teacher_builder


@dataclasses.dataclass(frozen=True)
class RandomSetup:
    """A run of the config's sizes with initial values for the teacher and random tokens for data.

    Attributes:
      config: the run's.
      spec: the same as a frozen spec.
      teacher: untrained.
      batch: inputs, labels and weights [B, L].
    """

    config: Mapping[str, Any]
    spec: RunSpec
    teacher: Model
    batch: dict[str, jax.Array]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "RandomSetup":
        """Builds the teacher and draws the batch, both from fixed keys."""
        spec = RunSpec.from_config(config)
        vocab_size, stage = spec.data.vocabulary, spec.student_stage
        teacher = teacher_builder(spec.teacher, vocab_size)(nnx.Rngs(0))
        shape = stage.batch_size, stage.sequence_length
        tokens = jax.random.randint(jax.random.key(0), (shape[0], shape[1] + 1), 0, vocab_size)
        batch = {"inputs": tokens[:, :-1], "labels": tokens[:, 1:], "weights": jnp.ones(shape)}
        return cls(config, spec, Model(*nnx.split(teacher)), batch)

    def untrained_students(self, seeds: int) -> tuple[RunSpec, Model]:
        """Returns the run with so many seeds of each loss, and its untrained students."""
        spec = RunSpec.from_config({**self.config, "seeds": seeds})
        return spec, students.untrained(spec, spec.data.vocabulary)
