"""Tables and figures of an analysis verified against truth."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml

from slams.core.codec import Transform
from slams.evaluation.report import Block, Fact, Picture, Section, Table, Verbatim, write_report
from slams.evaluation.tables import wide
from slams.pipeline.results.figures import Rows, View, calibration_facts, figures_of, save_figures


def write_evaluation(
    folder: Path,
    title: str,
    attributes: Mapping[str, str],
    views: Sequence[View],
    transforms: Mapping[str, Transform],
) -> Path:
    """Write figures/*.png and report.html.

    Args:
        folder: Folder of the report.
        title: Name of the analysis.
        attributes: Attributes of the analysis file.
        views: Views of the scored variables.
        transforms: Transforms before the model, by variable.

    Returns:
        The path of the report.
    """
    sections, facts = [], []
    for view in views:
        error, bias = view.value("analysis", "rmse"), view.value("analysis", "bias")
        facts.append(Fact(f"{view.name}: RMSE", f"{error:.3g} {view.units}", f"bias {bias:.2g}"))
        facts += calibration_facts(view) if len(view.members) > 1 else []
        figures = figures_of(view, without="spectra")
        save_figures(folder / "figures", figures)
        blocks: list[Block] = [_note(view, transforms[view.name])]
        for part in parts_shown(view.rows, view.name):
            table = wide(view.rows, variable=view.name, part=part)
            if table:
                blocks.append(Table(table, f"{view.name}, {part} points"))
        blocks += [Picture(figure, name.replace("_", " ")) for name, figure in figures.items()]
        sections.append(Section(view.name, blocks))
    about = yaml.safe_dump(dict(attributes), sort_keys=False)
    sections.append(Section("Where the analysis comes from", [Verbatim(about, "attributes of the file")]))
    days = np.unique(np.concatenate([view.dates for view in views]))
    span = f"{days[0]} to {days[-1]}, {len(days)} days with truth"
    write_report(folder / "report.html", f"Evaluation of {title}", facts, sections, subtitle=span)
    return folder / "report.html"


def parts_shown(rows: Rows, variable: str) -> tuple[str, ...]:
    """Parts with a table of their own; without withheld values "observed" equals "all"."""
    withheld = any((row["variable"], row["part"]) == (variable, "withheld") for row in rows)
    return ("all", "observed", "withheld") if withheld else ("all",)


def _note(view: View, transform: Transform) -> str:
    text = (
        f"Scores are area-weighted over time and space, in {view.units or 'the unit of the file'}; "
        "intervals are 95 % over n independent windows: stretches of 15 days, joined where successive scores are "
        "correlated; with fewer than two there is none. Baselines are scored as ensembles drawn from their "
        "marginals, so that all methods have the same number of members."
    )
    if transform.name != "none":
        text += f" The model sees {transform.label('x')} of this variable; it is scored here in the unit of the file."
    return text
