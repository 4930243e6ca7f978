"""The look of pictures: colors that color-blind readers can tell apart, on light and dark paper."""

import dataclasses
import html
import io
import re
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

DPI = 160
WIDTH = 9.0  # inches
HEADING = 0.72  # inches that title and subtitle take
PANEL_TITLE = 17  # letters that fit above a small panel


@dataclasses.dataclass(frozen=True)
class Theme:
    """Colors of one kind of paper.

    Blue and orange stem from Okabe and Ito's palette, dark enough for text. `faint` is for grids,
    `quiet` for lines without a label, `muted` for secondary text.
    """

    paper: str
    ink: str
    muted: str
    faint: str
    quiet: str
    better: str
    worse: str


LIGHT = Theme("#ffffff", "#1b1f24", "#68707b", "#e1e5e9", "#b9c0c8", "#0072b2", "#b84f00")
DARK = Theme("#14181d", "#e8ebef", "#98a2ae", "#2a3038", "#525c68", "#56b4e9", "#f09a4a")


class Drawing(NamedTuple):
    """A figure with its texts.

    Attributes:
      figure: drawn under `rc(LIGHT)`.
      title, subtitle: its heading.
      caption: what to see in it.
      alternative: its numbers in words, for readers who can't see it.
    """

    figure: Figure
    title: str
    subtitle: str
    caption: str
    alternative: str


def rc(theme: Theme) -> dict[str, object]:
    """Returns settings for `matplotlib.rc_context`, independent of a user's matplotlibrc."""
    # `rc_context` does not restore the backend, so the settings leave it alone.
    defaults = {k: v for k, v in matplotlib.rcParamsDefault.items() if k != "backend"}
    spines = [f"axes.spines.{side}" for side in ("top", "right", "left")]
    ticks = [f"{axis}tick.{kind}.size" for axis in "xy" for kind in ("major", "minor")]
    return defaults | {
        **dict.fromkeys(["figure.facecolor", "axes.facecolor", "savefig.facecolor"], theme.paper),
        **dict.fromkeys(["text.color", "axes.titlecolor"], theme.ink),
        **dict.fromkeys(["axes.labelcolor", "xtick.color", "ytick.color"], theme.muted),
        **dict.fromkeys(["axes.edgecolor", "grid.color"], theme.faint),
        **dict.fromkeys(spines, False),
        **dict.fromkeys(ticks, 0),
        **dict.fromkeys(["axes.grid", "axes.axisbelow"], True),
        **dict.fromkeys(["xtick.labelsize", "ytick.labelsize"], 9),
        **{"axes.grid.axis": "y", "grid.linewidth": 0.7, "figure.dpi": DPI},
        **{"font.family": ["DejaVu Sans"], "font.size": 10, "axes.labelsize": 9.5},
        **{"axes.titlesize": 10.5, "axes.titlelocation": "left", "axes.titleweight": "bold"},
        **{"svg.fonttype": "none"},
    }


def figure(
    height: float, *, title: str, subtitle: str, theme: Theme, width: float = WIDTH
) -> Figure:
    """Returns an empty figure, in inches, under a title and a subtitle of one line each."""
    figure = Figure(figsize=(width, height), layout="constrained")
    rect = (0.012, 0.012, 0.976, 1 - HEADING / height - 0.012)
    figure.get_layout_engine().set(rect=rect, w_pad=0.06, h_pad=0.06)
    top = {"va": "top", "x": 0.18 / width}
    figure.text(y=1 - 0.16 / height, s=plain(title), **top, fontsize=14, fontweight="bold")
    figure.text(y=1 - 0.46 / height, s=plain(subtitle), **top, fontsize=9.5, color=theme.muted)
    return figure


def png(figure: Figure) -> bytes:
    """Returns the figure as a PNG file of its 256 main colors, in a third of the bytes."""
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    colors = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    buffer = io.BytesIO()
    colors.quantize(256, dither=Image.Dither.NONE).save(buffer, "png")
    return buffer.getvalue()


def svg(figure: Figure, *, name: str, alternative: str) -> str:
    """Returns a figure in the colors of `LIGHT` as an SVG element that follows the page around it.

    Its colors are the page's CSS variables, and its text is set in the page's font. Heading and
    paper, which the page has itself, are hidden from here on.

    Args:
      figure: drawn under `rc(LIGHT)`, which must still hold.
      name: tells the element's identifiers from those of the page's other pictures.
      alternative: plain text for readers who can't see the picture.
    """
    for artist in (figure.patch, *figure.texts, *(axes.patch for axes in figure.axes)):
        artist.set_visible(False)
    width, height = figure.get_size_inches()
    view_box = " ".join(f"{72 * x:g}" for x in (0, HEADING - 0.05, width, height - HEADING + 0.05))
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    text = buffer.getvalue()
    for color, value in dataclasses.asdict(LIGHT).items():
        text = text.replace(value, "currentColor" if color == "ink" else f"var(--{color})")
    elements = text[text.index("<defs>") :]
    label = html.escape(alternative, quote=True)
    # Identifiers that nothing refers to go, since other pictures of the page have the same.
    # matplotlib makes the rest from addresses in memory, which differ between processes.
    references = dict.fromkeys(re.findall(r'(?:href="|url\()#(\w+)', elements))
    names = {reference: f"{name}_{number}" for number, reference in enumerate(references)}
    elements = re.sub(
        r' id="([^"]+)"', lambda m: f' id="{names[m[1]]}"' if m[1] in names else "", elements
    )
    elements = re.sub(r'(href="|url\()#(\w+)', lambda m: f"{m[1]}#{names[m[2]]}", elements)
    # Layout differs in the last bits from process to process. The offset keeps numbers that are
    # half-way between two of three digits, such as 0.0625, from being rounded both ways.
    elements = re.sub(r"-?\d+\.\d{4,}", lambda m: f"{float(m[0]) + 3e-5:.3f}", elements)
    # A style element would apply to the whole page; the page's own font may be narrower than ours.
    useless = r"<style.*?</style>|font-family: [^;]*; |<g/>| transform=\"rotate\(-0 [^\"]*\)\""
    elements = re.sub(useless, "", elements, flags=re.DOTALL)
    return f'<svg role="img" aria-label="{label}" viewBox="{view_box}">{" ".join(elements.split())}'


def plain(text: str) -> str:
    """Returns text that matplotlib draws as it is: a dollar sign does not begin a formula."""
    return text.replace("$", r"\$")


def readable(color: tuple[float, ...] | str, theme: Theme) -> str:
    """Returns the theme's ink or paper, whichever has more contrast on `color` by WCAG 2."""
    rgb = np.array([to_rgb(c) for c in (color, theme.ink, theme.paper)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance, *others = linear @ [0.2126, 0.7152, 0.0722] + 0.05
    ink, paper = (max(luminance, other) / min(luminance, other) for other in others)
    return theme.ink if ink >= paper else theme.paper


def cut(name: str, longest: int = 26) -> str:
    """Returns a loss's name, cut where it would not fit."""
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def short(name: str, *, longest: int = 26) -> str:
    """Returns `cut` as matplotlib draws it."""
    return plain(cut(name, longest))


def spread(values: Sequence[float], gap: float) -> np.ndarray:
    """Returns the values moved as little as possible, in order, until they are `gap` apart."""
    order = np.argsort(values, kind="stable")
    places = np.asarray(values, float)[order]
    for _ in range(100):
        close = gap - np.diff(places)
        if np.all(close <= 1e-9):
            break
        push = np.maximum(close, 0) / 2
        places[:-1] -= push
        places[1:] += push
    result = np.empty_like(places)
    result[order] = places
    return result


def label_ends(
    axes: Axes, ends: Sequence[tuple[float, float, str, str]], *, size: float = 9.5
) -> None:
    """Writes names at the right ends of lines, each (x, y, name, color), without overlap."""
    if not ends:
        return
    axes.figure.get_layout_engine().execute(axes.figure)
    scale = 72 / axes.figure.dpi
    heights = np.array([axes.transData.transform(end[:2])[1] for end in ends]) * scale
    places = spread(heights, 1.3 * size)
    for (x, y, name, color), height, place in zip(ends, heights, places, strict=True):
        axes.annotate(
            short(name),
            xy=(x, y),
            xytext=(8, place - height),
            textcoords="offset points",
            color=color,
            va="center",
            fontsize=size,
            fontweight="bold",
            annotation_clip=False,
        )
