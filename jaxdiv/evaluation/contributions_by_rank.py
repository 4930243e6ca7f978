"""Which classes a loss looks at: its contributions on held-out text, by the rank that the teacher
gives a class."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiv import statistics
from jaxdiv.contributions import contributions, gauges, shares
from jaxdiv.data import pipeline
from jaxdiv.evaluation import contexts
from jaxdiv.runs import config as run_config
from jaxdiv.runs import progress
from jaxdiv.runs.workdir import Workdir
from jaxdiv.schema import UNTRAINED
from jaxdiv.training import students, teacher
from jaxdiv.training.run_data import TextData
from jaxdiv.training.state import Model
from jaxdiv.training.step import for_each_seed

OWN = "own"  # instead of one loss's students: each loss is seen on those that it trained
SHOWN = ("fixed", "gradient")  # of the gauges; signs of raw parts are a matter of convention
TEACHER = ("teacher", "probability")  # stands beside the losses, for comparison
_SINGLE = 8  # ranks that are not pooled with others
_MEASURED = {
    "share": (0.0, 1.0),
    "part": (-np.inf, np.inf),
}  # what is summed, and the bounds of its mean


@dataclasses.dataclass(frozen=True)
class ByRank:
    """Sums over each document's positions.

    Attributes:
      bins: [B, 2], the first and the last rank of each.
      sums: a loss and a gauge to [S, K, 2, B]: students, documents, shares and parts (nats), bins.
      positions: [K], of each document.
    """

    bins: np.ndarray
    sums: dict[tuple[str, str], np.ndarray]
    positions: np.ndarray


def rank_bins(classes: int) -> np.ndarray:
    """[B, 2]: ranks 1, 2, ..., 8 by themselves, then 9-16, 17-32 and so on; the last bin ends with
    the last class."""
    bins = [(rank, rank) for rank in range(1, min(_SINGLE, classes) + 1)]
    while bins[-1][1] < classes:
        last = bins[-1][1]
        bins.append((last + 1, min(2 * last, classes)))
    return np.array(bins)


def common_student(config: Mapping) -> str:
    """The loss whose students all losses are seen on where nobody says which: `ce`, or else the
    run's first."""
    trained = [loss.text for loss in run_config.losses(config)]
    return "ce" if "ce" in trained else trained[0]


def measure(workdir: Workdir, *, losses: Sequence[str], student: str) -> ByRank:
    """Looks at the held-out documents of a finished run through each loss, at temperature 1.

    Args:
      workdir: the run.
      losses: what `jaxdiv.get` takes.
      student: a loss of the run, or `untrained`, whose students all losses are seen on, so that the
        losses and not the students differ; or `OWN`.

    Raises:
      ValueError, FileNotFoundError: the run is not finished or has no such students, or what it
        saved is damaged.
    """
    config = workdir.config()
    corpus = TextData.load(workdir)
    groups = {loss: (loss,) for loss in losses} if student == OWN else {student: tuple(losses)}
    pupils = {
        source: _living(config, workdir, corpus.tokenizer.vocab_size, source) for source in groups
    }
    guide = teacher.restore(config, workdir, corpus.tokenizer.vocab_size)
    context = contexts.make("corpus", config, corpus, guide)
    sums = {}
    for source, by_row in _by_row(config, guide, pupils, groups, context).items():
        found = {key: context.by_document(values) for key, values in by_row.items()}
        sums |= _finite(found, f"{workdir.root}: no student of {source}")
    return ByRank(
        bins=rank_bins(corpus.tokenizer.vocab_size),
        sums=sums,
        positions=context.by_document(context.weights.sum(-1).astype(np.float64)[None])[0],
    )


def rows(measured: ByRank) -> list[dict]:
    """One row a loss, gauge and bin: mean share and mean part a position, each with its 95%
    interval."""
    made = []
    for (loss, gauge), sums in measured.sums.items():
        for b, (low, high) in enumerate(measured.bins.tolist()):
            row = {"loss": loss, "gauge": gauge, "rank_low": low, "rank_high": high}
            for i, (name, bounds) in enumerate(_MEASURED.items()):
                estimate = statistics.interval(sums[:, :, i, b], measured.positions, bounds=bounds)
                row |= {
                    name: estimate.value,
                    f"{name}_low": estimate.low,
                    f"{name}_high": estimate.high,
                }
            made.append(row | {"n": int(measured.positions.sum())})
    return made


def _living(config, workdir, vocab_size, source):
    if source == UNTRAINED:
        return students.untrained(config, vocab_size)
    model, alive = students.restore(config, workdir, vocab_size, source)
    if not alive.any():
        raise ValueError(f"{workdir.root}: no student of {source} stayed finite in training")
    return model.with_params(jax.tree.map(lambda x: x[np.flatnonzero(alive)], model.params))


def _by_row(
    config, guide, pupils: Mapping[str, Model], groups: Mapping[str, Sequence[str]], context
):
    """Source to (loss, gauge) to sums over each row's positions, [S, R, 2, B]; one teacher pass
    serves all."""
    teach, model = students.teacher_forward(config, guide), next(iter(pupils.values()))

    @jax.jit
    def look_up(params, inputs, labels):
        shared = teach(params, inputs)
        order, labels = rank(shared.logits, labels)
        return shared, jnp.take_along_axis(shared.logits, order, axis=-1), order, labels

    @functools.partial(jax.jit, static_argnames="losses")
    def sums_of(params, inputs, shared, teacher_logits, order, labels, weights, *, losses):
        def one(params):
            student_logits = jnp.take_along_axis(
                model.with_params(params)(inputs, shared), order, axis=-1
            )
            found = by_rank(losses, student_logits, teacher_logits, labels)
            counts = weights[..., None, None] > 0
            return jax.tree.map(lambda values: jnp.where(counts, values, 0).sum(-3), found)

        return for_each_seed(one, params)

    parts = {source: [] for source in groups}
    count = _rows_at_once(context.inputs.shape[1], config["data"]["vocabulary"])
    blocks = list(pipeline.blocks((context.inputs, context.labels, context.weights), count))
    with progress.bar("ranks", len(blocks), unit="batches") as advance:
        for inputs, labels, weights in blocks:
            looked_up = look_up(guide.params, inputs, labels)
            for source, losses in groups.items():
                made = sums_of(pupils[source].params, inputs, *looked_up, weights, losses=losses)
                parts[source].append(
                    jax.tree.map(lambda values: np.asarray(values, np.float64), made)
                )
            advance()
    return {source: _whole(made, len(context.inputs)) for source, made in parts.items()}


def _whole(parts, rows):
    return {
        key: np.concatenate([part[key] for part in parts], axis=1)[:, :rows] for key in parts[0]
    }


def _rows_at_once(length, classes):
    """So few positions that what a dozen losses make of them stays small."""
    return max(1, 2**19 // (length * classes))


def rank(teacher, labels) -> tuple[jax.Array, jax.Array]:
    """The classes in the order of the teacher's logits [..., V], of equal ones the first first; the
    labels' places."""
    order = jnp.argsort(-teacher, axis=-1, stable=True)
    return order, jnp.argmax(order == labels[..., None], axis=-1)


def by_rank(losses: Sequence[str], student, teacher, labels) -> dict[tuple[str, str], jax.Array]:
    """Shares and parts of each loss and gauge, summed over the bins of ranks.

    Args:
      losses: what `jaxdiv.get` takes.
      student, teacher: logits [..., V] whose classes stand in the teacher's order, as no loss minds
        their order.
      labels: [...] integers, in that order.

    Returns:
      (loss, gauge) to [..., 2, B]; beside them the teacher's probabilities.
    """
    bins = rank_bins(teacher.shape[-1])

    def binned(parts):
        pair = jnp.stack([shares(parts), parts], axis=-2)
        return jnp.stack([pair[..., low - 1 : high].sum(-1) for low, high in bins], axis=-1)

    found = {TEACHER: binned(jax.nn.softmax(teacher))}
    for loss in losses:
        for gauge in SHOWN:
            if gauge in gauges(loss):
                found[loss, gauge] = binned(
                    contributions(loss, student, teacher, gauge=gauge, labels=labels)
                )
    return found


def _finite(sums, who):
    """Without the students whose logits are not finite, as after a last step that went wrong."""
    keep = ~np.any([np.isnan(values).any(axis=(1, 2, 3)) for values in sums.values()], axis=0)
    if not keep.any():
        raise ValueError(f"{who} has finite logits")
    return {key: values[keep] for key, values in sums.items()}
