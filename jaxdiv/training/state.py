"""The state of a population: every loss's students, their seeds stacked on the first axis."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from jaxdiv.runs import sharding

Build = Callable[[nnx.Rngs], nnx.Module]


@dataclasses.dataclass(frozen=True)
class Model:
    """A module taken apart. `params` may carry a first axis of students, for `jax.vmap`, or be
    shapes alone."""

    graphdef: Any
    params: Any

    def __call__(self, *args, **kwargs):
        return self.module()(*args, **kwargs)

    def module(self) -> nnx.Module:
        """Put together."""
        return nnx.merge(self.graphdef, self.params)

    def with_params(self, params: Any) -> "Model":
        return Model(self.graphdef, params)

    def student(self, index: int) -> "Model":
        """The one at `index` of the first axis."""
        return self.with_params(jax.tree.map(lambda x: x[index], self.params))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """One entry a loss, in the config's order; every array of an entry has the seeds S as its first
    axis.

    Attributes:
      step: int32 scalar, steps done.
      params, opt_state: pytrees of arrays [S, ...].
      alive: bool [S]; False once a loss or gradient was not finite.
    """

    step: Any
    params: tuple[Any, ...]
    opt_state: tuple[Any, ...]
    alive: tuple[Any, ...]

    @classmethod
    def create(
        cls,
        params: Sequence[Any],
        optimizers: Sequence[optax.GradientTransformation],
        *,
        mesh: Mesh | None = None,
    ) -> "TrainState":
        """Returns the state before the first step, spread over `mesh`, from copies of `params`.

        Args:
          params: of each loss's students, arrays [S, ...].
          optimizers: one a loss.
          mesh: where the state lies; None for one device.
        """
        seeds = jax.tree.leaves(params[0])[0].shape[0]

        def state_of(params):
            copies = tuple(jax.tree.map(jnp.copy, own) for own in params)
            pairs = zip(optimizers, copies, strict=True)
            return cls(
                step=jnp.zeros((), jnp.int32),
                params=copies,
                opt_state=tuple(jax.vmap(optimizer.init)(copy) for optimizer, copy in pairs),
                alive=tuple(jnp.ones(seeds, bool) for _ in copies),
            )

        params = tuple(params)
        shardings = sharding.shardings(jax.eval_shape(state_of, params), mesh or sharding.alone())
        return jax.jit(state_of, out_shardings=shardings)(params)


def population(build: Build, seeds: Sequence[int], mesh: Mesh | None = None) -> Model:
    """Parameters [S, ...], spread over `mesh`; student i draws its initial values from `seeds[i]`
    alone."""
    model = population_shapes(build, len(seeds))
    where = sharding.shardings(model.params, mesh or sharding.alone())

    @functools.partial(jax.jit, out_shardings=where)
    @jax.vmap
    def init(seed):
        return nnx.split(build(nnx.Rngs(jax.random.key(seed))))[1]

    return model.with_params(init(np.array(seeds, np.uint32)))


def population_shapes(build: Build, seeds: int, mesh: Mesh | None = None) -> Model:
    """As `population`, with ShapeDtypeStructs for parameters: a target to restore to."""
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    stacked = jax.tree.map(lambda x: jax.ShapeDtypeStruct((seeds, *x.shape), x.dtype), shapes)
    return Model(graphdef, sharding.shapes(stacked, mesh or sharding.alone()))
