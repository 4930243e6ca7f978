"""The audit: silent on every right loss; it names planted mistakes, which share no code with it."""

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
from jaxdiv.audit import CODES, MISTAKE, Audit, audit, numpy_loss, torch_loss
from jaxdiv.audit.formulas import FORMULAS, plain_candidates
from jaxdiv.audit.formulas import right as right_family
from jaxdiv.audit.inputs import random_rows
from tests import audit_mistakes, runs, sources
from tests.audit_mistakes import PLANTED, kl, sides

TEMPERATURES = (1.0, 2.0, 4.0)
REDUCTIONS = ("none", "sum", "token mean", "sequence mean")
stop = jax.lax.stop_gradient
losses = optax.losses


def codes(findings):
    return {finding.code for finding in findings}


def check(loss, text=None, mistakes=(), notes=(), **options):
    """Audits a loss; `text` is its divergence, None where that doesn't matter."""
    report = audit(loss, **options)
    assert codes(report.mistakes) == set(mistakes), str(report)
    assert codes(report.notes) >= set(notes), str(report)
    assert text in (None, report.divergence), str(report)
    return report


# Right losses


def right(text, temperature, reduction):
    """Returns a loss of the registry under a right reduction."""
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
    report = check(right(text, temperature, reduction))
    rows = random_rows(11)
    first, second = (
        jaxdiv.get(one)(rows.student, rows.teacher, labels=rows.labels)
        for one in (report.divergence, text)
    )
    np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5, err_msg=str(report))
    assert report.scale == pytest.approx(1, rel=1e-3)
    assert report.reduction == reduction
    if jaxdiv.get(text).parts[0].entry.target == "logits":
        assert report.temperature == temperature


ALL = [(name, t, r) for name in jaxdiv.names() for t in TEMPERATURES for r in REDUCTIONS]
# By default every third loss at one temperature under one reduction, all of which take turns.
SOME = [
    (name, TEMPERATURES[i % 3], REDUCTIONS[i % 4]) for i, name in enumerate(jaxdiv.names()[::3])
]
SUMS = [
    ("0.7*kl + 0.3*tv", 1.0, "token mean"),
    ("0.5*ce_data + 0.5*kl", 4.0, "token mean"),
    ("jsd(beta=0.23)", 2.5, "token mean"),
    ("ce + 1e-4*z_loss", 1.0, "token mean"),
]


OTHERS = [pytest.param(*case, marks=pytest.mark.slow) for case in ALL if case not in SOME]


@pytest.mark.parametrize(("name", "temperature", "reduction"), SOME + SUMS + OTHERS)
def test_no_mistake_in_the_registry(name, temperature, reduction):
    check_right(name, temperature, reduction)


def _log_p(teacher):
    return jax.nn.log_softmax(stop(teacher))


def _cross_entropy(logits, labels):
    return losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def _numpy_kl(student, teacher):
    student, teacher = (x - x.max(-1, keepdims=True) for x in (student, teacher))
    student -= np.log(np.exp(student).sum(-1, keepdims=True))
    teacher -= np.log(np.exp(teacher).sum(-1, keepdims=True))
    return (np.exp(teacher) * (teacher - student)).sum(-1).mean()


def _optax_kl(student, teacher):
    return jnp.mean(losses.kl_divergence(jax.nn.log_softmax(student), jnp.exp(_log_p(teacher))))


def _optax_log_kl(student, teacher):
    logs = jax.nn.log_softmax(student), _log_p(teacher)
    return jnp.sum(losses.kl_divergence_with_log_targets(*logs))


PEERS = [
    (_optax_kl, "kl"),
    (_optax_log_kl, "kl"),
    (lambda s, t: losses.softmax_cross_entropy(s, jnp.exp(_log_p(t))), "ce"),
    (lambda s, t: jnp.mean(losses.safe_softmax_cross_entropy(s, jnp.exp(_log_p(t)))), "ce"),
    (lambda logits, labels: jnp.mean(_cross_entropy(logits, labels)), "ce_data"),
    (numpy_loss(_numpy_kl), "kl"),
    (_numpy_kl, "kl"),
]


@pytest.mark.parametrize(("loss", "text"), PEERS)
def test_no_mistake_in_peers(loss, text):
    report = check(loss, text)
    assert ("gradient_unseen" in codes(report.notes)) is ((loss, text) in PEERS[-2:])


@pytest.mark.slow
def test_no_mistake_in_torch_and_its_planted_ones():
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional

    def kl(student, teacher, reduction, **options):
        logs = functional.log_softmax(student, -1), functional.softmax(teacher.detach(), -1)
        return functional.kl_div(*logs, reduction=reduction, **options)

    def flat(x):
        return x.reshape(-1, x.shape[-1])

    def cross_entropy(student, teacher):
        return functional.cross_entropy(
            flat(student), functional.softmax(flat(teacher).detach(), -1)
        )

    def data(logits, labels):
        return functional.cross_entropy(flat(logits), labels.flatten())

    peers = {
        "kl": [
            lambda s, t: kl(s, t, "none").sum(-1).mean(),
            lambda s, t: kl(s, t, "sum"),
            lambda s, t: kl(s, t, "none"),
            lambda s, t: kl(flat(s), flat(t), "batchmean"),
            lambda s, t: 4 * kl(flat(s) / 2, flat(t) / 2, "batchmean"),
        ],
        "ce": [cross_entropy],
        "ce_data": [data],
    }
    for text, functions in peers.items():
        for loss in functions:
            check(torch_loss(loss), text)
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


def _entropy(logits):
    return -jnp.sum(jax.nn.softmax(logits) * jax.nn.log_softmax(logits), -1)


def _kl(student, teacher):
    return kl(*sides(student, teacher))


def _ignoring(logits, labels):
    valid = labels != -100
    values = _cross_entropy(logits, jnp.where(valid, labels, 0))
    return jnp.sum(jnp.where(valid, values, 0)) / jnp.sum(valid)


def _focal(student, teacher):
    values = _kl(student, teacher)
    return jnp.mean(stop(1 - jnp.exp(-values)) * values)


def _by_hybrid_of_batch(student, teacher):
    values, variation = _kl(student, teacher), jaxdiv.total_variation(student, teacher)
    weight = jnp.exp(-3 * (1 - jnp.mean(stop(variation))))
    return jnp.mean(weight * values + (1 - weight) * variation)


def _square(student, teacher):
    p, _, q, _ = sides(student, teacher)
    return (p - q) ** 2


def _gap(student, teacher):
    return jnp.abs(student - stop(teacher))


_unidentified = {
    "entropy": lambda s, t: jnp.mean(_kl(s, t) + 0.01 * _entropy(s)),
    "much entropy": lambda s, t: jnp.mean(_kl(s, t) - 0.3 * _entropy(s)),
    "norm": lambda s, t: jnp.mean(_kl(s, t) + 0.01 * jnp.sum(s**2, -1)),
    "detached weight": _focal,
    "class weights": lambda s, t: jnp.mean(_square(s, t) @ jnp.arange(1.0, 12)),
    "fourth power": lambda s, t: jnp.mean(jnp.sum(_square(s, t) ** 2, -1)),
}
_not_on_menu = {
    "Brier": lambda s, t: jnp.mean(jnp.sum(_square(s, t), -1)),
    "absolute": lambda s, t: jnp.mean(_gap(s, t)),
    "squared": lambda s, t: jnp.mean(_gap(s, t) ** 2),
    "squares": lambda s, t: jnp.mean(jnp.sum(_gap(s, t) ** 2, -1)),
    "tenth": lambda s, t: 0.1 * jnp.mean(_gap(s, t)),
    "huber": lambda s, t: jnp.mean(losses.huber_loss(s, stop(t))),
}


def _padded(student, teacher):
    return jnp.mean(jaxdiv.get("kl")(student, teacher, vocab_size=8))


def _sorted(student, teacher):
    return jnp.mean(_kl(*(jax.lax.top_k(side, 4)[0] for side in (student, teacher))))


NEVER_BLAMED = {  # name: (loss, divergence or "", codes of notes)
    **{name: (loss, "", {"unidentified"}) for name, loss in _unidentified.items()},
    **{name: (loss, "", {"not_on_menu"}) for name, loss in _not_on_menu.items()},
    "ignored labels": (_ignoring, "ce_data", set()),
    "padded vocabulary": (_padded, "kl", {"vocabulary_cut"}),
    "sorted": (_sorted, "", {"classes_unmatched"}),
    "batch weight": (_by_hybrid_of_batch, "lk_hybrid", {"batch_weight"}),
}


@pytest.mark.parametrize("name", NEVER_BLAMED)
def test_right_losses_are_never_blamed(name):
    loss, text, notes = NEVER_BLAMED[name]
    report = check(loss, text or None, notes=notes)
    if not text:
        assert (report.divergence, report.scale) == (None, None), str(report)


# How losses are called, and what is right in one way of calling them


def _shifting(logits, labels):
    return jnp.mean(_cross_entropy(logits[:, :-1], labels[:, 1:]))


def _shifting_masked(logits, labels, mask):
    return reductions.token_mean(_cross_entropy(logits[:, :-1], labels[:, 1:]), mask[:, 1:])


def _shifting_beside_a_teacher(student, teacher, labels):
    return 0.5 * jnp.mean(_kl(student, teacher)) + 0.5 * _shifting(student, labels)


@pytest.mark.parametrize("loss", [_shifting, _shifting_masked, _shifting_beside_a_teacher])
def test_a_loss_may_shift_labels_itself(loss):
    assert "ce_data" in check(loss, notes={"shifts_labels"}).divergence


def test_a_mask_of_tokens_stands_at_the_token_that_is_predicted():
    def loss(student, teacher, mask):
        return reductions.token_mean(_kl(student, teacher)[:, :-1], mask[:, 1:])

    assert check(loss, notes={"mask_of_next"}).reduction == "token mean"


def test_sides_passed_by_name():
    def by_sides(*, student_logits, teacher_logits):
        return jnp.mean(_kl(student_logits, teacher_logits))

    def by_target(*, target, input):
        return jnp.mean(_kl(input, target))

    def by_labels(*, logits, labels):
        return jnp.mean(_cross_entropy(logits, labels))

    def by_teacher(logits, *, teacher_logits, temperature):
        return temperature**2 * jnp.mean(_kl(logits / temperature, teacher_logits / temperature))

    for loss, text in {
        by_sides: "kl",
        by_target: "kl",
        by_labels: "ce_data",
        by_teacher: "kl",
    }.items():
        check(loss, text)
    report = check(lambda *, a, b: jnp.mean(_kl(a, b)), mistakes={"does_not_run"})
    assert "keyword-only (a, b)" in str(report)


# Planted mistakes


def test_losses_that_are_least_elsewhere():
    """A comparison of logits without a least value where both sides are equal."""
    least = "not_least_at_equality"
    difference = check(lambda s, t: jnp.sum(s - t), mistakes={least, "teacher_not_detached"})
    norm = check(lambda s, t: jnp.mean(s**2), mistakes={"shift_variant", least})
    product = check(lambda s, t: -jnp.mean(s * stop(t)), mistakes={least})
    for report in (difference, norm, product):
        assert (report.divergence, report.scale) == (None, None), str(report)
        assert codes(report.notes) & {"not_on_menu", "sides_apart"}, str(report)


# One planted loss for every second set of codes; the others are slow tests.
_FIRST = {frozenset(PLANTED[name][1]): name for name in reversed(PLANTED)}
SOME_PLANTED = [name for name in PLANTED if name in _FIRST.values()][::2]
OTHER_PLANTED = [name for name in PLANTED if name not in SOME_PLANTED]


@pytest.mark.parametrize(
    "name", SOME_PLANTED + [pytest.param(name, marks=pytest.mark.slow) for name in OTHER_PLANTED]
)
def test_finds_planted(name):
    loss, expected, intended = PLANTED[name]
    report = audit(loss)
    assert codes(report.mistakes) & expected, str(report)
    assert intended in (None, report.divergence), str(report)


def test_formulas_are_the_registrys_losses():
    rows = random_rows(11)
    assert set(FORMULAS) == set(jaxdiv.names())
    for plain in plain_candidates():
        for one in (plain, *plain.variants(11)[::4]):
            loss, family = jaxdiv.get(one.exact_text), right_family([one])
            expected = loss(rows.student, rows.teacher, labels=rows.labels, temperature=2.0)
            values = 2**one.power * family.columns(rows, np.full((2, 1), 2.0))[0, 0]
            np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-6, err_msg=one.text)


def test_at_least_thirty_kinds_are_planted():
    assert len(set().union(*(expected for _, expected, _ in PLANTED.values()))) >= 30
    source = pathlib.Path(audit_mistakes.__file__).read_text(encoding="utf-8")
    assert not re.search(r"^\s*(import|from) jaxdiv", source, flags=re.MULTILINE)


def test_finds_two_mistakes_at_once():
    def loss(student, teacher):
        p, q = jax.nn.softmax(teacher / 3), jax.nn.log_softmax(jax.nn.softmax(student / 3))
        return -jnp.mean(p * q)

    expected = {"double_softmax", "teacher_not_detached", "temperature_factor"}
    assert expected <= codes(audit(loss).mistakes)


def test_compares_with_what_is_expected():
    def forward_kl_loss(student, teacher):
        return jaxdiv.reverse_kl(student, teacher)

    check(forward_kl_loss, "rkl", notes={"name_disagrees"})
    check(forward_kl_loss, expected="rkl")
    check(forward_kl_loss, expected="kl", mistakes={"direction"})
    check(forward_kl_loss, expected="tv", mistakes={"other_divergence"})


def test_weights_of_a_part_that_is_expected_twice_add_up():
    loss = right("kl + 0.5*tv", 1.0, "token mean")
    check(loss, "kl + 0.5*tv", expected="0.5*kl+0.5*kl+0.5*tv")
    check(loss, expected="0.5*kl+0.5*kl+1.0*tv", mistakes={"other_divergence"})


# The result, and refusals


def test_report_and_fields():
    report = audit(PLANTED["mean over V kl"][0])
    assert isinstance(report, Audit)
    shown = report.mistakes[0]
    assert (shown.code, shown.severity) == ("mean_over_vocabulary", MISTAKE)
    assert all((shown.evidence.input, shown.evidence.expected, shown.evidence.got))
    text = str(report)
    assert "1 mistake found" in text
    assert "MISTAKE mean_over_vocabulary" in text
    assert max(map(len, text.splitlines())) <= 110


def test_refusals():
    def broken(student, teacher):
        raise RuntimeError("no such thing")

    assert "no such thing" in str(check(broken, mistakes={"does_not_run"}))
    with pytest.raises(ValueError, match="`loss_fn` must be a function, got int"):
        audit(3)
    with pytest.raises(ValueError, match="`axes` must be BLV, NV or V, got 'VB'"):
        audit(_numpy_kl, axes="VB")
    with pytest.raises(ValueError, match="unknown loss `klx`"):
        audit(_numpy_kl, expected="klx")


def test_every_code_is_used():
    paths = sources.located("jaxdiv/audit").glob("*.py")
    text = "".join(path.read_text(encoding="utf-8") for path in paths if path.stem != "findings")
    for code, (severity, message) in CODES.items():
        assert f'"{code}"' in text, code
        assert severity in ("mistake", "note")
        assert message.endswith((".", "}")), code


def test_the_audit_is_loaded_when_it_is_used():
    code = """
import sys, jax.numpy as jnp, jaxdiv
jaxdiv.forward_kl(jnp.zeros((2, 3)), jnp.ones((2, 3)))
assert not [name for name in sys.modules if name.startswith(("jaxdiv.audit", "scipy"))]
from jaxdiv.audit import inputs  # which leaves the package callable
assert jaxdiv.audit is sys.modules["jaxdiv.audit"]
print(jaxdiv.audit(lambda s, t: jnp.mean(jaxdiv.forward_kl(s, t)), expected="kl").divergence)
"""
    ended = runs.end(runs.start_code(code))
    assert ended.stdout.strip() == "kl", ended.stderr


# The program


def write_losses(folder):
    (folder / "mine.py").write_text(
        "import jax, jax.numpy as jnp\n"
        "value = 3\n"
        "def attached(student, teacher):\n"
        "    log_p, log_q = jax.nn.log_softmax(teacher), jax.nn.log_softmax(student)\n"
        "    return jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1))\n",
        encoding="utf-8",
    )


def test_program(tmp_path, monkeypatch):
    write_losses(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    ended = runs.run("audit", "--loss=mine:attached", "--expected=kl")
    assert ended.returncode == 1, ended.stderr
    assert "MISTAKE teacher_not_detached" in ended.stdout
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
def test_program_passes_and_refuses(tmp_path, monkeypatch):
    write_losses(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert runs.run("audit", "--loss=jaxdiv:forward_kl", "--expected=kl").returncode == 0
    for loss, message in {
        "yours:kl": "there is no module `yours`",
        "mine": "must be module:function",
        "mine:value": "must be a function, got int",
        "math:sqrt": "--loss=math:sqrt: it can't be called with logits",
    }.items():
        runs.check_refusal(runs.run("audit", f"--loss={loss}"), message)
