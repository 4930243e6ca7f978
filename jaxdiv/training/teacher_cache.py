"""The teacher's outputs on the students' rows, made once, in place of a teacher pass each step.

Row k of the cache is row k of the training stream, as online training reads it in its first epoch,
with the text that the teacher writes there. Every epoch reads the rows in the order in which online
training reads its own.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from jaxdiv import models
from jaxdiv.data import pipeline
from jaxdiv.data.row_cache import BFLOAT16, Fields, RowCache, Shard
from jaxdiv.runs import lock, processes, progress
from jaxdiv.runs.specs import RunSpec, StageSpec
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import (
    draft_tokens,
    objectives,
    on_policy,
    run_data,
    sharding,
    teacher,
    teacher_sources,
)
from jaxdiv.training.loop import Monitoring
from jaxdiv.training.run_data import BATCH_FIELDS, RunData, TextData
from jaxdiv.training.state import Model

FOLDER = "teacher outputs read from"  # a fact of a run
_TRAIN, _VALIDATION = "train", "validation"  # parts of a cache
_AHEAD = 2  # batches that the device may be ahead of the disk
_TOKENS = 2**13  # of a teacher pass, at most, if a batch has fewer


@dataclasses.dataclass(frozen=True)
class CachedTeacher:
    """The teacher's head and a cache of its outputs, in place of data and teacher in training.

    Attributes:
      spec: the run's.
      vocab_size: V.
      cache: has the rows.
      rows: how many of each part the run reads.
      params: the head, by `teacher.restore_head`.
    """

    spec: RunSpec
    vocab_size: int
    cache: RowCache
    rows: Mapping[str, int]
    params: dict[str, Array]

    def batches(self, stage: StageSpec, rows: slice | None = None) -> grain.DatasetIterator:
        """Returns the stage's training batches without end, as `TextData.batches` does, with the
        teacher's outputs."""
        count, seed = self.rows[_TRAIN], stage.data_seed
        read = self.cache.reader(_TRAIN, count)
        place = np.argsort(pipeline.first_epoch(count, seed))
        return pipeline.endless(
            count, stage.batch_size, seed, lambda numbers: read(place[numbers]), rows
        )

    def validation_batch(self, mesh: Mesh) -> dict[str, jax.Array]:
        """Returns `run_data.validation_batch` with the teacher's outputs."""
        count = self.rows[_VALIDATION]
        read = self.cache.reader(_VALIDATION, count)
        return sharding.BatchSharding(mesh, count).put(read(np.arange(count)))

    def output(
        self,
        params: Mapping[str, Array],
        batch: Mapping[str, Array],
        exit_layer: int | None,
        temperature: float,
    ) -> models.TeacherOutput:
        """Returns the teacher's outputs that a batch holds, in the run's type of activations; the
        normalizer if it is of the temperature."""
        dtype = jnp.dtype(self.spec.dtype)
        return models.TeacherOutput(
            batch["features"].astype(dtype),
            None if exit_layer is None else batch[_hidden(exit_layer)].astype(dtype),
            params["embedding"].T if self.spec.teacher.tied_head else params["head"],
            self.vocab_size,
            batch.get("normalizer") if temperature == self.spec.temperature else None,
        )


def prepare(
    spec: RunSpec, workdir: Workdir, data: RunData, monitoring: Monitoring | None = None
) -> Model | CachedTeacher:
    """Prepares the teacher by `teacher.prepare` or, with `config.teacher.cache`, its outputs.

    What the cache lacks is made. If it lacks nothing, the teacher's layers are not read.

    Raises:
      ValueError: the cache holds other rows, another run makes it, or the disk lacks the room.
      OSError: a shard can't be written.
    """
    if not spec.teacher.cache:
        return teacher.prepare(spec, workdir, data, monitoring)
    mesh, rows, model = sharding.make_mesh(spec), _rows(spec, data), None
    cache = _open(spec, workdir, data)
    if missing := cache.missing(rows):
        _check_room(cache, rows, missing)
    is_measured = teacher.quality(spec.data) in workdir.facts()
    if not (is_measured and draft_tokens.is_prepared(spec, workdir)):
        model = teacher.prepare(spec, workdir, data, monitoring)
        draft_tokens.prepare(spec, workdir, data, model, mesh)
        cache = _open(spec, workdir, data)
    if missing:
        model = model or teacher.restore(spec.teacher, workdir, data.vocab_size, mesh)
        with lock.hold(cache.folder):
            cache = _open(spec, workdir, data)  # another run may have made it since
            missing = cache.missing(rows)
            for fault in filter(None, missing.values()):
                progress.log(f"{fault}; making it again")
            processes.barrier("cache read")
            _make(spec, data, model, cache, list(missing), _identity(spec, workdir, data))
        processes.barrier("cache made")
        cache = _open(spec, workdir, data)
    workdir.add_facts({FOLDER: str(cache.folder)})
    head = teacher_sources.restore_head(spec.teacher, workdir, data.vocab_size, mesh)
    return CachedTeacher(spec, data.vocab_size, cache, rows, head)


def _rows(spec: RunSpec, data: TextData) -> dict[str, int]:
    """Returns the rows that a run reads of each part."""
    stage = spec.student_stage
    windows = pipeline.training_windows(data.splits["train"], stage.sequence_length)
    most = min(windows, stage.steps * stage.batch_size)
    validation = run_data.validation_windows(stage, data)
    return {
        _TRAIN: min(most, spec.teacher.cache_rows or most),
        _VALIDATION: len(validation.inputs),
    }


def _hidden(layer: int) -> str:
    """Returns the name of the hidden states after a layer."""
    return f"hidden_{layer}"


def _open(spec: RunSpec, workdir: Workdir, data: TextData) -> RowCache:
    """Opens the run's cache, or plans it. Raises ValueError if it holds other rows."""
    length, width = spec.data.sequence_length, spec.teacher.width
    reads_hidden = spec.student.kind == models.KANGAROO
    rows, batch = _rows(spec, data)[_TRAIN], spec.student.batch_size
    batches = min(_TOKENS // (batch * length), rows // batch)
    states = ["features", *([_hidden(spec.student.exit_layer)] if reads_hidden else [])]
    kinds = {"inputs": "<i4", "labels": "<i4", "weights": "<f4"}
    # The head's product takes a fifth of a small model's pass. Training makes up for it where it is
    # not there.
    normalizer = {"normalizer": ("<f4", (length,))} if spec.student.vocabulary else {}
    fields: Fields = {
        **{name: (kind, (length,)) for name, kind in kinds.items()},
        **dict.fromkeys(states, (BFLOAT16, (length, width))),
    }
    try:
        cache = RowCache(
            spec.teacher.cache,
            {**fields, **normalizer},
            rows=rows,
            batch_rows=batch * max(batches, 1),
        )
        cache.check(_identity(spec, workdir, data), fields)
    except ValueError as error:
        raise ValueError(f"`config.teacher.cache`: {error}") from None
    return cache


def _identity(spec: RunSpec, workdir: Workdir, data: TextData) -> dict[str, Any]:
    """Returns all that decides the rows, by names for messages; the model once it is prepared."""
    facts, written = workdir.facts(), spec.on_policy
    model = facts.get(teacher_sources.SOURCE_FINGERPRINT)
    if model is None and teacher.quality(spec.data) in facts:
        model = teacher_sources.RunSource(workdir.root).fingerprint()
    text = "none"
    if written:
        rows = f"{written.rows} of {spec.student.batch_size} rows"
        text = f"{rows} after {written.prompt_tokens} tokens"
    return {
        **({"model": model} if model else {}),
        "tokenizer": data.tokenizer.fingerprint,
        "training text": data.splits["train"].fingerprint,
        "validation text": data.splits["validation"].fingerprint,
        "sequence length": spec.data.sequence_length,
        "on-policy text": text,
        "loss_on": spec.data.loss_on,
        "seed": spec.student_stage.data_seed,
        "temperature": spec.temperature,
        "type of activations": spec.dtype,
        "type of parameters": spec.teacher.parameters,
    }


def _check_room(cache: RowCache, rows: Mapping[str, int], missing: Iterable[Shard]) -> None:
    """Says what the cache takes. Raises ValueError if the disk lacks the room."""
    size = cache.dtype.itemsize
    progress.log(f"the cache takes {_bytes(size * sum(rows.values()))} in {cache.folder}")
    folders = (cache.folder, *cache.folder.absolute().parents)
    existing = next(path for path in folders if path.exists())
    needed, free = size * sum(shard.rows for shard in missing), shutil.disk_usage(existing).free
    if needed > free:
        raise ValueError(
            f"`config.teacher.cache`: {_bytes(needed)} are to be written to {cache.folder}, whose "
            f"disk has {_bytes(free)} free; give a folder of another disk, or fewer rows by "
            "`config.teacher.cache_rows`"
        )


def _bytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"


def _make(
    spec: RunSpec,
    data: TextData,
    model: Model,
    cache: RowCache,
    missing: Sequence[Shard],
    identity: Mapping[str, Any],
) -> None:
    """Makes the missing shards; each counts once it is whole."""
    mesh = sharding.make_mesh(spec)
    rows = sharding.BatchSharding(mesh, cache.batch_rows)
    write = on_policy.writer(spec.on_policy, model, None, data.tokenizer.end_of_text)
    write = write and on_policy.over_steps(write, spec.student.batch_size)
    plain = _outputs(spec, model, cache, None, mesh)
    stage = dataclasses.replace(spec.student_stage, batch_size=cache.batch_rows)
    windows = run_data.validation_windows(spec.student_stage, data)
    parts = {
        _TRAIN: (
            map(rows.put_local, data.batches(stage, rows.local_rows)),
            _outputs(spec, model, cache, write, mesh) if write else plain,
        ),
        _VALIDATION: (run_data.spread(windows, rows), plain),
    }
    batches = {shard: math.ceil(shard.rows / cache.batch_rows) for shard in missing}
    tokens = cache.batch_rows * spec.data.sequence_length
    total = sum(batches.values())
    with progress.bar("cache", total, unit="batches", tokens=tokens) as advance:
        for part, (stream, outputs) in parts.items():
            numbered = enumerate(stream)
            for shard in (shard for shard in missing if shard.part == part):
                first = shard.start // cache.batch_rows
                rest = itertools.dropwhile(lambda item, first=first: item[0] < first, numbered)
                of_shard = itertools.islice(rest, batches[shard])
                arrays = (outputs(model.params, batch, number) for number, batch in of_shard)
                _write(cache, shard, identity, arrays, advance)


def _outputs(
    spec: RunSpec, model: Model, cache: RowCache, write: Callable | None, mesh: Mesh
) -> Callable[[Any, Mapping, int], dict[str, jax.Array]]:
    """Returns the function of (teacher's parameters, batch, its number) that returns the arrays of
    the cache's rows, whole on every device. `write` makes the batch, as of `on_policy.over_steps`.
    """
    prefix = _hidden(0)[:-1]
    layers = sorted(int(name[len(prefix) :]) for name in cache.fields if name.startswith(prefix))

    @functools.partial(sharding.jit, mesh=mesh)
    def outputs(params, batch, number):
        first = number * (cache.batch_rows // spec.student.batch_size)
        batch = write(params, batch, first) if write else batch
        module = model.with_params(params).module()
        features, states = module.states(batch["inputs"], layers)
        features = features.astype(jnp.bfloat16)
        values = {
            **{name: batch[name] for name in BATCH_FIELDS},
            **{_hidden(layer): states[layer].astype(jnp.bfloat16) for layer in layers},
            "features": features,
        }
        if "normalizer" in cache.fields:
            # Of the rounded features, so that probabilities sum to 1 in training.
            output = module.output(features=features.astype(spec.dtype))
            values["normalizer"] = objectives.normalizer(output, spec.temperature)
        return sharding.replicate(values, mesh)

    return outputs


def _write(
    cache: RowCache,
    shard: Shard,
    identity: Mapping[str, Any],
    outputs: Iterator[Mapping[str, jax.Array]],
    advance: Callable[[], None],
) -> None:
    """Writes a shard in a thread while the device computes. Of several processes the first does."""
    pending: collections.deque[concurrent.futures.Future] = collections.deque()
    with contextlib.ExitStack() as stack:
        add = stack.enter_context(cache.writing(shard, identity)) if processes.is_first() else None
        worker = stack.enter_context(concurrent.futures.ThreadPoolExecutor(1, "cache"))

        def append(values, rows):
            arrays = {name: np.asarray(array)[:rows] for name, array in values.items()}
            if add:
                add(arrays)

        for number, values in enumerate(outputs):
            left = shard.rows - number * cache.batch_rows
            pending.append(worker.submit(append, values, min(left, cache.batch_rows)))
            if len(pending) > _AHEAD:
                pending.popleft().result()
            advance()
        for future in pending:
            future.result()
