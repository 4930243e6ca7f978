"""Contexts that acceptance is measured on: held-out data, and text that the teacher writes."""

import dataclasses
import functools
from collections.abc import Iterable

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32, Int32

from jaxdiv import models, schema
from jaxdiv.data import pipeline
from jaxdiv.runs.specs import DataSpec, EvaluationSpec
from jaxdiv.training import sharding
from jaxdiv.training.run_data import RunData, TextData
from jaxdiv.training.state import Model


@dataclasses.dataclass(frozen=True)
class Context:
    """Rows of tokens or images, and which of their predictions count.

    Attributes:
      name: one of `schema.CONTEXTS`.
      inputs, labels: [R, L]; images are [R, X, Y, C] with L = 1.
      weights: [R, L], 1 where the prediction of the label counts.
      document: [R], which held-out document a row comes from.
      start: the first position that predicts the teacher's text, in rows that are whole texts of
        the teacher; else None.
    """

    name: str
    inputs: Int32[np.ndarray, "R L"] | Float32[np.ndarray, "R X Y C"]
    labels: Int32[np.ndarray, "R L"]
    weights: Float32[np.ndarray, "R L"]
    document: Int32[np.ndarray, " R"]
    start: int | None

    @property
    def temperature(self) -> float | None:
        """The temperature at which the teacher wrote the text; None for held-out data."""
        return schema.GENERATED_TEMPERATURES.get(self.name)

    def by_document(self, values: np.ndarray) -> np.ndarray:
        """Sums the rows of `values` [S, R, ...] that come from one document, to [S, K, ...]."""
        documents, index = np.unique(self.document, return_inverse=True)
        sums = np.zeros((values.shape[0], len(documents), *values.shape[2:]))
        np.add.at(sums, (slice(None), index), values)
        return sums


def check(names: Iterable[str], data: DataSpec) -> None:
    """Raises ValueError for a context that a run on this kind of data does not have."""
    available = [name for name in schema.CONTEXTS if (name == schema.IMAGES) == data.is_images]
    if unknown := [name for name in names if name not in available]:
        raise ValueError(
            f"there is no context `{unknown[0]}` of a run on {data.kind}; there is "
            f"{', '.join(available)}"
        )


def make(
    name: str, spec: EvaluationSpec, data: RunData, teacher: Model, mesh: Mesh | None = None
) -> Context:
    """Makes a context from the test documents.

    Args:
      name: one of `schema.CONTEXTS`.
      spec: numbers of documents and tokens, and the seed of sampled text.
      data: the run's.
      teacher: writes the text of generated contexts.
      mesh: where the teacher lies; None for one device.

    Raises:
      ValueError: the documents are too few or too short.
    """
    if name in schema.GENERATED_TEMPERATURES:
        return _generate(name, spec, data, teacher, mesh or sharding.single_device_mesh())
    windows = data.windows("test", tokens=spec.document_tokens, documents=spec.documents)
    return Context(name, **vars(windows), start=None)


def prompts(
    spec: EvaluationSpec, data: TextData
) -> tuple[Int32[np.ndarray, "K P"], Int32[np.ndarray, " K"]]:
    """Returns the beginnings of test documents, after which the teacher writes, and their
    documents."""
    return pipeline.prompts(
        data.splits["test"], length=spec.prompt_tokens, max_documents=spec.documents
    )


def _generate(
    name: str, spec: EvaluationSpec, data: TextData, teacher: Model, mesh: Mesh
) -> Context:
    """Lets the teacher write texts up to end of text, inclusive, or `generated_tokens`."""
    beginnings, document = prompts(spec, data)
    rows = sharding.BatchSharding(mesh, len(beginnings))

    @functools.partial(sharding.jit, mesh=mesh)
    def write(params, prompts):
        return models.generate(
            teacher.with_params(params).module(),
            prompts,
            length=spec.generated_tokens,
            temperature=schema.GENERATED_TEMPERATURES[name],
            key=jax.random.key(spec.seed),
        )

    texts = write(teacher.params, rows.put({"prompts": beginnings})["prompts"])
    texts = rows.gather({"texts": texts})["texts"]
    start = beginnings.shape[1] - 1
    inputs, labels = texts[:, :-1], texts[:, 1:]
    is_end = inputs == data.tokenizer.end_of_text
    is_end[:, : start + 1] = False
    weights = (np.cumsum(is_end, axis=1) == 0).astype(np.float32)
    weights[:, :start] = 0
    return Context(name, inputs, labels, weights, document, start=start)
