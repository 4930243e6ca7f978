"""Costs of compiled programs: against XLA's own where nothing loops, else by hand."""

import jax
import jax.numpy as jnp
import pytest

from experiments.tpu import cost_model, hlo
from experiments.tpu.cost_model import Collective
from tests import runs

# Programs compiled for TPUs, as XLA writes them, without what costs don't depend on.
HLO = runs.ROOT / "tests" / "hlo"
# `psum` and `psum_scatter`, `all_gather`, `all_to_all` and `ppermute` of f32[64, 128] a chip on
# v5e:2x4; the arrays of S(1) lie in vector memory.
COLLECTIVES = (HLO / "collectives.txt").read_text(encoding="utf-8")
# Six steps of a loop, in each of which a product runs beside the gathering of the next weights, and
# its sum is kept in parts: what a TPU makes of FSDP.
BESIDE_PRODUCTS = (HLO / "beside_products.txt").read_text(encoding="utf-8")
ROWS, INDEX, FEW = (64, 32), (), (4, 32)
IMAGE, ODD_IMAGE, KERNEL = (2, 9, 9, 4), (2, 5, 6, 4), (3, 3, 4, 8)


def compiled(function, *shapes, donate=()):
    """Compiles for float32 arrays of these shapes; an empty one is a whole number."""
    arguments = [
        jax.ShapeDtypeStruct(shape, jnp.float32 if shape else jnp.int32) for shape in shapes
    ]
    return jax.jit(function, donate_argnums=donate).lower(*arguments).compile()


def costs(function, *shapes, donate=()):
    return cost_model.estimate(compiled(function, *shapes, donate=donate).as_text())


def convolution(**options):
    defaults = {"window_strides": (1, 1), "padding": "SAME"}
    options = {**defaults, "dimension_numbers": ("NHWC", "HWIO", "NHWC"), **options}
    return lambda image, kernel: jax.lax.conv_general_dilated(image, kernel, **options)


STRIDED = convolution(window_strides=(2, 3), padding=((1, 2), (0, 3)))
DILATED = convolution(padding=((2, 2),) * 2, lhs_dilation=(2, 3), rhs_dilation=(2, 1))


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (jnp.matmul, [(64, 32), (32, 16)]),
        (lambda a, b: jnp.einsum("bij,kbj->bik", a, b), [(4, 32, 16), (8, 4, 16)]),
        (convolution(), [IMAGE, KERNEL]),
        (STRIDED, [IMAGE, KERNEL]),
        (DILATED, [ODD_IMAGE, (3, 2, 4, 8)]),
        (convolution(feature_group_count=2), [ODD_IMAGE, (3, 2, 2, 8)]),
        (convolution(batch_group_count=2), [ODD_IMAGE, (3, 2, 4, 8)]),
        (lambda a, b: jnp.tanh(a + b), [ROWS, ROWS]),
        (lambda a: a.sum(1), [ROWS]),
        (lambda a, i: jnp.tanh(jax.lax.dynamic_slice(a, (i, 0), FEW)), [ROWS, INDEX]),
    ],
)
def test_a_program_without_loops_costs_what_xla_says(function, shapes):
    program = compiled(function, *shapes)
    estimate, expected = cost_model.estimate(program.as_text()), program.cost_analysis()
    assert estimate.traffic == expected["bytes accessed"]
    assert estimate.flops in (expected["flops"], 0), "XLA also counts what is no product"
    assert estimate.flops or len(shapes) == 1 or shapes[0] == ROWS


def test_updates_and_gathers_count_as_what_they_touch():
    def update(a, i, u):
        return jax.lax.dynamic_update_slice(a, u, (i, 0))

    assert costs(update, ROWS, INDEX, FEW, donate=(0,)).traffic == 2 * 4 * 4 * 32 + 4
    chosen = (jnp.arange(5) * 7) % 64
    assert costs(lambda a: a[chosen], ROWS).traffic < 4 * 64 * 32
    write = costs(lambda a, u: a.at[chosen[:4]].set(u), ROWS, FEW, donate=(0,))
    assert write.traffic < 4 * 64 * 32


def nested(weights, x):
    """Multiplies x with each of weights [3, 5, 64, 64]."""

    def outer(x, weights):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights, reverse=True)[0], None

    return jax.lax.scan(outer, x, weights)[0]


@pytest.mark.parametrize("noted", [True, False])
def test_nested_loops_count_as_often_as_they_run(noted):
    program = compiled(nested, (3, 5, 64, 64), (128, 64))
    text = program.as_text()
    assert "known_trip_count" in text
    # XLA notes no trip counts for TPUs.
    estimate = cost_model.estimate(text if noted else text.replace("known_trip_count", "unknown"))
    product = 2 * 128 * 64 * 64
    assert estimate.flops == 3 * 5 * product
    assert (estimate.bounded, estimate.unknown) == (0, ())
    assert program.cost_analysis()["flops"] < 2 * product
    weights, values = 4 * 3 * 5 * 64 * 64, 4 * 3 * 5 * 128 * 64
    # Product and tanh read and write the values; the weights are sliced from the stack, twice.
    assert 4 * values + weights < estimate.traffic < 1.05 * (4 * values + 5 * weights)


def test_counters_may_start_anywhere_and_end_at_a_value_of_the_state():
    def run(x, start):
        def body(state):
            return state[0] + state[3], state[1] @ state[1], *state[2:]

        return jax.lax.while_loop(lambda s: s[0] < s[2], body, (2, x, 9, 3))[1]

    text = compiled(run, (16, 16), INDEX).as_text().replace("known_trip_count", "unknown")
    assert cost_model.estimate(text).flops == 3 * 2 * 16**3


def test_loops_without_a_known_end_count_once():
    def drafts(x):
        def goes_on(state):
            return (state[0] < 5) & jnp.any(state[1] > 0)

        return jax.lax.while_loop(goes_on, lambda s: (s[0] + 1, s[1] @ s[1]), (0, x))[1]

    def rounds(x):
        return jax.lax.while_loop(lambda x: jnp.any(x > 1), lambda x: drafts(x) @ x, x @ x)

    estimate, product = costs(rounds, (16, 16)), 2 * 16**3
    (body,) = estimate.unknown
    assert body.flops == (5 + 1) * product, "the inner loop ends after five at most"
    assert body.bounded == estimate.bounded == 1
    assert estimate.flops == body.flops + product
    assert body.unknown == ()


def test_the_dearest_branch_counts():
    def choose(i, x):
        return jax.lax.cond(i > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert costs(choose, INDEX, (16, 16)).flops == 2 * 2 * 16**3


# The devices of a mesh may stand in another order than their numbers.
@pytest.mark.parametrize("order", ["", ", device_ids=([4,2]T(1,0))"])
def test_collectives_on_a_ring(order):
    text = COLLECTIVES.replace("'tensor'=2] {", f"'tensor'=2]{order} {{")
    estimate, size = cost_model.estimate(text), 4 * 64 * 128
    assert estimate.collectives == {
        "all-gather": Collective(1, size, size),  # of two chips
        "all-reduce": Collective(1, 2 * size, 2 * 2 * size * 3 / 4),  # two arrays, of four chips
        "all-to-all": Collective(1, size, size * 7 / 8),
        "collective-permute": Collective(1, size, size),
        "reduce-scatter": Collective(1, size, size * 7 / 8),
    }
    # Read by permutation and copy; written: one array of all-reduce, and of reduce-scatter.
    assert estimate.traffic == 2 * size + size + size / 8


def test_collectives_beside_products_count_once():
    estimate = cost_model.estimate(BESIDE_PRODUCTS)
    part, whole = 2 * 256 * 64, 2 * 256 * 256
    assert estimate.flops == 6 * 2 * 128 * 256 * 256
    assert estimate.collectives == {
        "all-gather": Collective(6, 6 * part, 6 * 3 * part),
        "reduce-scatter": Collective(6, 6 * whole, 6 * whole * 3 / 4),
    }
    # The gathered weights, read in parts and written whole; the product's operand and result; the
    # sum's operand and its part.
    assert estimate.traffic == 6 * (part + whole + 2 * 128 * 256 + whole + whole + part)


def test_unknown_forms_of_device_groups_are_refused():
    text = COLLECTIVES.replace("replica_groups=mesh[", "replica_groups=some[")
    with pytest.raises(ValueError, match="form that is not known: replica_groups=some"):
        cost_model.estimate(text)


@pytest.mark.parametrize("text", ["", "HloModule jit_f\n", "some words"])
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match="no compiled program"):
        cost_model.estimate(text)


def test_an_instructions_repr_is_its_own_line():
    entry, _ = hlo.parse(BESIDE_PRODUCTS)
    lines = BESIDE_PRODUCTS.splitlines()
    for instruction in entry.instructions:
        assert len(repr(instruction)) < max(map(len, lines)) + 80
