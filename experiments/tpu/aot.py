"""Programs compiled ahead of time for TPUs that are not there, and what XLA plans for them."""

import collections
import dataclasses
import importlib.util
import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from experiments.tpu import hlo
from experiments.tpu.cost_model import Costs

# Without these libtpu looks for the machine that it is not on, and lets one process at a time
# compile.
ELSEWHERE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",  # any that it knows
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Chip:
    """What the vendor says of a kind: docs.cloud.google.com/tpu/docs/v5e and its like, links as
    JAX's "scaling book".

    Attributes:
      hbm: GB.
      flops: bfloat16 operations a second.
      bandwidth: of HBM, bytes a second.
      link: bytes a second to one neighbour (jax-ml.github.io/scaling-book/tpus).
      ring: chips along an axis of a slice that close to a ring.
      options: what a topology of one device a chip is asked for with.
    """

    hbm: int
    flops: float
    bandwidth: float
    link: float
    ring: int
    options: tuple[tuple[str, str], ...] = ()

    def interconnect(self, sizes: Sequence[int]) -> float:
        """Bytes that a chip of a slice sends a second, round all axes of more than one chip at
        once.

        A line of chips has half of what a ring has. Three-dimensional slices are rings if they are
        of whole cubes.
        """
        closed = [size % self.ring == 0 for size in sizes]
        closed = [all(closed)] * len(sizes) if len(sizes) == 3 else closed
        return self.link * sum(
            1 + ring for size, ring in zip(sizes, closed, strict=True) if size > 1
        )


CHIPS = {
    "v4": Chip(32, 275e12, 1.228e12, 4.5e10, ring=4, options=(("chip_config_name", "megacore"),)),
    "v5e": Chip(16, 197e12, 8.19e11, 4.5e10, ring=16),
    "v5p": Chip(95, 459e12, 2.765e12, 9e10, ring=4),
    "v6e": Chip(32, 918e12, 1.638e12, 9e10, ring=16),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice such as `v5e:2x2`."""

    kind: Chip
    sizes: tuple[int, ...]
    devices: Sequence[jax.Device]

    @property
    def interconnect(self) -> float:
        """Bytes a second, of a chip."""
        return self.kind.interconnect(self.sizes)


def chips(topology: str) -> Slice:
    """A slice such as `v5e:2x2`. Raises ValueError if there is no such slice, or no libtpu."""
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            "libtpu, which compiles for TPUs, is not installed: pip install -e '.[train,tpu]'"
        )
    told = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", topology)
    if not told or told[1] not in CHIPS:
        raise ValueError(
            f"--topology must look like v5e:2x2, of {', '.join(CHIPS)}, got {topology!r}"
        )
    kind, sizes = CHIPS[told[1]], tuple(int(size) for size in told[2].split("x"))
    for name, value in ELSEWHERE.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")  # nor is JAX to look for a TPU
    jax.config.update(
        "jax_enable_compilation_cache", False
    )  # which can't give back what no device here runs
    # A host has four chips, unless one is all that is asked for.
    alone = {"chips_per_host_bounds": (1, 1, 1)} if set(sizes) == {1} else {}
    try:
        found = topologies.get_topology_desc(
            topology_name=topology, platform="tpu", **alone, **dict(kind.options)
        )
    except Exception as error:  # of many kinds, after libtpu's own
        raise ValueError(
            f"can't compile for --topology={topology}: {str(error).splitlines()[0]}"
        ) from None
    return Slice(kind, sizes, found.devices)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of a chip that a program takes; `total` counts once what an output takes over from an
    argument."""

    arguments: int
    outputs: int
    temporaries: int
    total: int

    @classmethod
    def of(cls, program: jax.stages.Compiled) -> "Memory":
        planned = program.memory_analysis()
        parts = (
            planned.argument_size_in_bytes,
            planned.output_size_in_bytes,
            planned.temp_size_in_bytes,
        )
        return cls(*parts, total=sum(parts) - planned.alias_size_in_bytes)


def elements(text: str) -> collections.Counter:
    """How often a compiled program's text names arrays of how many elements."""
    return collections.Counter(array.elements for array in hlo.arrays(text))


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds that a call's products, HBM traffic and collectives need at least, each alone at the
    chip's full rate."""

    products: float
    memory: float
    links: float

    @classmethod
    def of(cls, costs: Costs, place: Slice) -> "Roofline":
        kind, sent = place.kind, costs.sent
        links = sent / place.interconnect if sent else 0.0
        return cls(costs.flops / kind.flops, costs.traffic / kind.bandwidth, links)

    @property
    def seconds(self) -> float:
        """If all three overlap wholly."""
        return max(self.products, self.memory, self.links)
