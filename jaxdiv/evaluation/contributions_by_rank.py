"""Contributions of classes to losses on held-out text, by the rank that the teacher gives them."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdiv import schema, statistics
from jaxdiv.contributions import contributions, gauges, shares
from jaxdiv.data import pipeline
from jaxdiv.evaluation import contexts
from jaxdiv.evaluation.contexts import Context
from jaxdiv.runs import progress
from jaxdiv.runs.specs import RunSpec
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import students, teacher
from jaxdiv.training.run_data import TextData
from jaxdiv.training.state import Model
from jaxdiv.training.step import for_each_seed

OWN = "own"  # in place of one loss's students: each loss is seen on those that it trained
SHOWN = ("fixed", "gradient")  # gauges; the signs of raw parts are a matter of convention
TEACHER = ("teacher", "probability")  # the teacher's probabilities, beside the losses
_SINGLE_RANKS = 8  # higher ranks are pooled
# What is summed, with the bounds of its mean.
_MEASURES = {"share": (0.0, 1.0), "part": (-np.inf, np.inf)}

Sums = dict[tuple[str, str], np.ndarray]  # by loss and gauge


@dataclasses.dataclass(frozen=True)
class ByRank:
    """Sums over each document's positions.

    Attributes:
      bins: [B, 2], the first and the last rank of each bin.
      sums: [S, K, 2, B] by loss and gauge: students, documents, shares and parts (nats), bins.
      positions: [K], the number of positions of each document.
    """

    bins: np.ndarray
    sums: Sums
    positions: np.ndarray


def rank_bins(classes: int) -> np.ndarray:
    """Returns bins [B, 2]: ranks 1 to 8 alone, then 9-16, 17-32 and so on up to the last class."""
    bins = [(rank, rank) for rank in range(1, min(_SINGLE_RANKS, classes) + 1)]
    while bins[-1][1] < classes:
        last = bins[-1][1]
        bins.append((last + 1, min(2 * last, classes)))
    return np.array(bins)


def common_student(losses: Sequence[str]) -> str:
    """Returns the loss on whose students all losses are seen by default: `ce`, or the first."""
    return "ce" if "ce" in losses else losses[0]


def measure(workdir: Workdir, *, losses: Sequence[str], student: str) -> ByRank:
    """Measures the contributions of classes to losses on a finished run, at temperature 1.

    Args:
      workdir: the run.
      losses: names that `jaxdiv.get` takes.
      student: a loss of the run, or `untrained`, on whose students all losses are seen, so that the
        losses differ and not the students; or `OWN`.

    Raises:
      ValueError, FileNotFoundError: the run is not finished or has no such students, they can't
        draft all tokens, or what it saved is damaged.
    """
    spec, data = workdir.spec(), TextData.load(workdir)
    if spec.student.vocabulary:
        raise ValueError(
            f"{workdir.root} has a draft vocabulary of {spec.student.vocabulary} tokens; "
            "contributions are of students with `config.student.vocabulary` = 0"
        )
    groups = {loss: (loss,) for loss in losses} if student == OWN else {student: tuple(losses)}
    models = {source: _finite_students(spec, workdir, data.vocab_size, source) for source in groups}
    target = teacher.restore(spec.teacher, workdir, data.vocab_size)
    context = contexts.make(schema.CORPUS, spec.evaluation, data, target)
    sums: Sums = {}
    for source, by_row in _by_row(spec, target, models, groups, context).items():
        by_document = {key: context.by_document(values) for key, values in by_row.items()}
        # Logits may be infinite after a last step that diverged.
        finite = ~np.any([np.isnan(v).any(axis=(1, 2, 3)) for v in by_document.values()], axis=0)
        if not finite.any():
            raise ValueError(f"{workdir.root}: no student of {source} has finite logits")
        sums |= {key: values[finite] for key, values in by_document.items()}
    return ByRank(
        bins=rank_bins(data.vocab_size),
        sums=sums,
        positions=context.by_document(context.weights.sum(-1).astype(np.float64)[None])[0],
    )


def rows(by_rank: ByRank) -> list[dict]:
    """Returns a row for each loss, gauge and bin: mean share and part a position, with 95%
    intervals."""
    results = []
    for (loss, gauge), sums in by_rank.sums.items():
        for b, (low, high) in enumerate(by_rank.bins.tolist()):
            row = {"loss": loss, "gauge": gauge, "rank_low": low, "rank_high": high}
            for i, (name, bounds) in enumerate(_MEASURES.items()):
                estimate = statistics.interval(sums[:, :, i, b], by_rank.positions, bounds=bounds)
                row[name] = estimate.value
                row[f"{name}_low"], row[f"{name}_high"] = estimate.low, estimate.high
            results.append(row | {"n": int(by_rank.positions.sum())})
    return results


def _finite_students(spec: RunSpec, workdir: Workdir, vocab_size: int, source: str) -> Model:
    if source == schema.UNTRAINED:
        return students.untrained(spec, vocab_size)
    model, finite = students.restore(spec, workdir, vocab_size, source)
    if not finite.any():
        raise ValueError(f"{workdir.root}: no student of {source} stayed finite in training")
    return model.with_params(jax.tree.map(lambda x: x[np.flatnonzero(finite)], model.params))


def _by_row(
    spec: RunSpec,
    target: Model,
    models: Mapping[str, Model],
    groups: Mapping[str, Sequence[str]],
    context: Context,
) -> dict[str, Sums]:
    """Returns sums over each row's positions, [S, R, 2, B], by source of students; one teacher
    pass serves all."""
    model = next(iter(models.values()))
    forward = students.teacher_forward(model, target)

    @jax.jit
    def read(params, inputs, labels):
        output = forward(params, inputs)
        order, places = rank(output.logits, labels)
        return output, jnp.take_along_axis(output.logits, order, axis=-1), order, places

    @functools.partial(jax.jit, static_argnames="losses")
    def sums_of(params, inputs, output, teacher_logits, order, places, weights, *, losses):
        def one_seed(params):
            logits = model.with_params(params)(inputs, output)
            ranked = jnp.take_along_axis(logits, order, axis=-1)
            values = by_rank(losses, ranked, teacher_logits, places)
            counts = weights[..., None, None] > 0
            return jax.tree.map(lambda x: jnp.where(counts, x, 0).sum(-3), values)

        return for_each_seed(one_seed, params)

    # Few positions at once, since a dozen losses take several arrays of logits each.
    count = max(1, 2**19 // (context.inputs.shape[1] * spec.data.vocabulary))
    blocks = list(pipeline.blocks((context.inputs, context.labels, context.weights), count))
    parts: dict[str, list] = {source: [] for source in groups}
    with progress.bar("ranks", len(blocks), unit="batches") as advance:
        for inputs, labels, weights in blocks:
            ranked = read(target.params, inputs, labels)
            for source, losses in groups.items():
                sums = sums_of(models[source].params, inputs, *ranked, weights, losses=losses)
                parts[source].append(jax.tree.map(lambda x: np.asarray(x, np.float64), sums))
            advance()
    rows = len(context.inputs)
    return {
        source: {
            key: np.concatenate([part[key] for part in sums], axis=1)[:, :rows] for key in sums[0]
        }
        for source, sums in parts.items()
    }


def rank(
    teacher_logits: Float[Array, "*batch V"], labels: Int[Array, "*batch"]
) -> tuple[Int[Array, "*batch V"], Int[Array, "*batch"]]:
    """Returns the classes in the order of the teacher's logits, and the labels' places in it.

    Of equal logits the first class comes first.
    """
    order = jnp.argsort(-teacher_logits, axis=-1, stable=True)
    return order, jnp.argmax(order == labels[..., None], axis=-1)


def by_rank(
    losses: Sequence[str],
    student_logits: Float[Array, "*batch V"],
    teacher_logits: Float[Array, "*batch V"],
    labels: Int[Array, "*batch"],
) -> dict[tuple[str, str], Float[Array, "*batch 2 B"]]:
    """Sums shares and parts of each loss and gauge over the bins of ranks.

    Args:
      losses: names that `jaxdiv.get` takes.
      student_logits, teacher_logits: with their classes in the teacher's order.
      labels: places in that order.

    Returns:
      Shares and parts by loss and gauge, beside the teacher's probabilities.
    """
    bins = rank_bins(teacher_logits.shape[-1])

    def binned(parts):
        pair = jnp.stack([shares(parts), parts], axis=-2)
        return jnp.stack([pair[..., low - 1 : high].sum(-1) for low, high in bins], axis=-1)

    values = {TEACHER: binned(jax.nn.softmax(teacher_logits))}
    for loss in losses:
        for gauge in SHOWN:
            if gauge in gauges(loss):
                parts = contributions(
                    loss, student_logits, teacher_logits, gauge=gauge, labels=labels
                )
                values[loss, gauge] = binned(parts)
    return values
