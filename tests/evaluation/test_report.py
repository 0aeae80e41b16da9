"""The page stands alone, says what it was given, and is never half-written; tables round-trip."""

import base64
import html.parser
import io
import math
import re

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from slams.evaluation import tables
from slams.evaluation.figures import plots
from slams.evaluation.report import Fact, Picture, Section, Table, Verbatim, write_report

ROW = {
    "method": "analysis", "variable": "tas", "level": "all", "part": "all", "metric": "rmse",
    "value": 0.9812345, "lower": 0.9, "upper": math.nan, "n": 16,
}  # fmt: skip


class Page(html.parser.HTMLParser):
    """Collects tags with their attributes, and refuses tags that don't close in order."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.open = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def write(path, title="A <title> & more"):
    figure = plots.rank_histogram(np.ones(5))
    sections = [
        Section("Scores & such", ["First.\n\nSecond < third.", Table([ROW], "scores"), Table([], "nothing")]),
        Section("Figures", [Picture(figure, 'flat "ranks"'), Picture(figure, "again", vector=True)]),
        Section("Figures", [Verbatim("a: 1 < 2", "the recipe")]),
    ]
    write_report(
        path,
        title,
        [Fact("RMSE", "0.98 °C", "climatology 2.9", True), Fact("gain", "1 %", good=False)],
        sections,
    )
    return path.read_text(encoding="utf-8")


def test_page_needs_nothing_from_outside(tmp_path):
    text = write(tmp_path / "report.html")
    page = Page(text)
    sources = [a[key] for _, a in page.tags for key in ("src", "href") if key in a]
    assert all(s.startswith(("data:image/", "#")) for s in sources)
    assert not re.search(r"@import|url\(|<link", text)
    pictures = [s for s in sources if s.startswith("data:image/png")]
    assert base64.b64decode(pictures[0].split(",")[1]).startswith(b"\x89PNG")


def test_contents_lead_to_the_sections_which_have_distinct_names(tmp_path):
    page = Page(write(tmp_path / "report.html"))
    names = [a["id"] for tag, a in page.tags if tag == "section"]
    links = [a["href"] for tag, a in page.tags if tag == "a"]
    assert len(set(names)) == len(names)
    assert links == [f"#{name}" for name in names[1:]]


def test_text_is_escaped_and_pictures_are_described(tmp_path):
    text = write(tmp_path / "report.html")
    assert "A &lt;title&gt; &amp; more" in text and "Second &lt; third." in text and "a: 1 &lt; 2" in text
    alternatives = [a["alt"] for tag, a in Page(text).tags if tag == "img"]
    assert alternatives == ['flat "ranks"', "again"]


def test_a_failed_report_leaves_the_old_one(tmp_path):
    path = tmp_path / "report.html"
    old = write(path)

    class Broken(Figure):
        def savefig(self, *args, **keywords):
            raise OSError("no")

    with pytest.raises(OSError, match="no"):
        write_report(path, "new", {"a": "b"}, [Section("s", [Picture(Broken())])])
    assert path.read_text(encoding="utf-8") == old
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_unknown_block_is_refused(tmp_path):
    with pytest.raises(TypeError, match="Picture or Verbatim, got int"):
        write_report(tmp_path / "r.html", "t", {}, [Section("s", [3])])  # type: ignore[list-item]


def test_metrics_file_has_the_columns_of_the_interface_and_reads_back(tmp_path):
    path = tmp_path / "metrics.csv"
    tables.write_metrics(path, [ROW])
    lines = path.read_text().splitlines()
    assert lines[0] == "method,variable,level,part,metric,value,lower,upper,n"
    assert lines[1] == "analysis,tas,all,all,rmse,0.9812345,0.9,,16"
    (row,) = tables.read_metrics(path)
    assert math.isnan(row.pop("upper"))
    assert row == {name: value for name, value in ROW.items() if name != "upper"}
    with pytest.raises(ValueError, match="columns"):
        tables.write_metrics(path, [{"method": "analysis"}])
    assert path.read_text().splitlines() == lines


def test_wide_table_is_sorted_and_dashes_stand_for_nothing():
    rows = [
        ROW | {"method": "prior", "value": 2.0},
        ROW | {"upper": 1.1},
        ROW | {"metric": "crps", "value": 0.5},
    ]
    lines = tables.wide(rows, variable="tas")
    assert [line["method"] for line in lines] == ["analysis", "prior"]
    assert lines[0]["rmse"] == "0.981 [0.900, 1.10]"
    assert lines[1] == {"method": "prior", "rmse": "2.00", "crps": "–", "n": "16"}
    assert tables.wide(rows, variable="rain") == []


def test_a_wide_table_tells_the_least_and_the_most_independent_windows():
    row = {
        "method": "a",
        "variable": "t",
        "level": "all",
        "part": "all",
        "value": 1.0,
        "lower": 0.5,
        "upper": 2.0,
    }
    rows = [{**row, "metric": "rmse", "n": 16}, {**row, "metric": "crps", "n": 5}]
    assert tables.wide(rows, variable="t")[0]["n"] == "5–16"
    assert tables.wide(rows, variable="t", metrics=["rmse"])[0]["n"] == "16"


def test_console_table_shows_intervals_as_text_not_markup():
    """Rich would take [bold] and the like for a style; an interval must be printed."""
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(
        tables.console_table([{"method": "analysis", "rmse": "0.98 [0.90, 1.10]", "note": "[bold]"}])
    )
    output = console.file.getvalue()
    assert "[0.90, 1.10]" in output and "[bold]" in output


def test_a_table_as_text_is_text_in_a_notebook_too(monkeypatch):
    """There rich displays what is printed, whatever file it was to be printed to."""
    rows = [{"method": "analysis", "rmse": "0.98"}]
    outside = tables.as_text(rows, title="scores")
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert tables.as_text(rows, title="scores") == outside and "0.98" in outside


def test_markdown_table_escapes_bars():
    assert tables.markdown_table([{"a|b": "c|d"}]) == "| a\\|b |\n| --- |\n| c\\|d |"
