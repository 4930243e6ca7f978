"""Training at a large vocabulary: its steps hold no array of all tokens' logits, and are compiled
without being run."""

import dataclasses
import importlib.util
import math

import jax
import jax.numpy as jnp
import pytest

import jaxdiv
from configs import large_vocab, smoke
from experiments import compile
from experiments.benchmarks import tpu_table
from experiments.tpu import aot, cost_model, steps
from jaxdiv.fused import chunks
from jaxdiv.runs import sharding
from tests import runs
from tests.test_fused import equations

ALONE = sharding.alone()
STAGES = ("student", "teacher")


def small(**changes):
    """A config whose sizes share no factor that could make another array as large as logits."""
    config = smoke.get_config()
    changes = {
        "student.batch_size": 3,
        "teacher.batch_size": 3,
        "data.sequence_length": 21,
    } | changes
    changes |= {"data.vocabulary": 500, "teacher.padded_vocabulary": 509}
    config.update_from_flattened_dict(changes)
    return config.to_dict()


def made(config, stage):
    """How many elements the arrays of the stage's step have."""
    step = steps.build(config, ALONE)[stage]
    made = equations(jax.make_jaxpr(step.run)(*step.shapes).jaxpr)
    return {
        math.prod(getattr(out.aval, "shape", ())) for equation in made for out in equation.outvars
    }


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    "changes", [{}, {"student.kind": "decoder"}, {"data.context": "student"}], ids=str
)
def test_no_step_makes_the_logits_of_all_tokens(monkeypatch, stage, changes):
    config = small(**changes)
    logits = steps.logits_sizes(config, steps.build(config, ALONE)[stage], ALONE)
    assert made(config, stage) & logits, "small ones are made, and would be seen"
    monkeypatch.setattr(chunks, "LEAST_MEMORY", 2**14)
    assert not made(config, stage) & logits


def test_the_large_vocabulary_is_beyond_what_is_made_at_once():
    config = large_vocab.get_config().to_dict()
    known = steps.build(config, ALONE)
    for stage in STAGES:
        assert 4 * min(steps.logits_sizes(config, known[stage], ALONE)) > chunks.LEAST_MEMORY


@pytest.mark.parametrize(("memory", "together"), [(2**26, False), (2**14, True)])
def test_all_losses_share_one_call_beyond_what_is_made_at_once_in_one_type(
    monkeypatch, memory, together
):
    monkeypatch.setattr(chunks, "LEAST_MEMORY", memory)
    real, calls = jaxdiv.linear_divergences, set()

    def spy(losses, features, heads, *teacher, **options):
        kinds = {str(x.dtype) for x in (*features, *heads, *(x for x in teacher if x is not None))}
        calls.add((tuple(loss.text for loss in losses), frozenset(kinds)))
        return real(losses, features, heads, *teacher, **options)

    monkeypatch.setattr(jaxdiv, "linear_divergences", spy)
    config = small(**{"student.kind": "decoder", "dtype": "bfloat16"})
    step = steps.build(config, ALONE)["student"]
    jax.make_jaxpr(step.run)(*step.shapes)
    losses, half = jaxdiv.split(config["losses"]), frozenset(["bfloat16"])
    # The teacher's dense logits are float32.
    apart = {((loss,), half | {"float32"}) for loss in losses}
    assert calls == ({(losses, half)} if together else apart)


def slice_of(hbm, sizes=(1,), kind="v5e"):
    """As if this machine's device were a TPU with so many GB."""
    return aot.Slice(dataclasses.replace(aot.CHIPS[kind], hbm=hbm), sizes, jax.devices()[:1])


def test_rows_tell_what_a_compiled_step_takes(monkeypatch):
    monkeypatch.setattr(chunks, "LEAST_MEMORY", 2**14)
    config = small()
    known = steps.build(config, ALONE)
    for name, most, verdict in (("student", 1e-9, "no"), ("teacher", 1e9, "yes")):
        step, place = known[name], slice_of(most)
        plan = compile.compile_step(config, step, ALONE)
        told, *parts, room, fits, whole, largest = compile.memory_row(name, plan, place)
        assert (told, room, fits, whole) == (name, str(most), verdict, "no")
        assert compile.fits(plan, place) == (verdict == "yes")
        assert len(parts) == 4
        assert 0 < float(largest) < min(steps.logits_sizes(config, step, ALONE)) / 1e6
        told, *amounts, collectives, least, products, memory, links, speed = compile.costs_row(
            name, step, plan, place
        )
        assert (told, collectives, links) == (name, "none", "0%")
        assert "100%" in (products, memory)
        assert all(float(number) > 0 for number in (*amounts, least)), (
            "no loop of training is without an end"
        )
        assert float(speed) == pytest.approx(step.predictions / 1e3 / float(least), rel=0.02)


def test_a_step_that_does_not_fit_has_a_row():
    row = compile.memory_row("student", None, slice_of(16))
    assert row == ["student", "", "", "", "", "16", "no", "", ""]
    assert len(row) == len(compile.memory_row("student", PLAN, slice_of(16)))


def test_steps_are_chosen_by_name():
    config = smoke.get_config().to_dict()
    assert list(steps.build(config, ALONE, ["evaluate_teacher", "student"])) == [
        "evaluate_teacher",
        "student",
    ]
    assert list(compile.choose([], steps.names(config))) == list(steps.NAMES)
    config["teacher"]["checkpoint"] = "runs/other"
    known = [name for name in steps.NAMES if name != "teacher"]
    assert list(steps.names(config)) == known, "it is not trained"
    with pytest.raises(
        ValueError, match=f"--steps=student,teacher: .* 'teacher'; known: {', '.join(known)}$"
    ):
        compile.choose(["student", "teacher"], known)


PLAN = compile.CompiledStep(aot.Memory(1, 2, 3, 6), cost_model.Costs(), has_logits=True, largest=7)


def products(config, *, of, length):
    """Operations of a token's products in a layer of attention to `length` tokens, without or with
    what follows it."""
    width, heads, kv_heads = config["teacher"]["width"], config[of]["heads"], config[of]["kv_heads"]
    projections = 2 * 2 * width * width + 2 * 2 * width * (width // heads) * kv_heads
    return (
        projections
        + 2 * 2 * width * length
        + (2 * 3 * width * config["teacher"]["mlp_width"] if of == "teacher" else 0)
    )


def test_evaluation_and_decoding_cost_what_their_models_do():
    config = smoke.get_config().to_dict()
    known, teacher = steps.build(config, ALONE), config["teacher"]
    layers, seeds = teacher["depth"], config["seeds"]
    head, length = (
        2 * teacher["width"] * config["data"]["vocabulary"],
        config["data"]["sequence_length"],
    )
    found = {
        name: compile.compile_step(config, known[name], ALONE).costs
        for name in set(known) - set(STAGES)
    }
    tokens = known["evaluate_teacher"].predictions
    assert tokens % length == known["evaluate_students"].predictions - tokens == 0
    teacher_pass = layers * products(config, of="teacher", length=length) + head
    assert found["evaluate_teacher"].flops == tokens * teacher_pass
    student_pass = products(config, of="student", length=length) + head
    assert found["evaluate_students"].flops == tokens * seeds * student_pass
    # A round: the student reads each of the drafts and the token before them, but makes no logits
    # of the last, nor more than its keys and values; the teacher's other layers read all at once.
    drafts, how = steps.GAMMA, config["evaluation"]
    slots = how["prompt_tokens"] + how["generated_tokens"] + drafts
    adapter = products(config, of="student", length=slots)
    reading = layers * products(config, of="teacher", length=slots) + adapter
    unread = adapter - products(config, of="student", length=0) + 2 * teacher["width"] ** 2
    round_of_one = (drafts + 1) * (reading + head) + drafts * head - unread
    query = 2 * teacher["width"] ** 2  # computed with keys and values or not at all
    assert found["decode"].flops / how["documents"] in (round_of_one, round_of_one - query)
    assert found["decode"].bounded == 1


@pytest.mark.parametrize(
    ("kind", "sizes", "links"),
    [
        *[("v5e", (1, 1), 0), ("v5e", (2, 4), 2), ("v5e", (8, 16), 3), ("v6e", (16, 16), 4)],
        *[("v4", (2, 2, 1), 2), ("v5p", (2, 2, 4), 3), ("v5p", (4, 4, 8), 6)],
    ],
)
def test_an_axis_has_two_links_if_it_is_a_ring(kind, sizes, links):
    chip = aot.CHIPS[kind]
    assert chip.interconnect(sizes) == links * chip.link


def test_the_least_time_is_the_longest_of_three():
    place, sent = slice_of(16, sizes=(2, 4)), {"all-gather": cost_model.Collective(1, 9e9, 9e9)}
    least = aot.Roofline.of(
        cost_model.Costs(flops=197e12, traffic=2 * 8.19e11, collectives=sent), place
    )
    assert (least.products, least.memory) == (1, 2)
    assert least.links == 9e9 / (2 * 4.5e10)
    assert least.seconds == 2


def test_memory_that_an_output_takes_over_counts_once():
    program = jax.jit(lambda x: x + 1, donate_argnums=0).lower(jnp.zeros(1000)).compile()
    memory = aot.Memory.of(program)
    assert memory.arguments == memory.outputs == 4000
    assert memory.total == 4000 + memory.temporaries


@pytest.mark.parametrize("topology", ["v99:1x1", "v5e", "v5e:2xx2"])
def test_a_chip_that_is_not_to_be_had_is_told_in_one_line(monkeypatch, topology):
    before = dict(jax.config.values)
    monkeypatch.setattr(aot.importlib.util, "find_spec", lambda name: True)
    with pytest.raises(
        ValueError, match=r"--topology must look like v5e:2x2, of v4, .*, got '" + topology
    ) as error:
        aot.describe_slice(topology)
    assert "\n" not in str(error.value)
    monkeypatch.setattr(aot.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"libtpu, .* is not installed: pip install"):
        aot.describe_slice(topology)
    assert dict(jax.config.values) == before


def test_what_is_recorded_is_what_was_planned():
    step, place = steps.UncompiledStep(None, (), 1024), slice_of(16)
    found = compile.record(step, PLAN, place)
    assert (found["fits"], found["memory"], found["hbm"], found["predictions"]) == (
        True,
        6,
        16e9,
        1024,
    )
    assert set(found["seconds"]) == set(tpu_table.BOUND)
    lacks = compile.record(step, None, place)
    assert not lacks["fits"]
    assert not set(lacks) & {"memory", "seconds"}


CELLS = [
    tpu_table.Cell("configs/x.py", f"v5e:{sizes}", fsdp, 2)
    for sizes, fsdp in (("2x4", 8), ("16x16", 16))
]


def recorded(chips, seconds, **changes):
    step = {
        "fits": True,
        "hbm": 16 * 10**9,
        "predictions": 2 * 64 * chips,
        "memory": 7.5e9,
        "seconds": seconds,
    }
    return {"steps": {"student": step | changes}}


def shown(*found):
    """The table of what is recorded of each of CELLS: its rows' cells, and the lines after it."""
    cells = {cell.command: each for cell, each in zip(CELLS, found, strict=True) if each}
    text = tpu_table.table({"versions": {"jax": "1.2", "libtpu": "3.4"}, "cells": cells}, CELLS)
    assert text.startswith("jax 1.2, libtpu 3.4\n\n| config |")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) == len(CELLS)
    return rows, text.rpartition("|")[2].split("\n")[2:]


def test_the_table_shows_what_bounds_a_step_and_what_more_chips_bring():
    few = recorded(8, {"products": 0.5, "memory": 0.25, "links": 0.125})
    many = recorded(256, {"products": 0.5, "memory": 0.25, "links": 1.0})
    rows, after = shown(few, many)
    assert rows[0][:6] == ["`x`", "`v5e:2x4`", "8", "1 × 8", "2, 128", "yes"]
    assert rows[0][6:] == ["7.50", "16", "500", "2", "0.256", "products", "100%", "50%", "25%"]
    assert rows[1][2:4] == ["256", "16 × 16"]
    assert rows[1][-4:] == ["links", "50%", "25%", "100%"]
    assert after == ["`x`, v5e: from 8 to 256 chips × 16.0 tokens/s."]


def test_the_table_guesses_nothing():
    full = recorded(8, None, fits=False)
    for key in ("memory", "seconds"):
        del full["steps"]["student"][key]
    rows, after = shown(full, {"error": "exit code -9: nothing said"})
    assert rows[0][5] == "no"
    assert not "".join(rows[0][8:]).strip()
    assert rows[1][5] == "not compiled"
    assert after == [f"Not compiled: `{CELLS[1].command}`: exit code -9: nothing said"]
    assert shown(None, None)[0][0][5] == "not compiled"


def test_the_table_goes_on_from_what_is_recorded(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(tpu_table, "versions", lambda: {"jax": "1"})
    monkeypatch.setattr(
        tpu_table, "compiled", lambda cell: calls.append(cell) or {"steps": cell.topology}
    )
    for cells in (CELLS[:1], CELLS, CELLS):
        held = tpu_table.complete(tmp_path / "records.json", cells)
    assert calls == CELLS
    assert held["cells"] == {cell.command: {"steps": cell.topology} for cell in CELLS}
    monkeypatch.setattr(tpu_table, "versions", lambda: {"jax": "2"})
    tpu_table.complete(tmp_path / "records.json", CELLS[:1])
    assert calls[2:] == CELLS[:1], "other versions may plan otherwise"


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the extra [tpu]")
def test_a_config_is_compiled_for_a_tpu():
    """In a process of its own: a TPU's compiler is for all of a process."""
    done = runs.run("compile", runs.SMOKE, "--config.losses=kl", "--topology=v5e:2x2")
    assert (done.returncode, done.stderr) == (0, "")
    for step in steps.build(smoke.get_config().to_dict(), ALONE):
        cells = [line.split("│") for line in done.stdout.splitlines() if f"│ {step} " in line]
        assert len(cells) == 2, "a row of memory and one of costs"
        assert cells[0][7].strip() == "yes"
        assert float(cells[1][2]) > 0
        assert "100%" in [cell.strip() for cell in cells[1]]
    assert max(map(len, done.stdout.splitlines())) <= 120


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the extra [tpu]")
def test_a_mesh_that_a_slice_can_not_have_is_refused():
    done = runs.run("compile", runs.SMOKE, "--topology=v6e:4x4", "--config.mesh.fsdp=8")
    runs.check_refusal(done, "`config.mesh` is ", "fsdp 8", "product of axes of the TPU slice")
