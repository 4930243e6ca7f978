"""On-policy training batches: text that a model of the run writes after prompts of the corpus."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiv import models
from jaxdiv.runs.config_keys import TEACHER_TEXT
from jaxdiv.runs.specs import OnPolicySpec
from jaxdiv.training.state import Model

TEMPERATURE = 1.0
_NO_STEP = np.uint32(2**32 - 1)  # no training step has this number


def writer(
    spec: OnPolicySpec | None, teacher: Model, students: Model | None, end_of_text: int
) -> Callable | None:
    """Returns the function that writes the first rows of a batch anew, or None without a spec.

    The prompts are the rows' first tokens, or in chats those before an assistant's turn. The
    teacher writes (sequence-level distillation, as in DistillSpec, arXiv 2310.08461) or the student
    itself (as in GKD, arXiv 2306.13649), at temperature 1. The text depends on the config's
    seed, the step, the batch and the writer's parameters alone, so that a resumed run goes on with
    the same text.

    Args:
      spec: the writer, and the rows that it writes.
      teacher, students: models; their parameters are not read. The teacher
        writes without students.
      end_of_text: the token after which positions have weight 0.

    Returns:
      A function of (teacher's parameters, one student's parameters, batch, step) that returns a
      batch.
    """
    if spec is None:
        return None
    length = spec.sequence_length + 1 - spec.prompt_tokens
    base = jax.random.fold_in(jax.random.key(spec.seed), _NO_STEP)

    def write(teacher_params, student_params, batch, step):
        target = teacher.with_params(teacher_params).module()
        prompts = batch.get("prompts", batch["inputs"])[: spec.rows, : spec.prompt_tokens]
        key = jax.random.fold_in(base, step)
        sampling = {"length": length, "temperature": TEMPERATURE, "key": key}
        if spec.writer == TEACHER_TEXT:
            text = models.generate(target, prompts, **sampling)
        else:
            student = students.with_params(student_params).module()
            text = models.draft_text(student, target, prompts, **sampling)
        weights = text[:, :-1] != end_of_text
        if "prompts" in batch:
            # Only the turn that is written counts, up to its end.
            position = jnp.arange(weights.shape[1])[None]
            is_over = jnp.cumsum((position >= spec.prompt_tokens) & ~weights, axis=1) > 0
            weights = (position >= spec.prompt_tokens - 1) & ~is_over
        rows = {
            "inputs": text[:, :-1],
            "labels": text[:, 1:],
            "weights": weights.astype(jnp.float32),
        }
        return {name: jnp.concatenate([rows[name], batch[name][spec.rows :]]) for name in rows}

    return write


def over_steps(write: Callable, rows: int) -> Callable:
    """Returns the function that writes the batches of several steps at once, by `write` of the
    teacher's text: a token of many texts takes hardly longer than one of a single text.

    Its arguments are (teacher's parameters, the batches' `rows` one after the other, the first
    one's step), and it returns the batches one after the other, without rows that pad them.
    """

    def write_steps(teacher_params, batches, step):
        steps = step + jnp.arange(len(batches["inputs"]) // rows)
        shape = (len(steps), rows)
        apart = {
            name: x[: math.prod(shape)].reshape(*shape, *x.shape[1:]) for name, x in batches.items()
        }
        of_steps = jax.vmap(write, (None, None, 0, 0))(teacher_params, None, apart, steps)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), of_steps)

    return write_steps
