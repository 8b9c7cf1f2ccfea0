"""Layout of the report: one HTML page with its own style, light or dark as the reader's system.

Conventions: functions take plain text and escape it; a parameter or result called `markup` is HTML
already. A content security policy forbids the page all network access, so the browser enforces that
it opens offline.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data: blob:; media-src data:; connect-src data: blob:; worker-src blob:; "
    "frame-src 'self'"
)
STYLE = """
:root { color-scheme: light dark; --paper: #fafaf9; --card: #ffffff; --ink: #26282c;
  --faint: #6d7178; --line: #e3e3e0; --accent: #2f7d5b; --tile: #ededed; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #17191c; --card: #1f2226; --ink: #e6e6e3; --faint: #9a9fa6; --line: #33373c;
    --accent: #6cc39a; --tile: #24272b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 2.2rem 1.2rem 3rem; }
h1 { font-size: clamp(1.5rem, 4.5vw, 2.2rem); line-height: 1.2; margin: 0 0 .5rem;
  font-weight: 650; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 2.4rem 0 .8rem; font-weight: 650; }
p, figure { margin: 0; }
a { color: var(--accent); }
.meta { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; color: var(--faint);
  font-size: .93rem; }
.meta b { color: var(--ink); font-weight: 550; }
.hero { display: grid; grid-template-columns: 3fr 2fr; gap: 1rem; margin-top: 1.6rem;
  align-items: start; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  overflow: hidden; }
.card > iframe, .card > video, .card > img.wide { display: block; width: 100%; border: 0;
  aspect-ratio: 1; }
.card > iframe { background: var(--tile); max-height: 78vh; }
figcaption { padding: .45rem .8rem .55rem; color: var(--faint); font-size: .87rem; }
.stats { display: grid; grid-template-columns: 1fr 1fr; gap: .6rem; margin-top: 1rem; }
.stats div { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: .55rem .8rem; }
.stats dt { color: var(--faint); font-size: .82rem; }
.stats dd { margin: 0; font-size: 1.2rem; font-weight: 600;
  font-variant-numeric: tabular-nums; }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: .8rem; }
.tiles img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain;
  background: var(--tile); }
p.words { margin-bottom: .8rem; color: var(--faint); max-width: 46rem; }
.tiles .chosen { border: 2px solid var(--accent); }
.tiles .chosen figcaption { color: var(--accent); font-weight: 600; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr));
  gap: .8rem; }
.plots .card { padding: .6rem; }
.plots svg { display: block; width: 100%; height: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { text-align: right; padding: .45rem .9rem; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { color: var(--faint); font-weight: 550; font-size: .87rem; }
.words th, .words td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
tr:last-child td { border-bottom: 0; }
details { border: 1px solid var(--line); border-radius: 12px; background: var(--card); }
summary { cursor: pointer; padding: .6rem .9rem; font-weight: 550; }
pre { margin: 0; padding: .2rem .9rem 1rem; overflow-x: auto;
  font: 13px/1.45 ui-monospace, Consolas, monospace; }
ul { margin: 0; padding-left: 1.2rem; }
@media (max-width: 720px) { .hero { grid-template-columns: 1fr; }
  .tiles { grid-template-columns: 1fr 1fr; } main { padding: 1.3rem .9rem 2rem; } }
@media print { iframe { display: none; } }
"""


def data_uri(data: bytes, kind: str) -> str:
    """Bytes of the media type `kind` as a URI that contains them.

    Example:
        >>> data_uri(b"hello", "text/plain")
        'data:text/plain;base64,aGVsbG8='
    """
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def section(title: str, markup: str) -> str:
    """A titled part of the page, or "" if `markup` is empty."""
    return f"<section><h2>{escape(title)}</h2>{markup}</section>" if markup else ""


def text(words: str) -> str:
    """A paragraph of plain text."""
    return f'<p class="words">{escape(words)}</p>'


def figure(markup: str, caption: str, kind: str = "card") -> str:
    """A card with `markup` and a caption below it; `kind` is its CSS class."""
    return f'<figure class="{kind}">{markup}<figcaption>{escape(caption)}</figcaption></figure>'


def picture(uri: str, caption: str, chosen: bool = False) -> str:
    """A picture on a card with a caption; framed if it is the chosen one."""
    image = f'<img src="{uri}" alt="{escape(caption)}">'
    return figure(image, caption, "card chosen" if chosen else "card")


def tiles(pictures: Sequence[str]) -> str:
    """Cards in rows of four, or of two on a phone; "" without cards."""
    return f'<div class="tiles">{"".join(pictures)}</div>' if pictures else ""


def viewer(page: str, caption: str) -> str:
    """The HTML text of another page on a card. It may run scripts, but not reach this page."""
    frame = f'<iframe title="3D viewer" sandbox="allow-scripts" srcdoc="{escape(page)}"></iframe>'
    return figure(frame, caption)


def turntable(uri: str, kind: str, caption: str) -> str:
    """A video that loops without sound, or an animated picture, on a card; `kind` is its type."""
    if kind.startswith("video/"):
        markup = f'<video src="{uri}" autoplay loop muted playsinline controls></video>'
    else:
        markup = f'<img class="wide" src="{uri}" alt="{escape(caption)}">'
    return figure(markup, caption)


def stats(values: Mapping[str, str]) -> str:
    """A few figures by name, each on a small card of its own."""
    rows = (
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in values.items()
    )
    return f'<dl class="stats">{"".join(rows)}</dl>' if values else ""


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], words: bool = False) -> str:
    """A table on a card, or "" without rows.

    Args:
        columns: Titles of the columns.
        rows: Text of the cells.
        words: False for figures, aligned right; True for sentences, aligned left and wrapped.
    """
    if not rows:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    kind = "card scroll words" if words else "card scroll"
    markup = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="{kind}">{markup}</div>'


def folded(title: str, text: str) -> str:
    """A long text, hidden until the reader opens it by its title."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def document(title: str, facts: Mapping[str, str], hero: str, sections: Sequence[str]) -> str:
    """The complete page.

    Args:
        title: Title of the page.
        facts: Facts in one line below the title, by name.
        hero: Markup of the large part at the top.
        sections: Markup of the sections below it.
    """
    meta = "".join(
        f"<span>{escape(name)} <b>{escape(value)}</b></span>" for name, value in facts.items()
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} - VP3D</title><style>{STYLE}</style></head>"
        f'<body><main><header><h1>{escape(title)}</h1><div class="meta">{meta}</div></header>'
        f"{hero}{''.join(sections)}</main></body></html>\n"
    )
