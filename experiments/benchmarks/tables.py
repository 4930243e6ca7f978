"""Tables of benchmarks: one row a record, numbers to three digits."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import rich.table

from jaxdiv import files
from jaxdiv.reporting.tables import Table


def table(records: Sequence[Mapping[str, Any]], **texts: Any) -> rich.table.Table:
    """Returns a table with the records' keys as headings; text goes left, numbers right.

    Args:
      records: one mapping a row, all with the keys of the first.
      **texts: title and caption.
    """
    heads = [key.replace("_", " ") for key in records[0]]
    rows = [
        [f"{v:.3g}" if isinstance(v, float) else str(v) for v in record.values()]
        for record in records
    ]
    left = [i for i, value in enumerate(records[0].values()) if isinstance(value, str)]
    return Table(heads, rows, left=left, fold={}, **texts).terminal(lines=True)


def write_csv(path: str | os.PathLike, records: Sequence[Mapping[str, Any]]) -> None:
    """Writes the records to a CSV file, whole or not at all."""
    files.write_text(path, pd.DataFrame(records).to_csv(index=False))
