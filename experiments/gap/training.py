"""The training of a study's students: cross-entropy's and KL's under each change, side by side on
one teacher pass."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from experiments.gap import causes
from jaxdiv import models
from jaxdiv.models.decoder import project
from jaxdiv.runs.specs import RunSpec
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import loop, sharding, students
from jaxdiv.training.run_data import TextData
from jaxdiv.training.state import Model, TrainState
from jaxdiv.training.step import Batch, Step, make_optimizer, make_step

# View to what a student reads, tokens [B, L] and of the teacher, and the logits [B, L, V] that it
# learns from.
TeacherPasses = Mapping[str, tuple[jax.Array, models.TeacherOutput, jax.Array]]


@dataclasses.dataclass(frozen=True)
class StudentWithHead:
    """Students that train their output head, where `Model` has students that take the teacher's.

    `params` has the keys `student` and `head`.
    """

    student: Model
    params: Any = None

    def with_params(self, params: Any) -> "StudentWithHead":
        return StudentWithHead(self.student, params)

    def module(self) -> models.Student:
        return self.student.module()

    def __call__(self, tokens: jax.Array, teacher: models.TeacherOutput) -> jax.Array:
        module = self.student.with_params(self.params[causes.STUDENT]).module()
        features = module.features(tokens, teacher)
        return project(features, self.params[causes.HEAD], teacher.vocab_size)


@dataclasses.dataclass(frozen=True)
class VariantTrainer:
    """The training of all variants.

    Attributes:
      spec: the run.
      variants: from `causes.variants`.
      teacher: the teacher of all students; variants that train it or its head start from it.
      students: the untrained students [S, ...], from which all variants start.
      corpus: the run's data.
      mesh: devices that training and measuring are spread over.
    """

    spec: RunSpec
    variants: Mapping[str, tuple[causes.Change, str]]
    teacher: Model
    students: Model
    corpus: TextData
    mesh: Mesh

    def drafter(self, trains: str) -> Model | StudentWithHead:
        """Returns the model that drafts with the parameters of variants that train `trains`."""
        return StudentWithHead(self.students) if trains == causes.HEAD else self.students

    def train(self, workdir: Workdir, monitoring: loop.Monitoring) -> TrainState:
        """Trains all variants, or resumes, and returns their last state."""
        stage, specs, optimizers = self.spec.student_stage, [], []
        for change, _ in self.variants.values():
            spec = dataclasses.replace(stage.optimizers[0], **change.optimizer)
            rate = change.rate * spec.learning_rate
            specs.append(dataclasses.replace(spec, learning_rate=rate))
            optimizer, clip = make_optimizer(specs[-1], stage.steps), change.clip_value
            optimizers.append(optax.chain(optax.clip(clip), optimizer) if clip else optimizer)
        stage = dataclasses.replace(stage, members=tuple(self.variants), optimizers=tuple(specs))
        rows = sharding.BatchSharding(self.mesh, stage.batch_size)
        training = loop.Training(
            spec=stage,
            folder=workdir.students,
            initial_state=lambda: self._initial_state(optimizers),
            step=self._step(optimizers),
            teacher=self.teacher.params,
            batches=self.corpus.batches(stage, rows.local_rows),
            measure=lambda _: {},
            report_diverged=lambda number, finite, _: students.report_diverged(
                stage, number, finite
            ),
        )
        return loop.run_stage(training, workdir, self.mesh, monitoring)

    def _initial_state(self, optimizers: Sequence[optax.GradientTransformation]) -> TrainState:
        params = []
        for trains in (change.trains for change, _ in self.variants.values()):
            if trains == causes.STUDENT:
                params.append(self.students.params)
                continue
            whole = trains == causes.TEACHER
            extra = self.teacher.params if whole else self.teacher.module().head[...]
            seeds = len(self.spec.seeds)
            extra = jax.tree.map(lambda x, n=seeds: jnp.broadcast_to(x, (n, *x.shape)), extra)
            params.append({causes.STUDENT: self.students.params, trains: extra})
        return TrainState.create(params, optimizers, mesh=self.mesh)

    def _step(self, optimizers: Sequence[optax.GradientTransformation]) -> Step:
        variants = list(self.variants.values())

        def objective(change, loss, params, batch, passes):
            if change.trains == causes.TEACHER:
                forward = self._teacher_passes([change.view])
                passes = forward(params[causes.TEACHER], batch)
                params = params[causes.STUDENT]
            inputs, output, target, weights = student_batch(change.view, passes, batch)
            logits = self.drafter(change.trains).with_params(params)(inputs, output)
            values = change.formula(logits, target, loss)
            return change.reduce(values, weights, output.vocab_size)

        def objectives(indices, params, batch, passes):
            pairs = zip(indices, params, strict=True)
            return [objective(*variants[i], student, batch, passes) for i, student in pairs]

        return make_step(
            teacher_forward=self._teacher_passes(change.view for change, _ in variants),
            objectives=objectives,
            fuse_losses=lambda _: False,
            optimizers=optimizers,
            mesh=self.mesh,
        )

    def _teacher_passes(self, views: Iterable[str]) -> Callable[[Any, Batch], TeacherPasses]:
        """Returns a function (teacher's parameters, batch) -> the passes that the students of
        `views` need."""
        forward = students.teacher_forward(self.students, self.teacher)
        views, exit_layer = set(views), self.spec.student.exit_layer
        deeper = exit_layer < self.spec.teacher.depth
        other_layer = exit_layer + 1 if deeper else exit_layer - 1

        def passes(params, batch):
            inputs = batch["inputs"]
            output = forward(params, inputs)
            by_view = {causes.UNCHANGED: (inputs, output, output.logits)}
            if causes.OTHER_LAYER in views:
                module = self.teacher.with_params(params).module()
                hidden, _ = module.run_layers(module.embed(inputs), 0, other_layer)
                other = dataclasses.replace(output, hidden=hidden)
                by_view[causes.OTHER_LAYER] = inputs, other, output.logits
            if causes.PADDED in views:
                padded = pad(inputs, self.corpus.tokenizer.end_of_text)
                output = forward(params, padded)
                by_view[causes.PADDED] = padded, output, output.logits
            return by_view

        return passes


def pad(inputs: Int[Array, "B L"], padding: int) -> Int[Array, "B L"]:
    """Ends rows after a quarter, a half, three quarters, not at all, and so on."""
    rows, length = inputs.shape
    lengths = length * (jnp.arange(rows)[:, None] % 4 + 1) // 4
    return jnp.where(jnp.arange(length)[None] < lengths, inputs, padding)


def student_batch(
    view: str, passes: TeacherPasses, batch: Mapping[str, jax.Array]
) -> tuple[Int[Array, "B L"], models.TeacherOutput, Float[Array, "B L V"], Float[Array, "B L"]]:
    """Returns the batch as a student of `view` sees it: (tokens, what it reads of the teacher,
    logits that it learns from, weights of the tokens)."""
    inputs, output, target = passes.get(view, passes[causes.UNCHANGED])
    weights = batch["weights"]
    if view == causes.NEXT_TOKEN:
        weights = weights.at[:, -1].set(0)
        target = jnp.roll(target, -1, axis=1)
    elif view == causes.OTHER_ROW:
        # Rows without weight are no sequences: they fill a batch up to the number of devices.
        rows = jnp.sum(jnp.any(weights > 0, axis=1))
        hidden = output.hidden[(jnp.arange(len(weights)) - 1) % rows]
        output = dataclasses.replace(output, hidden=hidden)
    elif view in (causes.TOP_CLASS, causes.LABELS):
        classes = jnp.argmax(target, axis=-1) if view == causes.TOP_CLASS else batch["labels"]
        target = jnp.log(jax.nn.one_hot(classes, output.vocab_size))
    return inputs, output, target, weights
