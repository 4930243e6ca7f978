"""What acceptance is measured on: held-out documents, and text that the teacher itself wrote after
their beginnings."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32, Int32

from jaxdiv import models, schema
from jaxdiv.data import pipeline
from jaxdiv.runs import config as run_config
from jaxdiv.runs import sharding
from jaxdiv.runs.config_keys import IMAGES, MAX_DOCUMENT_TOKENS
from jaxdiv.schema import GENERATED_TEMPERATURES
from jaxdiv.training.run_data import RunData, TextData
from jaxdiv.training.state import Model


@dataclasses.dataclass(frozen=True)
class Context:
    """Rows of tokens and which of their predictions count.

    Attributes:
      name: of `config.CONTEXTS`.
      inputs, labels: [R, L]; of images inputs are [R, X, Y, C], and L is 1.
      weights: [R, L], 1 where the prediction of the label counts.
      document: [R], which held-out document a row comes from.
      start: for the teacher's own text, whose rows are whole texts, the first position that
        predicts it; else None.
    """

    name: str
    inputs: Int32[np.ndarray, "R L"] | Float32[np.ndarray, "R X Y C"]
    labels: Int32[np.ndarray, "R L"]
    weights: Float32[np.ndarray, "R L"]
    document: Int32[np.ndarray, " R"]
    start: int | None

    @property
    def temperature(self) -> float | None:
        """At which the teacher wrote the text; None for the corpus."""
        return GENERATED_TEMPERATURES.get(self.name)

    def by_document(self, values: np.ndarray) -> np.ndarray:
        """Sums of rows [S, R, ...] that come from one document: [S, K, ...]."""
        documents, index = np.unique(self.document, return_inverse=True)
        summed = np.zeros((values.shape[0], len(documents), *values.shape[2:]))
        np.add.at(summed, (slice(None), index), values)
        return summed


def check(names: Iterable[str], config: Mapping) -> None:
    """Raises ValueError for a context that there is none of where the run's data are images, or
    texts."""
    images = run_config.of_images(config)
    known = [name for name in schema.CONTEXTS if (name == IMAGES) == images]
    for name in names:
        if name not in known:
            raise ValueError(
                f"there is no context `{name}` of a run on {config['data']['kind']}; there is {', '.join(known)}"
            )


def make(
    name: str, config: Mapping, corpus: RunData, teacher: Model, mesh: Mesh | None = None
) -> Context:
    """The context `name` from the test documents; `teacher` writes on the `mesh` that it lies on.

    Raises ValueError if the documents are too few or too short.
    """
    evaluation = config["evaluation"]
    if name in GENERATED_TEMPERATURES:
        return _generated(name, config, corpus, teacher, mesh or sharding.alone())
    limits = {
        "tokens": min(evaluation["document_tokens"], MAX_DOCUMENT_TOKENS),
        "documents": evaluation["documents"],
    }
    windows = corpus.windows("test", config, **limits)
    return Context(
        name, windows.inputs, windows.labels, windows.weights, windows.document, start=None
    )


def prompts(
    config: Mapping, corpus: TextData
) -> tuple[Int32[np.ndarray, "K P"], Int32[np.ndarray, " K"]]:
    """(the beginnings of test documents after which the teacher writes, each one's document)."""
    evaluation = config["evaluation"]
    return pipeline.prompts(
        corpus.splits["test"],
        length=evaluation["prompt_tokens"],
        max_documents=evaluation["documents"],
    )


def _generated(name, config, corpus, teacher, mesh):
    """Each text runs to its end-of-text token, inclusive, or to `generated_tokens`."""
    beginnings, document = prompts(config, corpus)
    rows = sharding.Rows(mesh, len(beginnings))

    @functools.partial(sharding.jit, mesh=mesh)
    def write(params, prompts):
        return models.generate(
            teacher.with_params(params).module(),
            prompts,
            length=config["evaluation"]["generated_tokens"],
            temperature=GENERATED_TEMPERATURES[name],
            key=jax.random.key(config["seed"]),
        )

    texts = rows.whole(
        {"texts": write(teacher.params, rows.spread({"prompts": beginnings})["prompts"])}
    )["texts"]
    start = beginnings.shape[1] - 1
    inputs, labels = texts[:, :-1], texts[:, 1:]
    ended_before = np.cumsum(labels[:, start:] == corpus.tokenizer.end_of_text, axis=1)
    ended_before = np.pad(ended_before, ((0, 0), (1, 0)))[:, :-1]
    weights = np.zeros(labels.shape, np.float32)
    weights[:, start:] = ended_before == 0
    return Context(name, inputs, labels, weights, document, start=start)
