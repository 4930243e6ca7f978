"""Every loss's trained students: greedy texts against the target's own, target calls against the
prediction."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from jaxdiv import acceptance, models, speculative
from jaxdiv.data import pipeline
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import students, teacher
from jaxdiv.training.run_data import TextData
from tests import runs
from tests.test_acceptance import z_score

pytestmark = pytest.mark.slow
LOSSES = "ce,ce_argmax,ce_data,kl,rkl,jeffreys,jsd,tv,nla,lk_hybrid"
PROMPT, PROMPTS, TOKENS, CLOSE = 8, 200, 128, 1e-4
TREE = speculative.parse("0,1,2,00,01,10,000,100")


class Trained:
    """A finished run, its target and the beginnings of its texts."""

    def __init__(self, folder, kind):
        # A rate high enough that so short a run gives students that differ.
        settings = {
            "losses": LOSSES,
            "student.kind": kind,
            "student.optimizer.learning_rate": 2e-2,
            "teacher.optimizer.learning_rate": 1e-2,
            "teacher.steps": 100,
            "student.steps": 40,
        }
        flags = [f"--config.{key}={value}" for key, value in settings.items()]
        runs.succeed("distill", runs.SMOKE, f"--workdir={folder}", *flags)
        self.workdir = Workdir(folder)
        self.spec, corpus = self.workdir.spec(), TextData.load(self.workdir)
        self.vocab_size = corpus.tokenizer.vocab_size
        target = teacher.restore(self.spec.teacher, self.workdir, self.vocab_size)
        self.target, texts = target.module().unrolled(), corpus.splits["train"]
        self.prompts, _ = pipeline.prompts(texts, length=PROMPT, max_documents=PROMPTS)
        assert len(self.prompts) == PROMPTS

    def students(self):
        """Yields loss, seed and student of all."""
        for loss in self.spec.student_stage.members:
            model, finite = students.restore(self.spec, self.workdir, self.vocab_size, loss)
            for seed in range(len(finite)):
                yield loss, seed, model.student(seed).module()

    def untrained(self, *, adversarial):
        """A student that, if adversarial, thinks least likely what it should think likeliest."""
        student = students.untrained(self.spec, self.vocab_size).student(0).module()
        norm = getattr(student, "decoder", student).norm
        if adversarial:
            norm.scale[...] = -norm.scale[...]
        return student

    @functools.cached_property
    def greedy(self):
        """The target's greedy texts [K, n], and where its two largest logits all but tie [K, n]."""
        greedy = {"length": TOKENS, "temperature": 0.0, "key": jax.random.key(0)}
        text = models.generate(self.target, self.prompts, **greedy)
        two_largest = jax.jit(lambda tokens: jax.lax.top_k(self.target(tokens).logits, 2)[0])
        first, second = np.moveaxis(np.asarray(two_largest(text)[:, PROMPT - 1 : -1]), -1, 0)
        return np.asarray(text)[:, PROMPT:], first - second < CLOSE

    def check_greedy(self, draft, **options):
        """A text may part from the target's only where it all but ties, and hardly one does."""
        decoded = speculative.decode(
            self.target, draft, self.prompts, max_tokens=TOKENS, temperature=0.0, **options
        )
        text, close = self.greedy
        differs = np.stack(decoded.tokens) != text
        parted = np.flatnonzero(differs.any(axis=1))
        assert all(close[row, differs[row].argmax()] for row in parted)
        assert len(parted) <= 1
        return decoded


@pytest.fixture(scope="module", params=["kangaroo", "decoder"])
def trained(request, tmp_path_factory):
    return Trained(tmp_path_factory.mktemp("speculative") / "run", request.param)


def test_every_student_leaves_the_greedy_text_as_it_is(trained):
    drafts = [draft for _, _, draft in trained.students()]
    assert len(drafts) == 20
    for draft in drafts:
        assert trained.check_greedy(draft).tokens_per_call > 1


@pytest.mark.parametrize(
    "options", [{"eta": 0.3}, {"tree": TREE}, {"rule": "coupled"}], ids=["eta", "tree", "coupled"]
)
def test_ways_of_drafting_leave_the_greedy_text_as_it_is(trained, options):
    for _, seed, draft in trained.students():
        if seed == 0:
            trained.check_greedy(draft, **options)


@pytest.mark.parametrize("adversarial", [False, True])
def test_untrained_students_leave_the_greedy_text_as_it_is(trained, adversarial):
    for options in ({}, {"tree": TREE}):
        trained.check_greedy(trained.untrained(adversarial=adversarial), **options)


def test_lookup_leaves_the_greedy_text_as_it_is(trained):
    trained.check_greedy(speculative.LOOKUP)


GAMMA, SHORT, REPEATS = 4, 48, 20


def greedy_given(q, _, tokens):
    return acceptance.greedy_given(q, tokens)


def exact_given(q, _, tokens):
    return jnp.take_along_axis(jax.nn.softmax(q), tokens[..., None], axis=-1)[..., 0]


RULES = {
    "sampling": (acceptance.sampling_given, acceptance.sampling),
    "greedy_draft": (greedy_given, acceptance.greedy_draft),
    "exact_match": (exact_given, acceptance.exact_match),
}


def test_target_calls_and_acceptance_are_those_predicted(trained):
    """Over losses and rules at temperature 1; each text has its own prediction, to reduce noise."""
    prompts = np.repeat(trained.prompts, REPEATS, axis=0)
    zs = []
    for loss, seed, draft in trained.students():
        if seed:
            continue
        predict = _predictor(trained.target, draft)
        for rule in RULES:
            seeds = np.arange(len(prompts)) + len(prompts) * len(zs)
            options = {"max_tokens": SHORT, "gamma": GAMMA, "rule": rule, "seeds": seeds}
            decoded = speculative.decode(trained.target, draft, prompts, **options)
            calls = decoded.counts.target_calls
            half_width = 1.96 * calls.std(ddof=1) / np.sqrt(calls.size) / calls.mean()
            assert half_width <= 0.01, (loss, rule)
            expected = predict(rule, np.concatenate([prompts, np.stack(decoded.tokens)], axis=1))
            zs += [z_score(calls, expected[0]), z_score(decoded.counts.accepted[:, 0], expected[1])]
    assert len(zs) == 2 * len(LOSSES.split(",")) * len(RULES)
    assert np.abs(zs).max() <= 3.5
    for of_one_kind in (zs[::2], zs[1::2]):
        assert stats.chi2.sf(np.square(of_one_kind).sum(), len(of_one_kind)) >= 1e-3


def _predictor(target, draft):
    """Returns a function of a rule and texts [K, T] that predicts, by one pass, target calls and
    rounds whose first draft is accepted."""
    parts = nnx.split((target, draft))

    @functools.partial(jax.jit, static_argnums=1)
    def predict(params, rule, whole):
        target, draft = nnx.merge(parts[0], params)
        output = target(whole, exit_layer=draft.exit_layer)
        q, p = (logits[:, PROMPT - 1 : -1] for logits in (draft(whole, output), output.logits))
        chances, closed_form = RULES[rule]
        begins = acceptance.renewal(chances(q, p, whole[:, PROMPT:]), SHORT, gamma=GAMMA)
        return jnp.sum(begins, axis=-1), jnp.sum(begins * closed_form(q, p), axis=-1)

    def in_parts(rule, whole):
        predictions = [predict(parts[1], rule, some) for some in np.split(whole, REPEATS)]
        return [np.concatenate(x) for x in zip(*predictions, strict=True)]

    return in_parts
