"""A page as its readers' programs see it, and the rules that every page keeps."""

import itertools
import re
from html.parser import HTMLParser

VOID = {"meta", "br"}


class Page(HTMLParser):
    """Elements and text of a page; an element that is closed out of order is an error."""

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

    def regions(self):
        return [a["aria-label"] for _, a in self.elements if a.get("role") == "region"]

    def css(self):
        return re.search(r"<style>(.*?)</style>", self.source, flags=re.DOTALL)[1]


def check(page):
    """Asserts that nothing is fetched or run, and that readers of all kinds can navigate."""
    _check_alone(page)
    identifiers = [a["id"] for _, a in page.elements if "id" in a]
    assert len(set(identifiers)) == len(identifiers)
    references = {a["href"][1:] for a in page.all("a")}
    references |= {a["aria-labelledby"] for a in page.all("section")}
    references |= set(re.findall(r'(?:url\(|xlink:href=")#(\w+)', page.source))
    assert references <= set(identifiers)
    assert page.all("html") == [{"lang": "en"}]
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == levels.count(1) == 1
    assert all(len(page.all(tag)) == 1 for tag in ("main", "header", "nav"))
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert page.all("a")[0]["href"] == "#main"
    assert all(
        picture["role"] == "img" and len(picture["aria-label"]) > 30 for picture in page.all("svg")
    )
    assert len(page.all("figcaption")) == len(page.all("figure")) == len(page.all("svg"))
    assert all(cell["scope"] in ("col", "row") for cell in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    regions = [a for _, a in page.elements if a.get("role") == "region"]
    assert len(regions) == len(page.all("table")) + len(page.all("figure"))
    assert all(a["tabindex"] == "0" and a["aria-label"] for a in regions)
    assert len(set(page.regions())) == len(regions)


def _check_alone(page):
    for tag in ("script", "link", "iframe", "object", "base", "form", "img", "image"):
        assert not page.all(tag)
    assert len(page.all("style")) == 1
    for _, attributes in page.elements:
        assert not [
            name for name in attributes if name.startswith("on") or name in ("src", "srcset")
        ]
        for name in ("href", "xlink:href"):
            assert attributes.get(name, "#").startswith("#")
        assert not re.search(r"url\((?!#)", " ".join(filter(None, attributes.values())))
    assert "url(" not in page.css()
    assert "@import" not in page.css()
    (policy,) = (a["content"] for a in page.all("meta") if "http-equiv" in a)
    assert policy.startswith("default-src 'none'")
