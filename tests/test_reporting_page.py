"""The page stands alone, says what was measured, and lets nothing through from data or config."""

import pathlib
import re

import numpy as np
import pandas as pd
import pytest

from jaxdiv import schema
from jaxdiv.reporting import measures, page, pictures, results, style
from jaxdiv.reporting.summary import summarize
from tests import html_page
from tests import reporting_cases as cases

HOSTILE = {
    "tv": "<script>alert(1)</script>",
    "kl": '"><img src=http://a.example/x onerror=alert(2)>',
    "jsd": "a & b",
}
LOSSES = ("ce", "kl", "tv", "jsd", "ce_argmax", "untrained")


def written(folder, frame, *, curves=None, draw=False, facts=None, **texts):
    """Returns the page of these results, without the pictures, which take long, unless `draw`."""
    summary = summarize(frame, curves)
    images = pictures.draw(summary) if draw else {}
    texts = {"config_text": "", **texts}
    page.write_report(folder / "report.html", summary, images, facts=facts or {}, **texts)
    assert [p.name for p in folder.iterdir()] == ["report.html"]
    result = html_page.Page((folder / "report.html").read_text(encoding="utf-8"))
    html_page.check(result)
    assert "nan" not in result.text
    return result


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    return written(
        tmp_path_factory.mktemp("report"),
        cases.frame(losses=LOSSES, rename=HOSTILE),
        curves=cases.curves(losses=("ce", "tv"), steps=50).replace({"loss": HOSTILE}),
        draw=True,
        config_text=cases.CONFIG + "files: '</pre><script>alert(3)</script>'",
        facts={**cases.FACTS, "files <b>": "<script>alert(4)</script>", "documents": 73},
        about="<script>alert(5)</script>",
    )


def test_everything_foreign_is_shown_as_text(hostile):
    for loss in HOSTILE.values():
        assert hostile.text.count(loss) > 3
    for i in (3, 4, 5):
        assert f"<script>alert({i})</script>" in hostile.text
    assert "files <b>" in hostile.text
    assert cases.CONFIG in hostile.text


def test_contexts_are_shown_as_text_and_tell_regions_apart(tmp_path):
    foreign = ["<b>x", '"><img src=http://b.example/x onerror=alert(6)>']
    renamed = {"corpus": foreign[0], "generated": foreign[1]}
    frame = cases.frame(losses=("ce", "tv"))
    frame = frame[frame["context"].isin(renamed)].replace({"context": renamed})
    result = written(tmp_path, frame)
    assert f"are accepted at temperature 1, on {foreign[1]}" in result.text
    for context in foreign:
        assert f"All numbers on {context}" in result.text
        labels = ("acceptance", "acceptance of each seed", "difference")
        assert {f"{label}, on {context}" for label in labels} <= set(result.regions())


def test_the_folder_gives_the_page_its_name(tmp_path, monkeypatch):
    (folder := tmp_path / "<b>digits & more").mkdir()
    monkeypatch.chdir(folder)
    for path in (folder, pathlib.Path()):
        result = written(path, cases.frame(losses=("ce", "tv")))
        assert result.text.count("<b>digits & more – jaxdiv report") == 2


def test_pictures_say_their_numbers_and_take_the_pages_colors(hostile):
    assert len(hostile.all("svg")) == 4
    frame = cases.frame(losses=LOSSES)
    at = {"loss": "jsd", "context": "corpus", "temperature": 1.0}
    (gain,) = results.select(frame, measure="difference", **at)["value"]
    first, *_ = (picture["aria-label"] for picture in hostile.all("svg"))
    assert f"a & b {100 * gain:+.2f} ±0.21 (real)" in first
    drawn = " ".join(re.findall(r"<svg.*?</svg>", hostile.source, flags=re.DOTALL))
    assert not re.findall(r"(?:fill|stroke): (?!none|var\(--|currentColor)[^;\"]+", drawn)
    colors = set(re.findall(r"var\(--(\w+)\)", drawn))
    assert colors <= set(re.findall(r"--(\w+):#", hostile.css()))


def test_texts_can_be_read_on_light_and_on_dark_paper(hostile):
    light, dark = (
        dict(re.findall(r"--(\w+):(#\w{6})", line)) for line in hostile.css().split("\n")[:2]
    )
    assert light == {name: getattr(style.LIGHT, name) for name in light}
    assert dark == {name: getattr(style.DARK, name) for name in light}
    text_colors = set(re.findall(r"(?<!-)color:var\(--(\w+)\)", hostile.css()))
    assert text_colors == {"ink", "muted", "better", "worse"}
    for colors in (light, dark):
        for name in text_colors:
            assert contrast(colors[name], colors["paper"]) >= 4.5


def contrast(*colors):
    """Returns WCAG 2.2's ratio of two colors."""
    rgb = np.array([[int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)] for color in colors])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    low, high = sorted(linear @ [0.2126, 0.7152, 0.0722])
    return (high + 0.05) / (low + 0.05)


def test_every_column_measure_and_number_is_there(hostile):
    for name in (*schema.COLUMNS, *measures.MEASURES):
        assert name in hostile.text
    frame = cases.frame(losses=LOSSES)
    (deep,) = results.select(frame, loss="tv", context="generated", measure="tau", gamma=8)["value"]
    assert f"{deep:.2f} ±0.04" in hostile.text


def test_front_comes_first_and_decoded_numbers_stand_in_a_table(tmp_path):
    frame = cases.frame(losses=("ce", "tv", "untrained"))
    decoded = frame[frame["measure"].eq("tau") & frame["gamma"].eq(4)]
    frame = pd.concat([frame, decoded.assign(measure="decoded_tau")])
    result = written(tmp_path, frame, about="Students of a teacher.")
    assert "Tokens per target call by decoding, γ = 4" in result.text
    front = re.sub(r"\s+", " ", result.text[: result.text.index("A difference is real")])
    for phrase in (
        "tv is accepted most: +",
        "untrained accepted, the floor56.",
        "ce accepted, the reference77.",
        "Students of a teacher.",
        "Acceptance is the share",
    ):
        assert phrase in front


def test_small_and_broken_runs_have_a_report_too(tmp_path):
    frame = cases.frame(losses=("ce", "kl", "tv", "untrained"), seeds=2)
    failed = frame["loss"].eq("kl") | (frame["loss"].eq("tv") & frame["seed"].eq("1"))
    frame.loc[failed, ["value", "low", "high"]] = np.nan
    frame = frame[frame["context"].eq("corpus") & frame["temperature"].eq(1)]
    curves = cases.curves(losses=("ce", "kl", "tv"), steps=10, seeds=2)
    result = written(tmp_path, frame, curves=curves, draw=True)
    assert "Left out, without a finite result: kl and tv, seed 1." in result.text


@pytest.mark.parametrize(
    "losses", [("tv",), ("untrained",), ("kl", "tv"), ("ce", "tv", "untrained")]
)
def test_results_of_other_things_than_texts(tmp_path, losses):
    frame = cases.frame(losses=losses, seeds=1).replace({"measure": {"greedy_match": "accuracy"}})
    shown = frame["measure"].isin(["acceptance", "accuracy", "difference"])
    text = written(tmp_path, frame[frame["context"].eq("corpus") & shown]).text
    head = text[text.index("Acceptance of sampled drafts") : text.index("A difference is real")]
    assert "τ" not in head
    assert "match" not in head
    assert "accuracy" in head


def test_report_of_nothing_is_refused():
    frame = cases.frame(losses=("ce",))
    with pytest.raises(ValueError, match="at least one row of `acceptance`"):
        summarize(frame[frame["measure"].eq("tau")])
