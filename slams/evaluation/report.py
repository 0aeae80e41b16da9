"""One self-contained HTML page: figures and tables inside, for the screen, light or dark, and paper."""

import base64
import datetime
import html
import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from slams.core.files import atomic
from slams.evaluation.tables import (
    COLUMNS,
    columns,
    console_table,
    is_numeric,
    markdown_table,
    read_metrics,
    text,
    wide,
    write_metrics,
)

__all__ = [
    "COLUMNS",
    "Fact",
    "Picture",
    "Section",
    "Table",
    "Verbatim",
    "console_table",
    "markdown_table",
    "read_metrics",
    "wide",
    "write_metrics",
    "write_report",
]


@dataclass(frozen=True)
class Fact:
    """One tile of the glance: a number, what it is, and whether it is as hoped (None: neither)."""

    label: str
    value: str
    note: str = ""
    good: bool | None = None


@dataclass(frozen=True)
class Table:
    """Rows with a caption; the row whose first cell is `highlight` stands out. Headers sort on a click."""

    rows: Sequence[Mapping[str, Any]]
    caption: str = ""
    highlight: str | None = "analysis"


@dataclass(frozen=True)
class Picture:
    """A figure with a caption, which is also its text for those who can't see it."""

    figure: Figure
    caption: str = ""
    vector: bool = False


@dataclass(frozen=True)
class Verbatim:
    """Text as it is, such as a recipe; folded away behind its caption."""

    content: str
    caption: str = "show"


Block = str | Table | Picture | Verbatim


@dataclass(frozen=True)
class Section:
    """A titled part of a report: paragraphs (plain text), tables, pictures, in order."""

    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)


def write_report(
    path: str | os.PathLike[str],
    title: str,
    summary: Sequence[Fact] | Mapping[str, str],
    sections: Sequence[Section],
    *,
    subtitle: str = "",
) -> None:
    """Writes the page, whole or not at all.

    Args:
        path: The .html file.
        title: Title of the page.
        summary: The glance at the top: facts, or label to value.
        sections: What follows, listed in the table of contents.
        subtitle: A line below the title; the date of writing if empty.
    """
    facts = [Fact(*item) for item in summary.items()] if isinstance(summary, Mapping) else list(summary)
    names = _anchors([section.title for section in sections])
    contents = "".join(
        f'<li><a href="#{name}">{html.escape(section.title)}</a></li>'
        for name, section in zip(names, sections, strict=True)
    )
    bodies = "".join(
        f'<section id="{name}"><h2>{html.escape(section.title)}</h2>'
        f"{''.join(map(_block, section.blocks))}</section>"
        for name, section in zip(names, sections, strict=True)
    )
    subtitle = subtitle or f"written {datetime.datetime.now().astimezone():%Y-%m-%d %H:%M %Z}"
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>"
        f'<header><h1>{html.escape(title)}</h1><p class="subtitle">{html.escape(subtitle)}</p></header>'
        f'<main><section id="glance"><h2>At a glance</h2>'
        f'<div class="facts">{"".join(map(_fact, facts))}</div></section>'
        f'<nav aria-label="contents"><h2>Contents</h2><ol>{contents}</ol></nav>{bodies}</main>'
        f"<script>{_SCRIPT}</script></body></html>\n"
    )
    with atomic(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _anchors(titles: Sequence[str]) -> list[str]:
    """Distinct anchors from titles."""
    names: list[str] = []
    for title in titles:
        name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
        while name in names or name == "glance":
            name += "-"
        names.append(name)
    return names


def _fact(fact: Fact) -> str:
    """One tile; the mark says in words what the colour says."""
    mark = {True: '<span class="mark">✓</span>', False: '<span class="mark">✗</span>', None: ""}[fact.good]
    kind = {True: "good", False: "bad", None: ""}[fact.good]
    return (
        f'<div class="fact {kind}"><div class="label">{html.escape(fact.label)}</div>'
        f'<div class="value">{html.escape(fact.value)}{mark}</div>'
        f'<div class="note">{html.escape(fact.note)}</div></div>'
    )


def _block(block: Block) -> str:
    """HTML of one block."""
    if isinstance(block, str):
        return "".join(f"<p>{html.escape(part)}</p>" for part in block.split("\n\n"))
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Picture):
        return _picture(block)
    if isinstance(block, Verbatim):
        summary, content = html.escape(block.caption), html.escape(block.content)
        return f"<details><summary>{summary}</summary><pre>{content}</pre></details>"
    raise TypeError(f"a section holds text, Table, Picture or Verbatim, got {type(block).__name__}.")


def _table(table: Table) -> str:
    """A table that scrolls on its own if it is wider than the page."""
    if not table.rows:
        return f"<p><em>{html.escape(table.caption)}: nothing to show.</em></p>"
    names = columns(table.rows)
    kinds = {name: ' class="number"' if is_numeric(table.rows, name) else "" for name in names}
    head = "".join(f'<th scope="col"{kinds[name]}>{html.escape(name)}</th>' for name in names)
    body = ""
    distinct = len({text(row.get(names[0])) for row in table.rows}) > 1
    for row in table.rows:
        cells = [text(row.get(name)) for name in names]
        first = ' class="highlight"' if distinct and cells[0] == table.highlight else ""
        body += f"<tr{first}>" + "".join(
            f"<td{kinds[name]}>{_cell(cell)}</td>" for name, cell in zip(names, cells, strict=True)
        )
        body += "</tr>"
    caption = f"<caption>{html.escape(table.caption)}</caption>" if table.caption else ""
    head = f"<thead><tr>{head}</tr></thead>"
    return f'<div class="scroll"><table>{caption}{head}<tbody>{body}</tbody></table></div>'


def _cell(cell: str) -> str:
    """A score with its interval in smaller print."""
    return re.sub(r" (\[[^\]]*\])$", r' <span class="interval">\1</span>', html.escape(cell))


def _picture(picture: Picture) -> str:
    """A figure inside the page: SVG if asked for, else PNG sharp enough for print."""
    buffer = io.BytesIO()
    if picture.vector:
        picture.figure.savefig(buffer, format="svg", metadata={"Date": None})
        kind = "svg+xml"
    else:
        picture.figure.savefig(buffer, format="png", dpi=120)
        kind = "png"
    data = base64.b64encode(buffer.getvalue()).decode()
    caption = html.escape(picture.caption)
    width = round(picture.figure.get_figwidth() * 84)
    return (
        f'<figure><img alt="{caption}" style="max-width:min(100%,{width}px)" '
        f'src="data:image/{kind};base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


_STYLE = """
:root{--ink:#1d2328;--soft:#5c6770;--page:#fbfbfa;--card:#fff;--line:#dfe3e6;--link:#00639c;--good:#00734f;--bad:#b04a00;
--mark:#e8f2fa}
@media(prefers-color-scheme:dark){:root{--ink:#e4e7ea;--soft:#9aa6af;--page:#14181b;--card:#1d2327;--line:#343c42;
--link:#6cb8ea;--good:#4cc79a;--bad:#f09a5b;--mark:#1c3140}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
header,main{max-width:1120px;margin:0 auto;padding:0 24px}
header{padding-top:36px}
h1{font-size:1.9rem;line-height:1.2;margin:0}
h2{font-size:1.25rem;margin:2.2em 0 .7em;padding-bottom:.25em;border-bottom:1px solid var(--line)}
.subtitle{color:var(--soft);margin:.4em 0 0}
p{max-width:78ch}
a{color:var(--link)}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(190px,1fr));gap:12px}
.fact{background:var(--card);border:1px solid var(--line);border-left:4px solid var(--line);border-radius:6px;
padding:10px 14px}
.fact.good{border-left-color:var(--good)}.fact.bad{border-left-color:var(--bad)}
.label,.note{color:var(--soft);font-size:.84rem;line-height:1.35}
.value{font-size:1.45rem;font-weight:600;font-variant-numeric:tabular-nums}
.mark{font-size:1rem;margin-left:.4em}.good .mark{color:var(--good)}.bad .mark{color:var(--bad)}
nav ol{columns:2 20em;margin:0;padding-left:1.4em}
.scroll{overflow-x:auto;margin:1em 0}
table{border-collapse:collapse;background:var(--card);font-size:.92rem;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--soft);padding:0 0 .5em}
th,td{padding:6px 14px;border-bottom:1px solid var(--line);text-align:left;white-space:nowrap}
th{border-bottom-width:2px;cursor:pointer}
th[aria-sort=ascending]::after{content:" ▲";font-size:.7em}
th[aria-sort=descending]::after{content:" ▼";font-size:.7em}
.number{text-align:right}
.interval{display:block;color:var(--soft);font-size:.84em;font-weight:400}
tr.highlight{background:var(--mark);font-weight:600}
figure{margin:1.2em 0}
img{display:block;height:auto;width:100%;background:#fff;border:1px solid var(--line);border-radius:6px;
padding:8px}
figcaption{color:var(--soft);font-size:.9rem;margin-top:.4em;max-width:90ch}
details{margin:1em 0}summary{cursor:pointer;color:var(--link)}
pre{background:var(--card);border:1px solid var(--line);border-radius:6px;padding:12px;
overflow-x:auto;font-size:.84rem}
main{padding-bottom:64px}
@media print{:root{--ink:#000;--soft:#444;--page:#fff;--card:#fff;--line:#bbb;--mark:#eee;
--good:#00734f;--bad:#b04a00}
body{font-size:10.5pt}header,main{max-width:none;padding:0}figure,tr,.fact{break-inside:avoid}h2{break-after:avoid}
nav{display:none}.scroll{overflow:visible}th,td{padding:3px 7px}}
"""

_SCRIPT = """
document.querySelectorAll("th").forEach(th=>th.addEventListener("click",()=>{
const table=th.closest("table"),body=table.tBodies[0],column=th.cellIndex;
const up=th.getAttribute("aria-sort")!=="ascending";
table.querySelectorAll("th").forEach(other=>other.removeAttribute("aria-sort"));
th.setAttribute("aria-sort",up?"ascending":"descending");
const key=row=>row.cells[column].textContent.replace("\\u2212","-");
[...body.rows].sort((a,b)=>{const x=key(a),y=key(b),p=parseFloat(x),q=parseFloat(y);
const order=isNaN(p)||isNaN(q)?(isNaN(p)&&isNaN(q)?x.localeCompare(y):isNaN(p)?1:-1):p-q;
return up?order:-order}).forEach(row=>body.append(row))}));
"""
