"""Head and divergence together are what they are apart: value, gradient, memory and number of
products."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxdiv
from experiments.tpu import aot
from jaxdiv import targets
from jaxdiv.fused import Head, chunks, linear_divergence, linear_divergences
from tests import runs

MENU = tuple(name for name in jaxdiv.names() if name not in ("cross_entropy_data", "z_loss"))
LOSSES = (*MENU, "ce_data(smoothing=0.1)", "0.7*kl + 0.3*tv + 1e-2*z_loss", "jsd(beta=0.2)")
N, D_S, D_T = 37, 12, 20
CHUNK = 8  # does not divide N


def arrays(classes, dtype=np.float64, tokens=N):
    """Hidden states, heads, biases, labels and weights, some of them 0."""
    draw = np.random.default_rng(classes)
    made = {
        "hidden": draw.normal(size=(tokens, D_S)),
        "matrix": draw.normal(size=(D_S, classes)) / math.sqrt(D_S),
        "bias": 0.5 * draw.normal(size=classes),
        "teacher_hidden": draw.normal(size=(tokens, D_T)),
        "teacher_matrix": draw.normal(size=(D_T, classes)) / math.sqrt(D_T),
        "teacher_bias": 0.5 * draw.normal(size=classes),
        "weights": draw.uniform(size=tokens) * (draw.uniform(size=tokens) < 0.8),
    }
    made = {name: jnp.asarray(value, dtype) for name, value in made.items()}
    return made | {"labels": jnp.asarray(draw.integers(classes - 3, size=tokens), jnp.int32)}


def trained(given):
    return {name: given[name] for name in ("hidden", "matrix", "bias")}


def rest(given):
    return {name: given[name] for name in given if name not in trained(given)}


CAP, SCALE = 20.0, 0.8


def capped(z):
    return jnp.where(jnp.isneginf(z), z, CAP * jnp.tanh(z / CAP))


def dense(loss, student, given, **options):
    """Values from the whole logits."""
    z = capped(SCALE * (student["hidden"] @ student["matrix"] + student["bias"][None]))
    of_teacher = given["teacher_hidden"] @ given["teacher_matrix"] + given["teacher_bias"][None]
    return given["weights"] * jaxdiv.get(loss)(z, of_teacher, labels=given["labels"], **options)


def heads(student, given):
    """What `linear_divergence` takes."""
    head = Head(student["matrix"], student["bias"], SCALE, CAP)
    return (
        student["hidden"],
        head,
        given["teacher_hidden"],
        Head(given["teacher_matrix"], given["teacher_bias"]),
    )


def fused(loss, student, given, chunk=CHUNK, **options):
    both = {name: given[name] for name in ("labels", "weights")}
    return linear_divergence(loss, *heads(student, given), chunk=chunk, **both, **options)


def both(function, losses, student, given, **options):
    """Values and gradients of every loss, in one compilation: ([K, N], trees of [K, ...])."""

    @jax.jit
    def run(student, given):
        made = [
            jax.vjp(lambda s, loss=loss: function(loss, s, given, **options), student)
            for loss in losses
        ]
        return [value for value, _ in made], [pull(jnp.ones_like(value))[0] for value, pull in made]

    return run(student, given)


def apart(a, b):
    """The distance of two trees by the norm of the second, the largest over their arrays."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(
        np.linalg.norm(np.float64(x) - np.float64(y)) / max(np.linalg.norm(np.float64(y)), 1e-30)
        for x, y in pairs
    )


@pytest.mark.parametrize("mode", ["one_pass", "remat"])
@pytest.mark.parametrize(
    "options", [{}, {"temperature": 1.7, "vocab_size": 990}], ids=["plain", "warm and cut"]
)
def test_values_and_gradients_are_the_dense_forms_in_float64(mode, options):
    with jax.enable_x64(True):
        given = arrays(1001)
        for name in ("bias", "teacher_bias"):  # classes that pad the vocabulary
            given[name] = given[name].at[-2:].set(-jnp.inf)
        losses = LOSSES if mode == "one_pass" else LOSSES[::4]
        expected = both(dense, losses, trained(given), rest(given), **options)
        made = both(fused, losses, trained(given), rest(given), mode=mode, **options)
        for loss, value, gradient, dense_value, dense_gradient in zip(
            losses, *made, *expected, strict=True
        ):
            np.testing.assert_allclose(value, dense_value, rtol=1e-10, atol=1e-12, err_msg=loss)
            assert apart(gradient, dense_gradient) < 1e-10, loss


@pytest.mark.parametrize(
    "classes", [1001, *(pytest.param(n, marks=pytest.mark.slow) for n in (128256, 151936))]
)
def test_float32_is_as_near_to_float64_as_the_dense_form(classes):
    losses = ["kl", "nla"] if classes > 1001 else LOSSES
    given = arrays(classes, np.float32)
    made, whole = (both(f, losses, trained(given), rest(given)) for f in (fused, dense))
    with jax.enable_x64(True):
        exactly = jax.tree.map(
            lambda x: np.asarray(x, np.float64 if x.dtype == np.float32 else x.dtype), given
        )
        exact = both(dense, losses, trained(exactly), rest(exactly))
    for i, loss in enumerate(losses):
        for mine, its, right in zip(made, whole, exact, strict=True):
            assert apart(mine[i], right[i]) <= 2 * apart(its[i], right[i]) + 1e-6, loss


def test_the_chunk_changes_nothing_but_rounding():
    given = arrays(1001, np.float32, tokens=512)
    made = [
        both(fused, ["kl", "nla"], trained(given), rest(given), chunk=chunk)
        for chunk in (8, 200, 512, 10**6)
    ]
    for other in made[1:]:
        assert apart(made[0], other) < 1e-6
    with jax.enable_x64(True):
        exactly = jax.tree.map(
            lambda x: np.asarray(x, np.float64 if x.dtype == np.float32 else x.dtype), given
        )
        exact = both(dense, ["kl", "nla"], trained(exactly), rest(exactly))
    assert apart(made[0][1][0]["matrix"], exact[1][0]["matrix"]) < 1e-6  # 64 chunks


def test_what_has_no_weight_is_not_looked_at():
    given = arrays(1001, np.float32)
    broken = {
        **given,
        "hidden": jnp.where(given["weights"][:, None] == 0, jnp.nan, given["hidden"]),
        "teacher_hidden": jnp.where(
            given["weights"][:, None] == 0, jnp.inf, given["teacher_hidden"]
        ),
    }
    for mode in ("one_pass", "remat"):
        made = both(fused, ["kl", "tv"], trained(broken), rest(broken), mode=mode)
        assert apart(made, both(fused, ["kl", "tv"], trained(given), rest(given), mode=mode)) == 0
        nothing = {**rest(broken), "weights": jnp.zeros(N)}
        for leaf in jax.tree.leaves(both(fused, ["kl"], trained(broken), nothing, mode=mode)):
            np.testing.assert_array_equal(leaf, np.zeros_like(leaf))


def equations(jaxpr):
    """All of a jaxpr's equations, with those inside of others."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def products(function, *arguments):
    """Every dot_general of a function: (shapes of both operands, their types, the result's
    type)."""
    found = []
    for equation in equations(jax.make_jaxpr(function)(*arguments).jaxpr):
        if equation.primitive.name == "dot_general":
            operands = [x.aval for x in equation.invars]
            found.append(
                (
                    [x.shape for x in operands],
                    [x.dtype for x in operands],
                    equation.outvars[0].aval.dtype,
                )
            )
    return found


def total_of(loss="kl", **options):
    return lambda student, given: fused(loss, student, given, **options).sum()


@jax.jit
def gradient(student, given):
    return jax.value_and_grad(total_of())(student, given)


def test_each_product_is_made_once_and_none_for_a_frozen_head():
    given = arrays(1001, np.float32, 3 * CHUNK)
    made = products(gradient, trained(given), rest(given))
    assert len(made) == 4
    flops = 3 * sum(2 * math.prod(a) * math.prod(b) // _shared(a, b) for (a, b), *_ in made)
    assert flops == 3 * CHUNK * 1001 * (6 * D_S + 2 * D_T)
    frozen = jax.value_and_grad(
        lambda hidden: total_of()({**trained(given), "hidden": hidden}, rest(given))
    )
    assert len(products(frozen, given["hidden"])) == 3
    assert len(products(total_of(), trained(given), rest(given))) == 2


def _shared(a, b):
    """The axis that two shapes' product sums over."""
    return next(size for size in a if size in b)


@pytest.mark.parametrize("mode", ["one_pass", "remat"])
def test_no_array_has_all_tokens_logits(mode):
    classes, tokens = 1009, 1024
    given = arrays(classes, np.float32, tokens)
    run = jax.value_and_grad(total_of(mode=mode))
    for equation in equations(jax.make_jaxpr(run)(trained(given), rest(given)).jaxpr):
        for out in equation.outvars:
            assert math.prod(getattr(out.aval, "shape", ())) < tokens * classes
    compiled = jax.jit(run).lower(trained(given), rest(given)).compile()
    assert max(aot.elements(compiled.as_text())) < tokens * classes
    assert compiled.memory_analysis().temp_size_in_bytes < tokens * classes * 4 / 10
    assert _dense_memory(given) > tokens * classes * 4


def _dense_memory(given):
    run = jax.jit(jax.value_and_grad(lambda student, given: dense("kl", student, given).sum()))
    return run.lower(trained(given), rest(given)).compile().memory_analysis().temp_size_in_bytes


def test_half_precision_products_take_half_precision_operands_and_sum_in_float32():
    given = arrays(1001, jnp.bfloat16)
    made = products(gradient, trained(given), rest(given))
    assert len(made) == 4
    for _, operands, result in made:
        assert operands == [jnp.bfloat16] * 2
        assert result == jnp.float32
    values, gradients = gradient(trained(given), rest(given))
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype(jnp.bfloat16)}
    exactly = jax.tree.map(lambda x: x if x.dtype == jnp.int32 else x.astype(jnp.float32), given)
    assert apart((values, gradients), gradient(trained(exactly), rest(exactly))) < 1e-2


def test_a_weighting_afterwards_is_right_for_hidden_states_and_never_wrong_for_the_head():
    given = arrays(1001, np.float32)
    slopes = jnp.linspace(1, 2, N)

    @jax.jit
    def by_student(student):
        def weighted(function, slopes, **how):
            return jax.grad(
                lambda student: (slopes * function("kl", student, rest(given), **how)).sum()
            )(student)

        # The same for all tokens that count, whatever stands at the others.
        same = jnp.where(given["weights"] == 0, slopes, 3.0)
        every = (
            weighted(dense, slopes),
            weighted(fused, slopes, mode="remat"),
            weighted(fused, slopes),
        )
        return *every, weighted(fused, same), weighted(fused, 1.0)

    right, remat, made, tripled, ones = by_student(trained(given))
    assert apart(remat, right) < 1e-5
    assert apart(made["hidden"], right["hidden"]) < 1e-5
    assert np.isnan(made["matrix"]).all()
    assert np.isnan(made["bias"]).all()
    assert apart(jax.tree.map(lambda x: x / 3, tripled), ones) < 1e-6


def test_gradient_by_the_weights_is_the_divergence():
    given = arrays(1001, np.float32)
    ones = {**rest(given), "weights": jnp.full(N, 0.5)}

    def by_weights(function):
        def run(weights):
            return function("kl", trained(given), {**ones, "weights": weights}).sum()

        return jax.grad(run)(ones["weights"])

    np.testing.assert_allclose(
        *jax.jit(lambda: (by_weights(fused), by_weights(dense)))(), rtol=1e-5
    )


def test_a_teacher_that_is_trained_changes_no_gradient_by_weights():
    given = arrays(101, np.float32)
    sides = given["hidden"], given["matrix"], given["teacher_hidden"], given["teacher_matrix"]

    def by_weights(**options):
        return jax.grad(
            lambda weights: linear_divergence("kl", *sides, weights=weights, **options).sum()
        )(jnp.ones(N))

    assert apart(by_weights(teacher_gradient=True), by_weights()) == 0


def test_outputs_that_nothing_is_asked_of_have_no_gradient():
    given = arrays(101, np.float32)
    sides = [
        [given["hidden"]] * 2,
        [given["matrix"]] * 2,
        given["teacher_hidden"],
        given["teacher_matrix"],
    ]

    def of_one(hidden, loss):
        return linear_divergences(["kl", "tv"], [hidden] * 2, *sides[1:])[0][loss].sum()

    def alone(hidden):
        return linear_divergence("tv", hidden, given["matrix"], *sides[2:]).sum()

    assert apart(jax.grad(of_one)(given["hidden"], 1), jax.grad(alone)(given["hidden"])) < 1e-6

    def metric(matrix):
        return linear_divergence("kl", given["hidden"], matrix, *sides[2:], metrics=["tv"])[1][
            0
        ].sum()

    np.testing.assert_array_equal(jax.grad(metric)(given["matrix"]), np.zeros((D_S, 101)))


@pytest.mark.parametrize("mode", ["one_pass", "remat"])
def test_losses_without_a_slope_spoil_nothing_where_there_is_no_weight(mode):
    given = arrays(101, np.float32)
    unweighted = given["weights"] == 0

    def distance(student, teacher):  # whose slope is NaN where both are alike
        return jnp.sqrt(jnp.sum((jax.nn.softmax(student) - jax.nn.softmax(teacher)) ** 2, axis=-1))

    drawn, chances = jnp.ones((N, 4), int), -jnp.ones((N, 4))
    samples = targets.Samples(
        jnp.where(unweighted[:, None], -100, drawn),
        jnp.where(unweighted[:, None], jnp.nan, chances),
    )
    for loss, *teacher in (
        (distance, given["teacher_hidden"], given["teacher_matrix"]),
        ("kl", samples),
    ):

        def total(hidden, matrix, loss=loss, teacher=teacher):
            how = {"weights": given["weights"], "mode": mode, "chunk": CHUNK}
            return linear_divergence(loss, hidden, matrix, *teacher, **how).sum()

        for leaf in jax.jit(jax.grad(total, argnums=(0, 1)))(given["hidden"], given["matrix"]):
            assert np.isfinite(leaf).all()
            assert np.any(leaf)


def test_mixed_and_half_precision_lose_no_more_than_the_dense_form():
    given = arrays(101, np.float32, tokens=64)
    teacher = given["teacher_hidden"] @ given["teacher_matrix"]

    def gradients(weight, types, function):
        arguments = [
            given[name].astype(kind) for name, kind in zip(("hidden", "matrix"), types, strict=True)
        ]
        return jax.jit(jax.grad(lambda *x: function(*x).sum() / weight, argnums=(0, 1)))(*arguments)

    @jax.jit
    def whole_in_float32(hidden, matrix):
        return jax.grad(lambda *x: jaxdiv.forward_kl(x[0] @ x[1], teacher).sum(), argnums=(0, 1))(
            hidden, matrix
        )

    for types in (
        (jnp.bfloat16, jnp.float32),
        (jnp.float32, jnp.bfloat16),
        (jnp.float16, jnp.float16),
    ):
        for weight in (1.0, 1e-8):  # below what float16 has

            def whole(hidden, matrix, weight=weight):
                z = jnp.matmul(hidden, matrix, preferred_element_type=jnp.float32)
                return weight * jaxdiv.forward_kl(z, teacher)

            def ours(hidden, matrix, weight=weight):
                return linear_divergence(
                    "kl", hidden, matrix, teacher, weights=jnp.full(64, weight), chunk=CHUNK
                )

            exact = [np.asarray(given[name], np.float64) for name in ("hidden", "matrix")]
            rounded = [
                x.astype(kind).astype(np.float32) for x, kind in zip(exact, types, strict=True)
            ]
            right = whole_in_float32(*rounded)
            mine, its = (gradients(weight, types, function) for function in (ours, whole))
            for one, other, expected in zip(mine, its, right, strict=True):
                assert (
                    apart(one, expected) < 2 * apart(other, expected) + 1e-3 * (weight < 1) + 1e-6
                )


def test_values_are_of_the_logits_type():
    given = arrays(101, np.float32)
    with jax.enable_x64(True):
        made = linear_divergence("kl", *heads(trained(given), given))
    assert made.dtype == jnp.float32


def test_inside_of_a_shard_map_of_ones_own():
    given = arrays(101, np.float32)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def ours(hidden, teacher_hidden):
        options = {"chunk": CHUNK}
        return linear_divergence(
            "kl", hidden, given["matrix"], teacher_hidden, given["teacher_matrix"], **options
        )

    spread = jax.shard_map(
        ours, mesh=mesh, in_specs=jax.P("data"), out_specs=jax.P("data"), check_vma=False
    )
    sides = given["hidden"], given["teacher_hidden"]
    assert apart(jax.jit(spread)(*sides), ours(*sides)) < 1e-6


def test_higher_derivatives_and_jvp_of_the_rematerialized_form():
    given = arrays(1001, np.float32)
    tangent = jax.tree.map(
        lambda x: jnp.asarray(np.random.default_rng(5).normal(size=x.shape), x.dtype),
        trained(given),
    )

    def derivatives(function, **how):
        def value(student):
            return function("kl", student, rest(given), **how).sum()

        first = jax.jvp(value, (trained(given),), (tangent,))
        return first, jax.jvp(jax.grad(value), (trained(given),), (tangent,))[1]

    assert apart(*jax.jit(lambda: (derivatives(fused, mode="remat"), derivatives(dense)))()) < 1e-4


def test_many_students_share_the_teachers_logits():
    given = arrays(1001, np.float32)
    losses = ("kl", "tv", "ce_data")
    draw = np.random.default_rng(2)
    hidden = jnp.asarray(draw.normal(size=(4, N, D_S)), jnp.float32)  # seeds of each loss

    def run(hidden, how):
        def one(hidden):
            return how(
                hidden,
                [Head(given["matrix"])] * 3,
                given["teacher_hidden"],
                given["teacher_matrix"],
            )

        return jax.jit(jax.vmap(jax.grad(one)))(hidden)

    def together(hidden, its, *teacher):
        made, _ = linear_divergences(
            losses, [hidden] * 3, its, *teacher, labels=given["labels"], chunk=CHUNK
        )
        return sum(values.sum() for values in made)

    def one_by_one(hidden, its, *teacher):
        labels, every = given["labels"], zip(losses, its, strict=True)
        return sum(
            linear_divergence(loss, hidden, head, *teacher, labels=labels).sum()
            for loss, head in every
        )

    assert apart(run(hidden, together), run(hidden, one_by_one)) < 1e-6
    of_teacher = [
        shapes
        for shapes, *_ in products(lambda x: run(x, together), hidden)
        if (D_T, 1001) in shapes
    ]
    assert of_teacher == [[(CHUNK, D_T), (D_T, 1001)]]  # once, and for no seed of its own


def test_other_teachers_metrics_functions_and_leading_axes():
    given = arrays(1001, np.float32, tokens=36)
    logits = given["teacher_hidden"] @ given["teacher_matrix"]
    student = given["hidden"], given["matrix"]
    z = given["hidden"] @ given["matrix"]
    drawn = jax.random.categorical(jax.random.key(0), logits, axis=-1, shape=(7, 36)).T
    chances = jnp.take_along_axis(jax.nn.log_softmax(logits), drawn, axis=-1)
    samples = targets.Samples(drawn, chances)
    for teacher in (logits, targets.top_k(logits, 5), targets.Labels(given["labels"]), samples):
        made = linear_divergence("kl", *student, teacher, chunk=CHUNK)
        np.testing.assert_allclose(made, jaxdiv.get("kl")(z, teacher), rtol=1e-5)
    made = linear_divergence("ce_data", *student, labels=given["labels"], chunk=CHUNK)
    np.testing.assert_allclose(made, jaxdiv.cross_entropy_data(z, given["labels"]), rtol=1e-5)
    made, metrics = linear_divergence(
        jaxdiv.forward_kl,
        *student,
        logits,
        metrics=["tv", jaxdiv.reverse_kl],
        weights=given["weights"],
        chunk=CHUNK,
    )
    np.testing.assert_allclose(made, given["weights"] * jaxdiv.forward_kl(z, logits), rtol=1e-5)
    for metric, function in zip(metrics, (jaxdiv.total_variation, jaxdiv.reverse_kl), strict=True):
        np.testing.assert_allclose(
            metric, jnp.where(given["weights"] == 0, 0, function(z, logits)), rtol=1e-5
        )
    square = [x.reshape(4, 9, -1) for x in (given["hidden"], given["teacher_hidden"])]
    made = linear_divergence("kl", square[0], given["matrix"], square[1], given["teacher_matrix"])
    np.testing.assert_allclose(made, jaxdiv.forward_kl(z, logits).reshape(4, 9), rtol=1e-5)


# Losses whose gradient by the teacher's logits is that of a loss with both sides exchanged.
MIRRORED = (
    "kl", "rkl", "jeffreys", "jsd(beta=0.2)", "rjsd(beta=0.2)", "skl(alpha=0.3)", "srkl(alpha=0.3)", "alpha(alpha=1.7)",
    "renyi(alpha=0.3)", "bhattacharyya", "hellinger", "pearson", "neyman", "tv", "negative_acceptance", "nla",
    "0.5*kl + 2*pearson",
)  # fmt: skip


def test_gradient_by_the_teacher_is_that_of_the_definition():
    """Against finite differences of values in float64."""
    draw = np.random.default_rng(4)
    student, teacher = draw.normal(size=(2, 5, 7))
    weights, step = draw.uniform(0.5, 1, size=5), 1e-6
    moves = step * np.eye(teacher.size).reshape(-1, *teacher.shape)  # of one logit each
    every = np.broadcast_to(student, moves.shape)
    with jax.enable_x64(True):

        def value(text, hidden, matrix, mode="one_pass"):
            made = linear_divergence(
                text,
                student,
                np.eye(7),
                hidden,
                matrix,
                weights=weights,
                teacher_gradient=True,
                mode=mode,
                chunk=2,
            )
            return made.sum()

        @jax.jit
        def gradients(hidden, matrix):
            return [jax.grad(value, argnums=(1, 2))(text, hidden, matrix) for text in MIRRORED]

        made = gradients(teacher, np.eye(7))
        again = jax.grad(value, argnums=(1, 2))("kl", teacher, np.eye(7), "remat")
        assert apart(again, made[0]) < 1e-10
        for text, (by_hidden, by_matrix) in zip(MIRRORED, made, strict=True):
            loss = jaxdiv.get(text)

            ahead, behind = (
                np.asarray(loss(every, teacher + sign * moves)) @ weights for sign in (1, -1)
            )
            slope = ((ahead - behind) / (2 * step)).reshape(teacher.shape)
            assert apart(by_hidden, slope) < 1e-5, text
            assert apart(by_matrix, teacher.T @ slope) < 1e-5, text


def test_works_under_checkpoint_scan_and_nnx():
    given = arrays(1001, np.float32, tokens=40)
    expected = gradient(trained(given), rest(given))
    total = jax.checkpoint(total_of())
    assert apart(jax.jit(jax.value_and_grad(total))(trained(given), rest(given)), expected) < 1e-6

    def micro(sums, part):
        student = {**trained(given), "hidden": part.pop("hidden")}
        value, by = jax.value_and_grad(total_of())(student, {**rest(given), **part})
        return jax.tree.map(jnp.add, sums, (value, by["matrix"])), by["hidden"]

    parts = {name: given[name] for name in ("hidden", "teacher_hidden", "labels", "weights")}
    parts = jax.tree.map(lambda x: x.reshape(4, 10, *x.shape[1:]), parts)
    (value, by_matrix), by_hidden = jax.lax.scan(
        micro, (jnp.zeros(()), jnp.zeros((D_S, 1001))), parts
    )
    assert apart((value, by_matrix), (expected[0], expected[1]["matrix"])) < 1e-6
    assert apart(by_hidden.reshape(40, D_S), expected[1]["hidden"]) < 1e-6

    model = nnx.Linear(D_S, 1001, use_bias=True, rngs=nnx.Rngs(0))
    model.kernel[...], model.bias[...] = given["matrix"], given["bias"]

    def loss(model):
        student = {"hidden": given["hidden"], "matrix": model.kernel[...], "bias": model.bias[...]}
        return fused("kl", student, rest(given)).sum()

    value, by = nnx.value_and_grad(loss)(model)
    assert apart((value, by["kernel"][...]), (expected[0], expected[1]["matrix"])) < 1e-6


def test_spread_over_eight_devices_it_is_the_same():
    devices = "--xla_force_host_platform_device_count=8"
    done = runs.end(runs.start_python("-m", "tests.sharded_fused", XLA_FLAGS=devices))
    assert done.returncode == 0, done.stderr[-2000:]


REFUSED = {
    "`student_head` must be [12, V]": {"student_head": jnp.ones((13, 9))},
    "`teacher_hidden` must be [37, D]": {"teacher_hidden": jnp.ones((36, 20))},
    "`weights` must be [37]": {"weights": jnp.ones(36)},
    "`labels` must be [37]": {"labels": jnp.ones((37, 1), int)},
    "`teacher_hidden` must be [37]": {
        "teacher_hidden": targets.Labels(jnp.ones(36, int)),
        "teacher_head": None,
    },
    "`chunk` must be at least 1 and a whole number, got 8.0": {"chunk": 8.0},
    "`memory` must be at least 1": {"memory": -5},
    "`vocab_size` must be at least 1": {"vocab_size": "9"},
    "`temperature` must be a number": {"temperature": None},
    "`metrics` must be a list of losses": {"metrics": "tv"},
    "`student_hidden` must be an array": {"student_hidden": "x"},
    "`weights` must be an array": {"weights": {}},
    "a real number a token, got complex64": {"weights": jnp.ones(37, jnp.complex64)},
    "`scale` of a head must be a plain number": {
        "student_head": functools.partial(Head, jnp.ones((12, 9)), scale=jnp.ones(1))
    },
    "there must be tokens": {"student_head": jnp.ones((12, 0)), "teacher_head": jnp.ones((20, 0))},
    "`mode` must be one of one_pass, remat": {"mode": "fast"},
    "`chunk` must be at least 1": {"chunk": 0},
    "`teacher_head` needs `teacher_hidden`": {"teacher_hidden": None},
    "must have the same classes, got 9 and 10": {"teacher_head": jnp.ones((20, 10))},
    "the bias of `student_head` must be [9]": {
        "student_head": Head(jnp.ones((12, 9)), jnp.ones(8))
    },
    "unknown loss `klx`": {"loss": "klx"},
    "a loss must be text": {"loss": 3},
    "`tokens_over` must name axes of the mesh": {"tokens_over": "data"},
    "`lk_hybrid` has no mirror": {"loss": "lk_hybrid", "teacher_gradient": True},
    "`teacher_gradient` needs a loss by name": {
        "loss": jaxdiv.forward_kl,
        "teacher_gradient": True,
    },
    "a function has its own": {"loss": jaxdiv.forward_kl, "temperature": 2.0},
    "a loss must give one value a row": {"loss": lambda s, t: (s - t).sum()},
    "`ce_data` needs `labels`": {"loss": "ce_data"},
    "`soft_cap` of a head must be finite and above 0, got inf": {
        "student_head": functools.partial(Head, jnp.ones((12, 9)), soft_cap=float("inf"))
    },
    "`scale` of a head must be finite and above 0, got -1.0": {
        "student_head": functools.partial(Head, jnp.ones((12, 9)), scale=-1.0)
    },
    "`scale` of a head must be a plain number, got NoneType": {
        "student_head": functools.partial(Head, jnp.ones((12, 9)), scale=None)
    },
}


@pytest.mark.parametrize("told", REFUSED)
def test_what_does_not_fit_is_refused(told):
    given = {
        "loss": "kl",
        "student_hidden": jnp.ones((N, D_S)),
        "student_head": jnp.ones((D_S, 9)),
        "teacher_hidden": jnp.ones((N, D_T)),
        "teacher_head": jnp.ones((D_T, 9)),
    } | REFUSED[told]

    def run(loss, student_head, **others):
        head = student_head() if callable(student_head) else student_head
        return linear_divergence(loss, student_head=head, **others)

    with pytest.raises(ValueError, match=re.escape(told)):
        run(**given)


def test_chunks_follow_the_memory():
    assert chunks.size(100, 1000, 64) == 100
    for memory in (2**20, 2**26, 2**30):
        size = chunks.size(10**6, 128256, 2048, memory)
        assert size == 8 or chunks.LOGITS * 4 * size * 128256 <= memory
        assert size % 8 == 0
    assert (
        chunks.size(10**6, 128256, 4096)
        > chunks.size(10**6, 128256, 2048)
        > chunks.size(10**6, 128256, 64)
    )
    # Not a last chunk of a few tokens.
    assert chunks.size(130, 2**20, 64, 128 * 12 * 2**20) == 72


def test_a_head_is_a_pytree_of_its_arrays():
    head = Head(jnp.ones((2, 3)), None, 2.0, 30.0)
    again = jax.tree.map(lambda x: x, head)
    assert (again.scale, again.soft_cap, again.bias) == (2.0, 30.0, None)
    assert [leaf.shape for leaf in jax.tree.leaves(head)] == [(2, 3)]
