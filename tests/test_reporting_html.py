"""report.html stands alone, says what was found, and lets nothing through from data or config."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from jaxdiv.reporting import html, results, words
from tests import reporting_cases as cases

HOSTILE = {"tv": "<script>alert(1)</script>", "kl": '"><img src=http://a.example/x onerror=alert(2)>', "jsd": "a & b"}
VOID = {"meta", "img", "source", "br"}


class Page(HTMLParser):
    """Collects elements and text; an element that is closed out of order is an error."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self._open = [], "", []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open[-1:] != ["style"]:
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    frame = cases.frame(losses=("ce", "kl", "tv", "jsd", "ce_argmax", "untrained"), rename=HOSTILE)
    html.write_report(
        path,
        frame=frame,
        curves=cases.curves(losses=("ce", "tv"), steps=20),
        config_text=cases.CONFIG + "files: '</pre><script>alert(3)</script>'",
        facts={**cases.FACTS, "files <b>": "<script>alert(4)</script>", "documents": 73},
    )
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(report):
    return Page(report)


def test_nothing_is_fetched_or_run(report, page):
    assert not page.all("script") + page.all("link") + page.all("iframe") + page.all("object") + page.all("base")
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "srcset"):
            assert attributes.get(name, "data:image/png;base64,").startswith("data:image/png;base64,")
        assert attributes.get("href", "#").startswith("#")
    style = re.search(r"<style>(.*?)</style>", report, flags=re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_everything_foreign_is_shown_as_text(page):
    for loss in HOSTILE.values():
        assert page.text.count(loss) > 3
    assert "</pre><script>alert(3)</script>" in page.text
    assert "<script>alert(4)</script>" in page.text
    assert "files <b>" in page.text
    assert cases.CONFIG in page.text


def test_page_is_sane_for_readers_of_all_kinds(page):
    identifiers = [a["id"] for _, a in page.elements if "id" in a]
    assert len(set(identifiers)) == len(identifiers)
    assert {a["href"][1:] for a in page.all("a")} <= set(identifiers)
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == len(page.all("main")) == 1
    assert len(page.all("img")) == 4
    assert all(len(image["alt"]) > 30 for image in page.all("img"))
    assert all("prefers-color-scheme: dark" in s["media"] or "max-width" in s["media"] for s in page.all("source"))
    assert len(page.all("caption")) == len(page.all("table"))


def test_every_column_measure_and_number_is_there(page):
    for name in (*results.COLUMNS, *words.MEASURES):
        assert name in page.text
    frame = cases.frame(losses=("ce", "kl", "tv", "jsd", "ce_argmax", "untrained"))
    (deep,) = results.select(frame, loss="tv", context="generated", measure="tau", gamma=8)["value"]
    assert f"{deep:.2f} ±0.04" in page.text
    assert "accepted: 1." in re.sub(r"\s+", " ", page.text)


def found(frame):
    return [re.sub(r"<.*?>", "", part).replace("\N{NO-BREAK SPACE}", " ") for part in words.finding(frame)]


def test_finding_of_a_real_difference():
    first, others = found(cases.frame())
    assert re.fullmatch(
        r"tv gets 78\.\d ±0\.6% of its drafts accepted: 1\.\d+ ±0\.21 points more than ce, a real .*", first
    )
    assert others == (
        "Really above ce: tv, nla, jsd, lk_hybrid, rkl, jeffreys; really below: ce_data, ce_argmax; "
        "no difference shown: kl."
    )


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ({"seeds": 2}, "for these students only"),
        ({"losses": ("ce", "ce_argmax")}, "no other loss has more"),
        ({"losses": ("tv",)}, "of its drafts accepted."),
        ({"losses": ("untrained",)}, "No trained student has a result."),
    ],
)
def test_findings_claim_no_more_than_they_may(kind, said):
    first, _ = found(cases.frame(**kind))
    assert said in first


def test_finding_that_is_not_shown():
    frame = cases.frame(losses=("ce", "tv"))
    frame.loc[frame["measure"].eq("difference"), "low"] = -0.01
    first, others = found(frame)
    assert "does not show that it is the better loss" in first
    assert others == "No difference shown: tv."


def test_small_and_broken_runs_have_a_report_too(tmp_path):
    frame = cases.frame(losses=("ce", "kl", "untrained"), seeds=1)
    frame.loc[frame["loss"].eq("kl"), ["value", "low", "high"]] = np.nan
    frame = frame[frame["context"].eq("corpus") & frame["temperature"].eq(1)]
    curves = cases.curves(losses=("ce", "kl"), steps=10, seeds=1)
    html.write_report(tmp_path / "report.html", frame=frame, curves=curves, config_text="", facts={})
    text = Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "Left out: kl, trained but without a finite result" in text
    assert "nan" not in text


def test_report_of_nothing_is_refused(tmp_path):
    frame = cases.frame(losses=("ce",))
    with pytest.raises(ValueError, match="at least one row of `acceptance`"):
        html.write_report(
            tmp_path / "report.html",
            frame=frame[frame["measure"].eq("tau")],
            curves=cases.curves(losses=()),
            config_text="",
            facts={},
        )
    assert not list(tmp_path.iterdir())
