"""One training step of a population: one pass of what all students share, then every student's own
update."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from jaxdiv.runs import sharding
from jaxdiv.training.state import TrainState

Batch = Mapping[str, Array]
# objectives(numbers of losses, one student's parameters of each, batch, what the teacher's pass
# gave) -> a scalar each
Objectives = Callable[[Sequence[int], Sequence[Any], Batch, Any], Sequence[Array]]
# write(teacher, parameters of one student, batch, step) -> batch
Write = Callable[[Any, Any, Batch, Array], Batch]


def learning_rate(config: Mapping, steps: int) -> optax.Schedule:
    """Warm-up and a cosine that ends at `steps`, by the number of steps before."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config["learning_rate"],
        warmup_steps=config["warmup_steps"],
        decay_steps=steps,
        end_value=config["learning_rate"] * config["final_fraction"],
    )


def make_optimizer(config: Mapping, steps: int) -> optax.GradientTransformation:
    """Clipping, then AdamW or SGD, under `learning_rate`."""
    schedule = learning_rate(config, steps)
    clip = (
        optax.clip_by_global_norm(config["clip_norm"]) if config["clip_norm"] else optax.identity()
    )
    return optax.chain(clip, _UPDATES[config["name"]](config, schedule))


def _adamw(config, schedule):
    return optax.adamw(
        schedule,
        b1=config["beta1"],
        b2=config["beta2"],
        eps=config["epsilon"],
        weight_decay=config["weight_decay"],
        mask=_matrices,
    )


def _sgd(config, schedule):
    return optax.chain(
        optax.add_decayed_weights(config["weight_decay"], mask=_matrices),
        optax.sgd(schedule, momentum=config["beta1"]),
    )


_UPDATES = {"adamw": _adamw, "sgd": _sgd}


def _matrices(params):
    """Weight decay acts on matrices, not on the gains of norms."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "scale" not in jax.tree_util.keystr(path), params
    )


def make_step(
    *,
    teacher_forward: Callable[[Any, Array], Any],
    objectives: Objectives,
    fuse_losses: Callable[[Any], bool],
    optimizers: Sequence[optax.GradientTransformation],
    write: Write | None = None,
    batch_per_student: bool = False,
    mesh: jax.sharding.Mesh | None = None,
) -> Callable[[TrainState, Any, Batch], tuple[TrainState, dict[str, Array]]]:
    """Builds `state, metrics = step(state, teacher, batch)`, jitted, the state donated.

    Args:
      teacher_forward: (teacher, inputs [B, L]) -> what all students share; run once a step.
      objectives: what each of one seed's students makes small, which must depend on its own
        parameters alone.
      fuse_losses: whether all losses are one call of `objectives`, given what `teacher_forward` gave: they share
        what they make of it then, but their arrays live side by side. Else it is a call a loss.
      optimizers: each loss's; each student has its own state of it, so its clipping sees that
        student's gradient alone.
      write: makes the batch that is trained on from the one that was read.
      batch_per_student: whether each student writes its own batch, which then costs each a pass of the
        teacher.
      mesh: where the state lies by `sharding.shardings`, and batches by `sharding.Rows`; None for
        one device.

    Returns:
      A step whose metrics are `loss` and `gradient_norm`, each [losses, S], and `alive`, bool
      [losses, S]. A student whose loss or gradient is not finite keeps its last parameters from
      then on: `alive` is False.
    """

    mesh = mesh or sharding.alone()

    def lesson(teacher, params, batch, step):
        batch = write(teacher, params, batch, step) if write else batch
        return batch, jax.lax.stop_gradient(teacher_forward(teacher, batch["inputs"]))

    def learn(losses, params, batch, shared):
        """(value, gradient) of the student of each loss."""

        def total(params):
            values = tuple(objectives(losses, params, batch, shared))
            return sum(values), values

        (_, values), gradients = jax.value_and_grad(total, has_aux=True)(params)
        return zip(values, gradients, strict=True)

    def update(optimizer, student, value, gradient):
        params, opt_state, alive = student
        norm = optax.tree.norm(gradient)
        alive = alive & jnp.isfinite(value) & jnp.isfinite(norm)
        updates, new_opt_state = optimizer.update(gradient, opt_state, params)
        new = (optax.apply_updates(params, updates), new_opt_state)
        params, opt_state = jax.tree.map(
            lambda a, b: jnp.where(alive, a, b), new, (params, opt_state)
        )
        return params, opt_state, alive, value, norm

    def step(state, teacher, batch):
        of_all = None if batch_per_student else lesson(teacher, None, batch, state.step)
        students = list(zip(state.params, state.opt_state, state.alive, strict=True))
        every = range(len(students))
        groups = [every] if of_all and fuse_losses(of_all[1]) else [[i] for i in every]

        def one_seed(losses, students):
            params = [student[0] for student in students]
            found = learn(
                losses, params, *(of_all or lesson(teacher, params[0], batch, state.step))
            )
            its = zip(losses, students, found, strict=True)
            return [update(optimizers[i], student, *learnt) for i, student, learnt in its]

        updated = []
        for losses in groups:
            run = functools.partial(one_seed, losses)
            updated += for_each_seed(run, [students[i] for i in losses], mesh)
        params, opt_state, alive, values, norms = zip(*updated, strict=True)
        metrics = {
            "loss": jnp.stack(values),
            "gradient_norm": jnp.stack(norms),
            "alive": jnp.stack(alive),
        }
        new = TrainState(step=state.step + 1, params=params, opt_state=opt_state, alive=alive)
        return sharding.constrain(new, mesh), sharding.everywhere(metrics, mesh)

    return sharding.jit(step, mesh, donate_argnums=0)


def for_each_seed(
    function: Callable[[Any], Any], group: Any, mesh: jax.sharding.Mesh | None = None
) -> Any:
    """`jax.vmap`; on CPU one seed after the other, as its caches hold the logits of one but not of
    many.

    Args:
      function: of one seed's part of the group.
      group: arrays [S, ...].
      mesh: that the program is for, None for one device; where it spreads seeds each device has its
        own anyway.
    """
    mesh = mesh or sharding.alone()
    one_by_one = sharding.platform(mesh) == "cpu" and mesh.shape["student"] == 1
    return jax.lax.map(function, group) if one_by_one else jax.vmap(function)(group)
