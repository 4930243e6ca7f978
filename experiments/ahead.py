"""Programs compiled ahead of time for TPUs that are not there, and what XLA plans for them."""

import collections
import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Iterator

import jax
from jax.experimental import topologies

# Without these libtpu looks for the machine that it is not on.
ELSEWHERE = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}
HBM = {"TPU v4": 32, "TPU v5 lite": 16, "TPU v5": 95, "TPU v6 lite": 32}  # GB a chip, as the vendor has it
_ARRAY = re.compile(r"\b(?:pred|[a-z]+(\d+))\[([\d,]*)\]")


def chips(topology: str) -> list[jax.Device]:
    """The chips of a slice such as `v5e:2x2`. Raises ValueError if there is no such slice, or no libtpu."""
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError("libtpu, which compiles for TPUs, is not installed: pip install -e '.[train,tpu]'")
    if not re.fullmatch(r"\w+:\d+(x\d+)*", topology):
        raise ValueError(f"--topology must look like v5e:2x2, got {topology!r}")
    for name, value in ELSEWHERE.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")  # nor is JAX to look for a TPU
    jax.config.update("jax_enable_compilation_cache", False)  # which can't give back what no device here runs
    # A host has four chips, unless one is all that is asked for.
    alone = {"chips_per_host_bounds": (1, 1, 1)} if re.fullmatch(r"\w+:1(x1)*", topology) else {}
    try:
        return topologies.get_topology_desc(topology_name=topology, platform="tpu", **alone).devices
    except Exception as error:  # of many kinds, after libtpu's own
        raise ValueError(f"can't compile for --topology={topology}: {str(error).splitlines()[0]}") from None


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of a chip that a program takes; `total` counts once what an output takes over from an argument."""

    arguments: int
    outputs: int
    temporaries: int
    total: int

    @classmethod
    def of(cls, program: jax.stages.Compiled) -> "Memory":
        planned = program.memory_analysis()
        parts = planned.argument_size_in_bytes, planned.output_size_in_bytes, planned.temp_size_in_bytes
        return cls(*parts, total=sum(parts) - planned.alias_size_in_bytes)


def shapes(text: str) -> Iterator[tuple[tuple[int, ...], int]]:
    """(sizes, bits an element) of every array that a program's text names, such as f32[8]{0} and (bf16[2,8])."""
    for bits, sizes in _ARRAY.findall(text):
        yield tuple(int(n) for n in sizes.split(",") if n), int(bits or 8)


def elements(program: jax.stages.Compiled) -> collections.Counter:
    """How often the compiled text names arrays of how many elements."""
    return collections.Counter(math.prod(sizes) for sizes, _ in shapes(program.as_text()))
