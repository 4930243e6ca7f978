"""Reports of studies: files of tables and pictures, and heat maps."""

import pathlib
from collections.abc import Callable, Mapping

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from jaxdiv import files
from jaxdiv.reporting import style
from jaxdiv.reporting.style import Theme


def write(
    folder: pathlib.PurePath,
    frames: Mapping[str, pd.DataFrame],
    figures: Mapping[str, Callable[[Theme], Figure]],
    themes: Mapping[str, Theme],
) -> None:
    """Writes each frame as CSV to its file name, and each picture as PNG in each theme, whose key
    ends the file's name."""
    for name, frame in frames.items():
        files.write_text(folder / name, frame.to_csv(index=False, lineterminator="\n"))
    for ending, theme in themes.items():
        with matplotlib.rc_context(style.rc(theme)):
            for name, draw in figures.items():
                with files.replacing(folder / f"{name}{ending}.png") as temporary:
                    temporary.write_bytes(style.png(draw(theme)))


def heat_map(
    axes: Axes,
    shade: np.ndarray,
    words: Callable[[int, int], str],
    theme: Theme,
    *,
    size: float,
    bold: Callable[[int, int], bool] = lambda row, column: False,
) -> None:
    """Draws cells from the theme's worse to its better color, with words over those that aren't
    NaN.

    Args:
      axes: where to draw.
      shade: [rows, columns], from -1 for the worst to 1 for the best.
      words: (row, column) to the cell's text.
      theme: colors.
      size: of the font.
      bold: (row, column) to whether the text is bold.
    """
    ramp = [theme.worse, theme.paper, theme.better]
    colors = LinearSegmentedColormap.from_list("shade", ramp)
    axes.imshow(shade, cmap=colors, vmin=-1, vmax=1, aspect="auto")
    for row, column in np.argwhere(~np.isnan(shade)):
        axes.text(
            column,
            row,
            words(row, column),
            ha="center",
            va="center",
            fontsize=size,
            fontweight="bold" if bold(row, column) else "normal",
            color=style.readable(colors((1 + shade[row, column]) / 2), theme),
        )
    axes.grid(False)
