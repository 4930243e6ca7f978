"""Where arrays lie: the mesh of a config, and one table of rules for all parameters."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdiv.models.meshes import AXES, ROWS
from jaxdiv.runs.config_keys import REST
from jaxdiv.runs.specs import RunSpec

# What the last axes of a parameter are spread over, by the end of its path: of a matrix its inputs
# and its outputs, of the embedding its tokens and its width. Any axes before them are layers, which
# stay together.
_RULES = {
    "embedding": ("tensor", "fsdp"),
    "head": ("fsdp", "tensor"),
    "kernel": ("fsdp", None),
    "scale": (None,),
}


def make(spec: RunSpec, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes the mesh of `config.mesh` over `devices`, by default all.

    Raises:
      ValueError: the axes don't multiply to the number of devices, are none that the TPU slice has,
        or `student` does not divide `config.seeds`.
    """
    devices = jax.devices() if devices is None else devices
    asked = {axis: getattr(spec.mesh, axis) for axis in AXES}
    known = math.prod(size for size in asked.values() if size != REST)
    sizes = {axis: len(devices) // known if size == REST else size for axis, size in asked.items()}
    if math.prod(sizes.values()) != len(devices):
        raise ValueError(
            f"`config.mesh` is {_told(asked)}, which must multiply to the {len(devices)} devices that there "
            f"are; an axis of {REST} takes what the others leave"
        )
    if len(spec.seeds) % sizes["student"]:
        raise ValueError(
            f"`config.mesh.student` = {sizes['student']} must divide `config.seeds` = "
            f"{len(spec.seeds)}"
        )
    return _mesh(sizes.values(), devices)


def make_for_reading(spec: RunSpec) -> Mesh:
    """Makes the run's mesh, or puts all devices along `data` if it does not fit this machine."""
    try:
        return make(spec)
    except ValueError:
        return _mesh((1, jax.device_count(), 1, 1), jax.devices())


def alone(device: jax.Device | None = None) -> Mesh:
    """The mesh of one device, by default this process's first."""
    return _mesh((1, 1, 1, 1), [device or jax.local_devices()[0]])


def _mesh(sizes, devices):
    types = (jax.sharding.AxisType.Auto,) * len(AXES)
    try:
        return jax.make_mesh(tuple(sizes), AXES, devices=devices, axis_types=types)
    except NotImplementedError:  # JAX's, where an axis would take part of one of the slice's
        raise ValueError(
            f"`config.mesh` is {_told(dict(zip(AXES, sizes, strict=True)))}: each must be a product of axes of the TPU "
            f"slice, such as 4 and 4 of a slice of 4x4"
        ) from None


def _told(sizes):
    return " x ".join(f"{axis} {size}" for axis, size in sizes.items())


def platform(mesh: Mesh) -> str:
    """Of the mesh's devices."""
    return mesh.devices.flat[0].platform


def jit(function: Callable, mesh: Mesh, **options: Any) -> Callable:
    """`jax.jit` of a program for the mesh, which models and losses see; options as of `jax.jit`."""

    @functools.wraps(function)
    def on_mesh(*arguments):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return jax.jit(on_mesh, **options)


def shardings(tree: Any, mesh: Mesh, *, stacked: bool = True) -> Any:
    """The NamedSharding of each array of a tree of parameters, of optimizer states or of both.

    Args:
      tree: of anything with a shape.
      mesh: with the axes AXES; one whose size does not divide an array's axis does not spread it.
      stacked: whether the arrays' first axis is that of students, if they have any.
    """

    def sharding(path, leaf):
        return NamedSharding(mesh, _spec(_end(path), leaf.shape, mesh, stacked))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def _end(path):
    """The last key of a path that is a name: of NNX's own there are more."""
    names = (getattr(entry, "key", getattr(entry, "name", None)) for entry in reversed(path))
    return next((name for name in names if name in _RULES), None)


def _spec(name, shape, mesh, stacked):
    rule = _RULES.get(name, ())
    first = ("student",) if stacked and shape else ()
    between = len(shape) - len(first) - len(rule)
    if between < 0:  # such as the counts of an optimizer
        rule, between = (), len(shape) - len(first)
    axes = (*first, *(None,) * between, *rule)
    return P(
        *(
            axis if axis and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(axes, shape, strict=True)
        )
    )


def shapes(tree: Any, mesh: Mesh, *, stacked: bool = True) -> Any:
    """ShapeDtypeStructs that say where each array is to lie."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
        shardings(tree, mesh, stacked=stacked),
    )


def place(tree: Any, mesh: Mesh) -> Any:
    """Arrays of stacked students, which every process has whole, where `shardings` has them."""

    def put(x, sharding):
        return jax.make_array_from_callback(x.shape, sharding, lambda index: np.asarray(x[index]))

    return jax.tree.map(put, tree, shardings(tree, mesh))


def constrain(tree: Any, mesh: Mesh) -> Any:
    """In a jit: the arrays, of stacked students, where `shardings` has them."""
    return jax.lax.with_sharding_constraint(tree, shardings(tree, mesh))


def everywhere(tree: Any, mesh: Mesh) -> Any:
    """In a jit: the arrays whole on every device."""
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, P()))


def whole(tree: Any, mesh: Mesh) -> Any:
    """Arrays on the mesh as NumPy's, on every process."""
    return jax.tree.map(np.asarray, jax.jit(lambda tree: everywhere(tree, mesh))(tree))


@dataclasses.dataclass(frozen=True)
class Rows:
    """How the rows of batches are spread: evenly, rows without weight after the last one making up
    what lacks.

    Attributes:
      mesh: with the axes AXES.
      count: rows of a batch, over all processes.
    """

    mesh: Mesh
    count: int

    @property
    def padded(self) -> int:
        """Rows with those that make up."""
        devices = math.prod(self.mesh.shape[axis] for axis in ROWS)
        return -(-self.count // devices) * devices

    @property
    def sharding(self) -> NamedSharding:
        return NamedSharding(self.mesh, P(ROWS))

    @property
    def mine(self) -> slice:
        """The rows that this process's devices need."""
        here = self.sharding.addressable_devices_indices_map((self.padded,)).values()
        starts, stops = zip(*(part.indices(self.padded)[:2] for (part,) in here), strict=True)
        return slice(min(min(starts), self.count), min(max(stops), self.count))

    def put(self, mine: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """The whole batch on the mesh, from arrays [rows of `mine`, ...] of each process."""
        return {name: self._put(values) for name, values in mine.items()}

    def spread(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """As `put`, where every process has the whole batch."""
        return self.put({name: values[self.mine] for name, values in batch.items()})

    def whole(self, batch: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
        """A batch of `put` on every process, without the rows that make up."""
        return {name: values[: self.count] for name, values in whole(batch, self.mesh).items()}

    def _put(self, values):
        first = self.mine.start

        def part(index):
            start, stop, _ = index[0].indices(self.padded)
            held = values[start - first : max(stop - first, 0)]
            return np.pad(held, [(0, stop - start - len(held))] + [(0, 0)] * (values.ndim - 1))

        return jax.make_array_from_callback((self.padded, *values.shape[1:]), self.sharding, part)
