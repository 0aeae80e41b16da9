"""Rows of scores as files and tables: metrics.csv, Markdown, the console, wide tables."""

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from slams.core.errors import InvalidValueError
from slams.core.files import atomic
from slams.core.renamed import RENAMED, current
from slams.evaluation.metrics import shown

COLUMNS = ("method", "variable", "level", "part", "metric", "value", "lower", "upper", "n")
_NUMBERS = ("value", "lower", "upper")


def write_metrics(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write metrics.csv atomically; a missing interval is an empty cell.

    Args:
        path: Path of the file.
        rows: Rows, one per score, with exactly the columns method, variable, level, part, metric, value, lower,
            upper, n.

    Raises:
        ValueError: If a row has other columns.
    """
    for row in rows:
        if set(row) != set(COLUMNS):
            raise InvalidValueError(
                f"a row of metrics.csv has the columns {', '.join(COLUMNS)}; got {', '.join(row)}."
            )
    with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({**row, **{name: _plain(row[name]) for name in _NUMBERS}})


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read the rows of metrics.csv; an empty interval is NaN.

    Args:
        path: Path of the file.

    Raises:
        ValueError: If the file has other columns.
    """
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise InvalidValueError(
                f"{path} has the columns {reader.fieldnames}, expected {', '.join(COLUMNS)}."
            )
        rows: list[dict[str, Any]] = [dict(row) for row in reader]
    for row in rows:
        row.update({name: float(row[name] or "nan") for name in _NUMBERS}, n=int(row["n"]))
    return with_current_names(rows)


def with_current_names(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of metrics.csv with metrics of earlier versions under their present names, with a warning for each."""
    old = {row["metric"] for row in rows} & set(RENAMED["metric"])
    new = {name: current("metric", name) for name in old}
    return [{**row, "metric": new.get(row["metric"], row["metric"])} for row in rows]


def wide(
    rows: Sequence[Mapping[str, Any]],
    *,
    variable: str,
    part: str = "all",
    level: str = "all",
    metrics: Sequence[str] | None = None,
    interval: bool = True,
) -> list[dict[str, str]]:
    """Wide table: one line per method that has any of the metrics, one column per metric, best RMSE first.

    Args:
        rows: Rows of metrics.csv.
        variable: Name of the variable.
        part: Name of the part of the cells.
        level: Name of the level.
        metrics: Names of the metrics, in this order, without those that no row has; all in reports if None.
        interval: Whether to print the 95 % intervals.

    Returns:
        Rows of text: method, the metrics, and n, the number of independent windows (from the least to the most, where
        that of the metrics differs).
    """
    table: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        if (row["variable"], row["part"], str(row["level"])) == (variable, part, level):
            table.setdefault(row["method"], {})[row["metric"]] = row
    known = dict.fromkeys(metric for scores in table.values() for metric in scores)
    present = [m for m in metrics if m in known] if metrics else shown(known, "console", "report")

    def order(method: str) -> float:
        value = table[method].get(metrics[0] if metrics else "rmse", {"value": math.inf})["value"]
        return math.inf if math.isnan(value) else value

    lines = []
    for method in sorted((name for name, scores in table.items() if scores.keys() & set(present)), key=order):
        scores = table[method]
        line = {"method": method}
        for metric in present:
            line[metric] = _with_interval(scores[metric], interval) if metric in scores else "–"
        counts = sorted({int(scores[metric]["n"]) for metric in present if metric in scores}) or [0]
        line["n"] = "–".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
        lines.append(line)
    return lines


def scores_by_method(
    rows: Sequence[Mapping[str, Any]], metric: str, *, methods: Sequence[str] | None = None, **where: str
) -> dict[str, tuple[float, float, float]]:
    """Value and interval of one metric by method, as `plots.bars` draws them.

    Args:
        rows: Rows of metrics.csv.
        metric: Name of the metric.
        methods: Names of the methods, in this order; all if None.
        where: Required values of columns, such as variable="t".
    """
    found = {
        str(row["method"]): (float(row["value"]), float(row["lower"]), float(row["upper"]))
        for row in rows
        if row["metric"] == metric and all(row[name] == value for name, value in where.items())
    }
    return found if methods is None else {name: found[name] for name in methods if name in found}


def text(value: Any) -> str:
    """A cell of a table: three significant digits, a dash for nothing.

    >>> text(0.123456), text(1234.5), text(float("nan")), text(True)
    ('0.123', '1234', '–', 'yes')
    """
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return str(value)
    if not math.isfinite(value):
        return "–" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.2e}"
    digits = 2 - math.floor(math.log10(abs(value))) if value else 2
    return f"{value:.{min(max(digits, 0), 4)}f}"


def columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the columns of all rows, in order of appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


def is_numeric(rows: Sequence[Mapping[str, Any]], column: str) -> bool:
    """Whether all non-empty cells of a column begin with a number, for right alignment."""
    cells = [text(row.get(column)) for row in rows]
    cells = [cell.lstrip("−-+") for cell in cells if cell != "–"]
    return bool(cells) and all(cell[:1].isdigit() or cell[:1] == "∞" for cell in cells)


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table, numbers to the right.

    >>> print(markdown_table([{"method": "analysis", "rmse": 0.5}]))
    | method | rmse |
    | --- | ---: |
    | analysis | 0.500 |
    """
    names = columns(rows)
    lines = [
        [name.replace("|", "\\|") for name in names],
        ["---:" if is_numeric(rows, name) else "---" for name in names],
    ]
    lines += [[text(row.get(name)).replace("|", "\\|") for name in names] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def console_table(
    rows: Sequence[Mapping[str, Any]], title: str | None = None, *, wrap: bool = True
) -> RichTable:
    """Rows as a table for `rich.print`.

    Args:
        rows: Rows, one mapping each; an interval stands below its score, so four of them fit in 80 characters.
        title: Title above the table.
        wrap: Whether to break words in narrow tables; else only columns of numbers shrink.
    """
    table = RichTable(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0)
    )
    for name in columns(rows):
        table.add_column(
            Text(name.replace("_", " ")),
            overflow="fold",
            justify="right" if is_numeric(rows, name) else "left",
            no_wrap=not wrap and not is_numeric(rows, name),
        )
    for row in rows:
        table.add_row(*(Text(text(row.get(name)).replace(" [", "\n[")) for name in columns(rows)))
    return table


def as_text(lines: Sequence[Mapping[str, Any]], *, title: str = "", width: int = 80) -> str:
    """A table as plain text, without the empty lines and trailing blanks of a terminal."""
    page = io.StringIO()
    # in a notebook, rich would otherwise display the table and leave the page empty
    console = Console(file=page, width=width, color_system=None, highlight=False, force_jupyter=False)
    console.print(console_table(lines, title=title, wrap=False))
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines() if line.strip())


class PrintedTable:
    """A table that prints itself: as text, and as HTML in a notebook.

    Attributes:
        title: Line above the table.
        rows: All numbers, one mapping a row.
        lines: The table that is printed.
    """

    title: str
    rows: Sequence[Mapping[str, Any]]

    @property
    def lines(self) -> Sequence[Mapping[str, Any]]:
        """The table that is printed, one mapping a line."""
        return self.rows

    def to_dataframe(self) -> Any:
        """All numbers as a pandas.DataFrame."""
        import pandas as pd

        return pd.DataFrame([dict(row) for row in self.rows])

    def __str__(self) -> str:
        return as_text(self.lines, title=self.title, width=140)

    def _repr_html_(self) -> str:
        import pandas as pd

        return f"<p>{self.title}</p>{pd.DataFrame([dict(line) for line in self.lines]).to_html(index=False)}"


def _plain(value: float) -> str:
    """A number that keeps seven digits, nothing for NaN."""
    return "" if math.isnan(value) else f"{value:.7g}"


def _with_interval(row: Mapping[str, Any], interval: bool) -> str:
    """A score and, if wanted and known, its interval."""
    low, high = row["lower"], row["upper"]
    if not interval or math.isnan(low) or math.isnan(high):
        return text(float(row["value"]))
    return f"{text(float(row['value']))} [{text(float(low))}, {text(float(high))}]"
