"""Acceptance of a run's students, measured from their checkpoints as sums over documents."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxdiv import acceptance, schema
from jaxdiv.evaluation import contexts
from jaxdiv.evaluation.contexts import Context
from jaxdiv.runs import progress
from jaxdiv.runs.specs import EvaluationSpec, RunSpec
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import draft_tokens, run_data, sharding, students, teacher
from jaxdiv.training.run_data import RunData
from jaxdiv.training.state import Model
from jaxdiv.training.step import for_each_seed

# Acceptance of each token of the teacher's text, by rejection sampling and of greedy drafts. It is
# replaced by tokens per target call, and never reaches the results.
_BY_TOKEN = ("by_token", "by_token_greedy_draft")
_AT_TEXT_TEMPERATURE = "acceptance_at_text_temperature"
_MAX_GAMMA = schema.MAX_MEASURED_GAMMA

Group = tuple[str, Model, Sequence[int]]  # a loss, its students, and their seeds


@dataclasses.dataclass(frozen=True)
class Key:
    """A measure in a context at a temperature.

    Attributes:
      gamma: drafts per round, or a position in the draft; None if the measure has neither.
    """

    context: str
    measure: str
    temperature: float
    gamma: int | None = None


@dataclasses.dataclass(frozen=True)
class Sums:
    """Sums of a measure, which is sum(numerator) / sum(denominator) over documents.

    Attributes:
      numerator, denominator: [S, K], students by documents.
      tokens: [K], the number of predictions behind them.
    """

    numerator: np.ndarray
    denominator: np.ndarray
    tokens: np.ndarray


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Measurement of one run.

    Attributes:
      losses: the seeds of each loss's finite students.
      sums: by loss and key.
    """

    losses: dict[str, list[int]]
    sums: dict[tuple[str, Key], Sums]


def measure(workdir: Workdir, evaluation: EvaluationSpec | None = None) -> Measurement:
    """Measures a finished run's students, restored from disk, and the untrained ones.

    Args:
      workdir: the run.
      evaluation: contexts, rules and temperatures; None for those of the run's config. Tokens per
        target call are always by `sampling` and `greedy_draft`.

    Raises:
      ValueError, FileNotFoundError: the run has no such context, is not finished, or what it saved
        is damaged.
    """
    spec = workdir.spec()
    spec = dataclasses.replace(spec, evaluation=evaluation or spec.evaluation)
    contexts.check(spec.evaluation.contexts, spec.data)
    data, mesh = run_data.load(workdir), sharding.make_mesh_for_reading(spec)
    target = teacher.restore(spec.teacher, workdir, data.vocab_size, mesh)
    groups = list(student_groups(spec, workdir, data, mesh))
    texts = (
        contexts.make(name, spec.evaluation, data, target, mesh)
        for name in spec.evaluation.contexts
    )
    return measure_students(texts, spec, target, groups, mesh)


def student_groups(
    spec: RunSpec, workdir: Workdir, data: RunData, mesh: Mesh | None = None
) -> Iterator[Group]:
    """Yields each loss's finite students in the config's order, then the untrained ones."""
    for loss in spec.student_stage.members:
        model, finite = students.restore(spec, workdir, data.vocab_size, loss, mesh)
        index = np.flatnonzero(finite)
        params = jax.tree.map(lambda x, index=index: x[index], model.params)
        yield loss, model.with_params(params), [spec.seeds[i] for i in index]
    vocabulary = draft_tokens.load(spec, workdir)
    untrained = students.untrained(spec, data.vocab_size, mesh, vocabulary)
    yield schema.UNTRAINED, untrained, list(spec.seeds)


def measure_students(
    texts: Iterable[Context], spec: RunSpec, teacher: Model, groups: Sequence[Group], mesh: Mesh
) -> Measurement:
    """Measures students of one kind that are in memory.

    Args:
      texts: the contexts.
      spec: rules, temperatures and the vocabulary.
      teacher: the target that verifies.
      groups: students by loss.
      mesh: where all of them lie.

    Returns:
      The measurement, without students whose logits are not finite, as after a last step that
      diverged.
    """
    sums: dict[str, dict[Key, Sums]] = {loss: {} for loss, _, _ in groups}
    for context in texts:
        by_row = _measure_rows(context, spec, teacher, groups, mesh)
        for loss, measures in by_row.items():
            sums[loss] |= _sums(context, measures, spec.evaluation.temperatures)
    result = Measurement({}, {})
    for loss, _, seeds in groups:
        values = [s.numerator + s.denominator for s in sums[loss].values()]
        finite = np.all([np.isfinite(value).all(axis=1) for value in values], axis=0)
        keep = np.broadcast_to(finite & bool(values), len(seeds))
        result.losses[loss] = [seed for seed, k in zip(seeds, keep, strict=True) if k]
        if keep.any():
            for key, s in sums[loss].items():
                result.sums[loss, key] = Sums(s.numerator[keep], s.denominator[keep], s.tokens)
    return result


def _measure_rows(
    context: Context, spec: RunSpec, teacher: Model, groups: Sequence[Group], mesh: Mesh
) -> dict[str, dict[str, np.ndarray]]:
    """Returns sums over each row's tokens [S, R, ...] by loss and measure; one teacher pass serves
    all losses."""
    count, length = context.labels.shape
    rows = sharding.BatchSharding(mesh, rows_at_once(spec, context.inputs[0].size, mesh))
    read, compare = compiled_passes(spec, teacher, groups[-1][1], context, mesh)
    parts: dict[str, list] = {loss: [] for loss, _, seeds in groups if seeds}
    with progress.bar(
        context.name, -(-count // rows.rows), unit="batches", tokens=rows.rows * length
    ) as advance:
        for batch in run_data.spread(context, rows):
            shared = read(teacher.params, batch["inputs"])
            for loss, model, seeds in groups:
                if seeds:
                    measures = compare(model.params, *shared, batch)
                    parts[loss].append(jax.tree.map(lambda x: np.asarray(x, np.float64), measures))
            advance()
    return {
        loss: jax.tree.map(lambda *blocks: np.concatenate(blocks, axis=1)[:, :count], *measures)
        for loss, measures in parts.items()
    }


def rows_at_once(spec: RunSpec, length: int, mesh: Mesh) -> int:
    """Returns how many rows of `length` inputs are measured together.

    Their logits stay in a CPU's caches, or well within accelerators' memory. An image has far fewer
    logits than inputs, but about as many activations.
    """
    size = 2**21 if sharding.platform(mesh) == "cpu" else 2**28 * mesh.size
    return sharding.BatchSharding(
        mesh, max(1, size // (4 * spec.data.vocabulary * length))
    ).padded_rows


def compiled_passes(
    spec: RunSpec, teacher: Model, student: Model, context: Context, mesh: Mesh
) -> tuple[Callable, Callable]:
    """Returns the two jitted functions that measure a block of rows.

    Args:
      spec: rules and temperatures.
      teacher, student: models; their parameters are not read.
      context: the kind of rows; its arrays are not read.
      mesh: where all of them lie.

    Returns:
      The teacher's pass, of (parameters, inputs [R, L]), which returns its output and its logits;
      and the students' pass, of (parameters [S, ...], output, logits, batch), which returns each
      measure's sums [S, R, ...].
    """
    forward = students.teacher_forward(student, teacher)

    @functools.partial(sharding.jit, mesh=mesh)
    def read(params, inputs):
        output = forward(params, inputs)
        return output, output.logits

    @functools.partial(sharding.jit, mesh=mesh)
    def compare(params, output, teacher_logits, batch):
        def one_seed(params):
            logits = student.with_params(params)(batch["inputs"], output)
            return _measures(logits, teacher_logits, batch, context, spec.evaluation)

        return sharding.replicate(for_each_seed(one_seed, params, mesh), mesh)

    return read, compare


def _measures(
    student_logits: Float[Array, "R L V"],
    teacher_logits: Float[Array, "R L V"],
    batch: Mapping[str, Array],
    context: Context,
    spec: EvaluationSpec,
) -> dict[str, Array]:
    """Sums each measure over the tokens of a row: [R], by temperature [R, T], and for the
    teacher's text `_BY_TOKEN` [R, n]."""
    labels, logits = batch["labels"], (student_logits, teacher_logits)

    def total(chance):
        return (chance * batch["weights"]).sum(-1)

    measures = {}
    for rule in spec.rules:
        if rule == schema.GREEDY_MATCH:
            measures[rule] = total(acceptance.greedy_match(*logits))
        else:
            chance = acceptance.BY_TEMPERATURE[rule]
            sums = [total(chance(*logits, temperature=t)) for t in spec.temperatures]
            measures[schema.ACCEPTANCE_BY_RULE[rule]] = jnp.stack(sums, axis=-1)
    if context.name == schema.IMAGES:
        measures[schema.ACCURACY] = total(jnp.argmax(student_logits, axis=-1) == labels)
    if context.start is not None:
        options, text = {"temperature": context.temperature}, slice(context.start, None)
        by_token = (
            acceptance.sampling_given(*logits, labels, **options)[:, text],
            acceptance.greedy_given(student_logits, labels)[:, text],
        )
        measures |= dict(zip(_BY_TOKEN, by_token, strict=True))
        measures[_AT_TEXT_TEMPERATURE] = total(acceptance.sampling(*logits, **options))
    return measures


@jax.jit
def _decoding_counts(
    sampled: Float[Array, "S R n"], greedy: Float[Array, "S R n"], lengths: Int[Array, " R"]
) -> dict[str, Float[Array, "S R gammas"]]:
    """Computes the expected target calls for each gamma, and acceptance by position in a draft."""

    def calls(chance):
        gammas = range(1, _MAX_GAMMA + 1)
        return jnp.stack([acceptance.calls(chance, lengths, gamma=g) for g in gammas], axis=-1)

    accepted, rounds = acceptance.accepted_at(sampled, lengths, gamma=_MAX_GAMMA)
    return {
        schema.TAU: calls(sampled),
        schema.TAU_GREEDY_DRAFT: calls(greedy),
        schema.ACCEPTANCE_AT: accepted,
        "rounds": rounds,
    }


def _sums(
    context: Context, by_row: Mapping[str, np.ndarray], temperatures: Sequence[float]
) -> dict[Key, Sums]:
    """Returns every measure that the results name as sums over documents, from those over rows
    [S, R, ...]."""
    by_row = dict(by_row)
    if context.start is not None:
        lengths = context.weights[:, context.start :].sum(-1).astype(np.int32)
        by_token = (jnp.asarray(by_row.pop(name), jnp.float32) for name in _BY_TOKEN)
        counts = _decoding_counts(*by_token, lengths)
        by_row |= {name: np.asarray(values, np.float64) for name, values in counts.items()}
    sums = {name: context.by_document(values) for name, values in by_row.items()}
    tokens = context.by_document(context.weights.sum(-1)[None].astype(np.float64))[0]
    count = np.broadcast_to(tokens, sums[schema.ACCEPTANCE].shape[:2])
    entries = [
        (Key(context.name, measure, temperature), sums[measure][..., i], count)
        for measure in schema.ACCEPTANCE_BY_RULE.values()
        if measure in sums
        for i, temperature in enumerate(temperatures)
    ]
    for measure in (schema.GREEDY_MATCH, schema.ACCURACY):
        if measure in sums:
            entries.append((Key(context.name, measure, 0.0), sums[measure], count))
    for i in range(_MAX_GAMMA if context.start is not None else 0):
        ratios = {
            schema.TAU: (count, sums[schema.TAU][..., i]),
            schema.TAU_GREEDY_DRAFT: (count, sums[schema.TAU_GREEDY_DRAFT][..., i]),
            schema.TAU_IID: (sums[_AT_TEXT_TEMPERATURE], count),
            schema.ACCEPTANCE_AT: (sums[schema.ACCEPTANCE_AT][..., i], sums["rounds"][..., i]),
        }
        for measure, ratio in ratios.items():
            entries.append((Key(context.name, measure, context.temperature, i + 1), *ratio))
    return {key: Sums(numerator, denominator, tokens) for key, numerator, denominator in entries}
