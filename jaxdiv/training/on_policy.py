"""Training batches of text that a model itself wrote during the run, after the beginnings of the
corpus' windows."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiv import models
from jaxdiv.runs.config_keys import TEACHER_TEXT
from jaxdiv.runs.specs import on_policy_rows
from jaxdiv.training.state import Model

TEMPERATURE = 1.0


def writer(config: Mapping, teacher: Model, students: Model, end_of_text: int) -> Callable | None:
    """(teacher's parameters, one student's, batch, step) -> the batch with its first rows written
    anew, or None.

    The teacher writes (sequence-level distillation, as in DistillSpec, arXiv 2310.08461) or the
    student itself (on-policy, as in GKD, arXiv 2306.13649), at temperature 1. What is written
    depends on the config's seed, the step, the batch and the writer's parameters alone, so that a
    resumed run goes on with the same texts.
    """
    count, data = on_policy_rows(config), config["data"]
    if not count:
        return None
    prompt_tokens, length = data["context_prompt"], data["sequence_length"]
    base = jax.random.fold_in(
        jax.random.key(config["seed"]), np.uint32(2**32 - 1)
    )  # no step is so late

    def write(teacher_params, student_params, batch, step):
        target = teacher.with_params(teacher_params).module()
        how = {
            "length": length + 1 - prompt_tokens,
            "temperature": TEMPERATURE,
            "key": jax.random.fold_in(base, step),
        }
        prompts = batch["inputs"][:count, :prompt_tokens]
        if data["context"] == TEACHER_TEXT:
            text = models.generate(target, prompts, **how)
        else:
            student = students.with_params(student_params).module()
            text = models.draft_text(student, target, prompts, **how)
        written = {
            "inputs": text[:, :-1],
            "labels": text[:, 1:],
            "weights": (text[:, :-1] != end_of_text).astype(jnp.float32),
        }
        return {name: jnp.concatenate([written[name], batch[name][count:]]) for name in written}

    return write
