"""A teacher that is not finite ends the run at once, and keeps the batch that shows it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import smoke
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import run_data, state, students, teacher
from tests import runs


@pytest.fixture
def prepared(tmp_path):
    """Returns the spec of a run, its folder and its data."""
    config = smoke.get_config()
    config.data.files = f"{runs.write_texts(tmp_path / 'texts')}/*.txt"
    config.losses, config.seeds = "kl", 1
    config.teacher.optimizer.update(
        {"learning_rate": 1e30, "clip_norm": 0.0, "name": "sgd", "warmup_steps": 1}
    )
    run = Workdir(tmp_path / "run")
    run.initialize_or_resume(config.to_dict())
    spec = run.spec()
    return spec, run, run_data.prepare(spec, run)


def check_saved_batch(message, run, stage):
    """Checks that the saved batch is that of the step in the message; returns the step."""
    step = int(re.search(r"not finite at step (\d+)", message)[1])
    assert f"kept in {run.root / 'not_finite.npz'}" in message
    batches = run_data.load(run).batches(stage)
    expected = [next(batches) for _ in range(step)][-1]
    with np.load(run.root / "not_finite.npz", allow_pickle=False) as saved:
        assert saved["step"] == step
        for name, values in expected.items():
            np.testing.assert_array_equal(saved[name], values, strict=True)
    return step


def test_in_its_own_training(prepared):
    spec, run, data = prepared
    with pytest.raises(ValueError, match="the teacher's loss or gradient is not finite") as error:
        teacher.prepare(spec, run, data)
    assert check_saved_batch(str(error.value), run, spec.teacher_stage) > 1
    assert "\n" not in str(error.value)


def test_in_its_students_training(prepared):
    spec, run, data = prepared
    build = state.teacher_builder(spec.teacher, data.tokenizer.vocab_size)
    model = state.population(build, [0]).student(0)
    broken = model.with_params(jax.tree.map(lambda x: x * jnp.nan, model.params))
    with pytest.raises(ValueError, match="the teacher's outputs are not finite") as error:
        students.train(spec, run, data, broken)
    assert check_saved_batch(str(error.value), run, spec.student_stage) == 1
