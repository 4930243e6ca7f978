"""report.html stands alone, says what was found, and lets nothing through from data or config."""

import io
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from jaxdiv.reporting import html, pictures, results, style, words
from tests import html_page
from tests import reporting_cases as cases

HOSTILE = {
    "tv": "<script>alert(1)</script>",
    "kl": '"><img src=http://a.example/x onerror=alert(2)>',
    "jsd": "a & b",
}
PICTURES = (
    "differences",
    "acceptance_over_temperature",
    "acceptance_by_position",
    "training_curves",
)


def written(folder, frame, *, curves=None, images=None, config_text="", facts=None, about=""):
    """The page of these results, with dots in the place of pictures, which take long to draw."""
    html.write_report(
        folder / "report.html",
        frame=frame,
        curves=cases.curves(losses=()) if curves is None else curves,
        images={"differences": dots(0)} if images is None else images,
        config_text=config_text,
        facts=facts or {},
        about=about,
    )
    assert [p.name for p in folder.iterdir()] == ["report.html"]
    made = html_page.Page((folder / "report.html").read_text(encoding="utf-8"))
    html_page.check(made)
    return made


def dots(number):
    """Four pictures of one pixel, all different."""
    files = [io.BytesIO() for _ in range(4)]
    for i, file in enumerate(files):
        Image.new("RGB", (1, 1), (number, i, 0)).save(file, "png")
    return style.Images(*(file.getvalue() for file in files))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    frame = cases.frame(losses=("ce", "kl", "tv", "jsd", "ce_argmax", "untrained"), rename=HOSTILE)
    curves = cases.curves(losses=("ce", "tv"), steps=20)
    return written(
        tmp_path_factory.mktemp("report"),
        frame,
        curves=curves,
        images={name: dots(i) for i, name in enumerate(PICTURES)},
        config_text=cases.CONFIG + "files: '</pre><script>alert(3)</script>'",
        facts={**cases.FACTS, "files <b>": "<script>alert(4)</script>", "documents": 73},
        about="<script>alert(5)</script>",
    )


def test_everything_foreign_is_shown_as_text(page):
    for loss in HOSTILE.values():
        assert page.text.count(loss) > 3
    assert "</pre><script>alert(3)</script>" in page.text
    assert "<script>alert(4)</script>" in page.text
    assert "<script>alert(5)</script>" in page.text
    assert "files <b>" in page.text
    assert cases.CONFIG in page.text


def test_contexts_are_shown_as_text_and_tell_regions_apart(tmp_path):
    foreign = ["<b>x", '"><img src=http://b.example/x onerror=alert(6)>']
    renamed = {"corpus": foreign[0], "generated": foreign[1]}
    frame = cases.frame(losses=("ce", "tv"))
    frame = frame[frame["context"].isin(renamed)].replace({"context": renamed})
    page = written(tmp_path, frame)
    assert f"are accepted at temperature 1, on {foreign[1]}" in page.text
    for context in foreign:
        assert f"All numbers on {context}" in page.text
        assert {
            f"{name}, on {context}"
            for name in ("acceptance", "acceptance of each seed", "difference")
        } <= {a["aria-label"] for _, a in page.elements if a.get("role") == "region"}


def test_the_folder_gives_the_page_its_name(tmp_path, monkeypatch):
    (folder := tmp_path / "<b>digits & more").mkdir()
    monkeypatch.chdir(folder)
    for path in (folder, pathlib.Path()):
        page = written(path, cases.frame(losses=("ce", "tv")))
        assert page.text.count("<b>digits & more – jaxdiv report") == 2


def test_pictures_say_their_numbers_and_come_for_dark_paper_and_phones(page):
    first, *_ = alts = [image["alt"] for image in page.all("img")]
    assert alts[::2] == alts[1::2]
    assert [picture["class"] for picture in page.all("picture")] == ["on-light", "on-dark"] * 4
    assert [source["media"] for source in page.all("source")] == ["(max-width: 44rem)"] * 8
    assert (
        len({image["src"] for image in page.all("img") + page.all("source") if "src" in image}) == 8
    )
    frame = cases.frame(losses=("ce", "kl", "tv", "jsd", "ce_argmax", "untrained"))
    (gain,) = results.select(
        frame, loss="jsd", context="corpus", measure="difference", temperature=1.0
    )["value"]
    assert f"a & b {100 * gain:+.2f} ±0.21 (real)" in first


def test_words_can_be_read_on_light_and_on_dark_paper(page):
    light, dark = (
        dict(re.findall(r"--(\w+):(#\w{6})", part)) for part in page.css().split("\n")[:2]
    )
    assert light == {name: getattr(style.LIGHT, name) for name in light}
    assert dark == {name: getattr(style.DARK, name) for name in light}
    words_in = set(re.findall(r"(?<!-)color:var\(--(\w+)\)", page.css()))
    assert words_in == {"ink", "muted", "better", "worse"}
    for colors in (light, dark):
        for name in words_in:
            assert contrast(colors[name], colors["paper"]) >= 4.5


def contrast(one, other):
    """WCAG 2.2's ratio."""
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def luminance(color):
    parts = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [
        0.2126,
        0.7152,
        0.0722,
    ]


def test_every_column_measure_and_number_is_there(page):
    for name in (*results.COLUMNS, *words.MEASURES):
        assert name in page.text
    frame = cases.frame(losses=("ce", "kl", "tv", "jsd", "ce_argmax", "untrained"))
    (deep,) = results.select(frame, loss="tv", context="generated", measure="tau", gamma=8)["value"]
    assert f"{deep:.2f} ±0.04" in page.text


def test_front_comes_first_and_says_floor_and_run(tmp_path):
    page = written(
        tmp_path, cases.frame(losses=("ce", "tv", "untrained")), about="Students of a teacher."
    )
    front = re.sub(r"\s+", " ", page.text[: page.text.index("A difference is real")])
    for told in (
        "tv is accepted most: +",
        "untrained accepted, the floor56.",
        "ce accepted, the reference77.",
    ):
        assert told in front
    assert "Students of a teacher." in front
    assert "Acceptance is the share" in front


def test_small_and_broken_runs_have_a_report_too(tmp_path):
    frame = cases.frame(losses=("ce", "kl", "tv", "untrained"), seeds=2)
    lost = frame["loss"].eq("kl") | (frame["loss"].eq("tv") & frame["seed"].eq("1"))
    frame.loc[lost, ["value", "low", "high"]] = np.nan
    frame = frame[frame["context"].eq("corpus") & frame["temperature"].eq(1)]
    curves = cases.curves(losses=("ce", "kl", "tv"), steps=10, seeds=2)
    page = written(
        tmp_path, frame, curves=curves, images=pictures.render_all(frame=frame, curves=curves)
    )
    assert "Left out, without a finite result: kl and tv, seed 1." in page.text
    assert "nan" not in page.text


@pytest.mark.parametrize(
    "losses", [("tv",), ("untrained",), ("kl", "tv"), ("ce", "tv", "untrained")]
)
def test_results_of_other_things_than_texts(tmp_path, losses):
    frame = cases.frame(losses=losses, seeds=1).replace({"measure": {"greedy_match": "accuracy"}})
    frame = frame[
        frame["context"].eq("corpus")
        & frame["measure"].isin(["acceptance", "accuracy", "difference"])
    ]
    page = written(tmp_path, frame)
    head = page.text[
        page.text.index("Acceptance of sampled drafts") : page.text.index("A difference is real")
    ]
    assert "τ" not in head
    assert "match" not in head
    assert "accuracy" in head
    assert "nan" not in page.text


def test_decoded_numbers_stand_in_a_table(tmp_path):
    frame = cases.frame(losses=("ce", "tv"))
    decoded = (
        results.select(frame, seed=None, measure="tau", gamma=4),
        results.select(frame, measure="tau", gamma=4),
    )
    frame = results.table(
        [
            row
            for part in (frame, *(d.assign(measure="decoded_tau") for d in decoded))
            for row in part.to_dict("records")
        ]
    )
    page = written(tmp_path, frame)
    assert "Tokens a target call by decoding, γ = 4" in page.text


def test_report_of_nothing_is_refused(tmp_path):
    frame = cases.frame(losses=("ce",))
    with pytest.raises(ValueError, match="at least one row of `acceptance`"):
        written(tmp_path, frame[frame["measure"].eq("tau")])
    assert not list(tmp_path.iterdir())
