"""Tables of benchmarks: one row a record, numbers to three digits."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from rich.table import Table

from jaxdiv import files


def table(records: Sequence[Mapping[str, Any]], **options: Any) -> Table:
    """Returns a rich table with the records' keys as headings; text goes left, numbers right.

    Args:
      records: one mapping a row, all with the keys of the first.
      **options: of rich's `Table`, such as title and caption.
    """
    result = Table(title_justify="left", caption_justify="left", **options)
    for heading, value in records[0].items():
        side = "left" if isinstance(value, str) else "right"
        result.add_column(heading.replace("_", " "), justify=side, no_wrap=True)
    for record in records:
        cells = (f"{v:.3g}" if isinstance(v, float) else str(v) for v in record.values())
        result.add_row(*cells)
    return result


def write_csv(path: str | os.PathLike, records: Sequence[Mapping[str, Any]]) -> None:
    """Writes the records to a CSV file, whole or not at all."""
    files.write_text(path, pd.DataFrame(records).to_csv(index=False))
