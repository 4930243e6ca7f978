"""The look of report.html, and the blocks that it is put together from; text comes in as HTML."""

import base64
import struct
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from jaxdiv.reporting.style import DARK, LIGHT, Images, Theme

_PHONE = "(max-width: 44rem)"


def document(
    *, title: str, sections: Mapping[str, tuple[str, Sequence[str]]], front: Sequence[str]
) -> str:
    """A whole page that needs nothing else; its policy forbids the browser to fetch anything.

    Args:
      title: plain text, also above the page.
      sections: heading and parts by identifier; the navigation links to them.
      front: parts that come first, an h1 among them.
    """
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    links = "".join(
        f'<li><a href="#{name}">{heading}</a></li>' for name, (heading, _) in sections.items()
    )
    made = [section(name, heading, *parts) for name, (heading, parts) in sections.items()]
    inner = "\n".join([*front, *made])
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{_css()}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#main">Skip to the finding</a>\n'
        f'<header><p>{escape(title)}</p><nav aria-label="Contents"><ul>{links}</ul></nav></header>\n'
        f'<main id="main" tabindex="-1">\n{inner}\n</main>\n</body>\n</html>\n'
    )


def section(identifier: str, heading: str, *parts: str) -> str:
    """A part of the page that the navigation can point to."""
    inner = "\n".join([f'<h2 id="{identifier}-h">{heading}</h2>', *parts])
    return f'<section id="{identifier}" aria-labelledby="{identifier}-h">\n{inner}\n</section>'


def details(summary: str, *parts: str) -> str:
    """A part of a section that is folded away until asked for."""
    inner = "\n".join(parts)
    return f"<details>\n<summary><h3>{summary}</h3></summary>\n{inner}\n</details>"


def headline(text: str, *sentences: str) -> str:
    """What the page has to say, and what that rests on."""
    return (
        f'<h1>{text}</h1>\n<p class="lead">{" ".join(sentences)}</p>'
        if sentences
        else f"<h1>{text}</h1>"
    )


def points(items: Iterable[str]) -> str:
    """Short sentences below each other; '' without one."""
    made = "".join(f"<li>{item}</li>" for item in items)
    return f'<ul class="points">{made}</ul>' if made else ""


def tiles(items: Iterable[tuple[str, str, str]]) -> str:
    """The few numbers that a reader takes home: what each is, the number, and a word on it."""
    made = "".join(
        f"<div><dt>{of}</dt><dd>{number} <small>{word}</small></dd></div>"
        for of, number, word in items
    )
    return f'<dl class="tiles">{made}</dl>'


def grid(
    caption: str,
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    label: str,
    marks: Sequence[str] = (),
    kinds: Sequence[str] = (),
) -> str:
    """A table whose first column names the row and that scrolls within itself.

    Args:
      caption, head, rows: HTML.
      label: plain text that names the table to a screen reader.
      marks, kinds: classes of rows, and of columns; '' for none.
    """
    kinds = [
        f' class="{kind}"' if kind else "" for kind in [*kinds, *[""] * (len(head) - len(kinds))]
    ]
    columns = "".join(
        f'<th scope="col"{kind}>{cell}</th>' for cell, kind in zip(head, kinds, strict=True)
    )
    made = [
        f"<caption><span>{caption}</span></caption>",
        f"<thead><tr>{columns}</tr></thead>",
        "<tbody>",
    ]
    for i, (first, *rest) in enumerate(rows):
        mark = f' class="{marks[i]}"' if i < len(marks) and marks[i] else ""
        cells = "".join(
            f"<td{kind}>{cell}</td>" for cell, kind in zip(rest, kinds[1:], strict=True)
        )
        made.append(f'<tr{mark}><th scope="row">{first}</th>{cells}</tr>')
    inner = "\n".join([*made, "</tbody>"])
    name = escape(label, quote=True)
    return f'<div class="wide" role="region" tabindex="0" aria-label="{name}"><table>\n{inner}\n</table></div>'


def pairs(items: Iterable[tuple[str, str]]) -> str:
    """Terms and what they mean, both ready HTML."""
    return f"<dl>{''.join(f'<dt>{term}</dt><dd>{meaning}</dd>' for term, meaning in items)}</dl>"


def figure(images: Images, *, alt: str, caption: str) -> str:
    """A picture within the page, with plain text in its place for those who can't see it, and a
    caption."""
    made = [
        _picture("on-light", images.light, images.narrow_light, alt),
        _picture("on-dark", images.dark, images.narrow_dark, alt),
    ]
    return f"<figure>{''.join(made)}<figcaption>{caption}</figcaption></figure>"


def _picture(kind, wide, narrow, alt):
    """Shown on its paper alone; by rules and not by a `source`, which would not change back for
    print."""
    source = f'<source media="{_PHONE}" {_size(narrow)} srcset="{_data(narrow)}">'
    image = f'<img src="{_data(wide)}" {_size(wide)} alt="{escape(alt, quote=True)}">'
    return f'<picture class="{kind}">{source}{image}</picture>'


def _size(png):
    """Width and height, from the head of the PNG, so that the page does not jump while it loads."""
    width, height = struct.unpack(">II", png[16:24])
    return f'width="{width}" height="{height}"'


def _data(png):
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def _css():
    dark = f"@media screen and (prefers-color-scheme:dark){{:root{{{_colors(DARK)}}}}}"
    return f":root{{{_colors(LIGHT)}}}\n{dark}\n{_RULES}"


def _colors(theme: Theme):
    return (
        f"--paper:{theme.paper};--ink:{theme.ink};--muted:{theme.muted};--faint:{theme.faint};"
        f"--better:{theme.better};--worse:{theme.worse}"
    )


_RULES = """
:root{color-scheme:light dark}
*{box-sizing:border-box}
body{margin:0 auto;max-width:66rem;padding:0 1.25rem 4rem;overflow-wrap:anywhere;background:var(--paper);
color:var(--ink);font:1rem/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
a{color:var(--better)}
:focus-visible{outline:2px solid var(--better);outline-offset:2px}
main:focus{outline:none}
.skip{position:absolute;left:-99rem;padding:.5rem .8rem;background:var(--paper)}
.skip:focus{left:.5rem;top:.5rem}
header{display:flex;flex-wrap:wrap;justify-content:space-between;gap:.2rem 1.5rem;padding:1rem 0;
border-bottom:1px solid var(--faint)}
header p{margin:0;font-weight:600;color:var(--muted)}
nav ul{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;margin:0;padding:0;list-style:none}
h1{max-width:46rem;font-size:clamp(1.5rem,5vw,2.2rem);line-height:1.25;font-weight:650;margin:2rem 0 .8rem;
text-wrap:balance}
h2{font-size:1.35rem;margin:3rem 0 .6rem}
h3{font-size:1rem;font-weight:600;margin:0}
p,.points,dd{max-width:46rem}
.lead{font-size:1.1rem}
.points{margin:.8rem 0;padding-left:1.2rem}
.note{border-left:4px solid var(--worse);padding-left:.8rem}
.muted,caption,figcaption{color:var(--muted)}
code,pre{font-family:ui-monospace,"SF Mono",Menlo,"DejaVu Sans Mono",monospace;font-size:.92em;overflow-wrap:anywhere}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.8rem;margin:1.4rem 0;padding:0}
.tiles div{border:1px solid var(--faint);border-radius:.6rem;padding:.7rem .9rem}
.tiles dt{margin:0;color:var(--muted);font-size:.9rem;font-weight:400;overflow-wrap:anywhere}
.tiles dd{margin:0;font-size:1.6rem;font-weight:650;font-variant-numeric:tabular-nums;line-height:1.35}
.tiles small{display:block;font-size:.9rem;line-height:1.4;font-weight:400;color:var(--muted)}
.wide{overflow-x:auto;margin:1rem 0;background:linear-gradient(to left,var(--paper) 40%,transparent) right/2.5rem 100%
no-repeat local,linear-gradient(to left,var(--faint),transparent) right/1rem 100% no-repeat scroll}
table{border-collapse:collapse;font-size:.92rem;font-variant-numeric:tabular-nums;min-width:100%}
caption{text-align:left;padding-bottom:.5rem}
caption span{display:block;position:sticky;left:0;width:max-content;max-width:min(46rem,100vw - 2.5rem)}
th,td{padding:.38rem .6rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--faint)}
thead th{color:var(--muted);font-weight:500;vertical-align:bottom;border-bottom-color:var(--muted)}
th:first-child{text-align:left;position:sticky;left:0;background:var(--paper);padding-left:0}
tbody th{font-weight:500;white-space:normal}
tbody th code{display:block;width:max-content;max-width:14rem;overflow-wrap:break-word}
.verdict{text-align:left}
tr.better :is(.difference,.verdict){color:var(--better);font-weight:650}
tr.worse :is(.difference,.verdict){color:var(--worse);font-weight:650}
tr.floor,tr.floor th{color:var(--muted)}
.text{text-align:left;white-space:normal;overflow-wrap:anywhere}
figure{margin:1.8rem 0 2.4rem}
img{display:block;max-width:100%;height:auto}
figcaption{max-width:46rem;margin-top:.4rem}
.on-dark{display:none}
@media screen and (prefers-color-scheme:dark){.on-dark{display:inline}.on-light{display:none}}
dt{font-weight:600;margin-top:.7rem}
dd{margin:0}
details{border-top:1px solid var(--faint);padding:.5rem 0}
summary{cursor:pointer;padding:.3rem 0}
summary h3{display:inline}
pre{background:color-mix(in srgb,var(--faint) 45%,transparent);padding:1rem;border-radius:.5rem;
white-space:pre-wrap;line-height:1.45}
@media (max-width:44rem){table{font-size:.84rem}th,td{padding:.38rem .32rem}
tbody th code{max-width:6.5rem}.verdict{white-space:normal;min-width:5.2rem}h2{margin-top:2.2rem}}
@media print{:root{font-size:12px}body{max-width:none}nav,.skip{display:none}.wide{overflow:visible;background:none}
h1{margin-top:1rem}h2{margin-top:1.6rem}table,figure,.tiles{break-inside:avoid}h2,h3,summary{break-after:avoid}}
"""
