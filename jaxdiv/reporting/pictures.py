"""The pictures of a run: differences to the reference, acceptance over temperature and by position,
training curves."""

import os
import pathlib
from collections.abc import Mapping

import matplotlib
import pandas as pd

from jaxdiv import files
from jaxdiv.reporting import comparison, style, training_curves


def write(folder: str | os.PathLike, images: Mapping[str, style.Images]) -> list[pathlib.PurePath]:
    """Writes NAME.png into `folder` for each picture, on light paper, and returns their paths."""
    paths = []
    for name, (light, *_) in images.items():
        path = files.path_of(folder) / f"{name}.png"
        with files.replacing(path) as temporary:
            temporary.write_bytes(light)
        paths.append(path)
    return paths


def render_all(*, frame: pd.DataFrame, curves: pd.DataFrame) -> dict[str, style.Images]:
    """What `render` gives, for both papers and both widths."""
    drawn = [
        render(frame=frame, curves=curves, theme=theme, narrow=narrow)
        for narrow in (False, True)
        for theme in (style.LIGHT, style.DARK)
    ]
    return {name: style.Images(*(images[name] for images in drawn)) for name in drawn[0]}


def render(
    *,
    frame: pd.DataFrame,
    curves: pd.DataFrame,
    theme: style.Theme = style.LIGHT,
    narrow: bool = False,
) -> dict[str, bytes]:
    """Pictures by name, as PNG; one that its data don't suffice for is absent.

    Args:
      frame: results.
      curves: columns step, loss, seed, metric (`loss`, `gradient_norm`, `acceptance`), value.
      theme: `style.LIGHT` or `style.DARK`.
      narrow: to be read on a phone.

    Returns:
      Of `differences`, `acceptance_over_temperature`, `acceptance_by_position` and
      `training_curves`.
    """
    with matplotlib.rc_context(style.rc(theme)):
        drawn = {
            "differences": comparison.differences(frame, theme, narrow=narrow),
            "acceptance_over_temperature": comparison.over_temperature(frame, theme, narrow=narrow),
            "acceptance_by_position": comparison.by_position(frame, theme, narrow=narrow),
            "training_curves": training_curves.draw(frame, curves, theme, narrow=narrow),
        }
        return {name: style.png(figure) for name, figure in drawn.items() if figure is not None}
