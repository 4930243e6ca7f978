"""The study of what can make a gap between cross-entropy and KL: its table and pictures."""

from collections.abc import Iterable, Mapping

import pandas as pd

from jaxdiv import files

COLUMNS = ("cause", "applied_to", "measure", "temperature", "ce", "kl", "ratio", "low", "high", "trained")


def table(rows: Iterable[Mapping]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=list(COLUMNS))


def write(folder, frame):
    files.write_text(files.path_of(folder) / "gap.csv", frame.to_csv(index=False, lineterminator="\n"))


def show(frame, markdown=False):
    print(frame[frame.measure.eq("acceptance") & frame.temperature.eq(1)].to_string())
