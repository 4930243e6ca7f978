"""Draft vocabularies: their tokens, students that draft these alone, and a run of such students."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal

from configs import smoke
from jaxdiv import files, models, schema, speculative
from jaxdiv.evaluation import contributions_by_rank, measurement
from jaxdiv.fused import chunks
from jaxdiv.models import DraftVocabulary, llama
from jaxdiv.runs.checkpoints import Checkpoints
from jaxdiv.runs.specs import RunSpec
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import draft_tokens, objectives, run_data, sharding, state, students
from tests import references, runs, speculative_cases
from tests import training_cases as cases

V, K, T = cases.V, 24, 1.7
VOCABULARY = DraftVocabulary.of(np.random.default_rng(0).choice(V, K, replace=False), V)
IDS = VOCABULARY.ids


def test_ids_offsets_and_mask_agree():
    vocabulary = DraftVocabulary.of([7, 2, 3], 9)
    assert vocabulary == DraftVocabulary.of([2, 3, 7], 9) != DraftVocabulary.of([2, 3, 7], 10)
    assert hash(vocabulary) == hash(DraftVocabulary.of([2, 3, 7], 9))
    assert vocabulary.size == 3
    assert_array_equal(vocabulary.ids, [2, 3, 7])
    assert_array_equal(vocabulary.offsets, [2, 2, 5])
    assert vocabulary.offsets.dtype == np.int64
    assert_array_equal(np.flatnonzero(vocabulary.mask), [2, 3, 7])
    assert_array_equal(vocabulary.classes(jnp.array([[7, 0], [2, 8]])), [[2, -1], [0, -1]])
    logits = vocabulary.scatter(jnp.array([[1.0, 2.0, 3.0]]))
    infinite = -np.inf
    assert_array_equal(logits[0, [0, 2, 3, 6, 7]], [infinite, 1.0, 2.0, infinite, 3.0])
    for ids in ([1], [1, 1], [-1, 2], [1, 9]):
        with pytest.raises(ValueError, match=r"at least two different ids in 0\.\.8"):
            DraftVocabulary.of(ids, 9)


def test_the_commonest_tokens_are_chosen():
    counts = np.array([0, 5, 2, 5, 2, 2, 0, 1])
    # Equals by the lower id, and the end of text whatever its count.
    assert_array_equal(draft_tokens.choose([counts], 4, end_of_text=7), [1, 2, 3, 7])
    assert_array_equal(draft_tokens.choose([counts], 7, end_of_text=1), [0, 1, 2, 3, 4, 5, 7])
    others = np.array([0, 0, 0, 0, 0, 1, 1, 0])
    assert_array_equal(draft_tokens.choose([others, counts], 3, end_of_text=6), [1, 5, 6])


def spec_of(kind, **changes):
    config = smoke.get_config().to_dict()
    config["student"] |= {"kind": kind, "vocabulary": K}
    return RunSpec.from_config(config | changes)


LOSSES = ("kl", "tv", "lk_hybrid", ".5*kl+.5*ce_data")


def reference(loss, student_logits, teacher_logits, labels):
    """Computes values in float64 from logits of all V tokens, the student's -inf outside."""
    if loss == ".5*kl+.5*ce_data":
        labels_loss = references.label_loss(student_logits, labels)
        labels_loss = np.where(np.isinf(labels_loss), 0, labels_loss)
        kl = reference("kl", student_logits, teacher_logits, labels)
        return kl / 2 + labels_loss / 2
    p = np.exp(references.log_softmax(teacher_logits / T))
    q = np.exp(references.log_softmax(student_logits / T))
    accepted = np.minimum(p, q).sum(-1)
    kl = references.VALUES["forward_kl"](student_logits[..., IDS] / T, teacher_logits[..., IDS] / T)
    if loss == "kl":
        return T**2 * kl
    weight = np.exp(-3 * accepted) if loss == "lk_hybrid" else 0
    return T**2 * weight * kl + T * (1 - weight) * (1 - accepted)


@pytest.mark.parametrize(
    ("kind", "memory"), [("kangaroo", 2**10), ("decoder", chunks.LEAST_MEMORY)]
)
def test_students_draft_these_tokens_and_learn_by_the_definitions(kind, memory, monkeypatch):
    """Little memory is that of the fused losses, without all logits."""
    monkeypatch.setattr(chunks, "LEAST_MEMORY", memory)
    spec = spec_of(kind, losses=",".join(LOSSES), temperature=T)
    model = students.untrained(spec, V, vocabulary=VOCABULARY).student(0)
    config = dataclasses.asdict(spec.student), dataclasses.asdict(spec.teacher)
    (batch,) = cases.batches(1)
    teacher = cases.teacher()

    @jax.jit
    def run(teacher_params, params):
        shared = students.teacher_outputs(model, teacher, spec.losses, T)(teacher_params, batch)
        output = students.teacher_forward(model, teacher)(teacher_params, batch["inputs"])
        assert shared.is_dense == (memory > 2**10)
        whole = models.build_student(*config, V, nnx.Rngs(jax.random.key(spec.seeds[0])))
        every = (model.with_params(params), whole)
        logits = [one(batch["inputs"], output) for one in every]
        means = objectives.for_students(model, spec.losses, temperature=T)
        indices = range(len(LOSSES))
        values = means(indices, [params] * len(LOSSES), batch, shared)
        return output.logits, *logits, values

    of_teacher, logits, of_whole, values = run(teacher.params, model.params)
    assert_allclose(logits[..., IDS], of_whole[..., IDS], atol=1e-5)
    assert np.isneginf(logits[..., ~VOCABULARY.mask]).all()
    sides = np.asarray(logits, np.float64), np.asarray(of_teacher, np.float64), batch["labels"]
    weights = np.asarray(batch["weights"], np.float64)
    expected = [(weights * reference(loss, *sides)).sum() / weights.sum() for loss in LOSSES]
    assert_allclose(values, expected, rtol=2e-5)


def test_students_of_another_vocabulary_are_refused():
    with pytest.raises(ValueError, match=r"`config.student.vocabulary` is 24, but 0 tokens were"):
        students.untrained(spec_of("kangaroo"), V)
    draft = speculative_cases.student("kangaroo", 5, drafts=(0, 1, 3))
    with pytest.raises(ValueError, match="is of 5 tokens, but the target has 4"):
        draft.check_target(speculative_cases.target())


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("kangaroo", {"draws": speculative_cases.BATCH}),
        pytest.param("decoder", {}, marks=pytest.mark.slow),
        pytest.param("decoder", {"tree": speculative.parse("0,1,2,00,01")}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_decoding_stays_lossless(kind, options):
    draft = speculative_cases.student(kind, drafts=(0, 1, 3))
    assert speculative_cases.lossless(draft, gamma=2, **options) > 1e-3 / 3


def test_a_tree_is_no_wider_than_the_draft_vocabulary():
    draft = speculative_cases.student("kangaroo", drafts=(0, 1, 3))
    with pytest.raises(ValueError, match="the tree is 4 tokens wide, but there are only 3"):
        speculative.prepare(
            speculative_cases.target(), draft, [[1]], max_tokens=2, gamma=1,
            tree=speculative.parse("0,1,2,3"),
        )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory, texts):
    """A run's folder whose untrained teacher has taught students of one loss."""
    config = smoke.get_config().to_dict()
    config |= {"losses": "tv", "seeds": 1}
    config["data"] |= {"files": f"{texts}/*.txt", "context": "teacher"}
    config["student"] |= {"vocabulary": K, "steps": 3}
    config["evaluation"] |= {"contexts": "corpus", "temperatures": (1.0,)}
    workdir = Workdir(tmp_path_factory.mktemp("vocabulary") / "run")
    workdir.initialize_or_resume(config)
    spec = RunSpec.from_config(config)
    data = run_data.prepare(spec, workdir)
    build = state.teacher_builder(spec.teacher, data.vocab_size)
    teacher = state.population(build, [0])
    teacher = teacher.with_params(jax.tree.map(lambda x: 3 * x, teacher.params))
    with Checkpoints(workdir.teacher) as checkpoints:
        checkpoints.save(spec.teacher.steps, {"params": (teacher.params,)}, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draft_tokens, "SAMPLE", 500)
        students.train(spec, workdir, data, teacher.student(0))
    return workdir, spec, data, teacher.student(0)


def test_a_run_measures_its_students_by_all_tokens(run):
    workdir, spec, data, teacher = run
    with np.load(workdir.draft_vocabulary) as stored:
        d2t, t2d = stored["d2t"], stored["t2d"]
    assert (d2t.dtype, t2d.dtype) == (np.int64, np.bool_)
    ids = np.arange(K) + d2t
    assert_array_equal(ids, np.flatnonzero(t2d))
    assert data.tokenizer.end_of_text in ids
    windows = data.windows("test", tokens=64, documents=8)
    student = students.restore_one(str(workdir.root), loss="tv", seed=0)
    assert_array_equal(student.module().vocabulary.ids, ids)
    output = students.teacher_forward(student, teacher)(teacher.params, windows.inputs)
    logits = np.asarray(student(windows.inputs, output), np.float64)
    p = np.exp(references.log_softmax(np.asarray(output.logits, np.float64)))
    q = np.exp(references.log_softmax(logits))
    total = windows.weights.sum()
    accepted = (windows.weights * np.minimum(p, q)[..., ids].sum(-1)).sum() / total
    outside = (windows.weights * p[..., ~t2d].sum(-1)).sum() / total
    assert_allclose(workdir.facts()[draft_tokens.OUTSIDE], outside, atol=1e-4)
    measured = measurement.measure(workdir)
    sums = measured.sums["tv", measurement.Key(schema.CORPUS, schema.ACCEPTANCE, 1.0)]
    assert_allclose(sums.numerator.sum() / sums.denominator.sum(), accepted, rtol=1e-4)
    assert accepted < 1 - outside
    assert schema.UNTRAINED in measured.losses
    assert "Students draft the 24 commonest tokens" in draft_tokens.describe(spec, workdir.facts())


def test_the_chosen_tokens_stay_those_of_the_first_start(run, monkeypatch):
    workdir, spec, data, teacher = run
    monkeypatch.setattr(draft_tokens, "choose", None)
    again = draft_tokens.prepare(spec, workdir, data, teacher, sharding.make_mesh(spec))
    assert again == draft_tokens.load(spec, workdir)
    # Of a run that was stopped before it measured them they stay, too.
    facts = workdir.facts()
    names = (draft_tokens.OUTSIDE, draft_tokens.FINGERPRINT)
    stopped = {name: value for name, value in facts.items() if name not in names}
    files.write_json(workdir.root / "facts.json", stopped)
    assert not draft_tokens.is_prepared(spec, workdir)
    assert draft_tokens.prepare(spec, workdir, data, teacher, sharding.make_mesh(spec)) == again
    assert workdir.facts() == facts
    with pytest.raises(ValueError, match=r"contributions are of students with `config.student.v"):
        contributions_by_rank.measure(workdir, losses=["kl"], student="tv")
    content = workdir.draft_vocabulary.read_bytes()
    other = DraftVocabulary.of(np.arange(K), data.vocab_size)
    draft_tokens.StoredVocabulary(other.offsets, other.mask).save(workdir.draft_vocabulary)
    try:
        with pytest.raises(ValueError, match=r"the draft vocabulary's fingerprint is .* as the"):
            draft_tokens.load(spec, workdir)
    finally:
        workdir.draft_vocabulary.write_bytes(content)
    with pytest.raises(ValueError, match="offsets and mask disagree"):
        draft_tokens.StoredVocabulary(other.offsets + 1, other.mask)
    larger = dataclasses.replace(spec.student, vocabulary=513)
    with pytest.raises(
        ValueError, match=f"at most the tokenizer's {data.vocab_size} tokens, got 513"
    ):
        run_data._check(dataclasses.replace(spec, student=larger), data)


def test_an_exported_adapter_has_offsets_and_mask(run, tmp_path):
    workdir, _, _, teacher = run
    student = students.restore_one(str(workdir.root), loss="tv", seed=0).module()
    llama.write_adapter(tmp_path, student, teacher.module())
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert_array_equal(tensors["d2t"], student.vocabulary.offsets)
    assert tensors["d2t"].dtype == np.int64
    assert tensors["t2d"].dtype == np.bool_
    assert_array_equal(tensors["t2d"], student.vocabulary.mask)


@pytest.mark.slow
def test_a_decoders_run_is_measured_and_not_exported(tmp_path, texts):
    folder = tmp_path / "run"
    flags = [
        *(runs.SMOKE, f"--config.data.files={texts}/*.txt", f"--workdir={folder}"),
        *("--config.student.vocabulary=24", "--config.student.kind=decoder"),
    ]
    printed = runs.succeed("distill", *flags, "--config.losses=kl,tv", "--config.seeds=1")
    assert "tv" in printed
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Students draft the 24 commonest tokens" in page
    done = runs.run(
        "export", f"--workdir={folder}", "--loss=kl", "--seed=0", f"--output={tmp_path / 'out'}"
    )
    runs.check_refusal(done, "`config.student.vocabulary` must be 0 for a decoder", "got 24")
