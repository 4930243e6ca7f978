"""Training at a large vocabulary: its steps hold no array of all tokens' logits, and are compiled without being run."""

import math

import jax
import pytest

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


def test_a_row_tells_what_a_compiled_step_takes(monkeypatch):
    monkeypatch.setattr(chunks, "LEAST_MEMORY", 2**14)
    config = small()
    for stage, (step, shapes) in compile.steps(config).items():
        name, *numbers, room, fits, whole, largest = compile.row(config, stage, step, shapes, jax.devices()[0])
        assert (name, room, fits, whole) == (stage, "?", "?", "0")
        assert len(numbers) == 4
        assert 0 < float(largest) < min(compile.of_all_logits(config, stage)) / 1e6


def test_a_chip_that_is_not_to_be_had_is_told_in_one_line(monkeypatch):
    with pytest.raises(ValueError, match=r"--topology=v99:1x1|libtpu") as error:
        ahead.chips("v99:1x1")
    assert "\n" not in str(error.value)
    monkeypatch.setattr(ahead.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"libtpu, .* is not installed: pip install"):
        ahead.chips("v5e:1x1")
