"""The students of a study: cross-entropy's and KL's under each change, trained side by side on one
teacher pass."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from experiments.gap import causes, formulas
from jaxdiv import models
from jaxdiv.models.decoder import project
from jaxdiv.runs.specs import OptimizerSpec, RunSpec
from jaxdiv.training import students
from jaxdiv.training.state import Model, TrainState
from jaxdiv.training.step import make_optimizer, make_step

# View to what a student reads of the teacher and the logits [B, L, V] that it learns from.
TeacherPasses = Mapping[str, tuple[models.TeacherOutput, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Variant:
    """The students of one loss under one change in training, which `training` names."""

    training: str
    loss: str
    change: causes.Change

    @property
    def name(self) -> str:
        return variant_name(self.training, self.loss)


def variant_name(training: str, loss: str) -> str:
    """Returns the name in curves of `loss` under the change that is called `training`."""
    return f"{training}:{loss}"


def for_causes(study_causes: Sequence[causes.Cause]) -> list[Variant]:
    """Returns both losses under each change in training, the baseline's first."""
    changes = {cause.training: cause.change for cause in study_causes}
    pairs = ((training, loss) for training in changes for loss in formulas.LOSSES)
    return [Variant(training, loss, changes[training]) for training, loss in pairs]


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
        module = self.student.with_params(self.params["student"]).module()
        return project(module.features(tokens, teacher), self.params["head"], teacher.vocab_size)


@dataclasses.dataclass(frozen=True)
class StudentBatch:
    """A batch with its targets, as one student sees it.

    Attributes:
      inputs: tokens.
      output: what the student reads of the teacher.
      target: logits that it learns from.
      weights: of the tokens.
    """

    inputs: Int[Array, "B L"]
    output: models.TeacherOutput
    target: Float[Array, "B L V"]
    weights: Float[Array, "B L"]


@dataclasses.dataclass(frozen=True)
class VariantTrainer:
    """The training of all variants.

    Attributes:
      spec: the run.
      variants: all of them.
      teacher: the teacher of all students; variants that train it or its head start from it.
      students: the untrained students, [S, ...], or their shapes.
      padding: the token that fills rows up.
    """

    spec: RunSpec
    variants: Sequence[Variant]
    teacher: Model
    students: Model
    padding: int

    def teacher_passes(self, views: Iterable[str]) -> Callable[[Any, jax.Array], TeacherPasses]:
        """Returns a function (teacher's parameters, inputs [B, L]) -> the passes that the students
        of `views` need."""
        forward = students.teacher_forward(self.students, self.teacher)
        views, exit_layer = set(views), self.spec.student.exit_layer
        deeper = exit_layer < self.spec.teacher.depth
        other_layer = exit_layer + 1 if deeper else exit_layer - 1

        def passes(params, inputs):
            output = forward(params, inputs)
            by_view = {causes.UNCHANGED: (output, output.logits)}
            if causes.OTHER_LAYER in views:
                module = self.teacher.with_params(params).module()
                hidden, _ = module.run_layers(module.embed(inputs), 0, other_layer)
                other = dataclasses.replace(output, hidden=hidden)
                by_view[causes.OTHER_LAYER] = other, output.logits
            if causes.PADDED in views:
                padded = forward(params, self._pad(inputs))
                by_view[causes.PADDED] = padded, padded.logits
            return by_view

        return passes

    def student_batch(
        self, view: str, passes: TeacherPasses, batch: Mapping[str, jax.Array]
    ) -> StudentBatch:
        """Returns the batch as a student of `view` sees it."""
        inputs = self._pad(batch["inputs"]) if view == causes.PADDED else batch["inputs"]
        output, target = passes.get(view, passes[causes.UNCHANGED])
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
            top_class = view == causes.TOP_CLASS
            classes = jnp.argmax(target, axis=-1) if top_class else batch["labels"]
            target = jnp.log(jax.nn.one_hot(classes, output.vocab_size))
        return StudentBatch(inputs, output, target, weights)

    def _pad(self, inputs):
        """Ends rows after a quarter, a half, three quarters, not at all, and so on."""
        rows, length = inputs.shape
        lengths = length * (jnp.arange(rows)[:, None] % 4 + 1) // 4
        return jnp.where(jnp.arange(length)[None] < lengths, inputs, self.padding)

    def initial_state(self, mesh: Mesh) -> TrainState:
        """Returns a state in which all variants start from the same students."""
        seeds, params = len(self.spec.seeds), []
        for trains in (variant.change.trains for variant in self.variants):
            if trains == causes.STUDENT:
                params.append(self.students.params)
                continue
            whole = trains == causes.TEACHER
            extra = self.teacher.params if whole else self.teacher.module().head[...]
            extra = jax.tree.map(lambda x: jnp.broadcast_to(x, (seeds, *x.shape)), extra)
            params.append({"student": self.students.params, trains: extra})
        return TrainState.create(params, self._optimizers(), mesh=mesh)

    def step(self, mesh: Mesh) -> Callable:
        """Builds `state, metrics = step(state, teacher, batch)` of all variants."""

        def objective(variant, params, batch, passes):
            change = variant.change
            if change.trains == causes.TEACHER:
                forward = self.teacher_passes([change.view])
                passes = forward(params[causes.TEACHER], batch["inputs"])
                params = params["student"]
            view = self.student_batch(change.view, passes, batch)
            logits = self.drafter(change.trains).with_params(params)(view.inputs, view.output)
            values = change.formula(logits, view.target, variant.loss)
            return change.reduce(values, view.weights, view.output.vocab_size)

        def objectives(indices, params, batch, passes):
            pairs = zip(indices, params, strict=True)
            return [objective(self.variants[i], student, batch, passes) for i, student in pairs]

        return make_step(
            teacher_forward=self.teacher_passes(variant.change.view for variant in self.variants),
            objectives=objectives,
            fuse_losses=lambda _: False,
            optimizers=self._optimizers(),
            mesh=mesh,
        )

    def drafter(self, trains: str) -> Model | StudentWithHead:
        """Returns the model that drafts with the parameters of variants that train `trains`."""
        return StudentWithHead(self.students) if trains == causes.HEAD else self.students

    def optimizer_spec(self, variant: Variant) -> OptimizerSpec:
        """Returns the variant's optimizer: the config's under the variant's change."""
        spec = dataclasses.replace(
            self.spec.student_stage.optimizers[0], **variant.change.optimizer
        )
        return dataclasses.replace(spec, learning_rate=variant.change.rate * spec.learning_rate)

    def _optimizers(self) -> list[optax.GradientTransformation]:
        optimizers, steps = [], self.spec.student_stage.steps
        for variant in self.variants:
            optimizer = make_optimizer(self.optimizer_spec(variant), steps)
            clip = variant.change.clip_value
            optimizers.append(optax.chain(optax.clip(clip), optimizer) if clip else optimizer)
        return optimizers
