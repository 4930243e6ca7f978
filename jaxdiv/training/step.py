"""One training step of a population: one teacher pass, then every student's own update."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from jaxdiv.runs.specs import OptimizerSpec, StageSpec
from jaxdiv.training import sharding
from jaxdiv.training.state import Model, TrainState

Batch = Mapping[str, Array]
# objectives(indices of losses, one student's parameters for each, batch, teacher outputs) returns a
# scalar for each.
Objectives = Callable[[Sequence[int], Sequence[Any], Batch, Any], Sequence[Array]]
# write(teacher's parameters, one student's parameters, batch, step) returns a batch.
Write = Callable[[Any, Any, Batch, Array], Batch]
Step = Callable[[TrainState, Any, Batch], tuple[TrainState, dict[str, Array]]]


def learning_rate(spec: OptimizerSpec, steps: int) -> optax.Schedule:
    """Returns the schedule: linear warm-up, then a cosine that ends at `steps`."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=spec.learning_rate,
        warmup_steps=spec.warmup_steps,
        decay_steps=steps,
        end_value=spec.learning_rate * spec.final_fraction,
    )


def make_optimizer(spec: OptimizerSpec, steps: int) -> optax.GradientTransformation:
    """Returns clipping by the global norm, then the update of `spec.name` under `learning_rate`."""
    schedule = learning_rate(spec, steps)

    def decayed(params):
        """Selects matrices for weight decay, and leaves out the gains of norms."""
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "scale" not in jax.tree_util.keystr(path), params
        )

    updates = {
        "adamw": optax.adamw(
            schedule,
            b1=spec.beta1,
            b2=spec.beta2,
            eps=spec.epsilon,
            weight_decay=spec.weight_decay,
            mask=decayed,
        ),
        "sgd": optax.chain(
            optax.add_decayed_weights(spec.weight_decay, mask=decayed),
            optax.sgd(schedule, momentum=spec.beta1),
        ),
    }
    clip = optax.clip_by_global_norm(spec.clip_norm) if spec.clip_norm else optax.identity()
    return optax.chain(clip, updates[spec.name])


def optimizers_of(stage: StageSpec) -> list[optax.GradientTransformation]:
    """Returns the optimizer of each member of a stage."""
    return [make_optimizer(optimizer, stage.steps) for optimizer in stage.optimizers]


def initial_state(stage: StageSpec, models: Model, mesh: Mesh | None = None) -> TrainState:
    """Returns the state, spread over `mesh`, in which every member starts from the same models."""
    optimizers = optimizers_of(stage)
    return TrainState.create([models.params] * len(optimizers), optimizers, mesh=mesh)


def make_step(
    *,
    teacher_forward: Callable[[Any, Batch], Any],
    objectives: Objectives,
    fuse_losses: Callable[[Any], bool],
    optimizers: Sequence[optax.GradientTransformation],
    write: Write | None = None,
    batch_per_student: bool = False,
    mesh: Mesh | None = None,
) -> Step:
    """Builds `state, metrics = step(state, teacher, batch)`, jitted, with the state donated.

    Args:
      teacher_forward: maps (teacher's parameters, batch) to the outputs that all students share;
        it runs once a step.
      objectives: the losses of one seed's students. Each must depend on its own student's
        parameters alone.
      fuse_losses: decides from the teacher's outputs whether one call of `objectives` computes all
        losses. They then share intermediate results, but their arrays live side by side.
      optimizers: one per loss. Each student has an optimizer state of its own, so that clipping
        sees that student's gradient alone.
      write: makes the training batch from the one that was read; None trains on the latter.
      batch_per_student: whether each student writes its own batch, at the cost of a teacher pass
        per student.
      mesh: where the state lies by `sharding.shardings`, and batches by `BatchSharding`; None for
        one device.

    Returns:
      A step with metrics `loss` and `gradient_norm`, each [losses, S], and `finite`, bool
      [losses, S]. A student whose loss or gradient is not finite keeps its parameters from then on.
    """
    mesh = mesh or sharding.single_device_mesh()

    def prepare(teacher, params, batch, step):
        batch = write(teacher, params, batch, step) if write else batch
        return batch, jax.lax.stop_gradient(teacher_forward(teacher, batch))

    def step(state, teacher, batch):
        shared = None if batch_per_student else prepare(teacher, None, batch, state.step)
        students = list(zip(state.params, state.opt_state, state.finite, strict=True))
        indices = range(len(students))
        groups = [indices] if shared and fuse_losses(shared[1]) else [[i] for i in indices]

        def train_seed(losses, students):
            """Updates one seed's student of each of `losses`."""
            params = [student[0] for student in students]
            inputs = shared or prepare(teacher, params[0], batch, state.step)

            def total(params):
                values = tuple(objectives(losses, params, *inputs))
                return sum(values), values

            (_, values), gradients = jax.value_and_grad(total, has_aux=True)(params)
            return [
                _update_student(optimizers[i], *rest)
                for i, *rest in zip(losses, students, values, gradients, strict=True)
            ]

        new = []
        for losses in groups:
            train = functools.partial(train_seed, losses)
            new += for_each_seed(train, [students[i] for i in losses], mesh)
        params, opt_state, finite, values, norms = zip(*new, strict=True)
        metrics = {
            "loss": jnp.stack(values),
            "gradient_norm": jnp.stack(norms),
            "finite": jnp.stack(finite),
        }
        new_state = TrainState(state.step + 1, params, opt_state, finite)
        return sharding.constrain(new_state, mesh), sharding.replicate(metrics, mesh)

    return sharding.jit(step, mesh, donate_argnums=0)


def _update_student(
    optimizer: optax.GradientTransformation,
    student: tuple[Any, Any, Bool[Array, ""]],
    value: Float[Array, ""],
    gradient: Any,
) -> tuple:
    """Returns (parameters, optimizer state, finite, loss, gradient norm) after one update.

    A student whose loss or gradient is not finite, now or before, keeps its parameters.
    """
    params, opt_state, finite = student
    norm = optax.tree.norm(gradient)
    finite = finite & jnp.isfinite(value) & jnp.isfinite(norm)
    updates, new_opt_state = optimizer.update(gradient, opt_state, params)
    new = (optax.apply_updates(params, updates), new_opt_state)
    params, opt_state = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, (params, opt_state))
    return params, opt_state, finite, value, norm


def for_each_seed(function: Callable[[Any], Any], group: Any, mesh: Mesh | None = None) -> Any:
    """Maps `function` over the first axis of `group`, arrays [S, ...].

    On CPU the seeds run in turn, since its caches hold the logits of one seed but not of many. If
    `mesh` spreads seeds over devices, or is of accelerators, this is `jax.vmap`.
    """
    mesh = mesh or sharding.single_device_mesh()
    in_turn = sharding.platform(mesh) == "cpu" and mesh.shape["student"] == 1
    return jax.lax.map(function, group) if in_turn else jax.vmap(function)(group)
