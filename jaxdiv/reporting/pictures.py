"""The pictures of a run, each as a PNG file for its folder and an SVG element for report.html."""

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import matplotlib

from jaxdiv import files
from jaxdiv.reporting import acceptance_pictures, style, training_curves
from jaxdiv.reporting.style import Drawing
from jaxdiv.reporting.summary import Summary

# To add a picture, add its function, which returns None where the results can't show it.
DRAWINGS: Mapping[str, Callable[[Summary], Drawing | None]] = {
    "differences": acceptance_pictures.differences,
    "acceptance_over_temperature": acceptance_pictures.over_temperature,
    "acceptance_by_position": acceptance_pictures.by_position,
    "training_curves": training_curves.draw,
}


class Picture(NamedTuple):
    """A picture in both forms, with its texts; the SVG leaves title and subtitle to the page."""

    png: bytes
    svg: str
    drawing: Drawing


def draw(summary: Summary) -> dict[str, Picture]:
    """Returns the pictures by name, those of `DRAWINGS` that the results can show."""
    pictures = {}
    with matplotlib.rc_context(style.rc(style.LIGHT)):
        for name, function in DRAWINGS.items():
            if (drawing := function(summary)) is not None:
                png = style.png(drawing.figure)
                svg = style.svg(drawing.figure, name=name, alternative=drawing.alternative)
                pictures[name] = Picture(png, svg, drawing)
    return pictures


def write(folder: str | os.PathLike, pictures: Mapping[str, Picture]) -> list[pathlib.PurePath]:
    """Writes NAME.png into `folder` for each picture and returns their paths."""
    paths = []
    for name, picture in pictures.items():
        path = files.path_of(folder) / f"{name}.png"
        with files.replacing(path) as temporary:
            temporary.write_bytes(picture.png)
        paths.append(path)
    return paths
