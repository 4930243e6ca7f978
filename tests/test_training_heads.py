"""Training on features and heads is training on whole logits, and padded classes take no part."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxdiv
from configs import large_vocab, smoke
from jaxdiv import acceptance, models, reductions, speculative
from jaxdiv.fused import chunks
from jaxdiv.models import llama
from jaxdiv.runs import metrics
from jaxdiv.runs.specs import RunSpec
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import objectives, run_data, sharding, students, teacher
from jaxdiv.training import step as training_step
from jaxdiv.training.state import TrainState
from tests import runs
from tests import training_cases as cases
from tests.training_cases import distance

V, P = cases.V, 80
LOSSES = ["tv", "0.5*kl + 0.5*ce_data"]


def step_of(drafters, frozen, **options):
    """A step of SGD at rate 1, whose change of the parameters is the gradient."""
    return training_step.make_step(
        teacher_forward=lambda params, batch: objectives.teacher_outputs(
            frozen.with_params(params)(batch["inputs"], exit_layer=1)
        ),
        objectives=objectives.for_students(drafters, LOSSES, temperature=1.5),
        fuse_losses=lambda outputs: not outputs.is_dense,
        optimizers=[optax.sgd(1.0)] * len(LOSSES),
        **options,
    )


def dense_gradients(drafters, frozen, batch):
    """Losses and gradients of each loss and seed, written on whole logits."""

    def mean(params, shared, loss):
        logits = drafters.with_params(params)(batch["inputs"], shared)
        values = jaxdiv.get(loss)(logits, shared.logits, labels=batch["labels"], temperature=1.5)
        return reductions.token_mean(values, batch["weights"])

    @jax.jit
    def every(params):
        shared, both = frozen(batch["inputs"], exit_layer=1), jax.value_and_grad(mean)
        return [jax.vmap(both, (0, None, None))(params, shared, loss) for loss in LOSSES]

    return every(drafters.params)


@pytest.mark.parametrize(("kind", "memory"), [("kangaroo", 2**26), ("decoder", 2**13)])
def test_a_step_is_that_of_whole_logits(monkeypatch, kind, memory):
    monkeypatch.setattr(chunks, "LEAST_MEMORY", memory)
    monkeypatch.setattr(chunks, "LEAST_TOKENS", 8)
    drafters, frozen, (batch,) = cases.students(kind, P), cases.teacher(P), cases.batches(1)
    # Seeds in turn, and side by side as on accelerators.
    monkeypatch.setattr(sharding, "platform", lambda _: "tpu" if kind == "decoder" else "cpu")
    step = step_of(drafters, frozen)
    begin = functools.partial(
        TrainState.create, [drafters.params] * len(LOSSES), [optax.sgd(1.0)] * len(LOSSES)
    )
    state, step_metrics = step(begin(), frozen.params, batch)
    for i, (values, gradients) in enumerate(dense_gradients(drafters, frozen, batch)):
        np.testing.assert_allclose(step_metrics["loss"][i], values, rtol=1e-5)
        moved = jax.tree.map(jnp.subtract, drafters.params, state.params[i])
        assert distance(moved, gradients) < 1e-5
        if kind == "decoder":
            assert moved["decoder"]["head"][:, :, :V].all()
            assert not moved["decoder"]["head"][:, :, V:].any()
            assert not moved["decoder"]["embedding"][:, V:].any()
    # The same program, with one seed of one loss diverging from the start.
    diverging = begin()
    spoilt = jax.tree.map(lambda x: x.at[0].set(jnp.nan), diverging.params[1])
    diverging = dataclasses.replace(diverging, params=(diverging.params[0], spoilt))
    after, step_metrics = step(diverging, frozen.params, batch)
    np.testing.assert_array_equal(step_metrics["finite"], [[True, True], [False, True]])
    for i, finite in ((0, slice(None)), (1, slice(1, None))):
        pairs = zip(*map(jax.tree.leaves, (after.params[i], state.params[i])), strict=True)
        assert all((a[finite] == b[finite]).all() for a, b in pairs)


def test_what_pads_a_vocabulary_is_never_seen():
    """Padded classes have the largest logits of all here, so that any leak would show."""
    frozen, bare, (batch,) = cases.teacher(P), cases.teacher(), cases.batches(1)
    padded = nnx.to_pure_dict(frozen.params)
    padded["head"] = padded["head"].at[:, V::2].set(50.0).at[:, V + 1 :: 2].set(-50.0)
    padded["embedding"] = padded["embedding"].at[V:].set(jnp.nan)
    cut = {**padded, "embedding": padded["embedding"][:V], "head": padded["head"][:, :V]}
    both = [frozen.module(), bare.module()]
    for model, params in zip(both, (padded, cut), strict=True):
        state = nnx.state(model)
        nnx.replace_by_pure_dict(state, params)
        nnx.update(model, state)
    drafters, prompts, hot = cases.students(), batch["inputs"][:, :4], {"temperature": 5.0}

    @nnx.jit
    def read(model):
        output, student = model(batch["inputs"], exit_layer=1), drafters.student(0)
        rejected = objectives.for_students(drafters, ["tv"], temperature=1.0)
        with_head = objectives.TeacherOutputs(output, objectives.features_and_head(output))
        return {
            "logits": output.logits,
            "acceptance": acceptance.sampling(student(batch["inputs"], output), output.logits),
            "acceptance in training": rejected([0], [student.params], batch, with_head)[0],
        }

    def outputs(model):
        return read(model) | {
            "text": models.generate(model, prompts, length=12, key=jax.random.key(1), **hot),
            "exported": llama.decoder_tensors(model),
        }

    wide, narrow = map(outputs, both)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), wide, narrow)
    drafter = drafters.student(0).module()
    decoded = speculative.decode(
        both[0], drafter, np.asarray(prompts), gamma=2, max_tokens=12, **hot
    )
    assert max(wide["text"].max(), *map(np.max, decoded.tokens)) < V


def test_the_large_vocabularys_config_trains_in_a_tiny_form(tmp_path):
    config, tiny = large_vocab.get_config(), smoke.get_config()
    sizes = ("depth", "width", "heads", "kv_heads", "mlp_width", "batch_size")
    for stage in ("teacher", "student"):
        config[stage].update({key: tiny[stage][key] for key in sizes} | {"steps": 3})
        config[stage].optimizer.warmup_steps = 1
    config.student.exit_layer, config.seeds, config.losses = 1, 1, "kl,tv"
    config.data.update({"vocabulary": 512, "sequence_length": 32})
    config.data.files = f"{runs.write_texts(tmp_path / 'texts')}/*.txt"
    config.teacher.padded_vocabulary = 640
    config, run = config.to_dict(), Workdir(tmp_path / "run")
    run.initialize_or_resume(config)
    spec = RunSpec.from_config(config)
    data = run_data.prepare(spec, run)
    frozen = teacher.prepare(spec, run, data)
    assert frozen.params["head"].shape == (32, 640)
    students.train(spec, run, data, frozen)
    curves = metrics.read_curves(run.curves, "student", [0])
    accepted = curves[curves.metric == "acceptance"].value
    assert len(accepted) == 2
    assert accepted.between(0, 1).all()
