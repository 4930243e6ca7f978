"""The run's teacher: trained on the next token, or taken from a teacher source."""

import contextlib
import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxdiv import files
from jaxdiv.data.pipeline import Windows
from jaxdiv.runs import processes, progress
from jaxdiv.runs.specs import DataSpec, RunSpec, StageSpec, TeacherSpec
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import objectives, run_data, sharding, state, teacher_sources
from jaxdiv.training.loop import Monitoring, Training, run_stage
from jaxdiv.training.run_data import RunData, TextData
from jaxdiv.training.state import Model
from jaxdiv.training.step import Step, initial_state, make_step, optimizers_of

# Facts of a run; the last one is of a teacher on text.
QUALITY = "teacher, nats a UTF-8 byte on test documents"
ACCURACY = "teacher, accuracy on test images"
QUALITY_TOKENS = "teacher, test tokens that it was measured on"
_DOCUMENTS = "test tokens' fingerprint"


def prepare(
    spec: RunSpec, workdir: Workdir, data: RunData, monitoring: Monitoring | None = None
) -> Model:
    """Trains the teacher or takes it over, unless the run's folder has it, and restores it.

    Its quality on test documents becomes a fact of the run.
    """
    mesh = sharding.make_mesh(spec)
    if spec.teacher.checkpoint:
        teacher_sources.take_over(spec, workdir, mesh)
    else:
        _train(spec, workdir, data, mesh, monitoring)
    teacher = restore(spec.teacher, workdir, data.vocab_size, mesh)
    if processes.broadcast_from_first(quality(spec.data) not in workdir.facts()):
        facts = _measured_before(spec, workdir)
        if processes.broadcast_from_first(facts is None):
            rows = sharding.BatchSharding(mesh, spec.teacher_stage.batch_size)
            windows = quality_windows(data, spec.teacher.most_quality_tokens)
            value = measure_quality(data, teacher, rows, windows)
            facts = {quality(spec.data): round(value, 4)}
            if not spec.data.is_images:
                facts[QUALITY_TOKENS] = int(windows.weights.sum())
            _remember(spec, workdir, facts)
        workdir.add_facts(facts or {})
        processes.barrier("teacher measured")
    return teacher


def _measured_before(spec: RunSpec, workdir: Workdir) -> dict[str, Any] | None:
    """Returns the quality of the same teacher on the same documents, as facts, from the run which
    the teacher comes from or from the user's cache."""
    source = teacher_sources.find(spec.teacher.checkpoint) if spec.teacher.checkpoint else None
    if source and source.run:
        before, facts = source.run.facts(), workdir.facts()
        same = (run_data.TOKENIZER, _DOCUMENTS)
        if _is_measured_alike(spec, source.spec) and all(before.get(x) == facts[x] for x in same):
            names = (quality(spec.data), QUALITY_TOKENS)
            return {name: before[name] for name in names if name in before} or None
    path = _remembered(spec, workdir)
    with contextlib.suppress(OSError, ValueError):  # without the file or with half of one
        return files.read_json(path) if path else None
    return None


def _is_measured_alike(spec: RunSpec, before: RunSpec) -> bool:
    """Returns whether two runs measure a teacher on the same tokens in the same types."""
    tokens = spec.teacher.quality_tokens
    ways = [
        (x.teacher.dtype, x.teacher.parameters, x.data.sequence_length, x.data.loss_on)
        for x in (spec, before)
    ]
    return ways[0] == ways[1] and tokens in (0, before.teacher.most_quality_tokens)


def _remember(spec: RunSpec, workdir: Workdir, facts: Mapping[str, Any]) -> None:
    """Keeps a pretrained teacher's quality for other runs, where the user's cache takes it."""
    path = _remembered(spec, workdir)
    if path and processes.is_first():
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(path, facts)


def _remembered(spec: RunSpec, workdir: Workdir) -> pathlib.Path | None:
    """Returns where the user's cache has a pretrained teacher's quality; None without either."""
    facts, folder = workdir.facts(), files.user_cache()
    names = (teacher_sources.SOURCE_FINGERPRINT, run_data.TOKENIZER, _DOCUMENTS)
    if folder is None or not facts.keys() >= set(names):
        return None
    measured = spec.teacher.most_quality_tokens, spec.data.sequence_length, spec.data.loss_on
    identity = *map(facts.get, names), spec.teacher.dtype, spec.teacher.parameters, *measured
    name = hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
    return folder / "quality" / f"{name}.json"


def restore(
    spec: TeacherSpec, workdir: Workdir, vocab_size: int, mesh: Mesh | None = None
) -> Model:
    """Restores the teacher of the run's folder as `teacher_sources.restore` does."""
    return teacher_sources.restore(spec, workdir, vocab_size, mesh)


def quality(spec: DataSpec) -> str:
    """Returns the name of the fact that holds the teacher's quality."""
    return ACCURACY if spec.is_images else QUALITY


def quality_windows(data: RunData, most_tokens: int = 0) -> Windows:
    """Returns the first tokens of test documents, `most_tokens` in all or 0 for no limit, or test
    images."""
    windows = data.windows("test")
    if not (most_tokens and isinstance(data, TextData)):
        return windows
    # At least one window.
    count = max(1, np.searchsorted(windows.weights.sum(1).cumsum(), most_tokens, side="right"))
    arrays = {name: array[:count] for name, array in vars(windows).items()}
    return dataclasses.replace(windows, **arrays)


def measure_quality(
    data: RunData,
    teacher: Model,
    rows: sharding.BatchSharding,
    windows: Windows | None = None,
) -> float:
    """Measures the teacher on windows, by default all of `quality_windows`.

    Returns:
      Nats per UTF-8 byte, where tokens that end a text count as 0 bytes; or the share of images
      whose label is the likeliest class.
    """
    windows, is_text = windows or quality_windows(data), isinstance(data, TextData)

    @functools.partial(sharding.jit, mesh=rows.mesh)
    def total(params, batch):
        model, weights = teacher.with_params(params), batch["weights"]
        if is_text:
            value = _cross_entropy(model, batch) * weights.sum()
        else:
            classes = jnp.argmax(model(batch["inputs"]).logits, axis=-1)
            value = jnp.sum((classes == batch["labels"]) * weights)
        return sharding.replicate(value, rows.mesh)

    value = 0
    with progress.bar("measuring", -(-len(windows.inputs) // rows.rows), unit="batches") as advance:
        for batch in run_data.spread(windows, rows):
            value += float(total(teacher.params, batch))
            advance()
    units = data.tokenizer.byte_lengths[windows.labels] if is_text else 1.0
    return value / float((units * windows.weights).sum())


def _train(
    spec: RunSpec, workdir: Workdir, data: RunData, mesh: Mesh, monitoring: Monitoring | None
) -> None:
    stage, build = spec.teacher_stage, state.teacher_builder(spec.teacher, data.vocab_size)
    model = state.population_shapes(build, 1, mesh)
    held_out = run_data.validation_batch(spec.student_stage, data, mesh)
    rows = sharding.BatchSharding(mesh, stage.batch_size)

    @functools.partial(sharding.jit, mesh=mesh)
    def validation_loss(params, batch):
        loss = _cross_entropy(model.with_params(params).student(0), batch)
        return sharding.replicate(loss.reshape(1, 1), mesh)

    def report_diverged(number, _, batch):
        path = workdir.save_batch(number, rows.gather(batch))
        raise ValueError(
            f"the teacher's loss or gradient is not finite at step {number}, whose batch is kept "
            f"in {path}; lower `config.teacher.optimizer.learning_rate`"
        )

    training = Training(
        spec=stage,
        folder=workdir.teacher,
        initial_state=lambda: initial_state(
            stage, state.population(build, stage.seeds, mesh), mesh
        ),
        step=step(stage, model, mesh=mesh),
        teacher=None,
        batches=data.batches(stage, rows.local_rows),
        measure=lambda trained: {"validation_loss": validation_loss(trained.params[0], held_out)},
        report_diverged=report_diverged,
    )
    run_stage(training, workdir, mesh, monitoring)


def step(stage: StageSpec, model: Model, *, mesh: Mesh | None = None) -> Step:
    """Returns the teacher's training step, on the next token alone."""
    return make_step(
        teacher_forward=lambda _, batch: None,
        objectives=lambda _, params, batch, shared: [
            _cross_entropy(model.with_params(params[0]), batch)
        ],
        fuse_losses=lambda shared: False,
        optimizers=optimizers_of(stage),
        mesh=mesh,
    )


def _cross_entropy(teacher: Model, batch: Mapping) -> Float[Array, ""]:
    """Computes nats per token of the batch."""
    output = teacher(batch["inputs"])
    student = objectives.features_and_head(output)
    return objectives.means(["ce_data"], [student], batch, vocab_size=output.vocab_size)[0]
