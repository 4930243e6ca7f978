"""Training on text that the teacher or the students write during the run."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxdiv
from configs import smoke
from jaxdiv import models
from jaxdiv.runs import config as run_config
from jaxdiv.runs.specs import RunSpec
from jaxdiv.training import on_policy
from jaxdiv.training import students as run_students
from jaxdiv.training.state import population
from jaxdiv.training.step import initial_state

V, B, END = 64, 8, 0
LENGTH, PROMPT = 32, 8


def make_config(context, kind="kangaroo", share=0.5):
    config = smoke.get_config().to_dict()
    config["data"] |= {"context": context, "context_share": share, "context_prompt": PROMPT}
    config["student"] |= {"kind": kind, "batch_size": B, "depth": 1, "exit_layer": 1}
    config["losses"] = "kl,tv"
    return config


@pytest.fixture(scope="module")
def teacher():
    settings = {**smoke.get_config().to_dict()["teacher"], "dtype": "float32"}
    model = population(lambda rngs: models.build_teacher(settings, V, rngs), [0]).student(0)
    # Sharper than at its initial values, so that a wrong token shows.
    return model.with_params(jax.tree.map(lambda x: 3 * x, model.params))


def make_batch(seed=0):
    tokens = jax.random.randint(jax.random.key(seed), (B, LENGTH + 1), 1, V)
    return {"inputs": tokens[:, :-1], "labels": tokens[:, 1:], "weights": jnp.ones((B, LENGTH))}


@pytest.mark.parametrize(
    ("context", "kind"), [("teacher", "kangaroo"), ("student", "kangaroo"), ("student", "decoder")]
)
def test_a_share_of_the_rows_is_written_after_the_corpus_own_beginnings(
    teacher, context, kind, monkeypatch
):
    monkeypatch.setattr(on_policy, "TEMPERATURE", 0.0)
    config, batch = make_config(context, kind), make_batch()
    students = run_students.untrained(RunSpec.from_config(config), V)
    # Greedy text of a sharp student: of two seeds, two texts.
    group = jax.tree.map(lambda x: 3 * x, students.params)
    write = jax.jit(
        jax.vmap(
            on_policy.writer(RunSpec.from_config(config).on_policy, teacher, students, END),
            in_axes=(None, 0, None, None),
        )
    )
    batches = write(teacher.params, group, batch, 3)
    texts = jnp.concatenate([batches["inputs"], batches["labels"][..., -1:]], axis=-1)
    np.testing.assert_array_equal(batches["inputs"][..., 1:], batches["labels"][..., :-1])
    for seed in (0, 1):
        np.testing.assert_array_equal(
            texts[seed, : B // 2, :PROMPT], batch["inputs"][: B // 2, :PROMPT]
        )
        for name in batch:
            np.testing.assert_array_equal(batches[name][seed, B // 2 :], batch[name][B // 2 :])
        # Each written token is the likeliest that the writer gives after the text before it,
        # computed without a cache.
        shared = teacher(texts[seed, : B // 2, :-1], exit_layer=1)
        student = students.with_params(group).student(seed)
        logits = (
            shared.logits if context == "teacher" else student(texts[seed, : B // 2, :-1], shared)
        )
        written = texts[seed, : B // 2, PROMPT:]
        np.testing.assert_array_equal(logits[:, PROMPT - 1 :].argmax(-1), written)
    assert np.array_equal(texts[0], texts[1]) == (context == "teacher")


def test_what_is_written_depends_on_seed_and_step(teacher):
    config, batch = make_config("teacher"), make_batch()
    students = run_students.untrained(RunSpec.from_config(config), V)

    def text(step, seed=0):
        spec = RunSpec.from_config({**config, "seed": seed}).on_policy
        write = on_policy.writer(spec, teacher, students, END)
        return jax.jit(write)(teacher.params, None, batch, step)["inputs"]

    np.testing.assert_array_equal(text(3), text(3))
    assert not np.array_equal(text(3), text(4))
    assert not np.array_equal(text(3), text(3, seed=1))


def test_what_follows_the_end_of_a_written_text_has_no_weight_at_the_seam(teacher):
    config, batch = make_config("teacher"), make_batch()
    students = run_students.untrained(RunSpec.from_config(config), V)
    some = on_policy.writer(RunSpec.from_config(config).on_policy, teacher, students, END)(
        teacher.params, None, batch, 0
    )
    end = int(some["inputs"][0, PROMPT + 3])
    batches = on_policy.writer(RunSpec.from_config(config).on_policy, teacher, students, end)(
        teacher.params, None, batch, 0
    )
    written = slice(0, B // 2)
    assert (batches["weights"][written] == 0).any()
    np.testing.assert_array_equal(
        batches["weights"][written] == 0, batches["inputs"][written] == end
    )


def test_each_student_learns_from_its_own_text_and_the_teachers_view_of_it(teacher):
    config, batch = make_config("student", share=1.0), make_batch()
    students = run_students.untrained(RunSpec.from_config(config), V)
    spec = RunSpec.from_config(config)
    teach = run_students.teacher_forward(students, teacher)
    write = on_policy.writer(RunSpec.from_config(config).on_policy, teacher, students, END)
    outputs = run_students.teacher_outputs(students, teacher)
    step = run_students.step(spec, students, outputs, write)
    state = initial_state(spec.student_stage, students)
    _, metrics = step(state, teacher.params, batch)
    assert metrics["finite"].all()
    for i, text in enumerate(("kl", "tv")):
        for seed in (0, 1):
            student = students.student(seed)
            text_batch = write(teacher.params, student.params, batch, 0)
            shared = teach(teacher.params, text_batch["inputs"])
            values = jaxdiv.get(text)(
                student(text_batch["inputs"], shared),
                shared.logits,
                temperature=config["temperature"],
            )
            expected = float((values * text_batch["weights"]).sum() / text_batch["weights"].sum())
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
    config = copy.deepcopy(smoke.get_config().to_dict())
    config["data"] |= change
    with pytest.raises(ValueError, match=key):
        run_config.check(config)


def test_without_written_text_nothing_is_written(teacher):
    config = make_config("corpus")
    assert (
        on_policy.writer(
            RunSpec.from_config(config).on_policy,
            teacher,
            run_students.untrained(RunSpec.from_config(config), V),
            END,
        )
        is None
    )


def test_a_student_writes_what_its_distribution_says(teacher):
    """The first token of many texts, by its share."""
    config, draws = make_config("student"), 4000
    model = run_students.untrained(RunSpec.from_config(config), V).student(0)
    student, target = (nnx.merge(m.graphdef, m.params) for m in (model, teacher))
    prompts = jnp.tile(jnp.array([[3, 1, 4]]), (draws, 1))
    text = jax.jit(
        lambda: models.draft_text(
            student, target, prompts, length=1, temperature=1.0, key=jax.random.key(0)
        )
    )()
    p = np.asarray(
        jax.nn.softmax(student(prompts[:1], target(prompts[:1], exit_layer=1))[0, -1]), np.float64
    )
    counts = np.bincount(np.asarray(text[:, -1]), minlength=V)
    z = (counts - draws * p) / np.sqrt(draws * p * (1 - p))
    assert (z**2).sum() < 2 * V
