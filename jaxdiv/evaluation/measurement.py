"""Acceptance of a run's students, measured from their checkpoints: sums over each document's
tokens."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxdiv import acceptance, schema
from jaxdiv.data import pipeline
from jaxdiv.evaluation import contexts
from jaxdiv.runs import config as run_config
from jaxdiv.runs import progress, sharding
from jaxdiv.runs.workdir import Workdir
from jaxdiv.schema import MAX_MEASURED_GAMMA, UNTRAINED
from jaxdiv.training import run_data, students, teacher
from jaxdiv.training.run_data import RunData
from jaxdiv.training.state import Model
from jaxdiv.training.step import for_each_seed

GREEDY_MATCH = "greedy_match"
ACCURACY = "accuracy"  # of images, whose labels are the truth
_GIVEN = ("given", "greedy_given")  # acceptance of each token of the teacher's own text
# The results' name of a rule that depends on a temperature.
_MEASURES = {
    "sampling": "acceptance",
    "greedy_draft": "acceptance_greedy_draft",
    "exact_match": "acceptance_exact_match",
    "typical": "acceptance_typical",
}


@dataclasses.dataclass(frozen=True)
class Key:
    """A measure at a context and temperature, with `gamma`, drafted tokens or position in a draft,
    where it has one."""

    context: str
    measure: str
    temperature: float
    gamma: int | None = None


@dataclasses.dataclass(frozen=True)
class Sums:
    """A measure is sum(numerator) / sum(denominator) over documents.

    Attributes:
      numerator, denominator: [S, K], students by documents.
      tokens: [K], the tokens behind them.
    """

    numerator: np.ndarray
    denominator: np.ndarray
    tokens: np.ndarray


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One run. `losses`: loss to the seeds of its living students; `sums`: (loss, key) to what they
    sum to."""

    losses: dict[str, list[int]]
    sums: dict[tuple[str, Key], Sums]


def measure(
    workdir: Workdir, *, names: Sequence[str], rules: Sequence[str], temperatures: Sequence[float]
) -> Measurement:
    """Measures a finished run's students, restored from disk, and the untrained ones.

    Args:
      workdir: the run.
      names: of contexts.
      rules: of `acceptance.RULES`; tokens a target call are always by `sampling` and
        `greedy_draft`.
      temperatures: of sampling.

    Raises:
      ValueError, FileNotFoundError: the run has no such context, is not finished, or what it saved
        is damaged.
    """
    config = workdir.config()
    contexts.check(names, config)
    data, mesh = run_data.load(workdir), sharding.make_for_reading(config)
    guide = teacher.restore(config, workdir, data.vocab_size, mesh)
    population = list(student_groups(config, workdir, data, mesh))
    on = (contexts.make(name, config, data, guide, mesh) for name in names)
    return measure_students(
        on, config, guide, population, mesh, rules=rules, temperatures=temperatures
    )


def measure_students(
    on: Iterable[contexts.Context],
    config: Mapping,
    guide: Model,
    population: Sequence[tuple[str, Model, list[int]]],
    mesh: Mesh,
    *,
    rules: Sequence[str],
    temperatures: Sequence[float],
) -> Measurement:
    """As `measure`, of students of one kind that are at hand.

    Args:
      on: the contexts.
      config: the run's.
      guide: the teacher.
      population: of `student_groups`.
      mesh: that all lies on.
      rules, temperatures: as `measure` has them.
    """
    sums = {}
    for context in on:
        rows = _by_row(config, guide, population, context, tuple(rules), tuple(temperatures), mesh)
        for loss, measured in rows.items():
            by_document = {key: context.by_document(value) for key, value in measured.items()}
            sums |= {(loss, key): value for key, value in _sums(context, by_document, temperatures)}
    return _without_lost({loss: seeds for loss, _, seeds in population}, sums)


def _without_lost(losses, sums):
    """Leaves out students whose logits are not finite, as after a last step that went wrong."""
    kept = Measurement({loss: [] for loss in losses}, {})
    for loss, seeds in losses.items():
        mine = {key: found for (name, key), found in sums.items() if name == loss}
        if not mine:
            continue
        finite = np.all(
            [np.isfinite(s.numerator + s.denominator).all(axis=1) for s in mine.values()], axis=0
        )
        kept.losses[loss] = [seed for seed, keep in zip(seeds, finite, strict=True) if keep]
        if finite.any():
            for key, found in mine.items():
                kept.sums[loss, key] = Sums(
                    found.numerator[finite], found.denominator[finite], found.tokens
                )
    return kept


def student_groups(
    config: Mapping, workdir: Workdir, data: RunData, mesh: Mesh | None = None
) -> Iterator[tuple[str, Model, list[int]]]:
    """(loss, its living students, their seeds) in the config's order, then the untrained; spread
    over `mesh`."""
    vocab_size, seeds = data.vocab_size, students.seeds(config)
    for loss in run_config.losses(config):
        model, alive = students.restore(config, workdir, vocab_size, loss.text, mesh)
        living = np.flatnonzero(alive)
        params = jax.tree.map(lambda x, living=living: x[living], model.params)
        yield loss.text, model.with_params(params), [seeds[i] for i in living]
    yield UNTRAINED, students.untrained(config, vocab_size, mesh), seeds


def _by_row(config, guide, groups, context, rules, temperatures, mesh):
    """Loss to measure to sums over each row's tokens, [S, R, ...]; the teacher's pass is made once
    for all."""
    rows = sharding.Rows(mesh, rows_at_once(config, context.inputs[0].size, mesh))
    how = {"rules": rules, "temperatures": temperatures}
    pass_of, part_of = compiled_passes(config, guide, groups[-1][1], context, mesh, **how)
    parts = {loss: [] for loss, _, seeds in groups if seeds}
    blocks = list(
        pipeline.blocks([getattr(context, name) for name in run_data.BATCH_FIELDS], rows.count)
    )
    tokens = rows.count * context.labels.shape[1]
    with progress.bar(context.name, len(blocks), unit="batches", tokens=tokens) as advance:
        for block in blocks:
            batch = rows.spread(run_data.batch(block))
            shared = pass_of(guide.params, batch["inputs"])
            for loss, model, seeds in groups:
                if seeds:
                    made = part_of(model.params, *shared, batch)
                    parts[loss].append(jax.tree.map(lambda x: np.asarray(x, np.float64), made))
            advance()
    return {loss: _whole(context, made) for loss, made in parts.items()}


def compiled_passes(
    config: Mapping,
    guide: Model,
    student: Model,
    context: contexts.Context,
    mesh: Mesh,
    *,
    rules: Sequence[str],
    temperatures: Sequence[float],
) -> tuple[Callable, Callable]:
    """The two jitted functions that measure a block of rows: the teacher's pass, and one loss's
    students on it.

    Args:
      config: the run's.
      guide: the teacher, of which the parameters are not read.
      student: the students, likewise.
      context: of which the arrays are not read.
      mesh: that all lies on.
      rules, temperatures: as `measure` has them.

    Returns:
      (teacher's parameters, inputs [R, L]) -> shared, teacher's logits; and (parameters [S, ...],
      shared, teacher's logits, batch) -> measure to its sums, [S, R, ...].
    """
    teach = students.teacher_forward(config, guide)

    @functools.partial(sharding.jit, mesh=mesh)
    def pass_of(params, inputs):
        shared = teach(params, inputs)
        return shared, shared.logits

    @functools.partial(sharding.jit, mesh=mesh)
    def part_of(params, shared, teacher_logits, batch):
        def one(params):
            logits = student.with_params(params)(batch["inputs"], shared)
            return _measures(
                logits,
                teacher_logits,
                batch["labels"],
                batch["weights"],
                context,
                rules,
                temperatures,
            )

        return sharding.everywhere(for_each_seed(one, params, mesh), mesh)

    return pass_of, part_of


def rows_at_once(config: Mapping, length: int, mesh: Mesh) -> int:
    """As many rows of `length` inputs as have logits that a CPU's caches hold, or accelerators'
    memory never misses.

    An image has far fewer logits than numbers, but about so many activations.
    """
    size = 2**21 if sharding.platform(mesh) == "cpu" else 2**28 * mesh.size
    return sharding.Rows(mesh, max(1, size // (4 * config["data"]["vocabulary"] * length))).padded


def _whole(context, parts):
    """The blocks' measures put together [S, R, ...], and what decoding along the teacher's own text
    would give."""
    rows = len(context.inputs)
    whole = {
        name: np.concatenate([part[name] for part in parts], axis=1)[:, :rows] for name in parts[0]
    }
    if context.start is None:
        return whole
    valid = context.weights[:, context.start :].sum(-1).astype(np.int32)
    given, greedy_given = (jnp.asarray(whole.pop(name), jnp.float32) for name in _GIVEN)
    made = _along_texts(given, greedy_given, valid)
    return whole | {name: np.asarray(values, np.float64) for name, values in made.items()}


@jax.jit
def _along_texts(given, greedy_given, valid):
    accepted, rounds = acceptance.accepted_at(given, valid, gamma=MAX_MEASURED_GAMMA)
    calls, calls_greedy_draft = (
        jnp.stack(
            [
                acceptance.calls(chance, valid, gamma=gamma)
                for gamma in range(1, MAX_MEASURED_GAMMA + 1)
            ],
            axis=-1,
        )
        for chance in (given, greedy_given)
    )
    return {
        "calls": calls,
        "calls_greedy_draft": calls_greedy_draft,
        "accepted_at": accepted,
        "rounds": rounds,
    }


def _measures(student_logits, teacher_logits, labels, weights, context, rules, temperatures):
    """Each measure's sum over the tokens of a row, [R] or by temperature [R, T]; of own text
    `_GIVEN`, [R, n]."""

    def summed(chance):
        return (chance * weights).sum(-1)

    found = {}
    for rule in rules:
        if rule == GREEDY_MATCH:
            found[rule] = summed(acceptance.greedy_match(student_logits, teacher_logits))
            continue
        chance_at = acceptance.BY_TEMPERATURE[rule]
        at = [
            summed(chance_at(student_logits, teacher_logits, temperature=t)) for t in temperatures
        ]
        found[_MEASURES[rule]] = jnp.stack(at, axis=-1)
    if context.name == schema.IMAGES:
        found[ACCURACY] = summed(jnp.argmax(student_logits, axis=-1) == labels)
    if context.start is None:
        return found
    own, temperature = slice(context.start, None), context.temperature
    found["at_own_temperature"] = summed(
        acceptance.sampling(student_logits, teacher_logits, temperature=temperature)
    )
    given = acceptance.sampling_given(
        student_logits, teacher_logits, labels, temperature=temperature
    )
    found |= dict(
        zip(
            _GIVEN,
            (given[:, own], acceptance.greedy_given(student_logits, labels)[:, own]),
            strict=True,
        )
    )
    return found


def _sums(context, measured, temperatures):
    """(key, sums) of every measure that the results name."""
    tokens = context.by_document(context.weights.sum(-1)[None].astype(np.float64))[0]
    count = np.broadcast_to(tokens, measured["acceptance"].shape[:2])
    for name in _MEASURES.values():
        if name in measured:
            for i, temperature in enumerate(temperatures):
                yield (
                    Key(context.name, name, temperature),
                    Sums(measured[name][..., i], count, tokens),
                )
    if GREEDY_MATCH in measured:
        yield Key(context.name, GREEDY_MATCH, 0.0), Sums(measured[GREEDY_MATCH], count, tokens)
    if ACCURACY in measured:
        yield Key(context.name, ACCURACY, 0.0), Sums(measured[ACCURACY], count, tokens)
    if context.start is None:
        return
    own = context.temperature
    for gamma in range(1, MAX_MEASURED_GAMMA + 1):
        for name, calls in (("tau", "calls"), ("tau_greedy_draft", "calls_greedy_draft")):
            yield (
                Key(context.name, name, own, gamma),
                Sums(count, measured[calls][..., gamma - 1], tokens),
            )
        yield (
            Key(context.name, "tau_iid", own, gamma),
            Sums(measured["at_own_temperature"], count, tokens),
        )
        accepted, rounds = (
            measured["accepted_at"][..., gamma - 1],
            measured["rounds"][..., gamma - 1],
        )
        yield Key(context.name, "acceptance_at", own, gamma), Sums(accepted, rounds, tokens)
