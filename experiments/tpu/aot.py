"""Ahead-of-time compilation for absent TPUs, and what XLA plans for the compiled programs."""

import collections
import dataclasses
import importlib.util
import os
import re
from collections.abc import Mapping, Sequence

import jax
from jax.experimental import topologies

from experiments.tpu import hlo
from experiments.tpu.cost_model import Costs

# Without these libtpu looks for the machine that it should be on, and only one process can compile.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",  # any type that it knows
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of TPU, by its vendor's figures (docs.cloud.google.com/tpu/docs/v5e and its like).

    Attributes:
      hbm: GB.
      flops: bfloat16 operations a second.
      bandwidth: of HBM, bytes a second.
      link: bytes a second to one neighbour (jax-ml.github.io/scaling-book/tpus).
      ring: chips along an axis of a slice that close to a ring.
      options: options with which a topology has one device for each chip.
    """

    hbm: int
    flops: float
    bandwidth: float
    link: float
    ring: int
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)


CHIPS = {
    "v4": Chip(32, 275e12, 1.228e12, 4.5e10, ring=4, options={"chip_config_name": "megacore"}),
    "v5e": Chip(16, 197e12, 8.19e11, 4.5e10, ring=16),
    "v5p": Chip(95, 459e12, 2.765e12, 9e10, ring=4),
    "v6e": Chip(32, 918e12, 1.638e12, 9e10, ring=16),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice of a TPU, such as `v5e:2x2`."""

    kind: Chip
    sizes: tuple[int, ...]
    devices: Sequence[jax.Device]

    @property
    def interconnect(self) -> float:
        """Returns the bytes a second that a chip sends along all axes of more than one chip.

        A line of chips has half the links of a ring. A three-dimensional slice has rings only if
        it consists of whole cubes.
        """
        closed = [size % self.kind.ring == 0 for size in self.sizes]
        closed = [all(closed)] * len(closed) if len(closed) == 3 else closed
        axes = zip(self.sizes, closed, strict=True)
        return self.kind.link * sum(1 + ring for size, ring in axes if size > 1)

    def least_seconds(self, costs: Costs) -> dict[str, float]:
        """Returns the seconds for products, HBM traffic and collectives, each at full rate.

        A call takes the longest of them if all three overlap entirely.
        """
        return {
            "products": costs.flops / self.kind.flops,
            "memory": costs.traffic / self.kind.bandwidth,
            "links": costs.sent / self.interconnect if costs.sent else 0.0,
        }


def describe_slice(topology: str) -> Slice:
    """Returns the slice with a name such as `v5e:2x2`.

    Raises:
      ValueError: there is no such slice, or libtpu is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            "libtpu, which compiles for TPUs, is not installed: pip install -e '.[train,tpu]'"
        )
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", topology)
    if not match or match[1] not in CHIPS:
        raise ValueError(
            f"--topology must look like v5e:2x2, of {', '.join(CHIPS)}, got {topology!r}"
        )
    kind, sizes = CHIPS[match[1]], tuple(int(size) for size in match[2].split("x"))
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")  # JAX itself must not look for a TPU either
    # The compilation cache can't restore programs that no device of this machine runs.
    jax.config.update("jax_enable_compilation_cache", False)
    # A host has four chips, except in a slice of one.
    single = {"chips_per_host_bounds": (1, 1, 1)} if set(sizes) == {1} else {}
    try:
        description = topologies.get_topology_desc(
            topology_name=topology, platform="tpu", **single, **kind.options
        )
    except Exception as error:  # libtpu raises many types
        raise ValueError(
            f"can't compile for --topology={topology}: {str(error).splitlines()[0]}"
        ) from None
    return Slice(kind, sizes, description.devices)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of a chip that a program takes.

    `total` counts an output that takes over the memory of an argument once.
    """

    arguments: int
    outputs: int
    temporaries: int
    total: int

    @classmethod
    def of(cls, program: jax.stages.Compiled) -> "Memory":
        plan = program.memory_analysis()
        parts = plan.argument_size_in_bytes, plan.output_size_in_bytes, plan.temp_size_in_bytes
        return cls(*parts, total=sum(parts) - plan.alias_size_in_bytes)


def elements(text: str) -> collections.Counter:
    """Counts the arrays in a compiled program's text by their number of elements."""
    return collections.Counter(array.elements for array in hlo.arrays(text))
