"""Every trained student of a run, greedy, against the target alone on many prompts."""

import jax
import numpy as np
import pytest
from flax import nnx

from jaxdiv import models, speculative
from jaxdiv.data import pipeline
from jaxdiv.training import config as run_config
from jaxdiv.training import students, teacher
from jaxdiv.training.corpus import Corpus
from jaxdiv.training.workdir import Workdir
from tests import runs

pytestmark = pytest.mark.slow
PROMPTS, TOKENS, CLOSE = 200, 128, 1e-4


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speculative") / "run"
    runs.succeed("distill", runs.SMOKE, f"--workdir={folder}")
    return Workdir(folder)


def test_every_losss_student_leaves_the_greedy_text_as_it_is(run):
    """A text may part from it only where the target's two largest logits all but tie, and hardly one does."""
    config, corpus = run.config(), Corpus.load(run)
    size = corpus.tokenizer.vocab_size
    guide = teacher.restore(config, run, size)
    target = nnx.merge(guide.graphdef, guide.params)
    prompts, _ = pipeline.prompts(corpus.splits["train"], length=8, max_documents=PROMPTS)
    assert len(prompts) == PROMPTS
    plain = np.asarray(models.generate(target, prompts, length=TOKENS, temperature=0.0, key=jax.random.key(0)))
    logits = jax.jit(lambda tokens: jax.lax.top_k(target(tokens).logits, 2)[0])(plain)[:, 7:-1]
    close = np.asarray(logits[..., 0] - logits[..., 1]) < CLOSE
    for loss in run_config.losses(config):
        made = students.restore(config, run, size, loss.text)[0].student(0)
        draft = nnx.merge(made.graphdef, made.params)
        decoded = speculative.decode(target, draft, prompts, max_tokens=TOKENS, temperature=0.0)
        differs = np.stack(decoded.tokens) != plain[:, 8:]
        parted = np.flatnonzero(differs.any(axis=1))
        assert all(close[row, differs[row].argmax()] for row in parted)
        assert len(parted) <= 1
        assert decoded.tokens_per_call > 1
