"""Training at a large vocabulary: its steps hold no array of all tokens' logits, and are compiled without being run."""

import math

import jax
import jax.numpy as jnp
import pytest

import jaxdiv
from configs import large_vocab, smoke
from experiments import ahead, compile
from jaxdiv.fused import chunks
from tests.test_fused import equations

STAGES = ("student", "teacher")


def small(**changes):
    """A config whose sizes share no factor that could make another array as large as logits."""
    config = smoke.get_config()
    changes = {"student.batch_size": 3, "teacher.batch_size": 3, "data.sequence_length": 21} | changes
    changes |= {"data.vocabulary": 500, "teacher.padded_vocabulary": 509}
    config.update_from_flattened_dict(changes)
    return config.to_dict()


def made(config, stage):
    """How many elements the arrays of the stage's step have."""
    step, shapes = compile.steps(config)[stage]
    made = equations(jax.make_jaxpr(step)(*shapes).jaxpr)
    return {math.prod(getattr(out.aval, "shape", ())) for equation in made for out in equation.outvars}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("changes", [{}, {"student.kind": "decoder"}, {"data.context": "student"}], ids=str)
def test_no_step_makes_the_logits_of_all_tokens(monkeypatch, stage, changes):
    config = small(**changes)
    logits = compile.of_all_logits(config, stage)
    assert made(config, stage) & logits, "small ones are made, and would be seen"
    monkeypatch.setattr(chunks, "LEAST_MEMORY", 2**14)
    assert not made(config, stage) & logits


def test_the_large_vocabulary_is_beyond_what_is_made_at_once():
    config = large_vocab.get_config().to_dict()
    for stage in STAGES:
        assert 4 * min(compile.of_all_logits(config, stage)) > chunks.LEAST_MEMORY


@pytest.mark.parametrize(("memory", "together"), [(2**26, False), (2**14, True)])
def test_all_losses_share_one_call_beyond_what_is_made_at_once_in_one_type(monkeypatch, memory, together):
    monkeypatch.setattr(chunks, "LEAST_MEMORY", memory)
    real, calls = jaxdiv.linear_divergences, set()

    def spy(losses, features, heads, *teacher, **options):
        kinds = {str(x.dtype) for x in (*features, *heads, *(x for x in teacher if x is not None))}
        calls.add((tuple(loss.text for loss in losses), frozenset(kinds)))
        return real(losses, features, heads, *teacher, **options)

    monkeypatch.setattr(jaxdiv, "linear_divergences", spy)
    config = small(**{"student.kind": "decoder", "dtype": "bfloat16"})
    step, shapes = compile.steps(config)["student"]
    jax.make_jaxpr(step)(*shapes)
    losses, half = jaxdiv.split(config["losses"]), frozenset(["bfloat16"])
    # The teacher's dense logits are float32.
    apart = {((loss,), half | {"float32"}) for loss in losses}
    assert calls == ({(losses, half)} if together else apart)


def test_a_row_tells_what_a_compiled_step_takes(monkeypatch):
    monkeypatch.setattr(chunks, "LEAST_MEMORY", 2**14)
    config, chip = small(), jax.devices()[0]
    for stage, (step, shapes) in compile.steps(config).items():
        most = {"student": 1e-9, "teacher": 1e9}[stage]
        monkeypatch.setitem(ahead.HBM, chip.device_kind, most)
        name, *numbers, room, fits, whole, largest = compile.row(config, stage, step, shapes, chip)
        assert (name, room, whole) == (stage, str(most), "no")
        assert fits == {"student": "no", "teacher": "yes"}[stage]
        assert len(numbers) == 4
        assert 0 < float(largest) < min(compile.of_all_logits(config, stage)) / 1e6


def test_memory_that_an_output_takes_over_counts_once():
    program = jax.jit(lambda x: x + 1, donate_argnums=0).lower(jnp.zeros(1000)).compile()
    memory = ahead.Memory.of(program)
    assert memory.arguments == memory.outputs == 4000
    assert memory.total == 4000 + memory.temporaries


def test_a_chip_that_is_not_to_be_had_is_told_in_one_line(monkeypatch):
    with pytest.raises(ValueError, match=r"--topology=v99:1x1|libtpu") as error:
        ahead.chips("v99:1x1")
    assert "\n" not in str(error.value)
    monkeypatch.setattr(ahead.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"libtpu, .* is not installed: pip install"):
        ahead.chips("v5e:1x1")
