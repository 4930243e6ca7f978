"""The mesh of a run, and where parameters, optimizer states and batches lie on it."""

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

# The mesh axes of a parameter's last axes, by the name at the end of its path: inputs and outputs
# of a matrix, tokens and width of the embedding. Any axes before them are layers, which stay whole.
_RULES = {
    "embedding": ("tensor", "fsdp"),
    "head": ("fsdp", "tensor"),
    "kernel": ("fsdp", None),
    "scale": (None,),
}


def make_mesh(spec: RunSpec, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes the mesh of `config.mesh` over `devices`, by default all.

    Raises:
      ValueError: the axes don't multiply to the number of devices, don't fit the TPU slice, or
        `student` does not divide `config.seeds`.
    """
    devices = jax.devices() if devices is None else devices
    sizes = dataclasses.asdict(spec.mesh)
    text = _text(sizes)
    fixed = math.prod(size for size in sizes.values() if size != REST)
    sizes = {axis: len(devices) // fixed if size == REST else size for axis, size in sizes.items()}
    if math.prod(sizes.values()) != len(devices):
        raise ValueError(
            f"`config.mesh` is {text}, which must multiply to the {len(devices)} devices that "
            f"there are; an axis of {REST} takes what the others leave"
        )
    if len(spec.seeds) % sizes["student"]:
        raise ValueError(
            f"`config.mesh.student` = {sizes['student']} must divide `config.seeds` = "
            f"{len(spec.seeds)}"
        )
    return _mesh([sizes[axis] for axis in AXES], devices)


def make_mesh_for_reading(spec: RunSpec) -> Mesh:
    """Makes the run's mesh, or puts all devices along `data` if it does not fit this machine."""
    try:
        return make_mesh(spec)
    except ValueError:
        sizes = [jax.device_count() if axis == "data" else 1 for axis in AXES]
        return _mesh(sizes, jax.devices())


def single_device_mesh() -> Mesh:
    """Makes the mesh of this process's first device."""
    return _mesh([1] * len(AXES), jax.local_devices()[:1])


def _mesh(sizes: Sequence[int], devices: Sequence[jax.Device]) -> Mesh:
    types = (jax.sharding.AxisType.Auto,) * len(AXES)
    try:
        return jax.make_mesh(tuple(sizes), AXES, devices=devices, axis_types=types)
    except NotImplementedError:  # JAX can't split an axis of a TPU slice
        text = _text(dict(zip(AXES, sizes, strict=True)))
        raise ValueError(
            f"`config.mesh` is {text}: each must be a product of axes of the TPU slice, such as 4 "
            "and 4 of a slice of 4x4"
        ) from None


def _text(sizes):
    return " x ".join(f"{axis} {size}" for axis, size in sizes.items())


def platform(mesh: Mesh) -> str:
    """Returns the platform of the mesh's devices, such as 'cpu'."""
    return mesh.devices.flat[0].platform


def jit(function: Callable, mesh: Mesh, **options: Any) -> Callable:
    """Jits a function for the mesh, which models and losses then see; options are `jax.jit`'s."""

    @functools.wraps(function)
    def on_mesh(*arguments):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return jax.jit(on_mesh, **options)


def shardings(tree: Any, mesh: Mesh, *, stacked: bool = True) -> Any:
    """Returns the NamedSharding of each array of parameters, optimizer states or both.

    Args:
      tree: of arrays, or anything with a shape.
      mesh: with the axes AXES. An axis whose size does not divide an array's axis is not used.
      stacked: True if the first axis of the arrays, if they have any, is that of students.
    """

    def sharding(path, leaf):
        names = (getattr(entry, "key", getattr(entry, "name", None)) for entry in reversed(path))
        # NNX's own names may follow the parameter's.
        rule = _RULES.get(next((name for name in names if name in _RULES), None), ())
        first = ("student",) if stacked and leaf.shape else ()
        layers = len(leaf.shape) - len(first) - len(rule)
        if layers < 0:  # such as the counts of an optimizer
            rule, layers = (), len(leaf.shape) - len(first)
        axes = (*first, *(None,) * layers, *rule)
        divides = [
            axis if axis and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(axes, leaf.shape, strict=True)
        ]
        return NamedSharding(mesh, P(*divides))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def shapes(tree: Any, mesh: Mesh, *, stacked: bool = True) -> Any:
    """Returns ShapeDtypeStructs of a tree, with the sharding of each array."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
        shardings(tree, mesh, stacked=stacked),
    )


def put(tree: Any, mesh: Mesh) -> Any:
    """Shards arrays of stacked students, which every process has whole, over the mesh."""

    def put_array(x, sharding):
        return jax.make_array_from_callback(x.shape, sharding, lambda index: np.asarray(x[index]))

    return jax.tree.map(put_array, tree, shardings(tree, mesh))


def constrain(tree: Any, mesh: Mesh) -> Any:
    """Constrains arrays of stacked students to their `shardings`, inside of a jit."""
    return jax.lax.with_sharding_constraint(tree, shardings(tree, mesh))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Constrains arrays to be whole on every device, inside of a jit."""
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, P()))


def gather(tree: Any, mesh: Mesh) -> Any:
    """Returns arrays of the mesh as whole NumPy arrays, in every process."""
    return jax.tree.map(np.asarray, jax.jit(lambda tree: replicate(tree, mesh))(tree))


@dataclasses.dataclass(frozen=True)
class BatchSharding:
    """Spreads the rows of batches evenly over a mesh; zero rows pad the last ones.

    Attributes:
      mesh: with the axes AXES.
      rows: rows of a batch, over all processes.
    """

    mesh: Mesh
    rows: int

    @property
    def padded_rows(self) -> int:
        """The number of rows with padding."""
        devices = math.prod(self.mesh.shape[axis] for axis in ROWS)
        return -(-self.rows // devices) * devices

    @property
    def sharding(self) -> NamedSharding:
        """The sharding of a batch's arrays."""
        return NamedSharding(self.mesh, P(ROWS))

    @property
    def local_rows(self) -> slice:
        """The rows that this process's devices need."""
        indices = self.sharding.addressable_devices_indices_map((self.padded_rows,)).values()
        spans = [part.indices(self.padded_rows)[:2] for (part,) in indices]
        starts, stops = zip(*spans, strict=True)
        return slice(min(min(starts), self.rows), min(max(stops), self.rows))

    def put_local(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Returns the whole batch on the mesh, from the `local_rows` of each process."""
        first = self.local_rows.start

        def put_array(values):
            def part(index):
                start, stop, _ = index[0].indices(self.padded_rows)
                rows = values[start - first : max(stop - first, 0)]
                padding = [(0, stop - start - len(rows))] + [(0, 0)] * (values.ndim - 1)
                return np.pad(rows, padding)

            shape = (self.padded_rows, *values.shape[1:])
            return jax.make_array_from_callback(shape, self.sharding, part)

        return {name: put_array(values) for name, values in batch.items()}

    def put(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Returns a batch, which every process has whole, on the mesh."""
        return self.put_local({name: values[self.local_rows] for name, values in batch.items()})

    def gather(self, batch: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
        """Returns a batch of `put` as NumPy arrays in every process, without padding."""
        return {name: values[: self.rows] for name, values in gather(batch, self.mesh).items()}
