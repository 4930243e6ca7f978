"""One training step of a population: one pass of what all students share, then every student's own update."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxdiv import reductions
from jaxdiv.training.state import TrainState

Batch = Mapping[str, Array]
# forward(parameters of one student, inputs [B, L], what the teacher's pass gave) -> logits [B, L, V]
Forward = Callable[[Any, Array, Any], Float[Array, "B L V"]]
# objective(logits, what the teacher's pass gave, batch) -> values [B, L]
Objective = Callable[[Array, Any, Batch], Float[Array, "B L"]]
# write(teacher, parameters of one student, batch, step) -> batch
Write = Callable[[Any, Any, Batch, Array], Batch]


def make_optimizer(config: Mapping, steps: int) -> optax.GradientTransformation:
    """Clipping, then AdamW or SGD, under warm-up and a cosine that ends at `steps`."""
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config["learning_rate"],
        warmup_steps=config["warmup_steps"],
        decay_steps=steps,
        end_value=config["learning_rate"] * config["final_fraction"],
    )
    clip = optax.clip_by_global_norm(config["clip_norm"]) if config["clip_norm"] else optax.identity()
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
    return jax.tree_util.tree_map_with_path(lambda path, _: "scale" not in jax.tree_util.keystr(path), params)


def make_step(
    *,
    teach: Callable[[Any, Array], Any],
    forward: Forward,
    objectives: Sequence[Objective],
    optimizer: optax.GradientTransformation,
    write: Write | None = None,
    each_its_own: bool = False,
) -> Callable[[TrainState, Any, Batch], tuple[TrainState, dict[str, Array]]]:
    """Builds `state, metrics = step(state, teacher, batch)`, jitted, the state donated.

    Args:
      teach: (teacher, inputs [B, L]) -> what every student's `forward` and objective share; run once a step.
      forward: one student's logits.
      objectives: a value a token, one a group of students; a group's seeds run under `vmap`.
      optimizer: each student has its own state of it, so its clipping sees that student's gradient alone.
      write: makes the batch that is trained on from the one that was read.
      each_its_own: whether each student writes its own batch, which then costs each a pass of the teacher.

    Returns:
      A step whose metrics are `loss` and `gradient_norm`, each [losses, S], and `alive`, bool [losses, S]. A
      student whose loss or gradient is not finite keeps its last parameters from then on: `alive` is False.
    """

    def token_mean(params, objective, batch, shared):
        values = objective(forward(params, batch["inputs"], shared), shared, batch)
        return reductions.token_mean(values, batch["weights"])

    def learned_from(teacher, params, batch, step):
        batch = write(teacher, params, batch, step) if write else batch
        return batch, jax.lax.stop_gradient(teach(teacher, batch["inputs"]))

    def update(student, objective, lesson):
        params, opt_state, alive = student
        batch, shared = lesson(params)
        value, gradient = jax.value_and_grad(token_mean)(params, objective, batch, shared)
        norm = optax.tree.norm(gradient)
        alive = alive & jnp.isfinite(value) & jnp.isfinite(norm)
        updates, new_opt_state = optimizer.update(gradient, opt_state, params)
        new = (optax.apply_updates(params, updates), new_opt_state)
        params, opt_state = jax.tree.map(lambda a, b: jnp.where(alive, a, b), new, (params, opt_state))
        return params, opt_state, alive, value, norm

    def step(state, teacher, batch):
        of_all = None if each_its_own else learned_from(teacher, None, batch, state.step)

        def lesson(params):
            return of_all or learned_from(teacher, params, batch, state.step)

        groups = [
            for_each_seed(lambda student, objective=objective: update(student, objective, lesson), group)
            for objective, *group in zip(objectives, state.params, state.opt_state, state.alive, strict=True)
        ]
        params, opt_state, alive, values, norms = zip(*groups, strict=True)
        metrics = {"loss": jnp.stack(values), "gradient_norm": jnp.stack(norms), "alive": jnp.stack(alive)}
        return TrainState(step=state.step + 1, params=params, opt_state=opt_state, alive=alive), metrics

    return jax.jit(step, donate_argnums=0)


def for_each_seed(function: Callable[[Any], Any], group: Any) -> Any:
    """`jax.vmap`; on CPU one seed after the other, as its caches hold the logits of one but not of many."""
    return jax.lax.map(function, group) if jax.default_backend() == "cpu" else jax.vmap(function)(group)
