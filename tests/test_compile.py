"""Steps compiled for absent TPUs; at a large vocabulary none makes an array of all logits."""

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
from jaxdiv.runs.specs import RunSpec
from jaxdiv.training import sharding
from tests import runs
from tests.test_fused import equations

ALONE = sharding.single_device_mesh()
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the extra [tpu]"
)


def small(**changes):
    """A run whose sizes share no factor that could make another array as large as logits."""
    config = smoke.get_config()
    sizes = {"student.batch_size": 3, "teacher.batch_size": 3, "data.sequence_length": 21}
    vocabulary = {"data.vocabulary": 500, "teacher.padded_vocabulary": 509}
    config.update_from_flattened_dict(sizes | changes | vocabulary)
    return RunSpec.from_config(config.to_dict())


def build(spec, name):
    return steps.build(spec, ALONE, [name])[name]


def array_sizes(step):
    """The numbers of elements of all arrays that a step makes."""
    traced = equations(jax.make_jaxpr(step.run)(*step.shapes).jaxpr)
    outputs = [out for equation in traced for out in equation.outvars]
    return {math.prod(getattr(out.aval, "shape", ())) for out in outputs}


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("student", {}),
        ("student", {"student.kind": "decoder"}),
        ("student", {"student.vocabulary": 403, "losses": "kl,tv"}),
        ("student", {"data.context": "student"}),
        ("teacher", {}),
    ],
    ids=str,
)
def test_no_array_of_all_logits(monkeypatch, stage, changes):
    spec = small(**changes)
    step = build(spec, stage)
    logits = steps.logits_sizes(spec, step, ALONE)
    assert array_sizes(step) & logits, "small ones are made, and would be seen"
    monkeypatch.setattr(chunks, "LEAST_MEMORY", 2**14)
    monkeypatch.setattr(chunks, "LEAST_TOKENS", 8)
    assert not array_sizes(build(spec, stage)) & logits


def test_the_large_vocabulary_is_cut_into_chunks():
    spec = RunSpec.from_config(large_vocab.get_config().to_dict())
    for step in steps.build(spec, ALONE, ["student", "teacher"]).values():
        assert 4 * min(steps.logits_sizes(spec, step, ALONE)) > chunks.LEAST_MEMORY


@pytest.mark.parametrize(("memory", "together"), [(2**26, False), (2**14, True)])
def test_all_losses_share_one_call_in_one_type(monkeypatch, memory, together):
    monkeypatch.setattr(chunks, "LEAST_MEMORY", memory)
    real, calls = jaxdiv.linear_divergences, set()

    def spy(losses, features, heads, *teacher, **options):
        kinds = {str(x.dtype) for x in (*features, *heads, *(x for x in teacher if x is not None))}
        calls.add((tuple(loss.text for loss in losses), frozenset(kinds)))
        return real(losses, features, heads, *teacher, **options)

    monkeypatch.setattr(jaxdiv, "linear_divergences", spy)
    spec = small(**{"student.kind": "decoder", "dtype": "bfloat16"})
    step = build(spec, "student")
    jax.make_jaxpr(step.run)(*step.shapes)
    losses, half = tuple(loss.text for loss in spec.losses), frozenset(["bfloat16"])
    # The teacher's dense logits are float32.
    apart = {((loss,), half | {"float32"}) for loss in losses}
    assert calls == ({(losses, half)} if together else apart)


def slice_of(hbm, sizes=(1,), kind="v5e"):
    """A slice as if this machine's device were a TPU with so many GB."""
    return aot.Slice(dataclasses.replace(aot.CHIPS[kind], hbm=hbm), sizes, jax.devices()[:1])


def test_a_compiled_step_has_rows_and_a_record(monkeypatch):
    monkeypatch.setattr(chunks, "LEAST_MEMORY", 2**14)
    monkeypatch.setattr(chunks, "LEAST_TOKENS", 8)
    spec = small()
    step = build(spec, "student")
    compiled, logits = (
        compile.compile_step(spec, step, ALONE),
        steps.logits_sizes(spec, step, ALONE),
    )
    for most, verdict in ((1e-9, "no"), (1e9, "yes")):
        tpu = slice_of(most)
        label, *parts, room, fits, whole, largest = compile.memory_row("x", compiled, tpu)
        assert (label, room, fits, whole) == ("x", str(most), verdict, "no")
        assert compile.fits(compiled, tpu) == (verdict == "yes")
        assert len(parts) == 4
        assert 0 < float(largest) < min(logits) / 1e6
    label, *amounts, collectives, least, products, memory, links, speed = compile.costs_row(
        "x", step, compiled, tpu
    )
    assert (label, collectives, links) == ("x", "none", "0%")
    assert "100%" in (products, memory)
    # A loop of training without a known end would have a ≥ here.
    assert all(float(number) > 0 for number in (*amounts, least))
    assert float(speed) == pytest.approx(step.predictions / 1e3 / float(least), rel=0.02)
    record = compile.record(step, compiled, tpu)
    expected = {"fits": True, "hbm": 1e18, "predictions": 3 * 21}
    assert record == expected | {
        "memory": compiled.memory.total,
        "seconds": tpu.least_seconds(compiled.costs),
    }
    assert set(record["seconds"]) == set(tpu_table.BOUND)
    # The same step, as if XLA had refused it.
    assert compile.memory_row("x", None, tpu) == ["x", *[""] * 4, str(most), "no", "", ""]
    assert compile.record(step, None, tpu) == expected | {"fits": False}


def test_steps_are_chosen_by_name():
    config = smoke.get_config().to_dict()
    chosen = ["evaluate_teacher", "student"]
    spec = RunSpec.from_config(config)
    assert list(steps.build(spec, ALONE, chosen)) == chosen
    assert list(compile.choose([], steps.names(spec))) == list(steps.NAMES)
    config["teacher"]["checkpoint"] = "runs/other"
    names = [name for name in steps.NAMES if name != "teacher"]
    assert list(steps.names(RunSpec.from_config(config))) == names, (
        "a pretrained teacher is not trained"
    )
    message = f"--steps=student,teacher: .* 'teacher'; known: {', '.join(names)}$"
    with pytest.raises(ValueError, match=message):
        compile.choose(["student", "teacher"], names)


def products(config, model, length):
    """Operations of a token's products in a layer of attention to `length` tokens, MLP included."""
    width, sizes = config["teacher"]["width"], config[model]
    by_head = width // sizes["heads"] * sizes["kv_heads"]
    mlp = 2 * 3 * width * config["teacher"]["mlp_width"] if model == "teacher" else 0
    return 2 * 2 * width * (width + by_head) + 2 * 2 * width * length + mlp


def test_costs_of_evaluation_and_decoding():
    config = smoke.get_config().to_dict()
    spec, names = RunSpec.from_config(config), ("evaluate_teacher", "evaluate_students", "decode")
    uncompiled = steps.build(spec, ALONE, names)
    costs = {name: compile.compile_step(spec, uncompiled[name], ALONE).costs for name in names}
    layers, width, settings = spec.teacher.depth, spec.teacher.width, spec.evaluation
    head, length = 2 * width * spec.data.vocabulary, spec.data.sequence_length
    tokens = uncompiled["evaluate_teacher"].predictions
    assert tokens % length == uncompiled["evaluate_students"].predictions - tokens == 0
    teacher_pass = layers * products(config, "teacher", length) + head
    assert costs["evaluate_teacher"].flops == tokens * teacher_pass
    student_pass = products(config, "student", length) + head
    assert costs["evaluate_students"].flops == tokens * config["seeds"] * student_pass
    # A round: the student reads each of the drafts and the token before them, but makes no logits
    # of the last, nor more than its keys and values; the teacher's other layers read all at once.
    slots = settings.prompt_tokens + settings.generated_tokens + steps.GAMMA
    adapter = products(config, "student", slots)
    reading = layers * products(config, "teacher", slots) + adapter
    unread = adapter - products(config, "student", 0) + 2 * width**2
    round_of_one = (steps.GAMMA + 1) * (reading + head) + steps.GAMMA * head - unread
    query = 2 * width**2  # computed with keys and values or not at all
    assert costs["decode"].flops / settings.documents in (round_of_one, round_of_one - query)
    assert costs["decode"].bounded == 1


@pytest.mark.parametrize(
    ("kind", "sizes", "links"),
    [
        *[("v5e", (1, 1), 0), ("v5e", (2, 4), 2), ("v5e", (8, 16), 3), ("v6e", (16, 16), 4)],
        *[("v4", (2, 2, 1), 2), ("v5p", (2, 2, 4), 3), ("v5p", (4, 4, 8), 6)],
    ],
)
def test_an_axis_has_two_links_if_it_is_a_ring(kind, sizes, links):
    assert slice_of(16, sizes, kind).interconnect == links * aot.CHIPS[kind].link


def test_the_least_time_is_each_parts_amount_over_its_rate():
    sent = {"all-gather": cost_model.Collective(1, 9e9, 9e9)}
    costs = cost_model.Costs(flops=197e12, traffic=2 * 8.19e11, collectives=sent)
    least = slice_of(16, sizes=(2, 4)).least_seconds(costs)
    assert least == {"products": 1, "memory": 2, "links": 9e9 / (2 * 4.5e10)}


def test_memory_that_an_output_takes_over_counts_once():
    program = jax.jit(lambda x: x + 1, donate_argnums=0).lower(jnp.zeros(1000)).compile()
    memory = aot.Memory.of(program)
    assert memory.arguments == memory.outputs == 4000
    assert memory.total == 4000 + memory.temporaries


def test_unknown_slices_are_refused(monkeypatch):
    before = dict(jax.config.values)
    monkeypatch.setattr(aot.importlib.util, "find_spec", lambda name: True)
    for topology in ("v99:1x1", "v5e", "v5e:2xx2"):
        message = r"--topology must look like v5e:2x2, of v4, .*, got '" + topology
        with pytest.raises(ValueError, match=message) as error:
            aot.describe_slice(topology)
        assert "\n" not in str(error.value)
    monkeypatch.setattr(aot.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"libtpu, .* is not installed: pip install"):
        aot.describe_slice("v5e:2x2")
    assert dict(jax.config.values) == before


CELLS = [
    tpu_table.SliceCell("configs/x.py", f"v5e:{sizes}", fsdp, 2)
    for sizes, fsdp in (("2x4", 8), ("16x16", 16))
]


def recorded(chips, seconds, **changes):
    step = {"fits": True, "hbm": 16 * 10**9, "predictions": 2 * 64 * chips, "memory": 7.5e9}
    return {"steps": {"student": step | {"seconds": seconds} | changes}}


def shown(*entries):
    """The table of a record of each of CELLS: its rows' cells, and the lines after it."""
    cells = {cell.command: each for cell, each in zip(CELLS, entries, strict=True) if each}
    text = tpu_table.table({"versions": {"jax": "1.2", "libtpu": "3.4"}, "cells": cells}, CELLS)
    assert text.startswith("jax 1.2, libtpu 3.4\n\n| config |")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) == len(CELLS)
    return rows, text.rpartition("|")[2].split("\n")[2:]


def test_the_table_shows_bounds_and_scaling():
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
    rows, after = shown(full, {"error": "exit code -9: no message"})
    assert rows[0][5] == "no"
    assert not "".join(rows[0][8:]).strip()
    assert rows[1][5] == "not compiled"
    assert after == [f"Not compiled: `{CELLS[1].command}`: exit code -9: no message"]
    assert shown(None, None)[0][0][5] == "not compiled"


def test_the_table_continues_from_its_records(tmp_path, monkeypatch):
    def compiled(cell):
        calls.append(cell)
        return {"steps": cell.topology}

    calls, file = [], tmp_path / "records.json"
    monkeypatch.setattr(tpu_table, "versions", lambda: {"jax": "1"})
    monkeypatch.setattr(tpu_table, "compiled", compiled)
    for cells in (CELLS[:1], CELLS, CELLS):
        records = tpu_table.complete(file, cells)
    assert calls == CELLS
    assert records["cells"] == {cell.command: {"steps": cell.topology} for cell in CELLS}
    monkeypatch.setattr(tpu_table, "versions", lambda: {"jax": "2"})
    tpu_table.complete(file, CELLS[:1])
    assert calls[2:] == CELLS[:1], "other versions may plan otherwise"


@needs_libtpu
def test_a_config_is_compiled_for_a_tpu():
    # In a process of its own, since a TPU's compiler takes over the whole process.
    done = runs.run("compile", runs.SMOKE, "--config.losses=kl", "--topology=v5e:2x2")
    assert (done.returncode, done.stderr) == (0, "")
    for step in steps.names(RunSpec.from_config(smoke.get_config().to_dict())):
        cells = [line.split("│") for line in done.stdout.splitlines() if f"│ {step} " in line]
        assert len(cells) == 2, "a row of memory and one of costs"
        assert cells[0][7].strip() == "yes"
        assert float(cells[1][2]) > 0
        assert "100%" in [cell.strip() for cell in cells[1]]
    assert max(map(len, done.stdout.splitlines())) <= 120


@needs_libtpu
def test_a_mesh_that_a_slice_cannot_have_is_refused():
    done = runs.run("compile", runs.SMOKE, "--topology=v6e:4x4", "--config.mesh.fsdp=8")
    runs.check_refusal(done, "`config.mesh` is ", "fsdp 8", "product of axes of the TPU slice")
