"""Training: students side by side are students alone, and cross-entropy trains as KL does."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdiv
from configs import smoke
from jaxdiv import models, reductions
from jaxdiv.runs import trackers
from jaxdiv.runs.specs import RunSpec
from jaxdiv.training import loop
from jaxdiv.training import step as training_step
from jaxdiv.training.state import TrainState, population

CONFIG = smoke.get_config().to_dict()
TEACHER = {**CONFIG["teacher"], "dtype": "float32"}
OPTIMIZER = RunSpec.from_config(CONFIG).student_stage.optimizers[0]
V, STEPS = 64, 30


def loss_objective(text):
    loss = jaxdiv.get(text)
    return lambda logits, shared, batch: loss(logits, shared.logits, labels=batch["labels"])


def plain_cross_entropy(logits, shared, _):
    return -jnp.sum(jax.nn.softmax(shared.logits) * jax.nn.log_softmax(logits), axis=-1)


def optax_kl(logits, shared, _):
    return optax.kl_divergence(jax.nn.log_softmax(logits), jax.nn.softmax(shared.logits))


def batches(count):
    for key in jax.random.split(jax.random.key(3), count):
        tokens = jax.random.randint(key, (4, 17), 0, V)
        weights = jnp.ones((4, 16)).at[:, 5].set(0.0)
        yield {"inputs": tokens[:, :-1], "labels": tokens[:, 1:], "weights": weights}


@pytest.fixture(scope="module")
def world():
    """The teacher, untrained students of two seeds, and a maker of trainers under objectives."""
    teacher = population(lambda rngs: models.build_teacher(TEACHER, V, rngs), [0]).student(0)
    # Sharper than at its initial values, where all distributions are nearly flat and every loss the
    # same.
    teacher = teacher.with_params(jax.tree.map(lambda x: 3 * x, teacher.params))
    students = population(
        lambda rngs: models.build_student(CONFIG["student"], TEACHER, V, rngs), [0, 1]
    )
    optimizer = training_step.make_optimizer(
        dataclasses.replace(OPTIMIZER, weight_decay=0.1), STEPS
    )

    def trainer(objectives):
        def means(losses, params, batch, shared):
            logits = [students.with_params(tree)(batch["inputs"], shared) for tree in params]
            values = [objectives[i](z, shared, batch) for i, z in zip(losses, logits, strict=True)]
            return [reductions.token_mean(value, batch["weights"]) for value in values]

        step = training_step.make_step(
            teacher_forward=lambda params, inputs: teacher.with_params(params)(
                inputs, exit_layer=1
            ),
            objectives=means,
            fuse_losses=lambda shared: True,
            optimizers=[optimizer] * len(objectives),
        )

        def train(start=students, steps=STEPS):
            state, history = (
                TrainState.create([start.params] * len(objectives), [optimizer] * len(objectives)),
                [],
            )
            for batch in batches(steps):
                state, metrics = step(state, teacher.params, batch)
                history.append(metrics)
            return state, history

        return train

    return teacher, students, trainer


@pytest.fixture(scope="module")
def side_by_side(world):
    """The state after training under tv and kl."""
    return world[2]([loss_objective("tv"), loss_objective("kl")])()[0]


def distance(a, b):
    """Relative distance of two parameter trees, by norm."""
    gap = optax.tree.norm(jax.tree.map(jnp.subtract, a, b))
    return float(gap / optax.tree.norm(b))


def test_cross_entropy_and_kl_train_the_same_students_whoever_wrote_them(world):
    _, students, trainer = world
    objectives = [
        loss_objective("ce"),
        loss_objective("kl"),
        plain_cross_entropy,
        optax_kl,
        loss_objective("tv"),
    ]
    state, metrics = trainer(objectives)()
    assert distance(state.params[0], students.params) > 0.05
    for i in (1, 2, 3):
        assert distance(state.params[i], state.params[0]) < 1e-5
    assert distance(state.params[4], state.params[0]) > 0.01
    # The losses themselves differ by the teacher's entropy, which is the same for both seeds.
    gaps = np.array([np.asarray(m["loss"][0] - m["loss"][1]) for m in metrics])
    assert gaps.min() > 0.1
    np.testing.assert_allclose(gaps[:, 0], gaps[:, 1], rtol=1e-5)


def test_students_side_by_side_are_students_alone(world, side_by_side):
    _, students, trainer = world
    for i, text in enumerate(("tv", "kl")):
        train = trainer([loss_objective(text)])
        for seed in range(2):
            one = students.with_params(
                jax.tree.map(lambda x, seed=seed: x[seed : seed + 1], students.params)
            )
            alone, _ = train(one)
            both = jax.tree.map(lambda x, seed=seed: x[seed : seed + 1], side_by_side.params[i])
            assert distance(both, alone.params[0]) < 1e-5


def test_a_student_that_turns_nan_is_frozen_and_disturbs_nobody(world, side_by_side):
    def poisoned(logits, shared, batch):
        values = loss_objective("kl")(logits, shared, batch)
        return jnp.where(jnp.mean(values) < 2.5, jnp.nan, values)

    state, metrics = world[2]([loss_objective("tv"), poisoned])()
    finite = np.array([np.asarray(m["finite"]) for m in metrics])
    assert finite[:, 0].all()
    assert finite[0, 1].all(), "the loss must be sound at first"
    assert not finite[-1, 1].any()
    assert (np.diff(finite.astype(int), axis=0) <= 0).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    assert (
        distance(state.params[0], side_by_side.params[0]) < 1e-6
    )  # of two programs, which round differently


def test_the_mean_counts_weighted_tokens_alone(world):
    teacher, students, _ = world
    batch = next(iter(batches(1)))

    @jax.jit
    def distributions(inputs):
        shared = teacher(inputs, exit_layer=1)
        return jax.nn.softmax(shared.logits), jax.nn.log_softmax(
            students.student(0)(inputs, shared)
        )

    p, log_q = (np.asarray(side, np.float64) for side in distributions(batch["inputs"]))
    keep = np.asarray(batch["weights"]) > 0
    expected = (-(p * log_q).sum(-1))[keep].mean()
    assert keep.mean() < 1
    _, metrics = world[2]([loss_objective("ce")])(steps=1)
    np.testing.assert_allclose(metrics[0]["loss"][0, 0], expected, rtol=1e-5)


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
        assert float(jnp.abs(updates["norm"]["scale"]).max()) == 0.0, (
            "gains of norms are not decayed"
        )
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
    spec = RunSpec.from_config(CONFIG).student_stage

    def nothing(*_):
        return {}

    calls = {"initial_state": nothing, "step": nothing, "measure": nothing}
    calls |= {"report_diverged": nothing, "batches": iter(())}
    training = loop.Training(spec=spec, folder=pathlib.Path(), teacher=None, **calls)
    stage = trackers.TrackedStage(pathlib.Path(), "student", ["kl"], [0], steps=9, every=9)
    record = loop._Record(training, stage, np.ones((1, 1), bool), write, lambda: None)
    state = TrainState(0, (), (), ())
    for number in range(1, 6):
        record.add(number, state, {}, {"finite": Metric()}, clock["now"])
    record.flush()
    assert seconds == [12.0] * 5
