"""The table of docs/tpu.md: what training students takes of TPU slices that are not there.

  pip install -e '.[train,tpu]'
  python -m experiments.benchmarks.tpu_table --records=tpu.json

Each cell is a run of `experiments.compile`, one after the other; those of an 8 B teacher take
minutes. The file keeps what is compiled; the same command goes on from it, and prints all of it as
Markdown.
"""

from experiments.common import startup

startup.begin(__name__)

import importlib.metadata
import math
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from absl import flags

from experiments.common import cli
from experiments.tpu.steps import STUDENT
from jaxdiv import files
from jaxdiv.reporting.tables import Table

RECORDS = flags.DEFINE_string("records", "tpu.json", "The JSON file of what is compiled.")
BOUND = {"products": "products", "memory": "HBM", "links": "links"}
_COLUMNS = (
    *("config", "slice", "chips", "data × fsdp", "rows, tokens a chip", "fits", "GB a chip", "of"),
    *("least ms", "k tokens/s", "a chip", "bound by", "products", "HBM", "links"),
)


class SliceCell(NamedTuple):
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
        """The arguments of experiments.compile, by which the cell is known."""
        return (
            f"--config={self.config} --topology={self.topology} --steps={STUDENT} "
            f"--config.mesh.data=-1 --config.mesh.fsdp={self.fsdp} "
            f"--config.student.batch_size={self.rows * self.chips}"
        )


# A batch has as many rows a chip everywhere. Parameters that fit a chip are not spread; those of 8
# B lie along whole axes of a slice.
CELLS = (
    *(
        SliceCell("configs/standard.py", place, 1, 2)
        for place in ("v5e:2x4", "v5e:16x16", "v5p:4x4x8", "v6e:4x4")
    ),
    SliceCell("configs/llama_8b.py", "v5e:2x4", 8, 1),
    SliceCell("configs/llama_8b.py", "v5e:16x16", 16, 1),
    SliceCell("configs/llama_8b.py", "v5p:4x4x8", 8, 1),
    SliceCell("configs/llama_8b.py", "v6e:4x4", 4, 1),
)


def versions() -> dict[str, str]:
    """Returns the versions of the packages that compile."""
    return {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}


def compiled(cell: SliceCell) -> dict:
    """Returns what `experiments.compile --json` writes of the cell, or the reason as `error`."""
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder, "record.json")
        program = [sys.executable, "-m", "experiments.compile"]
        command = [*program, *cell.command.split(), f"--json={output}"]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        if output.exists():
            return files.read_json(output)
        messages = process.stderr.strip().splitlines() or ["no message"]
        return {"error": f"exit code {process.returncode}: {messages[-1]}"}


def complete(path: str | os.PathLike, cells: Iterable[SliceCell]) -> dict:
    """Returns the file's records after compiling and writing the cells that it lacks.

    Records of other versions are compiled again.
    """
    records = files.read_json(path) if os.path.exists(path) else {}
    if records.get("versions") != versions():
        records = {"versions": versions(), "cells": {}}
    for cell in cells:
        if "steps" not in records["cells"].get(cell.command, {}):
            cli.log(f"compiling {cell.command}")
            records["cells"][cell.command] = compiled(cell)
            files.write_json(path, records)
    return records


def table(records: Mapping, cells: Iterable[SliceCell]) -> str:
    """Returns Markdown: versions, a row a cell, errors, and what more chips bring."""
    entries = {c: records["cells"].get(c.command, {"error": "not compiled"}) for c in cells}
    rows = [row(cell, entry) for cell, entry in entries.items()]
    errors = [
        f"Not compiled: `{cell.command}`: {entry['error']}"
        for cell, entry in entries.items()
        if "error" in entry
    ]
    versions = ", ".join(f"{name} {version}" for name, version in records["versions"].items())
    markdown = Table(_COLUMNS, rows, left=(0, 1), code=False).markdown()
    return "\n".join([versions, "", markdown, *errors, *scaling(entries)])


def row(cell: SliceCell, entry: Mapping) -> list[str]:
    """Returns the table's cells of one record."""
    mesh = f"{cell.chips // cell.fsdp} × {cell.fsdp}"
    columns = [f"`{pathlib.Path(cell.config).stem}`", f"`{cell.topology}`", f"{cell.chips}", mesh]
    if "error" in entry:
        columns += [f"{cell.rows}", "not compiled"]
    else:
        step = entry["steps"][STUDENT]
        columns.append(f"{cell.rows}, {step['predictions'] / cell.chips:,.0f}")
        columns.append("yes" if step["fits"] else "no")
        columns.append(f"{step['memory'] / 1e9:.2f}" if "memory" in step else "")
        columns.append(f"{step['hbm'] / 1e9:.0f}")
        if parts := step.get("seconds"):
            seconds, speed = max(parts.values()), tokens_per_second(step)
            columns += [f"{1e3 * seconds:,.3g}", f"{speed / 1e3:,.0f}"]
            columns += [f"{speed / 1e3 / cell.chips:.3g}", BOUND[max(parts, key=parts.get)]]
            columns += [f"{parts[each] / seconds:.0%}" for each in BOUND]
    return columns + [""] * (len(_COLUMNS) - len(columns))


def tokens_per_second(step: Mapping) -> float:
    """Returns the predictions of a step over the longest of its three times."""
    return step["predictions"] / max(step["seconds"].values())


def scaling(entries: Mapping[SliceCell, Mapping]) -> Iterator[str]:
    """Yields a sentence for each config and kind of chip that has slices of several sizes."""
    groups = {}
    for cell, entry in entries.items():
        step = entry.get("steps", {}).get(STUDENT, {})
        if "seconds" in step:
            kind = pathlib.Path(cell.config).stem, cell.topology.split(":")[0]
            groups.setdefault(kind, []).append((cell.chips, tokens_per_second(step)))
    for (config, kind), sizes in groups.items():
        (few, slow), (many, fast) = min(sizes), max(sizes)
        if few < many:
            growth = f"from {few} to {many} chips × {fast / slow:.1f} tokens/s"
            yield f"`{config}`, {kind}: {growth}."


def main(_):
    print(table(complete(RECORDS.value, CELLS), CELLS))
    return 0


if __name__ == "__main__":
    cli.run(main)
