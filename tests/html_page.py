"""A page as its readers' programs see it, and what must hold of every page."""

import itertools
import re
from html.parser import HTMLParser

VOID = {"meta", "img", "source", "br"}


class Page(HTMLParser):
    """Collects elements and text; an element that is closed out of order is an error."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self.source, self._open = [], "", text, []
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

    def css(self):
        return re.search(r"<style>(.*?)</style>", self.source, flags=re.DOTALL)[1]


def check(page):
    """Nothing is fetched or run, and readers of all kinds find their way."""
    _check_alone(page)
    identifiers = [a["id"] for _, a in page.elements if "id" in a]
    assert len(set(identifiers)) == len(identifiers)
    assert {a["href"][1:] for a in page.all("a")} | {
        a["aria-labelledby"] for a in page.all("section")
    } <= set(identifiers)
    assert page.all("html") == [{"lang": "en"}]
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert (
        levels.count(1)
        == len(page.all("main"))
        == len(page.all("header"))
        == len(page.all("nav"))
        == 1
    )
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert next(a for tag, a in page.elements if tag == "a")["href"] == "#main"
    assert all(len(image["alt"]) > 30 for image in page.all("img"))
    assert 2 * len(page.all("figcaption")) == 2 * len(page.all("figure")) == len(page.all("img"))
    assert all(cell["scope"] in ("col", "row") for cell in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    regions = [a for _, a in page.elements if a.get("role") == "region"]
    assert len(regions) == len(page.all("table"))
    assert all(a["tabindex"] == "0" and a["aria-label"] for a in regions)
    assert len({a["aria-label"] for a in regions}) == len(regions)


def _check_alone(page):
    assert not [
        tag for tag in ("script", "link", "iframe", "object", "base", "form") if page.all(tag)
    ]
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "srcset"):
            assert attributes.get(name, "data:image/png;base64,").startswith(
                "data:image/png;base64,"
            )
        assert attributes.get("href", "#").startswith("#")
    assert "url(" not in page.css()
    assert "@import" not in page.css()
    policy = next(
        a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'")
