"""The decoder and the students against a float64 forward pass, and their other properties."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx

from jaxdiv import models
from jaxdiv.models import layers, llama
from tests import llama_folders

V, B, L = 40, 3, 10
TEACHER = {"depth": 3, "width": 32, "heads": 4, "kv_heads": 2, "mlp_width": 48, "rope_base": 500.0}
TEACHER |= {"padded_vocabulary": 0, "norm_epsilon": 1e-5, "dtype": "float32"}
SMALL = {"depth": 2, "width": 16, "heads": 2, "kv_heads": 1, "mlp_width": 24}
STUDENTS = {
    "kangaroo": {"kind": "kangaroo", "heads": 4, "kv_heads": 1, "exit_layer": 2},
    "decoder": {"kind": "decoder", **SMALL},
}


def drawn(build, seed):
    """A model with every parameter drawn anew by NumPy, gains of norms too: all have an effect."""
    random = np.random.default_rng(seed)

    def draw(path, x):
        noise = random.normal(size=x.shape)
        is_gain = "scale" in jax.tree_util.keystr(path)
        return jnp.asarray(1 + 0.2 * noise if is_gain else noise * x.shape[-2] ** -0.5, x.dtype)

    graphdef, params = nnx.split(nnx.eval_shape(build))
    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(draw, params))


@functools.cache
def make_teacher(kv_heads=2, dtype="float32"):
    config = ml_collections.ConfigDict({**TEACHER, "kv_heads": kv_heads, "dtype": dtype})
    return drawn(lambda: models.build_teacher(config, V, nnx.Rngs(0)), seed=0)


@functools.cache
def make_student(kind, seed=1, dtype="float32"):
    teacher = {**TEACHER, "dtype": dtype}
    return drawn(lambda: models.build_student(STUDENTS[kind], teacher, V, nnx.Rngs(1)), seed)


@functools.partial(nnx.jit, static_argnums=2)
def run(model, tokens, exit_layer=None):
    return model(tokens, exit_layer=exit_layer)


@nnx.jit
def draft(student, tokens, output):
    return student(tokens, output)


@pytest.fixture(scope="module")
def teacher():
    return make_teacher()


@pytest.fixture(scope="module")
def tokens():
    return jax.random.randint(jax.random.key(3), (B, L), 0, V)


@pytest.fixture(scope="module")
def output(teacher, tokens):
    return run(teacher, tokens, 2)


def assert_close(actual, expected, tolerance=1e-5):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_models_equal_the_reference(tokens, kv_heads):
    decoder, student = make_teacher(kv_heads=kv_heads), make_student("kangaroo")
    output, sizes = run(decoder, tokens, 2), dataclasses.asdict(decoder.options)
    assert sizes.items() >= (TEACHER | {"kv_heads": kv_heads, "vocab_size": V}).items()
    tensors, of_adapter = llama.decoder_tensors(decoder), llama.adapter_tensors(student)
    drafts = draft(student, tokens, output)
    for row in range(B):
        states, logits = llama_folders.forward(tensors, np.asarray(tokens[row]), sizes)
        assert_close(output.logits[row], logits)
        assert_close(output.hidden[row], states[2])
        expected = llama_folders.adapter_logits(
            of_adapter, output.hidden[row], output.head, TEACHER | {"kv_heads": 1}
        )
        assert_close(drafts[row], expected)


def test_a_later_token_never_changes_earlier_logits(teacher, tokens):
    students = [make_student(kind) for kind in STUDENTS]

    @jax.jit
    def logits_of(x):
        output = teacher(x, exit_layer=2)
        return output.logits, *(student(x, output) for student in students)

    # Row t differs from row L in token t alone.
    rows = jnp.repeat(tokens[:1], L + 1, axis=0)
    rows = rows.at[jnp.arange(L), jnp.arange(L)].add(1) % V
    for logits in logits_of(rows):
        same = np.asarray((logits[:L] == logits[L:]).all(-1))
        np.testing.assert_array_equal(same, np.tri(L, k=-1, dtype=bool))


def test_shifted_positions_leave_the_decoder_unchanged(teacher, tokens):
    @jax.jit
    def hidden_at(positions):
        return teacher.run_layers(teacher.embed(tokens), 0, 3, positions=positions)[0]

    steps = jnp.broadcast_to(jnp.arange(L), (B, L))
    at_zero = hidden_at(steps)
    assert_close(hidden_at(steps + jnp.array([[0], [5], [90]])), at_zero, 1e-4)
    assert float(jnp.abs(hidden_at(2 * steps) - at_zero).max()) > 1e-2


@pytest.mark.parametrize(("inputs", "dtype"), [(64, "float32"), (63, "float32"), (64, "bfloat16")])
def test_a_lone_row_is_multiplied_like_many_and_rounded_once(inputs, dtype):
    x, matrix = (jax.random.normal(jax.random.key(i), (inputs, 48), dtype) for i in range(2))
    exact = np.asarray(x.T, np.float64) @ np.asarray(matrix, np.float64)
    many = layers.multiply(x.T.astype(jnp.float32), matrix.astype(jnp.float32))
    assert_close(many, exact)
    alone = jax.lax.map(lambda row: layers.multiply(row[None, None], matrix)[0, 0], x.T)
    assert alone.dtype == dtype
    tolerance = {"float32": 1e-5, "bfloat16": 1.01 * 2.0**-8}[dtype]
    np.testing.assert_allclose(np.asarray(alone, np.float64), exact, rtol=tolerance, atol=1e-4)
    row = layers.multiply(x.T[:1], matrix, preferred_element_type=jnp.float32)
    assert row.dtype == jnp.float32
    assert layers.multiply(x.T[:0], matrix).shape == (0, 48)


def test_stacked_layers_equal_unrolled_ones(teacher, tokens):
    @nnx.jit
    @nnx.value_and_grad
    def squares(model):
        return jnp.mean(model(tokens).logits ** 2)

    value, gradient = squares(teacher)
    other, other_gradient = squares(teacher.unrolled())
    assert float(value) == pytest.approx(float(other), rel=1e-6)
    by_layer = [other_gradient["layers"][i] for i in range(3)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *by_layer)
    jax.tree.map(assert_close, nnx.to_pure_dict(gradient["layers"]), nnx.to_pure_dict(stacked))
    assert_close(gradient["embedding"][...], other_gradient["embedding"][...])


@pytest.mark.parametrize("stacked", [True, False])
def test_cached_equals_uncached_after_rolling_each_sequence_back(teacher, tokens, stacked):
    decoder = teacher if stacked else teacher.unrolled()

    @jax.jit
    def advance(tokens, positions, cache):
        # In two parts, as early-exit decoding runs it.
        where = {"positions": positions}
        hidden, cache = decoder.run_layers(decoder.embed(tokens), 0, 2, cache=cache, **where)
        hidden, cache = decoder.run_layers(hidden, 2, 3, cache=cache, **where)
        return decoder.logits(hidden), cache

    first = jnp.broadcast_to(jnp.arange(7)[None], (B, 7))
    logits, cache = advance(tokens[:, :7], first, decoder.init_cache(B, L + 3))
    assert_close(logits, run(decoder, tokens).logits[:, :7])

    lengths = jnp.array([7, 2, 5])
    new = (tokens[:, 7:10] + 1) % V
    logits, cache = advance(new, lengths[:, None] + jnp.arange(3)[None], cache)
    # Right of each sequence's end stands padding, which nothing before it sees.
    text = jax.vmap(lambda row, n, tail: jax.lax.dynamic_update_slice(row, tail, (n,)))(
        tokens, lengths, new
    )
    whole = run(decoder, text).logits
    _, fresh = decoder.run_layers(decoder.embed(text), 0, 3, cache=decoder.init_cache(B, L))
    for row, n in enumerate(lengths.tolist()):
        assert_close(logits[row], whole[row, n : n + 3])
        heads = slice(row * decoder.kv_heads, (row + 1) * decoder.kv_heads)
        for entry, built in zip(cache, fresh, strict=True):
            assert_close(entry.keys[heads, : n + 3], built.keys[heads, : n + 3])
            assert_close(entry.values[heads, : n + 3], built.values[heads, : n + 3])


def test_exit_hidden_equals_run_layers(teacher, tokens, output):
    hidden, cache = teacher.run_layers(teacher.embed(tokens), 0, 3)
    assert cache is None
    assert_close(run(teacher, tokens, 3).hidden, hidden, 1e-6)
    plain = run(teacher, tokens)
    for logits in (teacher.logits(hidden), plain.logits):
        assert_close(logits, output.logits, 1e-6)
    assert plain.hidden is None
    np.testing.assert_array_equal(output.head, teacher.head[...])


def test_kangaroo_reads_only_the_hidden_state_as_a_constant(output, tokens):
    student = make_student("kangaroo")
    bare = dataclasses.replace(output, features=None)
    np.testing.assert_array_equal(draft(student, tokens, output), draft(student, 0 * tokens, bare))

    of_teacher = jax.jit(jax.grad(lambda t: jnp.sum(student(tokens, t) ** 2)))(output)
    assert all(float(jnp.abs(x).max()) == 0 for x in jax.tree.leaves(of_teacher))
    of_student = nnx.jit(nnx.grad(lambda s: jnp.sum(s(tokens, output) ** 2)))(student)
    assert all(float(jnp.abs(x).max()) > 0 for x in jax.tree.leaves(of_student))
    with pytest.raises(ValueError, match="exit_layer=2"):
        student(tokens, dataclasses.replace(output, hidden=None))


def test_an_independent_student_ignores_the_teacher(output, tokens):
    student = make_student("decoder")
    nothing = models.TeacherOutput(features=None, hidden=None, head=None, vocab_size=V)
    alone = draft(student, tokens, nothing)
    np.testing.assert_array_equal(draft(student, tokens, output), alone)
    assert_close(alone, run(student.decoder, tokens).logits, 1e-6)


@pytest.mark.parametrize("kind", STUDENTS)
def test_vmap_over_seeds_equals_one_by_one(output, tokens, kind):
    graphdef, _ = nnx.split(make_student(kind))
    each = [nnx.split(make_student(kind, seed))[1] for seed in range(3)]
    params = jax.tree.map(lambda *x: jnp.stack(x), *each)

    @jax.value_and_grad
    def objective(params):
        return jnp.mean(nnx.merge(graphdef, params)(tokens, output) ** 2)

    one = jax.jit(objective)
    values, gradients = jax.jit(jax.vmap(objective))(params)
    for seed in range(3):
        value, gradient = one(each[seed])
        assert float(value) == pytest.approx(float(values[seed]), rel=1e-6)
        jax.tree.map(lambda a, b, seed=seed: assert_close(a[seed], b), gradients, gradient)
    assert len(set(values.tolist())) == 3


@pytest.mark.parametrize("kind", STUDENTS)
def test_bfloat16_computes_on_float32_parameters(tokens, output, kind):
    full = make_student(kind)
    features, head = full.features(tokens, output), full.head(output)
    logits_in_float32 = draft(full, tokens, output)
    assert_close(logits_in_float32, np.einsum("bld,dv->blv", features, head))
    assert full.exit_layer == STUDENTS[kind].get("exit_layer")
    graphdef, params = nnx.split(make_student(kind, dtype="bfloat16"))

    @jax.jit
    def everything(params, output):
        student = nnx.merge(graphdef, params)
        gradient = jax.grad(lambda p: jnp.mean(nnx.merge(graphdef, p)(tokens, output) ** 2))(params)
        return student.features(tokens, output), student(tokens, output), gradient

    half = run(make_teacher(dtype="bfloat16"), tokens, 2)
    features, logits, gradient = everything(params, half)
    assert half.hidden.dtype == features.dtype == jnp.bfloat16
    assert half.logits.dtype == logits.dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves((half.head, gradient))} == {jnp.dtype(jnp.float32)}
    assert_close(half.logits, output.logits, 5e-2)
    assert_close(logits, logits_in_float32, 5e-2)
    assert not np.array_equal(half.logits, output.logits)


@pytest.mark.parametrize("kind", ["teacher", *STUDENTS])
def test_initial_parameters_keep_the_scale_of_activations(kind):
    def build():
        config = {**TEACHER, "dtype": "bfloat16"}
        if kind == "teacher":
            return models.build_teacher(config, V, nnx.Rngs(0))
        return models.build_student(STUDENTS[kind], config, V, nnx.Rngs(0))

    for path, x in jax.tree_util.tree_leaves_with_path(nnx.split(nnx.jit(build)())[1]):
        name = jax.tree_util.keystr(path)
        assert x.dtype == jnp.float32
        if "scale" in name:
            np.testing.assert_array_equal(x, 1)
        else:
            inputs = x.shape[-1] if "embedding" in name else x.shape[-2]
            assert float(x.std() * inputs**0.5) == pytest.approx(1, rel=0.15), name


def test_bad_shapes_are_refused_with_the_remedy(teacher, tokens):
    def teacher_of(**changes):
        return models.build_teacher({**TEACHER, **changes}, V, nnx.Rngs(0))

    def student_of(**config):
        return models.build_student(config, TEACHER, V, nnx.Rngs(0))

    for heads in (0, 5, 32):
        with pytest.raises(ValueError, match=rf"`heads` must divide the width 32 .*, got {heads}"):
            teacher_of(heads=heads)
    with pytest.raises(ValueError, match=r"`kv_heads` must divide `heads` = 4, got 3"):
        teacher_of(kv_heads=3)
    for exit_layer in (0, 4):
        message = rf"`exit_layer` must be in 1\.\.3.* got {exit_layer}"
        with pytest.raises(ValueError, match=message):
            teacher(tokens, exit_layer=exit_layer)
        with pytest.raises(ValueError, match=message):
            student_of(**{**STUDENTS["kangaroo"], "exit_layer": exit_layer})
    with pytest.raises(ValueError, match=r"in order in 0\.\.3, got 2 and 1"):
        teacher.run_layers(teacher.embed(tokens), 2, 1)
    with pytest.raises(ValueError, match=r"one of kangaroo, decoder, classifier, got 'medusa'"):
        student_of(kind="medusa")


def test_a_decoding_loop_reads_a_tied_head_without_transposing_it(tokens):
    decoder = drawn(
        lambda: models.build_teacher(TEACHER | {"tied_head": True}, V, nnx.Rngs(0)), seed=5
    )
    alone = decoder.unrolled()

    def likeliest(_, tokens):
        return jnp.argmax(alone(tokens).logits, axis=-1).astype(jnp.int32)

    loop = jax.jit(lambda tokens: jax.lax.fori_loop(0, 3, likeliest, tokens))
    text = loop.lower(tokens[:1]).as_text()
    assert f"tensor<32x{V}xf32>" in text
    assert not re.search(rf"stablehlo.transpose.*tensor<{V}x32xf32>", text)
    assert_close(run(alone, tokens).logits, run(decoder, tokens).logits)
