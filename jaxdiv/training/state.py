"""The models of a run and their training state: populations, with seeds on the first axis."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from jaxdiv import models
from jaxdiv.data.tokenizer import Tokenizer
from jaxdiv.runs.specs import RunSpec, TeacherSpec
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import sharding

Build = Callable[[nnx.Rngs], nnx.Module]


@dataclasses.dataclass(frozen=True)
class Model:
    """A module split into its graph and its parameters, as jitted functions take it.

    `params` may carry a first axis of students, for `jax.vmap`, or hold shapes alone.
    """

    graphdef: Any
    params: Any

    def __call__(self, *args, **kwargs):
        return self.module()(*args, **kwargs)

    def module(self) -> nnx.Module:
        """Merges graph and parameters."""
        return nnx.merge(self.graphdef, self.params)

    def with_params(self, params: Any) -> "Model":
        return Model(self.graphdef, params)

    def student(self, index: int) -> "Model":
        """Returns the model at `index` of the first axis."""
        return self.with_params(jax.tree.map(lambda x: x[index], self.params))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """One entry per loss, in the config's order; arrays of an entry have the seeds S first.

    Attributes:
      step: int32 scalar, the number of steps done.
      params, opt_state: pytrees of arrays [S, ...].
      finite: bool [S]; False once a loss or gradient was not finite, which freezes the student.
    """

    step: Any
    params: tuple[Any, ...]
    opt_state: tuple[Any, ...]
    finite: tuple[Any, ...]

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
          params: the parameters of each loss's students, arrays [S, ...].
          optimizers: one per loss.
          mesh: where the state lies; None for one device.
        """
        seeds = jax.tree.leaves(params[0])[0].shape[0]

        def first_state(*params):
            pairs = zip(optimizers, params, strict=True)
            return cls(
                step=jnp.zeros((), jnp.int32),
                params=jax.tree.map(jnp.copy, params),
                opt_state=tuple(jax.vmap(optimizer.init)(tree) for optimizer, tree in pairs),
                finite=tuple(jnp.ones(seeds, bool) for _ in params),
            )

        shapes = jax.eval_shape(first_state, *params)
        out_shardings = sharding.shardings(shapes, mesh or sharding.single_device_mesh())
        return jax.jit(first_state, out_shardings=out_shardings)(*params)

    def to_checkpoint(self) -> dict[str, Any]:
        """Returns the arrays by their names in checkpoints, where `finite` is called `alive`."""
        names = {"step": "step", "params": "params", "opt_state": "opt_state", "finite": "alive"}
        return {name: getattr(self, field) for field, name in names.items()}

    @classmethod
    def from_checkpoint(cls, tree: Mapping[str, Any]) -> "TrainState":
        """Returns the state whose `to_checkpoint` is `tree`."""
        return cls(tree["step"], tree["params"], tree["opt_state"], tree["alive"])


def population(build: Build, seeds: Sequence[int], mesh: Mesh | None = None) -> Model:
    """Builds students with parameters [S, ...], spread over `mesh`.

    The initial values of student i depend on `seeds[i]` alone.
    """
    model = population_shapes(build, len(seeds))
    out_shardings = sharding.shardings(model.params, mesh or sharding.single_device_mesh())

    @functools.partial(jax.jit, out_shardings=out_shardings)
    @jax.vmap
    def init(seed):
        return nnx.split(build(nnx.Rngs(jax.random.key(seed))))[1]

    return model.with_params(init(np.array(seeds, np.uint32)))


def population_shapes(build: Build, seeds: int, mesh: Mesh | None = None) -> Model:
    """Returns the model of `population` with ShapeDtypeStructs for parameters, to restore to."""
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    stacked = jax.tree.map(lambda x: jax.ShapeDtypeStruct((seeds, *x.shape), x.dtype), shapes)
    return Model(graphdef, sharding.shapes(stacked, mesh or sharding.single_device_mesh()))


def teacher_builder(spec: TeacherSpec, vocab_size: int) -> Build:
    """Returns the function that builds an untrained teacher."""
    return lambda rngs: models.build_teacher(dataclasses.asdict(spec), vocab_size, rngs)


def student_builder(
    spec: RunSpec, vocab_size: int, vocabulary: models.DraftVocabulary | None = None
) -> Build:
    """Returns the function that builds an untrained student.

    Raises ValueError unless `vocabulary` is there where the config asks for one.
    """
    size = vocabulary.size if vocabulary else 0
    if size != spec.student.vocabulary:
        raise ValueError(
            f"`config.student.vocabulary` is {spec.student.vocabulary}, but {size} tokens were "
            "chosen; give the run's draft vocabulary"
        )
    student, teacher = dataclasses.asdict(spec.student), dataclasses.asdict(spec.teacher)
    return lambda rngs: models.build_student(student, teacher, vocab_size, rngs, vocabulary)


def vocab_size(workdir: Workdir) -> int:
    """Returns the size of a run's tokenizer, or the number of its image classes."""
    spec = workdir.spec().data
    return spec.vocabulary if spec.is_images else Tokenizer.load(workdir.tokenizer).vocab_size
