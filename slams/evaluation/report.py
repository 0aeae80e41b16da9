"""One self-contained HTML page: figures and tables inside, for the screen, light or dark, and paper."""

import base64
import datetime
import functools
import html
import importlib.resources
import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from slams.core.errors import InvalidTypeError
from slams.core.files import atomic
from slams.evaluation.figures.style import png
from slams.evaluation.tables import columns, is_numeric, text


@dataclass(frozen=True)
class Fact:
    """One tile of the summary: a number, its label, and whether it is good (None: neutral)."""

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
    """Write the page atomically.

    Args:
        path: Path of the .html file.
        title: Title of the page.
        summary: Tiles at the top: facts, or values by label.
        sections: Sections, listed in the table of contents.
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
        f"<title>{html.escape(title)}</title><style>{_asset('report.css')}</style></head><body>"
        f'<header><h1>{html.escape(title)}</h1><p class="subtitle">{html.escape(subtitle)}</p></header>'
        f'<main><section id="glance"><h2>At a glance</h2>'
        f'<div class="facts">{"".join(map(_fact, facts))}</div></section>'
        f'<nav aria-label="contents"><h2>Contents</h2><ol>{contents}</ol></nav>{bodies}</main>'
        f"<script>{_asset('report.js')}</script></body></html>\n"
    )
    with atomic(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


@functools.cache
def _asset(name: str) -> str:
    """A style sheet or script that is put into the page."""
    return importlib.resources.files("slams.evaluation").joinpath(name).read_text(encoding="utf-8")


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
    """HTML of one tile; a symbol repeats the meaning of the colour."""
    symbol = {True: '<span class="mark">✓</span>', False: '<span class="mark">✗</span>', None: ""}[fact.good]
    kind = {True: "good", False: "bad", None: ""}[fact.good]
    return (
        f'<div class="fact {kind}"><div class="label">{html.escape(fact.label)}</div>'
        f'<div class="value">{html.escape(fact.value)}{symbol}</div>'
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
    raise InvalidTypeError(f"a section holds text, Table, Picture or Verbatim, got {type(block).__name__}.")


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
    if picture.vector:
        buffer = io.BytesIO()
        picture.figure.savefig(buffer, format="svg", metadata={"Date": None})
        kind, content = "svg+xml", buffer.getvalue()
    else:
        kind, content = "png", png(picture.figure)
    data = base64.b64encode(content).decode()
    caption = html.escape(picture.caption)
    width = round(picture.figure.get_figwidth() * 84)
    return (
        f'<figure><img alt="{caption}" style="max-width:min(100%,{width}px)" '
        f'src="data:image/{kind};base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
