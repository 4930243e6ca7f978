"""The table of docs/tpu.md: what training students takes of TPU slices that are not there, and what
it could reach.

  pip install -e '.[train,tpu]'
  python -m experiments.benchmarks.tpu_table --records=tpu.json

Each cell is a run of `experiments.compile`, one after the other; those of an 8 B teacher take
minutes. What is compiled stays in the file, by which the same command goes on, and prints all of it
as Markdown.
"""

from experiments.common import startup

startup.begin(__name__)

import dataclasses
import importlib.metadata
import math
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping

from absl import flags

from experiments.common import cli
from experiments.tpu import steps
from jaxdiv import files

RECORDS = flags.DEFINE_string("records", "tpu.json", "The JSON file of what is compiled.")
BOUND = {"products": "products", "memory": "HBM", "links": "links"}
_COLUMNS = (
    *("config", "slice", "chips", "data × fsdp", "rows, tokens a chip", "fits", "GB a chip", "of"),
    *("least ms", "k tokens/s", "a chip", "bound by", "products", "HBM", "links"),
)
_LEFT = 2  # columns of text


@dataclasses.dataclass(frozen=True)
class Cell:
    """A row of the table.

    Attributes:
      config: a file.
      topology: as --topology of experiments.compile.
      fsdp: `config.mesh.fsdp`; the chips of the others lie along `data`.
      rows: of a batch, a chip.
    """

    config: str
    topology: str
    fsdp: int
    rows: int

    @property
    def chips(self) -> int:
        return math.prod(int(size) for size in self.topology.split(":")[1].split("x"))

    @property
    def command(self) -> str:
        """Arguments of experiments.compile, by which the cell is known."""
        return (
            f"--config={self.config} --topology={self.topology} --steps={steps.STUDENT} --config.mesh.data=-1 "
            f"--config.mesh.fsdp={self.fsdp} --config.student.batch_size={self.rows * self.chips}"
        )


# A batch has as many rows a chip everywhere. Parameters that fit a chip are not spread; those of 8
# B lie along whole axes of a slice.
CELLS = (
    *(
        Cell("configs/standard.py", place, 1, 2)
        for place in ("v5e:2x4", "v5e:16x16", "v5p:4x4x8", "v6e:4x4")
    ),
    Cell("configs/llama_8b.py", "v5e:2x4", 8, 1),
    Cell("configs/llama_8b.py", "v5e:16x16", 16, 1),
    Cell("configs/llama_8b.py", "v5p:4x4x8", 8, 1),
    Cell("configs/llama_8b.py", "v6e:4x4", 4, 1),
)


def versions() -> dict[str, str]:
    """Of what compiles."""
    return {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}


def compiled(cell: Cell) -> dict:
    """What `experiments.compile --json` has of the cell, or what hindered it, as `error`."""
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder, "found.json")
        command = [
            sys.executable,
            "-m",
            "experiments.compile",
            *cell.command.split(),
            f"--json={output}",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if output.exists():
            return files.read_json(output)
        said = done.stderr.strip().splitlines() or ["nothing said"]
        return {"error": f"exit code {done.returncode}: {said[-1]}"}


def complete(path: str | os.PathLike, cells: Iterable[Cell]) -> dict:
    """The file's records, each cell that lacks in it compiled and written first. Other versions'
    are made anew."""
    held = files.read_json(path) if os.path.exists(path) else {}
    if held.get("versions") != versions():
        held = {"versions": versions(), "cells": {}}
    for cell in cells:
        if "steps" not in held["cells"].get(cell.command, {}):
            cli.log(f"compiling {cell.command}")
            held["cells"][cell.command] = compiled(cell)
            files.write_json(path, held)
    return held


def table(held: Mapping, cells: Iterable[Cell]) -> str:
    """Markdown: versions, a row a cell, what hindered those that have none, and what more chips
    bring."""
    made = {cell: held["cells"].get(cell.command, {"error": "not compiled"}) for cell in cells}
    rule = ["---" if i < _LEFT else "---:" for i in range(len(_COLUMNS))]
    lines = [", ".join(f"{name} {version}" for name, version in held["versions"].items()), ""]
    lines += [
        _line(_COLUMNS),
        _line(rule),
        *(_line(_row(cell, found)) for cell, found in made.items()),
        "",
    ]
    lines += [
        f"Not compiled: `{cell.command}`: {found['error']}"
        for cell, found in made.items()
        if "error" in found
    ]
    return "\n".join(
        [*lines, *_growths({cell: found for cell, found in made.items() if _seconds(found)})]
    )


def _line(cells):
    return f"| {' | '.join(map(str, cells))} |"


def _seconds(found):
    """Of the longest of three, or None."""
    spent = found.get("steps", {}).get(steps.STUDENT, {}).get("seconds")
    return spent and max(spent.values())


def _row(cell, found):
    name = pathlib.Path(cell.config).stem
    told = [
        f"`{name}`",
        f"`{cell.topology}`",
        cell.chips,
        f"{cell.chips // cell.fsdp} × {cell.fsdp}",
    ]
    if "error" in found:
        return [*told, cell.rows, "not compiled", *[""] * 9]
    step = found["steps"][steps.STUDENT]
    told += [
        f"{cell.rows}, {step['predictions'] / cell.chips:,.0f}",
        "yes" if step["fits"] else "no",
    ]
    room, seconds = f"{step['hbm'] / 1e9:.0f}", _seconds(found)
    if not seconds:
        return [*told, "", room, *[""] * 7]
    bound = max(step["seconds"], key=step["seconds"].get)
    speed = step["predictions"] / seconds / 1e3
    shares = [f"{step['seconds'][each] / seconds:.0%}" for each in BOUND]
    numbers = [
        f"{1e3 * seconds:,.3g}",
        f"{speed:,.0f}",
        f"{speed / cell.chips:.3g}",
        BOUND[bound],
        *shares,
    ]
    return [*told, f"{step['memory'] / 1e9:.2f}", room, *numbers]


def _growths(made):
    """A sentence for each config and kind of chip that has slices of several sizes."""
    groups = {}
    for cell, found in made.items():
        speed = found["steps"][steps.STUDENT]["predictions"] / _seconds(found)
        groups.setdefault((cell.config, cell.topology.split(":")[0]), []).append(
            (cell.chips, speed)
        )
    for (config, kind), sizes in groups.items():
        (few, slow), (many, fast) = min(sizes), max(sizes)
        if few < many:
            yield f"`{pathlib.Path(config).stem}`, {kind}: from {few} to {many} chips × {fast / slow:.1f} tokens/s."


def main(_):
    print(table(complete(RECORDS.value, CELLS), CELLS))
    return 0


if __name__ == "__main__":
    cli.run(main)
