"""Run as a program with 8 devices, by one process or two: training is the same on every mesh.

python -m tests.sharded_training some|kangaroo|decoder|family|classifier [coordinator's address,
processes, this one's number]
"""

import dataclasses
import pathlib
import re
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import smoke
from jaxdiv import acceptance, models
from jaxdiv.runs import config_keys
from jaxdiv.runs.specs import MeshSpec, RunSpec
from jaxdiv.training import sharding, state, students, teacher, teacher_sources
from jaxdiv.training.step import initial_state
from tests import llama_folders

V, ROWS, LENGTH, CHANNELS = 120, 12, 17, 4
EXACT, SHORT = 100, 50  # steps in float64, and in float32
# Each takes long to compile, convolutions the longest.
LOSSES = {
    "kangaroo": "kl,tv,0.5*jsd + 0.5*ce_data",
    "decoder": "0.5*tv + 0.5*ce_data",
    "family": "kl",
    models.CLASSIFIER: "kl",
}
# An adapter's teacher with the options of all families.
FAMILY = {
    **{"tied_head": True, "head_width": 12, "attention_bias": "qkvo", "mlp_bias": True},
    **{"query_key_norm": True, "post_norms": True, "windows": "5,0", "window_rope_base": 50.0},
    **{"activation": "gelu_tanh", "embedding_scale": 2.0},
}
MESHES = (
    {"student": 1, "data": 8, "fsdp": 1, "tensor": 1},
    {"student": 1, "data": 2, "fsdp": 4, "tensor": 1},
    {"student": 1, "data": 1, "fsdp": 2, "tensor": 4},
    {"student": 2, "data": 2, "fsdp": 2, "tensor": 1},
)


def spec_of(dtype, kind):
    config = smoke.get_config()
    config.losses, config.dtype = LOSSES[kind], dtype
    config.student.kind = "kangaroo" if kind == "family" else kind
    if kind == "family":
        config.teacher.update(FAMILY)
    config.teacher.padded_vocabulary = 128
    config.student.steps = config.teacher.steps = EXACT
    config.student.batch_size = config.teacher.batch_size = ROWS
    for stage in (config.student, config.teacher):
        stage.optimizer.warmup_steps = 1
    if kind == models.CLASSIFIER:
        config.teacher.kind, config.teacher.padded_vocabulary = kind, 0
        config.data.kind, config.data.channels = config_keys.IMAGES, CHANNELS
        config.teacher.depth = config.student.depth = 2
        config.teacher.width, config.student.width = 8, 4
    return RunSpec.from_config(config.to_dict())


def batches(spec, count):
    """Yields batches of random tokens or images; 12 rows are no multiple of 8 devices."""
    draw = np.random.default_rng(0)
    for _ in range(count):
        tokens = draw.integers(0, V, (ROWS, LENGTH + 1), dtype=np.int32)
        weights = (draw.random((ROWS, LENGTH)) < 0.9).astype(np.float32)
        if spec.data.is_images:
            pictures = draw.random((ROWS, 8, 8, CHANNELS), np.float32)
            yield {"inputs": pictures, "labels": tokens[:, :1], "weights": weights[:, :1]}
        else:
            yield {"inputs": tokens[:, :-1], "labels": tokens[:, 1:], "weights": weights}


class Run:
    """A teacher's or its students' training on a mesh."""

    def __init__(self, spec, mesh):
        self.spec, self.mesh, self.rows = spec, mesh, sharding.BatchSharding(mesh, ROWS)
        self.teachers = self._population(state.teacher_builder(spec.teacher, V), [0])
        self.models = self._population(state.student_builder(spec, V), spec.seeds)
        # Far from uniform, so that losses and their gradients are no small numbers.
        sharpen = jax.jit(lambda params: jax.tree.map(lambda x: 3 * x[0], params))
        self.frozen = self.teachers.with_params(sharpen(self.teachers.params))

    def _population(self, build, seeds):
        model = state.population(build, seeds, self.mesh)
        widen = jax.jit(lambda params: jax.tree.map(lambda x: x.astype(self.spec.dtype), params))
        return model.with_params(widen(model.params))

    def students(self, steps):
        """Returns the students' state after so many steps."""
        outputs = students.teacher_outputs(self.models, self.frozen)
        step = students.step(self.spec, self.models, outputs, mesh=self.mesh)
        return self._train(step, self.spec.student_stage, self.models, self.frozen.params, steps)

    def teacher(self, steps):
        """Returns the teacher's state after so many steps."""
        stage = self.spec.teacher_stage
        step = teacher.step(stage, self.teachers, mesh=self.mesh)
        return self._train(step, stage, self.teachers, None, steps)

    def _train(self, step, stage, models, frozen, steps):
        trained = initial_state(stage, models, self.mesh)
        for batch in batches(self.spec, steps):
            trained, _ = step(trained, frozen, self.rows.put(batch))
        return trained

    def accepted(self, params):
        """Mean acceptance of each loss's students on another batch, [losses, S]."""
        *_, batch = batches(self.spec, SHORT + 1)
        forward = students.teacher_forward(self.models, self.frozen)

        def rates(params, frozen, inputs):
            shared = forward(frozen, inputs)

            def one_seed(params):
                logits = self.models.with_params(params)(inputs, shared)
                return acceptance.sampling(logits, shared.logits)[:ROWS].mean()

            values = jnp.stack([jax.vmap(one_seed)(tree) for tree in params])
            return sharding.replicate(values, self.mesh)

        inputs = self.rows.put(batch)["inputs"]
        return np.asarray(sharding.jit(rates, self.mesh)(params, self.frozen.params, inputs))


def mesh_of(spec, sizes):
    return sharding.make_mesh(dataclasses.replace(spec, mesh=MeshSpec(**sizes)))


def check_exact(kind, meshes=MESHES, stages=("students", "teacher"), steps=EXACT):
    spec = spec_of("float64", kind)
    one = Run(spec, sharding.single_device_mesh())
    for stage in stages:
        expected = sharding.gather(getattr(one, stage)(steps).params, one.mesh)
        for sizes in meshes:
            run = Run(spec, mesh_of(spec, sizes))
            trained = getattr(run, stage)(steps)
            check_spread(trained, run.mesh)
            params = sharding.gather(trained.params, run.mesh)
            for a, b in zip(*map(jax.tree.leaves, (params, expected)), strict=True):
                text = f"{kind} {stage} {sizes}"
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-8, err_msg=text)


def check_spread(trained, mesh):
    """Checks that no device holds more of the matrices than the mesh has for it."""
    leaves = jax.tree_util.tree_leaves_with_path((trained.params, trained.opt_state))
    matrices = [
        (str(path), leaf)
        for path, leaf in leaves
        if leaf.ndim > 2 and not {"scale", "bias"} & set(re.findall(r"\w+", str(path)))
    ]
    for path, leaf in matrices:
        shares = mesh.shape["fsdp"] * (mesh.shape["student"] if leaf.shape[0] > 1 else 1)
        shares *= mesh.shape["tensor"] if "embedding" in path or "head" in path else 1
        assert leaf.addressable_shards[0].data.size * shares == leaf.size, (path, mesh.shape)
    assert any("kernel" in path for path, _ in matrices)


def check_reading(mesh):
    """Every device gets its part alone of a folder's parameters, in the type that is stored."""
    with tempfile.TemporaryDirectory() as folder:
        tensors = llama_folders.write_half(pathlib.Path(folder))
        params = teacher_sources.find(folder).params("stored", mesh)
    spread = [x for x in jax.tree.leaves(params) if not x.sharding.is_fully_replicated]
    assert len(spread) == 6  # embedding, head, and four products of the layers
    for x in spread:
        assert x.dtype == jnp.bfloat16
        assert x.addressable_shards[0].data.size < x.size
    mlp = params["layers"]["mlp"]["gate_up"]["kernel"][...]
    parts = [tensors[f"model.layers.1.mlp.{name}_proj.weight"].T for name in ("gate", "up")]
    np.testing.assert_array_equal(mlp[1], np.concatenate(parts, axis=1))
    np.testing.assert_array_equal(params["head"][...], tensors["lm_head.weight"].T)


def check_float32(kind):
    """Checks the first step's gradients, and acceptance after a few steps."""
    spec = spec_of("float32", kind)
    plain = {"beta1": 0.0, "weight_decay": 0.0, "clip_norm": 0.0, "warmup_steps": 0}
    sgd = dataclasses.replace(spec.student.optimizer, name="sgd", learning_rate=1.0, **plain)
    student = dataclasses.replace(spec.student, optimizer=sgd)

    def gradients(mesh):
        """Returns gradients, as differences of one step of SGD."""
        run = Run(dataclasses.replace(spec, student=student), mesh)
        before, *after = sharding.gather((run.models.params, *run.students(1).params), mesh)
        return [jax.tree.map(np.subtract, before, params) for params in after]

    one = Run(spec, sharding.single_device_mesh())
    right, accepted = gradients(one.mesh), one.accepted(one.students(SHORT).params)
    for sizes in MESHES:
        run = Run(spec, mesh_of(spec, sizes))
        for values, expected in zip(gradients(run.mesh), right, strict=True):
            off = optax.tree.norm(jax.tree.map(np.subtract, values, expected))
            assert off < 1e-5 * optax.tree.norm(expected), (kind, sizes, off)
        rates = run.accepted(run.students(SHORT).params)
        np.testing.assert_allclose(rates, accepted, rtol=0, atol=1e-4)


def main(which):
    assert jax.device_count() == 8
    if which == "some":
        check_reading(mesh_of(spec_of("float32", "decoder"), MESHES[2]))
        check_exact("decoder", [MESHES[2]], ["students"], steps=5)
        check_exact("kangaroo", [MESHES[0], MESHES[-1]], ["students"], steps=5)
        check_exact(models.CLASSIFIER, [MESHES[2]], ["students"], steps=5)
        return
    check = check_exact if jax.config.jax_enable_x64 else check_float32
    check(which)


if __name__ == "__main__":
    if sys.argv[2:]:
        address, processes, number = sys.argv[2:]
        jax.distributed.initialize(address, int(processes), int(number))
    main(sys.argv[1])
