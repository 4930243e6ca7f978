"""Flags, compiled calls and their memory, tables and CSV files, which benchmarks share."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import pandas as pd
from absl import flags
from rich.console import Console

from jaxdiv import files
from jaxdiv.reporting.tables import Table


def define_rounds(default: int) -> flags.FlagHolder:
    """Declares --rounds, how often each contestant is timed."""
    text = "How often each is timed; the medians count."
    return flags.DEFINE_integer("rounds", default, text, lower_bound=1)


def define_output() -> flags.FlagHolder:
    """Declares --output, for `write_csv`."""
    return flags.DEFINE_string("output", None, "A CSV file for the numbers.")


def define_head_sizes(*, tokens: int, width: int, vocabulary: int) -> list[flags.FlagHolder]:
    """Declares --tokens, --width, --vocabulary and --chunk with these defaults."""
    chunk = "Tokens a chunk; what the library chooses if not given."
    return [
        flags.DEFINE_integer("tokens", tokens, "Tokens, N.", lower_bound=1),
        flags.DEFINE_integer("width", width, "Of the students' hidden states, D.", lower_bound=1),
        flags.DEFINE_integer("vocabulary", vocabulary, "Classes, V.", lower_bound=2),
        flags.DEFINE_integer("chunk", None, chunk, lower_bound=1),
    ]


def compiled(function: Callable, *arguments: Any) -> tuple[jax.stages.Compiled, float]:
    """Compiles a function for such arguments, and returns the bytes of its temporaries beside it.

    They are NaN where XLA does not say.
    """
    program = jax.jit(function).lower(*arguments).compile()
    memory = program.memory_analysis()
    return program, memory.temp_size_in_bytes if memory else float("nan")


def print_table(records: Sequence[Mapping[str, Any]], *, width: int, **texts: str) -> None:
    """Prints a table with the records' keys as headings; text goes left, numbers right.

    Args:
      records: one mapping a row, all with the keys of the first; floats have three digits.
      width: characters of a line.
      **texts: title and caption.
    """
    heads = [key.replace("_", " ") for key in records[0]]
    rows = [
        [f"{v:.3g}" if isinstance(v, float) else str(v) for v in record.values()]
        for record in records
    ]
    left = [i for i, value in enumerate(records[0].values()) if isinstance(value, str)]
    table = Table(heads, rows, left=left, fold={}, **texts)
    Console(width=width).print(table.terminal(lines=True))


def write_csv(path: str | os.PathLike | None, records: Sequence[Mapping[str, Any]]) -> None:
    """Writes the records to a CSV file, whole or not at all; without a path, does nothing."""
    if path:
        files.write_text(path, pd.DataFrame(records).to_csv(index=False))
