"""How pictures look: colors that color-blind readers can tell apart, on light and on dark paper."""

import dataclasses
import io
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

DPI = 160
WIDTH, NARROW = 9.0, 4.4  # inches; the latter is read on a phone
PANEL_NAME = 17


@dataclasses.dataclass(frozen=True)
class Theme:
    """Colors of one kind of paper; blue and orange stem from Okabe and Ito's palette, dark enough
    to write words in.

    `faint` is for grids, `quiet` for lines that no label names, `muted` for words of second rank.
    """

    paper: str
    ink: str
    muted: str
    faint: str
    quiet: str
    better: str
    worse: str


LIGHT = Theme(
    paper="#ffffff",
    ink="#1b1f24",
    muted="#68707b",
    faint="#e1e5e9",
    quiet="#b9c0c8",
    better="#0072b2",
    worse="#b84f00",
)
DARK = Theme(
    paper="#14181d",
    ink="#e8ebef",
    muted="#98a2ae",
    faint="#2a3038",
    quiet="#525c68",
    better="#56b4e9",
    worse="#f09a4a",
)


class Images(NamedTuple):
    """One picture as PNG files: on light and on dark paper, and both narrow enough for a phone."""

    light: bytes
    dark: bytes
    narrow_light: bytes
    narrow_dark: bytes


def rc(theme: Theme) -> dict[str, object]:
    """Settings for `matplotlib.rc_context`; a user's own matplotlibrc does not show through."""
    colors = {
        "figure.facecolor": theme.paper,
        "axes.facecolor": theme.paper,
        "savefig.facecolor": theme.paper,
    }
    colors |= {
        "text.color": theme.ink,
        "axes.labelcolor": theme.muted,
        "axes.titlecolor": theme.ink,
    }
    colors |= {
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "axes.edgecolor": theme.faint,
    }
    lines = {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "grid.color": theme.faint,
    }
    lines |= {
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "xtick.minor.size": 0,
        "ytick.minor.size": 0,
    }
    lines |= {
        "axes.grid": True,
        "axes.grid.axis": "y",
        "grid.linewidth": 0.7,
        "axes.axisbelow": True,
    }
    words = {
        "font.family": ["DejaVu Sans"],
        "font.size": 10,
        "axes.titlesize": 10.5,
        "axes.titlelocation": "left",
    }
    words |= {
        "axes.titleweight": "bold",
        "axes.labelsize": 9.5,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
    }
    # `rc_context` does not put the backend back, and pictures need none.
    plain_rc = {
        name: matplotlib.rcParamsDefault[name]
        for name in matplotlib.rcParamsDefault
        if name != "backend"
    }
    return {**plain_rc, **colors, **lines, **words, "figure.dpi": DPI}


def figure(
    height: float, *, title: str, subtitle: str, theme: Theme, width: float = WIDTH
) -> Figure:
    """An empty picture, in inches, with a heading of one line each."""
    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    made.get_layout_engine().set(
        rect=(0.012, 0.012, 0.976, 1 - 0.72 / height - 0.012), w_pad=0.06, h_pad=0.06
    )
    made.text(
        0.18 / width, 1 - 0.16 / height, plain(title), va="top", fontsize=14, fontweight="bold"
    )
    made.text(
        0.18 / width, 1 - 0.46 / height, plain(subtitle), va="top", fontsize=9.5, color=theme.muted
    )
    return made


def png(made: Figure) -> bytes:
    """The picture as a PNG file of its 256 main colors, in a third of the bytes: blends at edges
    move by a shade."""
    made.set_dpi(DPI)
    made.canvas.draw()
    colors = Image.fromarray(np.asarray(made.canvas.buffer_rgba())[..., :3])
    buffer = io.BytesIO()
    colors.quantize(256, dither=Image.Dither.NONE).save(buffer, "png")
    return buffer.getvalue()


def plain(text: str) -> str:
    """Text that matplotlib draws as it stands: a dollar sign does not begin a formula."""
    return text.replace("$", r"\$")


def readable(color: tuple[float, ...] | str, theme: Theme) -> str:
    """Of the theme's ink and paper the one with more contrast on `color`, as WCAG 2 measures it."""
    light = _luminance(color)

    def contrast(other):
        low, high = sorted((light, _luminance(other)))
        return (high + 0.05) / (low + 0.05)

    return max((theme.ink, theme.paper), key=contrast)


def _luminance(color):
    red_green_blue = np.array(to_rgb(color))
    linear = np.where(
        red_green_blue <= 0.04045, red_green_blue / 12.92, ((red_green_blue + 0.055) / 1.055) ** 2.4
    )
    return float(linear @ [0.2126, 0.7152, 0.0722])


def short(name: str, *, longest: int = 26) -> str:
    """A loss's name, cut where it would not fit."""
    return plain(name if len(name) <= longest else f"{name[: longest - 1]}…")


def apart(values: Sequence[float], gap: float) -> np.ndarray:
    """Moves values as little as needs be until neighbors are `gap` apart; their order stays."""
    order = np.argsort(values, kind="stable")
    placed = np.asarray(values, float)[order]
    for _ in range(100):
        close = gap - np.diff(placed)
        if np.all(close <= 1e-9):
            break
        push = np.maximum(close, 0) / 2
        placed[:-1] -= push
        placed[1:] += push
    result = np.empty_like(placed)
    result[order] = placed
    return result


def label_ends(
    axes: Axes, ends: Sequence[tuple[float, float, str, str]], *, size: float = 9.5
) -> None:
    """Writes names at the right ends of lines, each (x, y, name, color), none over another."""
    if not ends:
        return
    axes.figure.get_layout_engine().execute(axes.figure)
    to_display = axes.transData.transform
    heights = np.array([to_display((x, y))[1] for x, y, _, _ in ends]) * 72 / axes.figure.dpi
    for (x, y, name, color), height, placed in zip(
        ends, heights, apart(heights, 1.3 * size), strict=True
    ):
        axes.annotate(
            short(name),
            xy=(x, y),
            xytext=(8, placed - height),
            textcoords="offset points",
            color=color,
            va="center",
            fontsize=size,
            fontweight="bold",
            annotation_clip=False,
        )


def named(ranked: pd.DataFrame, theme: Theme) -> dict[str, str]:
    """Colors of the losses that a picture of many lines names: last, best, reference, floor; the
    others stay gray."""
    trained = list(ranked.loc[ranked["verdict"].ne("floor"), "loss"])
    colors = {trained[-1]: theme.worse, trained[0]: theme.better} if trained else {}
    for row in ranked.itertuples():
        if row.verdict in ("reference", "floor"):
            colors[row.loss] = theme.ink if row.verdict == "reference" else theme.muted
    return colors
