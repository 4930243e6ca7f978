"""The fused head and divergence: values, gradients, memory and products as on whole logits."""

import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal

import jaxdiv
from experiments.tpu import aot
from jaxdiv import targets
from jaxdiv.fused import Head, chunks, linear_divergence, linear_divergences

NAMES = tuple(name for name in jaxdiv.names() if name not in ("cross_entropy_data", "z_loss"))
LOSSES = (*NAMES, "ce_data(smoothing=0.1)", "0.7*kl + 0.3*tv + 1e-2*z_loss", "jsd(beta=0.2)")
N, D_S, D_T = 37, 12, 20
CHUNK = 8  # does not divide N


def arrays(classes, dtype=np.float64, tokens=N):
    """Draws hidden states, heads, biases, labels, and weights of which some are 0."""
    draw = np.random.default_rng(classes)
    values = {
        "hidden": draw.normal(size=(tokens, D_S)),
        "matrix": draw.normal(size=(D_S, classes)) / math.sqrt(D_S),
        "bias": 0.5 * draw.normal(size=classes),
        "teacher_hidden": draw.normal(size=(tokens, D_T)),
        "teacher_matrix": draw.normal(size=(D_T, classes)) / math.sqrt(D_T),
        "teacher_bias": 0.5 * draw.normal(size=classes),
        "weights": draw.uniform(size=tokens) * (draw.uniform(size=tokens) < 0.8),
    }
    values = {name: jnp.asarray(value, dtype) for name, value in values.items()}
    return values | {"labels": jnp.asarray(draw.integers(classes - 3, size=tokens), jnp.int32)}


def exactly(inputs):
    """Converts float32 arrays to float64."""
    wide = {np.dtype(np.float32): np.float64}
    return jax.tree.map(lambda x: np.asarray(x, wide.get(x.dtype, x.dtype)), inputs)


def trained(inputs):
    return {name: inputs[name] for name in ("hidden", "matrix", "bias")}


def rest(inputs):
    return {name: inputs[name] for name in inputs if name not in trained(inputs)}


CAP, SCALE = 20.0, 0.8


def capped(z):
    return jnp.where(jnp.isneginf(z), z, CAP * jnp.tanh(z / CAP))


def dense(loss, student, inputs, **options):
    """Computes values from whole logits."""
    z = capped(SCALE * (student["hidden"] @ student["matrix"] + student["bias"][None]))
    of_teacher = inputs["teacher_hidden"] @ inputs["teacher_matrix"] + inputs["teacher_bias"][None]
    return inputs["weights"] * jaxdiv.get(loss)(z, of_teacher, labels=inputs["labels"], **options)


def heads(student, inputs):
    """Returns both sides' arguments of `linear_divergence`."""
    teacher = inputs["teacher_hidden"], Head(inputs["teacher_matrix"], inputs["teacher_bias"])
    return student["hidden"], Head(student["matrix"], student["bias"], SCALE, CAP), *teacher


def fused(loss, student, inputs, chunk=CHUNK, **options):
    both = {name: inputs[name] for name in ("labels", "weights")}
    return linear_divergence(loss, *heads(student, inputs), chunk=chunk, **both, **options)


def both(function, losses, student, inputs, **options):
    """Returns values [K, N] and gradients of every loss, from one compilation."""

    @jax.jit
    def run(student, inputs):
        pairs = [
            jax.vjp(lambda s, loss=loss: function(loss, s, inputs, **options), student)
            for loss in losses
        ]
        return [value for value, _ in pairs], [pull(jnp.ones_like(v))[0] for v, pull in pairs]

    return run(student, inputs)


def apart(a, b):
    """Returns the largest relative distance of two trees' arrays, by the norm of the second."""
    norm, pairs = np.linalg.norm, zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    pairs = ((np.float64(x), np.float64(y)) for x, y in pairs)
    return max(norm(x - y) / max(norm(y), 1e-30) for x, y in pairs)


@pytest.mark.parametrize("mode", ["one_pass", "remat"])
@pytest.mark.parametrize(
    "options", [{}, {"temperature": 1.7, "vocab_size": 990}], ids=["plain", "tempered and cut"]
)
def test_values_and_gradients_are_the_dense_ones_in_float64(mode, options):
    with jax.enable_x64(True):
        inputs = arrays(1001)
        for name in ("bias", "teacher_bias"):  # classes that pad the vocabulary
            inputs[name] = inputs[name].at[-2:].set(-jnp.inf)
        losses = LOSSES if mode == "one_pass" and options else LOSSES[::4]
        expected = both(dense, losses, trained(inputs), rest(inputs), **options)
        actual = both(fused, losses, trained(inputs), rest(inputs), mode=mode, **options)
        every = zip(losses, *actual, *expected, strict=True)
        for loss, value, gradient, dense_value, dense_gradient in every:
            assert_allclose(value, dense_value, rtol=1e-10, atol=1e-12, err_msg=loss)
            assert apart(gradient, dense_gradient) < 1e-10, loss


@pytest.mark.parametrize(
    "classes", [1001, *(pytest.param(n, marks=pytest.mark.slow) for n in (128256, 151936))]
)
def test_float32_is_as_near_to_float64_as_the_dense_form(classes):
    losses = ["kl", "nla"] if classes > 1001 else LOSSES
    inputs = arrays(classes, np.float32)
    actual, whole = (both(f, losses, trained(inputs), rest(inputs)) for f in (fused, dense))
    with jax.enable_x64(True):
        exact = both(dense, losses, trained(exactly(inputs)), rest(exactly(inputs)))
    for i, loss in enumerate(losses):
        for of_fused, of_dense, right in zip(actual, whole, exact, strict=True):
            bound = 2 * apart(of_dense[i], right[i]) + 1e-6
            assert apart(of_fused[i], right[i]) <= bound, loss


def test_the_chunk_changes_nothing_but_rounding():
    inputs = arrays(1001, np.float32, tokens=512)
    in_64_chunks, *others = (
        both(fused, ["kl", "nla"], trained(inputs), rest(inputs), chunk=chunk)
        for chunk in (8, 200, 512, 10**6)
    )
    for other in others:
        assert apart(in_64_chunks, other) < 1e-6
    with jax.enable_x64(True):
        exact = both(dense, ["kl", "nla"], trained(exactly(inputs)), rest(exactly(inputs)))
    assert apart(in_64_chunks[1][0]["matrix"], exact[1][0]["matrix"]) < 1e-6


def test_tokens_of_weight_0_count_nothing():
    inputs = arrays(1001, np.float32)
    ignored = inputs["weights"][:, None] == 0
    broken = inputs | {
        "hidden": jnp.where(ignored, jnp.nan, inputs["hidden"]),
        "teacher_hidden": jnp.where(ignored, jnp.inf, inputs["teacher_hidden"]),
    }
    for mode in ("one_pass", "remat"):
        pair = (
            both(fused, ["kl", "tv"], trained(side), rest(side), mode=mode)
            for side in (broken, inputs)
        )
        assert apart(*pair) == 0
        nothing = {**rest(broken), "weights": jnp.zeros(N)}
        for leaf in jax.tree.leaves(both(fused, ["kl"], trained(broken), nothing, mode=mode)):
            assert_array_equal(leaf, np.zeros_like(leaf))


def equations(jaxpr):
    """Yields all of a jaxpr's equations, with those inside of others."""
    for equation in jaxpr.eqns:
        yield equation
        parameters = list(equation.params.values())
        for inner in jax.tree.leaves(parameters, is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def products(function, *arguments):
    """Returns (shapes of operands, their types, the result's type) of every dot_general."""
    dots = []
    for equation in equations(jax.make_jaxpr(function)(*arguments).jaxpr):
        if equation.primitive.name == "dot_general":
            operands, out = [x.aval for x in equation.invars], equation.outvars[0].aval
            dots.append(([x.shape for x in operands], [x.dtype for x in operands], out.dtype))
    return dots


def total_of(loss="kl", **options):
    return lambda student, inputs: fused(loss, student, inputs, **options).sum()


@jax.jit
def gradient(student, inputs):
    return jax.value_and_grad(total_of())(student, inputs)


def test_products_are_computed_once_and_none_for_a_frozen_head():
    inputs = arrays(1001, np.float32, 3 * CHUNK)
    dots = products(gradient, trained(inputs), rest(inputs))
    assert len(dots) == 4
    flops = 3 * sum(2 * math.prod(a) * math.prod(b) // _shared(a, b) for (a, b), *_ in dots)
    assert flops == 3 * CHUNK * 1001 * (6 * D_S + 2 * D_T)
    frozen = jax.value_and_grad(
        lambda hidden: total_of()({**trained(inputs), "hidden": hidden}, rest(inputs))
    )
    assert len(products(frozen, inputs["hidden"])) == 3
    assert len(products(total_of(), trained(inputs), rest(inputs))) == 2


def _shared(a, b):
    """Returns the size of the axis that two shapes' product sums over."""
    return next(size for size in a if size in b)


@pytest.mark.parametrize("mode", ["one_pass", "remat"])
def test_no_array_has_all_tokens_logits(mode):
    classes, tokens = 1009, 1024
    inputs = arrays(classes, np.float32, tokens)
    run = jax.value_and_grad(total_of(mode=mode))
    for equation in equations(jax.make_jaxpr(run)(trained(inputs), rest(inputs)).jaxpr):
        for out in equation.outvars:
            assert math.prod(getattr(out.aval, "shape", ())) < tokens * classes
    compiled = jax.jit(run).lower(trained(inputs), rest(inputs)).compile()
    assert max(aot.elements(compiled.as_text())) < tokens * classes
    assert compiled.memory_analysis().temp_size_in_bytes < tokens * classes * 4 / 10
    whole = jax.jit(jax.value_and_grad(lambda student, inputs: dense("kl", student, inputs).sum()))
    compiled = whole.lower(trained(inputs), rest(inputs)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes > tokens * classes * 4


def test_half_precision_products_sum_in_float32():
    inputs = arrays(1001, jnp.bfloat16)
    dots = products(gradient, trained(inputs), rest(inputs))
    assert len(dots) == 4
    for _, operands, result in dots:
        assert operands == [jnp.bfloat16] * 2
        assert result == jnp.float32
    values, gradients = gradient(trained(inputs), rest(inputs))
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype(jnp.bfloat16)}
    wide = jax.tree.map(lambda x: x if x.dtype == jnp.int32 else x.astype(jnp.float32), inputs)
    assert apart((values, gradients), gradient(trained(wide), rest(wide))) < 1e-2


def test_a_later_weighting_is_right_or_nan():
    inputs = arrays(1001, np.float32)
    slopes = jnp.linspace(1, 2, N)

    @jax.jit
    def by_student(student):
        def weighted(function, slopes, **how):
            return jax.grad(
                lambda student: (slopes * function("kl", student, rest(inputs), **how)).sum()
            )(student)

        # The same for all tokens that count, whatever the others have.
        same = jnp.where(inputs["weights"] == 0, slopes, 3.0)
        every = (
            weighted(dense, slopes),
            weighted(fused, slopes, mode="remat"),
            weighted(fused, slopes),
        )
        return *every, weighted(fused, same), weighted(fused, 1.0)

    right, remat, one_pass, tripled, ones = by_student(trained(inputs))
    assert apart(remat, right) < 1e-5
    assert apart(one_pass["hidden"], right["hidden"]) < 1e-5
    assert np.isnan(one_pass["matrix"]).all()
    assert np.isnan(one_pass["bias"]).all()
    assert apart(jax.tree.map(lambda x: x / 3, tripled), ones) < 1e-6


def test_gradient_by_the_weights_is_the_divergence():
    inputs = arrays(1001, np.float32)

    def by_weights(function):
        total = lambda w: function("kl", trained(inputs), {**rest(inputs), "weights": w}).sum()  # noqa: E731
        return jax.grad(total)(jnp.full(N, 0.5))

    pair = jax.jit(lambda: (by_weights(fused), by_weights(dense)))()
    assert_allclose(*pair, rtol=1e-5)


def test_a_trained_teacher_changes_no_gradient_by_weights():
    inputs = arrays(101, np.float32)
    sides = inputs["hidden"], inputs["matrix"], inputs["teacher_hidden"], inputs["teacher_matrix"]

    def by_weights(**options):
        total = lambda w: linear_divergence("kl", *sides, weights=w, **options).sum()  # noqa: E731
        return jax.grad(total)(jnp.ones(N))

    assert apart(by_weights(teacher_gradient=True), by_weights()) == 0


def test_unused_outputs_have_no_gradient():
    inputs = arrays(101, np.float32)
    teacher = inputs["teacher_hidden"], inputs["teacher_matrix"]

    def of_one(hidden, loss):
        heads = [inputs["matrix"]] * 2
        return linear_divergences(["kl", "tv"], [hidden] * 2, heads, *teacher)[0][loss].sum()

    def alone(hidden):
        return linear_divergence("tv", hidden, inputs["matrix"], *teacher).sum()

    assert apart(jax.grad(of_one)(inputs["hidden"], 1), jax.grad(alone)(inputs["hidden"])) < 1e-6

    def metric(matrix):
        sides = inputs["hidden"], matrix, *teacher
        return linear_divergence("kl", *sides, metrics=["tv"])[1][0].sum()

    assert_array_equal(jax.grad(metric)(inputs["matrix"]), np.zeros((D_S, 101)))


@pytest.mark.parametrize("mode", ["one_pass", "remat"])
def test_nan_slopes_of_weight_0_spoil_nothing(mode):
    inputs = arrays(101, np.float32)
    unweighted = inputs["weights"] == 0

    def distance(student, teacher):  # its slope is NaN where both are equal
        return jnp.sqrt(jnp.sum((jax.nn.softmax(student) - jax.nn.softmax(teacher)) ** 2, axis=-1))

    drawn, chances = jnp.ones((N, 4), int), -jnp.ones((N, 4))
    broken = unweighted[:, None]
    samples = targets.Samples(jnp.where(broken, -100, drawn), jnp.where(broken, jnp.nan, chances))
    teacher_logits = inputs["teacher_hidden"], inputs["teacher_matrix"]
    for loss, *teacher in ((distance, *teacher_logits), ("kl", samples)):

        def total(hidden, matrix, loss=loss, teacher=teacher):
            how = {"weights": inputs["weights"], "mode": mode, "chunk": CHUNK}
            return linear_divergence(loss, hidden, matrix, *teacher, **how).sum()

        for leaf in jax.jit(jax.grad(total, argnums=(0, 1)))(inputs["hidden"], inputs["matrix"]):
            assert np.isfinite(leaf).all()
            assert np.any(leaf)


def test_mixed_precision_loses_no_more_than_the_dense_form():
    inputs = arrays(101, np.float32, tokens=64)
    teacher = inputs["teacher_hidden"] @ inputs["teacher_matrix"]

    def gradients(weight, types, function):
        pair = zip((inputs["hidden"], inputs["matrix"]), types, strict=True)
        total = jax.grad(lambda *x: function(*x).sum() / weight, argnums=(0, 1))
        return jax.jit(total)(*(x.astype(kind) for x, kind in pair))

    @jax.jit
    def whole_in_float32(hidden, matrix):
        total = lambda *x: jaxdiv.forward_kl(x[0] @ x[1], teacher).sum()  # noqa: E731
        return jax.grad(total, argnums=(0, 1))(hidden, matrix)

    low, high, half = jnp.bfloat16, jnp.float32, jnp.float16
    cases = itertools.product(((low, high), (high, low), (half, half)), (1.0, 1e-8))
    for types, weight in cases:  # the second weight is below float16's range

        def whole(hidden, matrix, weight=weight):
            z = jnp.matmul(hidden, matrix, preferred_element_type=jnp.float32)
            return weight * jaxdiv.forward_kl(z, teacher)

        def chunked(hidden, matrix, weight=weight):
            weights = jnp.full(64, weight)
            return linear_divergence("kl", hidden, matrix, teacher, weights=weights, chunk=CHUNK)

        exact = [np.asarray(inputs[name], np.float64) for name in ("hidden", "matrix")]
        rounded = [x.astype(kind).astype(np.float32) for x, kind in zip(exact, types, strict=True)]
        right = whole_in_float32(*rounded)
        pair = (gradients(weight, types, function) for function in (chunked, whole))
        for one, other, expected in zip(*pair, right, strict=True):
            bound = 2 * apart(other, expected) + 1e-3 * (weight < 1) + 1e-6
            assert apart(one, expected) < bound


def test_values_are_of_the_logits_type():
    inputs = arrays(101, np.float32)
    with jax.enable_x64(True):
        values = linear_divergence("kl", *heads(trained(inputs), inputs))
    assert values.dtype == jnp.float32


def test_inside_of_a_users_shard_map():
    inputs = arrays(101, np.float32)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def kl(hidden, teacher_hidden):
        sides = hidden, inputs["matrix"], teacher_hidden, inputs["teacher_matrix"]
        return linear_divergence("kl", *sides, chunk=CHUNK)

    data = jax.P("data")
    spread = jax.shard_map(kl, mesh=mesh, in_specs=data, out_specs=data, check_vma=False)
    sides = inputs["hidden"], inputs["teacher_hidden"]
    assert apart(jax.jit(spread)(*sides), kl(*sides)) < 1e-6


def test_higher_derivatives_and_jvp_with_remat():
    inputs = arrays(1001, np.float32)
    normal = lambda x: jnp.asarray(np.random.default_rng(5).normal(size=x.shape), x.dtype)  # noqa: E731
    tangent = jax.tree.map(normal, trained(inputs))

    def derivatives(function, **how):
        def value(student):
            return function("kl", student, rest(inputs), **how).sum()

        first = jax.jvp(value, (trained(inputs),), (tangent,))
        return first, jax.jvp(jax.grad(value), (trained(inputs),), (tangent,))[1]

    assert apart(*jax.jit(lambda: (derivatives(fused, mode="remat"), derivatives(dense)))()) < 1e-4


def test_many_students_share_the_teachers_logits():
    inputs = arrays(1001, np.float32)
    losses = ("kl", "tv", "ce_data")
    draw = np.random.default_rng(2)
    hidden = jnp.asarray(draw.normal(size=(4, N, D_S)), jnp.float32)  # seeds of each loss

    labels, student_heads = inputs["labels"], [Head(inputs["matrix"])] * 3
    teacher = inputs["teacher_hidden"], inputs["teacher_matrix"]

    def run(hidden, total):
        return jax.jit(jax.vmap(jax.grad(total)))(hidden)

    def together(hidden):
        students = [hidden] * 3, student_heads
        options = {"labels": labels, "chunk": CHUNK}
        return sum(x.sum() for x in linear_divergences(losses, *students, *teacher, **options)[0])

    def one_by_one(hidden):
        every = zip(losses, student_heads, strict=True)
        return sum(
            linear_divergence(loss, hidden, head, *teacher, labels=labels).sum()
            for loss, head in every
        )

    assert apart(run(hidden, together), run(hidden, one_by_one)) < 1e-6
    shapes = [shapes for shapes, *_ in products(lambda x: run(x, together), hidden)]
    of_teacher = [pair for pair in shapes if (D_T, 1001) in pair]
    assert of_teacher == [[(CHUNK, D_T), (D_T, 1001)]]  # once for all seeds


def test_other_teachers_metrics_functions_and_leading_axes():
    inputs = arrays(1001, np.float32, tokens=36)
    logits = inputs["teacher_hidden"] @ inputs["teacher_matrix"]
    student = inputs["hidden"], inputs["matrix"]
    z = inputs["hidden"] @ inputs["matrix"]
    drawn = jax.random.categorical(jax.random.key(0), logits, axis=-1, shape=(7, 36)).T
    chances = jnp.take_along_axis(jax.nn.log_softmax(logits), drawn, axis=-1)
    samples = targets.Samples(drawn, chances)
    for teacher in (logits, targets.top_k(logits, 5), targets.Labels(inputs["labels"]), samples):
        values = linear_divergence("kl", *student, teacher, chunk=CHUNK)
        assert_allclose(values, jaxdiv.get("kl")(z, teacher), rtol=1e-5)
    labels, weights = inputs["labels"], inputs["weights"]
    values = linear_divergence("ce_data", *student, labels=labels, chunk=CHUNK)
    assert_allclose(values, jaxdiv.cross_entropy_data(z, labels), rtol=1e-5)
    options = {"metrics": ["tv", jaxdiv.reverse_kl], "weights": weights, "chunk": CHUNK}
    values, metrics = linear_divergence(jaxdiv.forward_kl, *student, logits, **options)
    assert_allclose(values, weights * jaxdiv.forward_kl(z, logits), rtol=1e-5)
    for metric, function in zip(metrics, (jaxdiv.total_variation, jaxdiv.reverse_kl), strict=True):
        expected = jnp.where(weights == 0, 0, function(z, logits))
        assert_allclose(metric, expected, rtol=1e-5)
    square = [x.reshape(4, 9, -1) for x in (inputs["hidden"], inputs["teacher_hidden"])]
    sides = square[0], inputs["matrix"], square[1], inputs["teacher_matrix"]
    expected = jaxdiv.forward_kl(z, logits).reshape(4, 9)
    assert_allclose(linear_divergence("kl", *sides), expected, rtol=1e-5)


# Losses whose gradient by the teacher's logits is that of a loss with both sides exchanged.
MIRRORED = (
    "kl", "rkl", "jeffreys", "jsd(beta=0.2)", "rjsd(beta=0.2)", "skl(alpha=0.3)",
    "srkl(alpha=0.3)", "alpha(alpha=1.7)", "renyi(alpha=0.3)", "bhattacharyya", "hellinger",
    "pearson", "neyman", "tv", "negative_acceptance", "nla", "0.5*kl + 2*pearson",
)  # fmt: skip


def test_gradient_by_the_teacher_is_that_of_the_definition():
    """Compares with finite differences of values in float64."""
    draw = np.random.default_rng(4)
    student, teacher = draw.normal(size=(2, 5, 7))
    weights, step = draw.uniform(0.5, 1, size=5), 1e-6
    moves = step * np.eye(teacher.size).reshape(-1, *teacher.shape)  # of one logit each
    every = np.broadcast_to(student, moves.shape)
    with jax.enable_x64(True):

        def value(text, hidden, matrix, mode="one_pass"):
            sides = student, np.eye(7), hidden, matrix
            options = {"teacher_gradient": True, "mode": mode, "chunk": 2}
            return linear_divergence(text, *sides, weights=weights, **options).sum()

        @jax.jit
        def gradients(hidden, matrix):
            return [jax.grad(value, argnums=(1, 2))(text, hidden, matrix) for text in MIRRORED]

        slopes = gradients(teacher, np.eye(7))
        again = jax.grad(value, argnums=(1, 2))("kl", teacher, np.eye(7), "remat")
        assert apart(again, slopes[0]) < 1e-10
        for text, (by_hidden, by_matrix) in zip(MIRRORED, slopes, strict=True):
            loss = jaxdiv.get(text)
            ahead, behind = (
                np.asarray(loss(every, teacher + sign * moves)) @ weights for sign in (1, -1)
            )
            slope = ((ahead - behind) / (2 * step)).reshape(teacher.shape)
            assert apart(by_hidden, slope) < 1e-5, text
            assert apart(by_matrix, teacher.T @ slope) < 1e-5, text


def test_works_under_checkpoint_scan_and_nnx():
    inputs = arrays(1001, np.float32, tokens=40)
    expected = gradient(trained(inputs), rest(inputs))
    total = jax.checkpoint(total_of())
    assert apart(jax.jit(jax.value_and_grad(total))(trained(inputs), rest(inputs)), expected) < 1e-6

    def micro(sums, part):
        student = {**trained(inputs), "hidden": part.pop("hidden")}
        value, by = jax.value_and_grad(total_of())(student, {**rest(inputs), **part})
        return jax.tree.map(jnp.add, sums, (value, by["matrix"])), by["hidden"]

    parts = {name: inputs[name] for name in ("hidden", "teacher_hidden", "labels", "weights")}
    parts = jax.tree.map(lambda x: x.reshape(4, 10, *x.shape[1:]), parts)
    (value, by_matrix), by_hidden = jax.lax.scan(
        micro, (jnp.zeros(()), jnp.zeros((D_S, 1001))), parts
    )
    assert apart((value, by_matrix), (expected[0], expected[1]["matrix"])) < 1e-6
    assert apart(by_hidden.reshape(40, D_S), expected[1]["hidden"]) < 1e-6

    model = nnx.Linear(D_S, 1001, use_bias=True, rngs=nnx.Rngs(0))
    model.kernel[...], model.bias[...] = inputs["matrix"], inputs["bias"]

    def loss(model):
        student = {"hidden": inputs["hidden"], "matrix": model.kernel[...], "bias": model.bias[...]}
        return fused("kl", student, rest(inputs)).sum()

    value, by = nnx.value_and_grad(loss)(model)
    assert apart((value, by["kernel"][...]), (expected[0], expected[1]["matrix"])) < 1e-6


ONES, LABELS = jnp.ones, targets.Labels(jnp.ones(36, int))


def head(**options):
    """Makes a `Head` when called, since a wrong one raises."""
    return functools.partial(Head, jnp.ones((12, 9)), **options)


REFUSED = {
    "`student_head` must be [12, V]": {"student_head": ONES((13, 9))},
    "`teacher_hidden` must be [37, D]": {"teacher_hidden": ONES((36, 20))},
    "`weights` must be [37]": {"weights": ONES(36)},
    "`labels` must be [37]": {"labels": ONES((37, 1), int)},
    "`teacher_hidden` must be [37]": {"teacher_hidden": LABELS, "teacher_head": None},
    "`chunk` must be at least 1 and a whole number, got 8.0": {"chunk": 8.0},
    "`memory` must be at least 1": {"memory": -5},
    "`vocab_size` must be at least 1": {"vocab_size": "9"},
    "`temperature` must be a number": {"temperature": None},
    "`metrics` must be a list of losses": {"metrics": "tv"},
    "`student_hidden` must be an array": {"student_hidden": "x"},
    "`weights` must be an array": {"weights": {}},
    "a real number a token, got complex64": {"weights": ONES(37, jnp.complex64)},
    "`scale` of a head must be a plain number": {"student_head": head(scale=ONES(1))},
    "there must be tokens": {"student_head": ONES((12, 0)), "teacher_head": ONES((20, 0))},
    "`mode` must be one of one_pass, remat": {"mode": "fast"},
    "`chunk` must be at least 1": {"chunk": 0},
    "`teacher_head` needs `teacher_hidden`": {"teacher_hidden": None},
    "must have the same classes, got 9 and 10": {"teacher_head": ONES((20, 10))},
    "the bias of `student_head` must be [9]": {"student_head": Head(ONES((12, 9)), ONES(8))},
    "unknown loss `klx`": {"loss": "klx"},
    "a loss must be text": {"loss": 3},
    "`tokens_over` must name axes of the mesh": {"tokens_over": "data"},
    "`lk_hybrid` has no mirror": {"loss": "lk_hybrid", "teacher_gradient": True},
    "needs a loss by name": {"loss": jaxdiv.forward_kl, "teacher_gradient": True},
    "a function has its own": {"loss": jaxdiv.forward_kl, "temperature": 2.0},
    "a loss must give one value a row": {"loss": lambda s, t: (s - t).sum()},
    "`ce_data` needs `labels`": {"loss": "ce_data"},
    "`soft_cap` of a head must be finite and above 0, got inf": {
        "student_head": head(soft_cap=math.inf)
    },
    "`scale` of a head must be finite and above 0, got -1.0": {"student_head": head(scale=-1.0)},
    "`scale` of a head must be a plain number, got NoneType": {"student_head": head(scale=None)},
}


@pytest.mark.parametrize("message", REFUSED)
def test_wrong_arguments_are_refused(message):
    arguments = {
        "loss": "kl",
        "student_hidden": ONES((N, D_S)),
        "student_head": ONES((D_S, 9)),
        "teacher_hidden": ONES((N, D_T)),
        "teacher_head": ONES((D_T, 9)),
    } | REFUSED[message]

    def run(student_head, **others):
        student_head = student_head() if callable(student_head) else student_head
        return linear_divergence(student_head=student_head, **others)

    with pytest.raises(ValueError, match=re.escape(message)):
        run(**arguments)


def test_wrong_keywords_name_the_function():
    with pytest.raises(TypeError, match="linear_divergence takes no argument 'chunks'"):
        linear_divergence("kl", ONES((N, D_S)), ONES((D_S, 9)), chunks=8)
    with pytest.raises(ValueError, match="`tokens_over` must name axes of the mesh, got 3"):
        linear_divergence("kl", ONES((N, D_S)), ONES((D_S, 9)), tokens_over=3)


def test_chunks_follow_the_memory():
    assert chunks.size(100, 1000, 64) == 100
    for memory in (2**20, 2**26, 2**30):
        size = chunks.size(10**6, 128256, 2048, memory)
        assert size == 8 or chunks.LOGITS * 4 * size * 128256 <= memory
        assert size % 8 == 0
    sizes = [chunks.size(10**6, 128256, width) for width in (4096, 2048, 64)]
    assert sizes[0] > sizes[1] > sizes[2] == chunks.LEAST_TOKENS
    # Many enough that reading a head counts little, in two chunks of one size.
    assert chunks.size(384, 49152, 576) == 192
    # The last chunk has not just a few tokens.
    assert chunks.size(130, 2**20, 64, 128 * 12 * 2**20) == 72


def test_a_head_is_a_pytree_of_its_arrays():
    head = Head(jnp.ones((2, 3)), None, 2.0, 30.0)
    again = jax.tree.map(lambda x: x, head)
    assert (again.scale, again.soft_cap, again.bias) == (2.0, 30.0, None)
    assert [leaf.shape for leaf in jax.tree.leaves(head)] == [(2, 3)]
