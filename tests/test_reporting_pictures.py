"""Pictures are drawn from what there is, show what they claim, and leave matplotlib as it was."""

import io

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from jaxdiv.reporting import acceptance_pictures, pictures, style
from jaxdiv.reporting.summary import summarize
from tests import reporting_cases as cases

NAMES = ["differences", "acceptance_over_temperature", "acceptance_by_position", "training_curves"]
FEW = ("ce", "tv", "untrained")


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) / 255


def share(image, color):
    return np.mean(np.all(np.abs(image - to_rgb(color)) < 0.02, axis=-1))


def axes_of(frame):
    with matplotlib.rc_context(style.rc(style.LIGHT)):
        return acceptance_pictures.differences(summarize(frame)).figure.axes[0]


def drawn_at_one_temperature(**kind):
    """Returns the pictures of results that have one temperature and no positions."""
    frame = cases.frame(**kind)
    frame = frame[frame["temperature"].eq(1.0) & frame["measure"].ne("acceptance_at")]
    return pictures.draw(summarize(frame))


def test_all_pictures_are_written_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setitem(matplotlib.rcParams, "backend", "svg")
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 31)
    before = dict(matplotlib.rcParams)
    losses = ("ce", "tv", "jsd", "untrained")
    summary = summarize(cases.frame(losses=losses), cases.curves(losses=losses, steps=50))
    paths = pictures.write(tmp_path, pictures.draw(summary))
    assert [path.name for path in paths] == [f"{name}.png" for name in NAMES]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths)
    assert dict(matplotlib.rcParams) == before
    for path in paths:
        image = pixels(path.read_bytes())
        assert image.shape[1] == 1440
        assert share(image, style.LIGHT.paper) > 0.6
        assert share(image, style.LIGHT.better) > 0.001


def test_colors_tell_better_from_worse():
    for other, name, absent in (("tv", "better", "worse"), ("ce_data", "worse", "better")):
        (picture,) = drawn_at_one_temperature(losses=("ce", other)).values()
        image = pixels(picture.png)
        assert share(image, getattr(style.LIGHT, name)) > 0
        assert share(image, getattr(style.LIGHT, absent)) == 0
        assert f"var(--{name})" in picture.svg
        assert f"var(--{absent})" not in picture.svg


def test_words_stand_out_from_what_they_are_written_on():
    for theme in (style.LIGHT, style.DARK):
        assert style.readable(theme.paper, theme) == theme.ink
        assert style.readable(theme.ink, theme) == theme.paper
    # Contrast by WCAG is 4.2 of ink and 3.9 of paper.
    assert style.readable("#808080", style.LIGHT) == style.LIGHT.ink


def test_what_is_far_beyond_the_rest_leaves_them_room():
    frame = cases.frame()
    far = frame["measure"].eq("difference") & frame["loss"].eq("rkl")
    frame.loc[far, ["value", "low", "high"]] += 0.4
    axes = axes_of(frame)
    names = [label.get_text() for label in axes.get_yticklabels()]
    off = {names[round(text.get_position()[1])]: text.get_text() for text in axes.texts}
    assert off == {"rkl": "off the scale ▶", "untrained": "◀ off the scale"}
    assert max(np.abs(axes.get_xlim())) < 10


def test_dots_stand_where_the_differences_are():
    frame = cases.frame(losses=FEW)
    rows = frame.query(
        "loss == 'tv' and measure == 'difference' and context == 'corpus' and temperature == 1.0"
    )
    pooled, seeds = rows[rows["seed"].eq("all")], rows[rows["seed"].ne("all")]
    drawn = [list(line.get_xdata()) for line in axes_of(frame).lines]
    assert [100 * pooled["value"].item()] in drawn
    assert [100 * pooled["low"].item(), 100 * pooled["high"].item()] in drawn
    assert list(100 * seeds["value"]) in drawn


def test_pictures_take_few_bytes_and_look_the_same():
    with matplotlib.rc_context(style.rc(style.DARK)):
        summary, buffer = summarize(cases.frame(losses=FEW)), io.BytesIO()
        whole, small = (acceptance_pictures.by_position(summary).figure for _ in range(2))
        whole.savefig(buffer, format="png", dpi=style.DPI)
        whole, small = buffer.getvalue(), style.png(small)
    assert len(small) < len(whole) / 2
    drawn, shown = pixels(whole), pixels(small)
    moved = np.abs(drawn - shown).max(axis=-1)
    assert np.all(moved[np.all(drawn == drawn[0, 0], axis=-1)] == 0)
    assert np.mean(moved > 0.03) < 0.01
    assert moved.max() < 0.3


@pytest.mark.parametrize(
    ("losses", "steps", "expected"),
    [(("tv",), 0, NAMES[1:3]), (("untrained",), 0, NAMES[1:3]), (("kl", "tv"), 10, NAMES)],
)
def test_what_can_not_be_drawn_is_absent(losses, steps, expected):
    curves = cases.curves(losses=losses, steps=steps, seeds=1)
    summary = summarize(cases.frame(losses=losses, seeds=1), curves)
    with matplotlib.rc_context(style.rc(style.LIGHT)):
        assert [name for name, draw in pictures.DRAWINGS.items() if draw(summary)] == expected


def test_one_temperature_no_positions_and_odd_names():
    names = {"ce": "$x_$", "tv": "<script>alert(1)</script>" * 3}
    (picture,) = drawn_at_one_temperature(losses=FEW, rename=names).values()
    assert picture.drawing.title == "Which loss gets more drafts accepted than $x_$?"
    assert ">$x_$<" in picture.svg
    assert "<script" not in picture.svg


def test_labels_are_moved_apart_and_keep_their_order():
    values = np.array([3.0, 0.0, 0.1, 0.05, 9.0])
    moved = style.spread(values, 1.0)
    assert np.all(np.argsort(moved) == np.argsort(values))
    assert np.all(np.diff(np.sort(moved)) >= 1 - 1e-3)
    assert moved[4] == 9.0
    np.testing.assert_allclose(style.spread(values, 0.01), values)


def test_svgs_leave_out_the_last_bits_of_a_layout():
    def drawn(shift):
        with matplotlib.rc_context(style.rc(style.LIGHT)):
            figure = Figure(figsize=(5, 4))
            axes = figure.add_axes((87.6194375 / 360 + shift, 0.0625 + shift, 0.5, 0.5))
            axes.plot([0, 1], [0.1, 0.3])
            return style.svg(figure, name="a", alternative="a line")

    assert drawn(0.0) == drawn(1e-12) == drawn(-1e-12)
