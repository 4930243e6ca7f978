"""Training on text that the teacher or the students write during the run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiv
from configs import smoke
from jaxdiv import models
from jaxdiv.runs import config as run_config
from jaxdiv.runs.specs import RunSpec
from jaxdiv.training import on_policy
from jaxdiv.training import students as run_students
from jaxdiv.training.step import initial_state
from tests import training_cases as cases

V, B, LENGTH, PROMPT = cases.V, 8, 32, 8
WRITTEN = slice(0, B // 2)
TEACHER = cases.teacher()
(BATCH,) = cases.batches(1, B, LENGTH)


def make_spec(context, kind="kangaroo", share=0.5, **changes):
    config = smoke.get_config().to_dict() | {"losses": "kl,tv"} | changes
    config["data"] |= {"context": context, "context_share": share, "context_prompt": PROMPT}
    config["student"] |= {"kind": kind, "batch_size": B, "depth": 1, "exit_layer": 1}
    return RunSpec.from_config(config)


def writer(spec, end_of_text=0):
    students = cases.students(spec.student.kind)
    return on_policy.writer(spec.on_policy, TEACHER, students, end_of_text)


@pytest.mark.parametrize(
    ("context", "kind"), [("teacher", "kangaroo"), ("student", "kangaroo"), ("student", "decoder")]
)
def test_a_share_of_the_rows_is_written_after_the_corpus_own_beginnings(context, kind, monkeypatch):
    monkeypatch.setattr(on_policy, "TEMPERATURE", 0.0)
    students = cases.students(kind)
    # Greedy text of a sharp student: of two seeds, two texts.
    group = jax.tree.map(lambda x: 3 * x, students.params)
    write = jax.jit(jax.vmap(writer(make_spec(context, kind)), in_axes=(None, 0, None, None)))
    batches = write(TEACHER.params, group, BATCH, 3)
    texts = jnp.concatenate([batches["inputs"], batches["labels"][..., -1:]], axis=-1)
    np.testing.assert_array_equal(batches["inputs"][..., 1:], batches["labels"][..., :-1])
    for seed in (0, 1):
        text = texts[seed, WRITTEN]
        np.testing.assert_array_equal(text[:, :PROMPT], BATCH["inputs"][WRITTEN, :PROMPT])
        for name, values in BATCH.items():
            np.testing.assert_array_equal(batches[name][seed, B // 2 :], values[B // 2 :])
        # Each written token is the likeliest that the writer gives after the text before it,
        # computed without a cache.
        shared = TEACHER(text[:, :-1], exit_layer=1)
        student = students.with_params(group).student(seed)
        logits = shared.logits if context == "teacher" else student(text[:, :-1], shared)
        np.testing.assert_array_equal(logits[:, PROMPT - 1 :].argmax(-1), text[:, PROMPT:])
    assert np.array_equal(texts[0], texts[1]) == (context == "teacher")


def test_what_is_written_depends_on_seed_and_step():
    def text(step, seed=0):
        write = jax.jit(writer(make_spec("teacher", seed=seed)))
        return write(TEACHER.params, None, BATCH, step)["inputs"]

    np.testing.assert_array_equal(text(3), text(3))
    assert not np.array_equal(text(3), text(4))
    assert not np.array_equal(text(3), text(3, seed=1))


def test_what_follows_the_end_of_a_written_text_has_no_weight_at_the_seam():
    spec = make_spec("teacher")
    text = writer(spec)(TEACHER.params, None, BATCH, 0)["inputs"]
    end = int(text[0, PROMPT + 3])
    batch = writer(spec, end)(TEACHER.params, None, BATCH, 0)
    is_end = batch["inputs"][WRITTEN] == end
    assert is_end.any()
    np.testing.assert_array_equal(batch["weights"][WRITTEN] == 0, is_end)


def test_each_student_learns_from_its_own_text_and_the_teachers_view_of_it():
    spec, students = make_spec("student", share=1.0), cases.students()
    write, outputs = writer(spec), run_students.teacher_outputs(students, TEACHER)
    step = run_students.step(spec, students, outputs, write)
    _, metrics = step(initial_state(spec.student_stage, students), TEACHER.params, BATCH)
    assert metrics["finite"].all()
    teach = run_students.teacher_forward(students, TEACHER)
    for i, loss in enumerate(("kl", "tv")):
        for seed in (0, 1):
            student = students.student(seed)
            batch = write(TEACHER.params, student.params, BATCH, 0)
            shared = teach(TEACHER.params, batch["inputs"])
            logits, options = student(batch["inputs"], shared), {"temperature": spec.temperature}
            values = jaxdiv.get(loss)(logits, shared.logits, **options)
            expected = float((values * batch["weights"]).sum() / batch["weights"].sum())
            assert float(metrics["loss"][i, seed]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"context": "nobody"}, "config.data.context"),
        ({"context": "student", "context_prompt": LENGTH}, "config.data.context_prompt"),
        ({"context": "teacher", "context_share": 0.01}, "config.data.context_share"),
        ({"context_share": 1.5}, "config.data.context_share"),
    ],
)
def test_a_config_that_can_write_nothing_is_refused(change, key):
    config = smoke.get_config().to_dict()
    config["data"] |= change
    with pytest.raises(ValueError, match=key):
        run_config.check(config)


def test_without_written_text_nothing_is_written():
    assert writer(make_spec("corpus")) is None


def test_a_student_writes_what_its_distribution_says():
    """The first token of many texts, by its share."""
    draws, student, target = 4000, cases.students().student(0).module(), TEACHER.module()
    prompts = jnp.tile(jnp.array([[3, 1, 4]]), (draws, 1))
    sampling = {"length": 1, "temperature": 1.0, "key": jax.random.key(0)}
    text = jax.jit(lambda: models.draft_text(student, target, prompts, **sampling))()
    logits = student(prompts[:1], target(prompts[:1], exit_layer=1))[0, -1]
    p = np.asarray(jax.nn.softmax(logits), np.float64)
    counts = np.bincount(np.asarray(text[:, -1]), minlength=V)
    z = (counts - draws * p) / np.sqrt(draws * p * (1 - p))
    assert (z**2).sum() < 2 * V
