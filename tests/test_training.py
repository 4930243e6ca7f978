"""Training: students side by side are students alone, and cross-entropy trains as KL does."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdiv
from jaxdiv import reductions
from jaxdiv.runs import trackers
from jaxdiv.runs.specs import RunSpec
from jaxdiv.training import loop
from jaxdiv.training import step as training_step
from jaxdiv.training.state import TrainState
from tests import training_cases as cases
from tests.training_cases import distance

STAGE = RunSpec.from_config(cases.CONFIG).student_stage
OPTIMIZER, STEPS = STAGE.optimizers[0], 30


def loss_objective(text):
    loss = jaxdiv.get(text)
    return lambda logits, shared, batch: loss(logits, shared.logits, labels=batch["labels"])


def plain_cross_entropy(logits, shared, _):
    return -jnp.sum(jax.nn.softmax(shared.logits) * jax.nn.log_softmax(logits), axis=-1)


def optax_kl(logits, shared, _):
    return optax.kl_divergence(jax.nn.log_softmax(logits), jax.nn.softmax(shared.logits))


def train(*objectives, start=None):
    """Trains the students of two seeds under each objective; returns state and metrics."""
    teacher, students = cases.teacher(), start or cases.students()
    optimizer = training_step.make_optimizer(
        dataclasses.replace(OPTIMIZER, weight_decay=0.1), STEPS
    )

    def means(losses, params, batch, shared):
        logits = [students.with_params(tree)(batch["inputs"], shared) for tree in params]
        values = [objectives[i](z, shared, batch) for i, z in zip(losses, logits, strict=True)]
        return [reductions.token_mean(value, batch["weights"]) for value in values]

    count = len(objectives)
    step = training_step.make_step(
        teacher_forward=lambda params, batch: teacher.with_params(params)(
            batch["inputs"], exit_layer=1
        ),
        objectives=means,
        fuse_losses=lambda shared: True,
        optimizers=[optimizer] * count,
    )
    state, history = TrainState.create([students.params] * count, [optimizer] * count), []
    for batch in cases.batches(STEPS):
        state, metrics = step(state, teacher.params, batch)
        history.append(metrics)
    return state, history


@pytest.fixture(scope="module")
def side_by_side():
    """The state after training under tv and kl."""
    return train(loss_objective("tv"), loss_objective("kl"))[0]


def test_cross_entropy_and_kl_train_the_same_students_whoever_wrote_them():
    ce, kl, tv = map(loss_objective, ("ce", "kl", "tv"))
    state, metrics = train(ce, kl, plain_cross_entropy, optax_kl, tv)
    assert distance(state.params[0], cases.students().params) > 0.05
    for i in (1, 2, 3):
        assert distance(state.params[i], state.params[0]) < 1e-5
    assert distance(state.params[4], state.params[0]) > 0.01
    # The losses themselves differ by the teacher's entropy, which is the same for both seeds.
    gaps = np.array([np.asarray(m["loss"][0] - m["loss"][1]) for m in metrics])
    assert gaps.min() > 0.1
    np.testing.assert_allclose(gaps[:, 0], gaps[:, 1], rtol=1e-5)


def test_students_side_by_side_are_students_alone(side_by_side):
    def only(params, seed):
        return jax.tree.map(lambda x: x[seed : seed + 1], params)

    students = cases.students()
    for i, text in enumerate(("tv", "kl")):
        for seed in range(2):
            start = students.with_params(only(students.params, seed))
            alone, _ = train(loss_objective(text), start=start)
            assert distance(only(side_by_side.params[i], seed), alone.params[0]) < 1e-5


def test_a_student_that_turns_nan_is_frozen_and_disturbs_nobody(side_by_side):
    def poisoned(logits, shared, batch):
        values = loss_objective("kl")(logits, shared, batch)
        return jnp.where(jnp.mean(values) < 2.5, jnp.nan, values)

    state, metrics = train(loss_objective("tv"), poisoned)
    finite = np.array([np.asarray(m["finite"]) for m in metrics])
    assert finite[:, 0].all()
    assert finite[0, 1].all(), "the loss must be sound at first"
    assert not finite[-1, 1].any()
    assert (np.diff(finite.astype(int), axis=0) <= 0).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    # Two programs round differently.
    assert distance(state.params[0], side_by_side.params[0]) < 1e-6


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_optimizers_follow_schedule_clipping_and_decay(name):
    spec = dataclasses.replace(
        OPTIMIZER, name=name, warmup_steps=2, clip_norm=1.0, beta1=0.0, final_fraction=0.1
    )
    params = {"weight": {"kernel": jnp.full(2, 10.0)}, "norm": {"scale": jnp.full(2, 10.0)}}
    zero = jax.tree.map(jnp.zeros_like, params)
    optimizer = training_step.make_optimizer(dataclasses.replace(spec, weight_decay=0.1), steps=10)
    state, update, sizes = optimizer.init(params), jax.jit(optimizer.update), []
    for _ in range(10):
        updates, state = update(zero, state, params)
        assert not updates["norm"]["scale"].any(), "gains of norms are not decayed"
        sizes.append(-float(updates["weight"]["kernel"][0]))
    rates = np.array(sizes) / (0.1 * 10.0)
    cosine = 0.1 + 0.9 * (1 + np.cos(np.pi * np.arange(8) / 8)) / 2
    np.testing.assert_allclose(
        rates, spec.learning_rate * np.r_[0, 0.5, cosine], rtol=1e-5, atol=1e-9
    )
    if name == "sgd":
        optimizer = training_step.make_optimizer(
            dataclasses.replace(spec, weight_decay=0.0, warmup_steps=0), steps=10
        )
        huge = jax.tree.map(lambda x: x + 1e6, zero)
        updates, _ = optimizer.update(huge, optimizer.init(params), params)
        np.testing.assert_allclose(optax.tree.norm(updates), spec.learning_rate, rtol=1e-5)


def test_a_steps_seconds_leave_out_its_trackers(monkeypatch):
    clock, device, seconds = {"now": 0.0}, {"free": 0.0}, []

    class Metric:
        def __init__(self):
            self.end = device["free"] = max(clock["now"], device["free"]) + 12

        def __array__(self, dtype=None, copy=None):
            clock["now"] = max(clock["now"], self.end)
            return np.ones((1, 1), bool)

    def write(number, values, step_seconds):
        seconds.append(step_seconds)
        clock["now"] += 10

    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock["now"])
    calls = dict.fromkeys(("initial_state", "step", "measure", "report_diverged"), lambda *_: {})
    spec = dataclasses.replace(STAGE, members=("kl",), optimizers=(OPTIMIZER,))
    training = loop.Training(spec, pathlib.Path(), teacher=None, batches=iter(()), **calls)
    stage = trackers.TrackedStage(pathlib.Path(), "student", ["kl"], [0], steps=9, every=9)
    record = loop._Record(training, stage, np.ones((1, 1), bool), write, lambda _: None)
    state = TrainState(0, (), (), ())
    for number in range(1, 6):
        metrics = {"loss": np.zeros((1, 1)), "finite": Metric()}
        record.add(number, state, {}, metrics, clock["now"])
    record.flush()
    assert seconds == [12.0] * 5
