"""Costs of compiled programs: against XLA's own where nothing loops, else by hand."""

import jax
import jax.numpy as jnp
import pytest

from experiments.tpu import cost_model
from experiments.tpu.cost_model import Collective
from tests import tpu_programs

ROWS, INDEX, FEW = (64, 32), (), (4, 32)


def compiled(function, *shapes, donate=()):
    """For float32 arrays of these shapes; an empty one is a whole number."""
    given = [jax.ShapeDtypeStruct(shape, jnp.float32 if shape else jnp.int32) for shape in shapes]
    return jax.jit(function, donate_argnums=donate).lower(*given).compile()


def convolution(**how):
    how = {
        "window_strides": (1, 1),
        "padding": "SAME",
        "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
    } | how
    return lambda image, kernel: jax.lax.conv_general_dilated(image, kernel, **how)


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (jnp.matmul, [(64, 32), (32, 16)]),
        (lambda a, b: jnp.einsum("bij,kbj->bik", a, b), [(4, 32, 16), (8, 4, 16)]),
        (convolution(), [(2, 9, 9, 4), (3, 3, 4, 8)]),
        (
            convolution(window_strides=(2, 3), padding=((1, 2), (0, 3))),
            [(2, 9, 9, 4), (3, 3, 4, 8)],
        ),
        (
            convolution(padding=((2, 2),) * 2, lhs_dilation=(2, 3), rhs_dilation=(2, 1)),
            [(2, 5, 6, 4), (3, 2, 4, 8)],
        ),
        (convolution(feature_group_count=2), [(2, 5, 6, 4), (3, 2, 2, 8)]),
        (convolution(batch_group_count=2), [(2, 5, 6, 4), (3, 2, 4, 8)]),
        (lambda a, b: jnp.tanh(a + b), [ROWS, ROWS]),
        (lambda a: a.sum(1), [ROWS]),
        (lambda a, i: jnp.tanh(jax.lax.dynamic_slice(a, (i, 0), FEW)), [ROWS, INDEX]),
    ],
)
def test_a_program_without_loops_costs_what_xla_says(function, shapes):
    program = compiled(function, *shapes)
    found, theirs = cost_model.estimate(program.as_text()), program.cost_analysis()
    assert found.traffic == theirs["bytes accessed"]
    assert found.flops in (theirs["flops"], 0), "XLA counts what is no product, too"
    assert found.flops or len(shapes) == 1 or shapes[0] == ROWS


def test_what_is_updated_or_gathered_counts_as_what_it_touches():
    update = compiled(
        lambda a, i, u: jax.lax.dynamic_update_slice(a, u, (i, 0)), ROWS, INDEX, FEW, donate=(0,)
    )
    assert cost_model.estimate(update.as_text()).traffic == 2 * 4 * 4 * 32 + 4
    chosen = (jnp.arange(5) * 7) % 64
    gather = compiled(lambda a: a[chosen], ROWS)
    assert cost_model.estimate(gather.as_text()).traffic < 4 * 64 * 32
    write = compiled(lambda a, u: a.at[chosen[:4]].set(u), ROWS, FEW, donate=(0,))
    assert cost_model.estimate(write.as_text()).traffic < 4 * 64 * 32


def nested(weights, x):
    """Products of x with each of weights [3, 5, 64, 64]."""

    def outer(x, weights):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights, reverse=True)[0], None

    return jax.lax.scan(outer, x, weights)[0]


@pytest.mark.parametrize("noted", [True, False])
def test_loops_in_loops_count_as_often_as_they_run(noted):
    """Also where XLA did not note how often that is, as for TPUs."""
    program = compiled(nested, (3, 5, 64, 64), (128, 64))
    text = program.as_text()
    assert "known_trip_count" in text
    found = cost_model.estimate(text if noted else text.replace("known_trip_count", "unknown"))
    product = 2 * 128 * 64 * 64
    assert found.flops == 3 * 5 * product
    assert (found.bounded, found.unknown) == (0, ())
    assert program.cost_analysis()["flops"] < 2 * product
    weights, values = 4 * 3 * 5 * 64 * 64, 4 * 3 * 5 * 128 * 64
    # Product and tanh read and write the values; the weights are sliced from the stack, and that
    # again.
    assert 4 * values + weights < found.traffic < 1.05 * (4 * values + 5 * weights)


def test_a_counter_need_not_start_at_0_nor_its_end_be_a_constant_of_the_condition():
    def run(x, start):
        return jax.lax.while_loop(
            lambda s: s[0] < s[2], lambda s: (s[0] + s[3], s[1] @ s[1], *s[2:]), (2, x, 9, 3)
        )[1]

    text = compiled(run, (16, 16), INDEX).as_text().replace("known_trip_count", "unknown")
    assert cost_model.estimate(text).flops == 3 * 2 * 16**3


def test_loops_that_nothing_ends_count_once_and_are_told():
    def drafts(state):
        return jax.lax.while_loop(
            lambda s: (s[0] < 5) & jnp.any(s[1] > 0), lambda s: (s[0] + 1, s[1] @ s[1]), (0, state)
        )[1]

    program = compiled(
        lambda x: jax.lax.while_loop(lambda x: jnp.any(x > 1), lambda x: drafts(x) @ x, x @ x),
        (16, 16),
    )
    found, product = cost_model.estimate(program.as_text()), 2 * 16**3
    (body,) = found.unknown
    assert body.flops == (5 + 1) * product, "the inner loop ends after five at most"
    assert body.bounded == found.bounded == 1
    assert found.flops == body.flops + product
    assert body.unknown == ()


def test_of_a_choice_the_dearest_counts():
    choose = compiled(
        lambda i, x: jax.lax.cond(i > 0, lambda x: x @ x @ x, lambda x: x @ x, x), INDEX, (16, 16)
    )
    assert cost_model.estimate(choose.as_text()).flops == 2 * 2 * 16**3


@pytest.mark.parametrize("order", ["", ", device_ids=([4,2]T(1,0))"])
def test_collectives_on_a_ring(order):
    """Of a mesh whose devices may stand in another order than their numbers."""
    text = tpu_programs.COLLECTIVES.replace("'tensor'=2] {", f"'tensor'=2]{order} {{")
    found, size = cost_model.estimate(text), 4 * 64 * 128
    assert found.collectives == {
        "all-gather": Collective(1, size, size),  # of two chips
        "all-reduce": Collective(1, 2 * size, 2 * 2 * size * 3 / 4),  # two arrays, of four chips
        "all-to-all": Collective(1, size, size * 7 / 8),
        "collective-permute": Collective(1, size, size),
        "reduce-scatter": Collective(1, size, size * 7 / 8),
    }
    # Read: by the permutation and the copy; written: one array of all-reduce's, and
    # reduce-scatter's.
    assert found.traffic == 2 * size + size + size / 8


def test_collectives_beside_products_count_once():
    found, part, whole = (
        cost_model.estimate(tpu_programs.BESIDE_PRODUCTS),
        2 * 256 * 64,
        2 * 256 * 256,
    )
    assert found.flops == 6 * 2 * 128 * 256 * 256
    assert found.collectives == {
        "all-gather": Collective(6, 6 * part, 6 * 3 * part),
        "reduce-scatter": Collective(6, 6 * whole, 6 * whole * 3 / 4),
    }
    # Gathered: read in parts, written whole; the product's operand and result; the sum's operand
    # and its part.
    assert found.traffic == 6 * (part + whole + 2 * 128 * 256 + whole + whole + part)


def test_groups_of_devices_in_another_form_are_no_guess():
    with pytest.raises(ValueError, match="form that is not known: replica_groups=some"):
        cost_model.estimate(
            tpu_programs.COLLECTIVES.replace("replica_groups=mesh[", "replica_groups=some[")
        )


@pytest.mark.parametrize("text", ["", "HloModule jit_f\n", "some words"])
def test_another_text_is_refused(text):
    with pytest.raises(ValueError, match="no compiled program"):
        cost_model.estimate(text)
