"""The audit: silent on every right loss, and it names planted mistakes, which share no code with
it."""

import pathlib
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdiv
from experiments.common import cli
from jaxdiv import reductions
from jaxdiv.audit import CODES, MISTAKE, Audit, audit, menu, numpy_loss, torch_loss
from jaxdiv.audit.forms import FORMS
from jaxdiv.audit.inputs import random_rows
from jaxdiv.audit.menu import Candidate, candidates, values
from jaxdiv.divergences.registry import ENTRIES
from tests import audit_mistakes, runs
from tests.audit_mistakes import PLANTED

TEMPERATURES = (1.0, 2.0, 4.0)
REDUCTIONS = ("none", "sum", "token mean", "sequence mean")
stop = jax.lax.stop_gradient


def right(text, temperature, reduction):
    """A loss of the menu under a right reduction."""
    loss = jaxdiv.get(text)

    def none(student, teacher, labels):
        return loss(student, teacher, labels=labels, temperature=temperature)

    def with_mask(student, teacher, labels, mask):
        rows = none(student, teacher, labels)
        if reduction == "token mean":
            return reductions.token_mean(rows, mask)
        return jnp.mean(jnp.sum(rows * mask, -1) / jnp.sum(mask, -1))

    def summed(student, teacher, labels):
        return jnp.sum(none(student, teacher, labels))

    return {"none": none, "sum": summed}.get(reduction, with_mask)


def check_right(text, temperature, reduction):
    found = audit(right(text, temperature, reduction))
    assert not found.mistakes, str(found)
    assert found.divergence is not None, str(found)
    assert same_loss(found.divergence, text), str(found)
    assert found.scale == pytest.approx(1, rel=1e-3)
    assert found.reduction == reduction
    if jaxdiv.get(text).parts[0].entry.target == "logits":
        assert found.temperature == temperature


def same_loss(text, other):
    rows = random_rows(11)
    first, second = (
        jaxdiv.get(one)(rows.student, rows.teacher, labels=rows.labels) for one in (text, other)
    )
    return np.allclose(first, second, rtol=1e-4, atol=1e-5)


ALL = [
    (name, t, reduction)
    for name in jaxdiv.names()
    for t in TEMPERATURES
    for reduction in REDUCTIONS
]
# By default every third loss at one temperature under one reduction, all of which take turns.
SOME = [
    (name, TEMPERATURES[i % 3], REDUCTIONS[i % 4]) for i, name in enumerate(jaxdiv.names()[::3])
]


@pytest.mark.parametrize(("name", "temperature", "reduction"), SOME)
def test_no_mistake_in_the_menu(name, temperature, reduction):
    check_right(name, temperature, reduction)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "temperature", "reduction"), [case for case in ALL if case not in SOME]
)
def test_no_mistake_in_the_whole_menu(name, temperature, reduction):
    check_right(name, temperature, reduction)


@pytest.mark.parametrize(
    ("text", "temperature"),
    [
        ("0.7*kl + 0.3*tv", 1.0),
        ("0.5*ce_data + 0.5*kl", 4.0),
        ("jsd(beta=0.23)", 2.5),
        ("ce + 1e-4*z_loss", 1.0),
    ],
)
def test_names_sums_parameters_and_temperatures(text, temperature):
    check_right(text, temperature, "token mean")


# Peers


def _log_p(teacher):
    return jax.nn.log_softmax(stop(teacher))


PEERS = {
    "kl_divergence": (
        lambda s, t: jnp.mean(
            optax.losses.kl_divergence(jax.nn.log_softmax(s), jnp.exp(_log_p(t)))
        ),
        "kl",
    ),
    "kl_divergence_with_log_targets": (
        lambda s, t: jnp.sum(
            optax.losses.kl_divergence_with_log_targets(jax.nn.log_softmax(s), _log_p(t))
        ),
        "kl",
    ),
    "softmax_cross_entropy": (
        lambda s, t: optax.losses.softmax_cross_entropy(s, jnp.exp(_log_p(t))),
        "ce",
    ),
    "safe_softmax_cross_entropy": (
        lambda s, t: jnp.mean(optax.losses.safe_softmax_cross_entropy(s, jnp.exp(_log_p(t)))),
        "ce",
    ),
    "softmax_cross_entropy_with_integer_labels": (
        lambda logits, labels: jnp.mean(
            optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
        ),
        "ce_data",
    ),
}


@pytest.mark.parametrize("name", PEERS)
def test_no_mistake_in_optax(name):
    loss, text = PEERS[name]
    found = audit(loss)
    assert not found.mistakes, str(found)
    assert found.divergence == text


def _numpy_kl(student, teacher):
    student, teacher = (x - x.max(-1, keepdims=True) for x in (student, teacher))
    student -= np.log(np.exp(student).sum(-1, keepdims=True))
    teacher -= np.log(np.exp(teacher).sum(-1, keepdims=True))
    return (np.exp(teacher) * (teacher - student)).sum(-1).mean()


@pytest.mark.parametrize("adapter", [numpy_loss, lambda function: function])
def test_numpy_functions_and_what_can_not_be_seen_of_them(adapter):
    found = audit(adapter(_numpy_kl))
    assert not found.mistakes, str(found)
    assert found.divergence == "kl"
    assert "gradient_unseen" in codes(found.notes)


@pytest.mark.slow
def test_no_mistake_in_torch_and_its_planted_ones():
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional

    def kl(student, teacher, reduction, **options):
        given = functional.log_softmax(student, -1), functional.softmax(teacher.detach(), -1)
        return functional.kl_div(*given, reduction=reduction, **options)

    def flat(x):
        return x.reshape(-1, x.shape[-1])

    peers = {
        "kl": [
            lambda s, t: kl(s, t, "none").sum(-1).mean(),
            lambda s, t: kl(s, t, "sum"),
            lambda s, t: kl(s, t, "none"),
            lambda s, t: kl(flat(s), flat(t), "batchmean"),
            lambda s, t: 4 * kl(flat(s) / 2, flat(t) / 2, "batchmean"),
        ],
        "ce": [
            lambda s, t: functional.cross_entropy(flat(s), functional.softmax(flat(t).detach(), -1))
        ],
        "ce_data": [
            lambda logits, labels: functional.cross_entropy(flat(logits), labels.flatten())
        ],
    }
    for text, losses in peers.items():
        for loss in losses:
            found = audit(torch_loss(loss))
            assert not found.mistakes, str(found)
            assert found.divergence == text
    planted = {
        "batchmean": lambda s, t: kl(s, t, "batchmean"),
        "mean_over_vocabulary": lambda s, t: kl(s, t, "mean"),
        "swapped_arguments": lambda s, t: kl(t, s, "none").sum(-1).mean(),
        "log_softmax_missing": lambda s, t: functional.kl_div(
            s, functional.softmax(t.detach(), -1), reduction="sum"
        ),
    }
    for code, loss in planted.items():
        assert code in codes(audit(torch_loss(loss)).mistakes)


# How losses are called, and what is right in one way of calling them


def _kl(student, teacher):
    log_p = _log_p(teacher)
    return jnp.sum(jnp.exp(log_p) * (log_p - jax.nn.log_softmax(student)), -1)


def _shifting(logits, labels):
    return jnp.mean(
        optax.losses.softmax_cross_entropy_with_integer_labels(logits[:, :-1], labels[:, 1:])
    )


def _shifting_masked(logits, labels, mask):
    values = optax.losses.softmax_cross_entropy_with_integer_labels(logits[:, :-1], labels[:, 1:])
    return reductions.token_mean(values, mask[:, 1:])


def _shifting_beside_a_teacher(student, teacher, labels):
    return 0.5 * jnp.mean(_kl(student, teacher)) + 0.5 * _shifting(student, labels)


@pytest.mark.parametrize("loss", [_shifting, _shifting_masked, _shifting_beside_a_teacher])
def test_a_loss_may_shift_labels_itself(loss):
    found = audit(loss)
    assert not found.mistakes, str(found)
    assert "shifts_labels" in codes(found.notes)
    assert "ce_data" in found.divergence


def test_a_mask_of_tokens_stands_at_the_token_that_is_predicted():
    def loss(student, teacher, mask):
        return reductions.token_mean(_kl(student, teacher)[:, :-1], mask[:, 1:])

    found = audit(loss)
    assert not found.mistakes, str(found)
    assert "mask_of_next" in codes(found.notes)
    assert found.reduction == "token mean"


def _named_sides(*, student_logits, teacher_logits):
    return jnp.mean(_kl(student_logits, teacher_logits))


def _named_target(*, target, input):
    return jnp.mean(_kl(input, target))


def _named_labels(*, logits, labels):
    return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels))


def _named_teacher(logits, *, teacher_logits, temperature):
    return temperature**2 * jnp.mean(_kl(logits / temperature, teacher_logits / temperature))


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (_named_sides, "kl"),
        (_named_target, "kl"),
        (_named_labels, "ce_data"),
        (_named_teacher, "kl"),
    ],
)
def test_sides_passed_by_name(loss, text):
    found = audit(loss)
    assert not found.mistakes, str(found)
    assert found.divergence == text


def test_names_that_say_nothing_are_refused():
    def loss(*, a, b):
        return jnp.mean(_kl(a, b))

    found = audit(loss)
    assert codes(found.mistakes) == {"does_not_run"}
    assert "keyword-only (a, b)" in str(found)


# What is no divergence


NO_DIVERGENCE = {
    "difference": (lambda s, t: jnp.sum(s - t), {"not_least_at_equality", "teacher_not_detached"}),
    "norm": (lambda s, t: jnp.mean(s**2), {"shift_variant", "not_least_at_equality"}),
    "product": (lambda s, t: -jnp.mean(s * stop(t)), {"not_least_at_equality"}),
    "absolute": (lambda s, t: jnp.mean(jnp.abs(s - stop(t))), set()),
    "squared": (lambda s, t: jnp.mean((s - stop(t)) ** 2), set()),
    "a tenth of the absolute": (lambda s, t: 0.1 * jnp.mean(jnp.abs(s - stop(t))), set()),
    "huber": (lambda s, t: jnp.mean(optax.losses.huber_loss(s, stop(t))), set()),
}


@pytest.mark.parametrize("name", NO_DIVERGENCE)
def test_what_is_no_divergence_is_not_taken_for_one(name):
    loss, mistakes = NO_DIVERGENCE[name]
    found = audit(loss)
    assert (found.divergence, found.scale) == (None, None), str(found)
    assert codes(found.mistakes) == mistakes, str(found)
    assert codes(found.notes) & {"not_on_menu", "sides_apart"}, str(found)


def test_sorted_sides_are_not_compared_by_class():
    def loss(student, teacher):
        return jnp.mean(_kl(*(jax.lax.top_k(side, 4)[0] for side in (student, teacher))))

    found = audit(loss)
    assert found.divergence is None
    assert "classes_unmatched" in codes(found.notes)


# Planted mistakes


def codes(findings):
    return {finding.code for finding in findings}


def check_planted(name):
    loss, expected, meant = PLANTED[name]
    found = audit(loss)
    assert codes(found.mistakes) & expected, str(found)
    assert meant in (None, found.divergence), str(found)


def _some_planted():
    """One planted loss for every second set of codes; the others are slow tests."""
    seen = {}
    for name, (_, expected, _) in PLANTED.items():
        seen.setdefault(frozenset(expected), name)
    return list(seen.values())[::2]


@pytest.mark.parametrize("name", _some_planted())
def test_finds_planted(name):
    check_planted(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PLANTED if name not in _some_planted()])
def test_finds_all_planted(name):
    check_planted(name)


def test_at_least_twenty_kinds_are_planted():
    assert len(set().union(*(expected for _, expected, _ in PLANTED.values()))) >= 30
    source = pathlib.Path(audit_mistakes.__file__).read_text(encoding="utf-8")
    assert not re.search(r"^\s*(import|from) jaxdiv", source, flags=re.MULTILINE)


# Two mistakes at once, and what its author means


def test_finds_two_mistakes_at_once():
    def loss(student, teacher):
        p, q = jax.nn.softmax(teacher / 3), jax.nn.log_softmax(jax.nn.softmax(student / 3))
        return -jnp.mean(p * q)

    assert {"double_softmax", "teacher_not_detached", "temperature_factor"} <= codes(
        audit(loss).mistakes
    )


def test_compares_with_what_is_expected():
    loss = right("rkl", 1.0, "none")
    assert not audit(loss, expected="rkl").mistakes
    assert "direction" in codes(audit(loss, expected="kl").mistakes)
    assert "other_divergence" in codes(audit(loss, expected="tv").mistakes)


def test_a_name_that_says_another_loss_is_noted():
    def forward_kl_loss(student, teacher):
        return jaxdiv.reverse_kl(student, teacher)

    assert "name_disagrees" in codes(audit(forward_kl_loss).notes)


def test_an_unknown_loss_is_unknown():
    def fourth_power(student, teacher):
        p, q = jax.nn.softmax(stop(teacher)), jax.nn.softmax(student)
        return jnp.mean(jnp.sum((p - q) ** 4, -1))

    found = audit(fourth_power)
    assert found.divergence is None
    assert found.scale is None
    assert "unidentified" in codes(found.notes)
    assert not found.mistakes, str(found)


def test_a_weight_of_the_whole_batch_is_noted():
    def loss(student, teacher):
        kl, tv = jaxdiv.forward_kl(student, teacher), jaxdiv.total_variation(student, teacher)
        weight = jnp.exp(-3 * (1 - jnp.mean(stop(tv))))
        return jnp.mean(weight * kl + (1 - weight) * tv)

    found = audit(loss)
    assert not found.mistakes, str(found)
    assert found.divergence == "lk_hybrid"
    assert "batch_weight" in codes(found.notes)


# The result, and refusals


def test_report_and_fields():
    found = audit(PLANTED["mean over V"][0])
    assert isinstance(found, Audit)
    shown = found.mistakes[0]
    assert (shown.code, shown.severity) == ("mean_over_vocabulary", MISTAKE)
    assert shown.evidence.input
    assert shown.evidence.expected
    assert shown.evidence.got
    report = str(found)
    assert "1 mistake found" in report
    assert "MISTAKE mean_over_vocabulary" in report
    assert max(map(len, report.splitlines())) <= 110


def test_a_loss_that_fails_is_a_finding():
    def broken(student, teacher):
        raise RuntimeError("no such thing")

    found = audit(broken)
    assert codes(found.mistakes) == {"does_not_run"}
    assert "no such thing" in str(found)


def test_refusals():
    with pytest.raises(ValueError, match="`loss_fn` must be a function, got int"):
        audit(3)
    with pytest.raises(ValueError, match="`axes` must be BLV, NV or V, got 'VB'"):
        audit(_numpy_kl, axes="VB")
    with pytest.raises(ValueError, match="unknown loss `klx`"):
        audit(_numpy_kl, expected="klx")


@pytest.mark.parametrize(
    "candidate", [c for c in candidates(11, dense=False) if c.name in FORMS], ids=lambda c: c.text
)
def test_forms_are_the_registrys_functions(candidate):
    rows = random_rows(11)
    loss = jaxdiv.get(candidate.text)
    temperature = 1.0 if ENTRIES[candidate.name].parts else 2.0
    expected = loss(rows.student, rows.teacher, labels=rows.labels, temperature=temperature)
    got = values(candidate, rows, temperature) * temperature**candidate.power
    np.testing.assert_allclose(got, expected, rtol=2e-4, atol=1e-5)


def test_a_loss_without_a_form_is_evaluated_by_its_function(monkeypatch):
    monkeypatch.setattr(menu, "FORMS", {})
    rows = random_rows(11)
    got = values(Candidate("forward_kl"), rows, 2.0)
    np.testing.assert_allclose(
        got, jaxdiv.forward_kl(rows.student / 2, rows.teacher / 2), rtol=1e-5
    )


def test_every_code_is_made_somewhere():
    sources = "".join(
        path.read_text(encoding="utf-8")
        for path in (runs.ROOT / "jaxdiv" / "audit").glob("*.py")
        if path.name != "codes.py"
    )
    for code, (severity, message) in CODES.items():
        assert f'"{code}"' in sources, code
        assert severity in ("mistake", "note")
        assert message.endswith((".", "}")), code


# The binary


def write_losses(folder):
    (folder / "mine.py").write_text(
        "import jax, jax.numpy as jnp\n"
        "value = 3\n"
        "def attached(student, teacher):\n"
        "    p, log_p, log_q = (f(x) for f, x in ((jax.nn.softmax, teacher), (jax.nn.log_softmax, teacher),\n"
        "                                         (jax.nn.log_softmax, student)))\n"
        "    return jnp.mean(jnp.sum(p * (log_p - log_q), -1))\n",
        encoding="utf-8",
    )


def test_binary(tmp_path, monkeypatch):
    write_losses(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = runs.run("audit", "--loss=mine:attached", "--expected=kl")
    assert done.returncode == 1, done.stderr
    assert "MISTAKE teacher_not_detached" in done.stdout
    runs.check_refusal(
        runs.run("audit", "--loss=mine:detached"), "there is no `detached` in `mine`", "attached"
    )


def test_an_interrupted_audit_has_nothing_to_go_on_from(monkeypatch, capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "TRACEBACK", types.SimpleNamespace(value=True))
    monkeypatch.setattr(cli, "enable_compilation_cache", lambda: None)
    monkeypatch.setattr(
        cli, "_join_processes", lambda resumes: None
    )  # by flags, which nobody parsed
    for resumes in (False, True):
        with pytest.raises(SystemExit) as ended:
            cli._guarded(interrupted, ["audit"], resumes)
        assert ended.value.code == 130
        assert ("goes on" in capsys.readouterr().err) is resumes


@pytest.mark.slow
def test_binary_passes_and_refuses(tmp_path, monkeypatch):
    write_losses(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert runs.run("audit", "--loss=jaxdiv:forward_kl", "--expected=kl").returncode == 0
    for loss, told in {
        "yours:kl": "there is no module `yours`",
        "mine": "must be module:function",
        "mine:value": "must be a function, got int",
        "math:sqrt": "--loss=math:sqrt: it can't be called with logits",
    }.items():
        runs.check_refusal(runs.run("audit", f"--loss={loss}"), told)
