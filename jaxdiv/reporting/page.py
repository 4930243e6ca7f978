"""The look of report.html, and the small pieces it is put together from."""

import base64
import struct
from collections.abc import Iterable, Sequence
from html import escape

from jaxdiv.reporting.style import DARK, LIGHT, Theme

_PHONE = "(max-width: 44rem)"


def document(*, title: str, body: str) -> str:
    """A whole page that needs nothing else; its policy forbids the browser to fetch anything."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{_css()}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def section(identifier: str, heading: str, *parts: str) -> str:
    """A part of the page that the navigation can point to."""
    inner = "\n".join([f'<h2 id="{identifier}-h">{heading}</h2>', *parts])
    return f'<section id="{identifier}" aria-labelledby="{identifier}-h">\n{inner}\n</section>'


def details(summary: str, *parts: str) -> str:
    """A part that is folded away until asked for."""
    inner = "\n".join(parts)
    return f"<details>\n<summary>{summary}</summary>\n{inner}\n</details>"


def grid(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], *, label: str, marks: Sequence[str] = ()
) -> str:
    """A table of ready HTML cells whose first column names the row; `marks` are classes of rows, `label` is text."""
    columns = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    made = [f"<caption>{caption}</caption>", f"<thead><tr>{columns}</tr></thead>", "<tbody>"]
    for i, (first, *rest) in enumerate(rows):
        mark = f' class="{marks[i]}"' if i < len(marks) and marks[i] else ""
        made.append(f'<tr{mark}><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>')
    inner = "\n".join([*made, "</tbody>"])
    name = escape(label, quote=True)
    return f'<div class="wide" role="region" tabindex="0" aria-label="{name}"><table>\n{inner}\n</table></div>'


def pairs(items: Iterable[tuple[str, str]]) -> str:
    """Terms and what they mean, both ready HTML."""
    return f"<dl>{''.join(f'<dt>{term}</dt><dd>{meaning}</dd>' for term, meaning in items)}</dl>"


def picture(*, light: bytes, dark: bytes, alt: str, narrow: tuple[bytes, bytes] | None = None) -> str:
    """A PNG within the page, for light and for dark paper; `narrow` has the two that phones show instead."""
    description = escape(alt, quote=True)
    sources = [(dark, "(prefers-color-scheme: dark)")]
    if narrow:
        sources = [(narrow[1], f"{_PHONE} and (prefers-color-scheme: dark)"), (narrow[0], _PHONE), *sources]
    offered = "".join(f'<source media="{media}" {_size(png)} srcset="{_data(png)}">' for png, media in sources)
    image = f'<img src="{_data(light)}" {_size(light)} alt="{description}">'
    mark = "fits" if narrow else "wide"
    region = f'class="{mark}" role="region" tabindex="0" aria-label="{description}"'
    return f"<figure {region}><picture>{offered}{image}</picture></figure>"


def _size(png):
    """Width and height, from the head of the PNG, so that the page does not jump while it loads."""
    width, height = struct.unpack(">II", png[16:24])
    return f'width="{width}" height="{height}"'


def _data(png):
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def _css():
    return f":root{{{_colors(LIGHT)}}}\n@media (prefers-color-scheme:dark){{:root{{{_colors(DARK)}}}}}\n{_RULES}"


def _colors(theme: Theme):
    return (
        f"--paper:{theme.paper};--ink:{theme.ink};--muted:{theme.muted};--faint:{theme.faint};"
        f"--better:{theme.better};--worse:{theme.worse}"
    )


_RULES = """
:root{color-scheme:light dark}
*{box-sizing:border-box}
body{margin:0 auto;max-width:66rem;padding:1.5rem 1.25rem 4rem;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
h2{font-size:1.35rem;margin:3rem 0 .6rem}
h3{font-size:1.05rem;margin:1.8rem 0 .4rem}
.kicker{margin:0;color:var(--muted);font-weight:600}
h1{font-size:clamp(1.35rem,4vw,2rem);line-height:1.3;font-weight:650;margin:.6rem 0 .8rem;text-wrap:balance}
.muted,caption,figcaption{color:var(--muted)}
code,pre{font-family:ui-monospace,"SF Mono",Menlo,"DejaVu Sans Mono",monospace;font-size:.92em;overflow-wrap:anywhere}
nav{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;margin:1.2rem 0;padding:.6rem 0;border-block:1px solid var(--faint)}
a{color:var(--better)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.8rem;margin:1.4rem 0 0;padding:0}
.tiles div{border:1px solid var(--faint);border-radius:.6rem;padding:.7rem .9rem}
.tiles dt{margin:0;color:var(--muted);font-size:.85rem}
.tiles dd{margin:0;font-size:1.45rem;font-weight:650;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.tiles dd small{font-size:.9rem;font-weight:400;color:var(--muted);white-space:nowrap}
.wide,.fits{overflow-x:auto;margin:1rem 0}
:focus-visible{outline:2px solid var(--better);outline-offset:2px}
table{border-collapse:collapse;font-size:.92rem;font-variant-numeric:tabular-nums;min-width:100%}
caption{text-align:left;padding-bottom:.5rem}
th,td{padding:.38rem .6rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--faint)}
thead th{color:var(--muted);font-weight:500;vertical-align:bottom;border-bottom-color:var(--muted)}
th:first-child{text-align:left;position:sticky;left:0;background:var(--paper);padding-left:0}
tbody th{font-weight:500;white-space:normal}
tbody th code{display:block;width:max-content;max-width:14rem;overflow-wrap:break-word}
.verdicts td:last-child,.verdicts thead th:last-child{text-align:left}
tr.better td:nth-last-child(3),tr.better td:last-child{color:var(--better);font-weight:650}
tr.worse td:nth-last-child(3),tr.worse td:last-child{color:var(--worse);font-weight:650}
tr.floor,tr.floor th{color:var(--muted)}
.facts th{min-width:7rem}
.facts td,.facts thead th{text-align:left;white-space:normal;overflow-wrap:anywhere}
img{display:block;max-width:100%;height:auto}
dt{font-weight:600;margin-top:.7rem}
dd{margin:0}
details{border-top:1px solid var(--faint);padding:.5rem 0}
summary{cursor:pointer;font-weight:600;padding:.2rem 0}
pre{background:color-mix(in srgb,var(--faint) 45%,transparent);padding:1rem;border-radius:.5rem;overflow-x:auto;
overflow-wrap:normal;line-height:1.45}
@media (max-width:44rem){.wide img{min-width:42rem;max-width:none;width:42rem}
th,td{padding:.38rem .5rem}tbody th code{max-width:7.5rem}}
@media print{nav{display:none}}
"""
