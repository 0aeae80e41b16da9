"""Results of `slams bench`: set-ups and the methods run on them."""

import csv
import inspect
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from slams.core.errors import InvalidValueError, MissingFileError
from slams.core.renamed import renamed
from slams.core.stages import file_stem
from slams.evaluation.frontier import Errors, mean_error, pareto, tied_with_best
from slams.evaluation.tables import with_current_names
from slams.observation.operators import POINTWISE
from slams.twin.benchmark import COLUMNS
from slams.twin.methods import METHODS
from slams.twin.setup import DEFAULTS, SYSTEMS

COSTS = ("cpu_seconds", "model_calls", "network_calls")
FACTORS = ("density", "sensor", "model")
INFORMED = {
    "estimate": "given which coefficient of the model is wrong",
    "uniform": "given that the model's error is the same at all sites",
}

Interval = tuple[float, float, float]


@dataclass(frozen=True)
class MethodResult:
    """Scores of one method with its settings on one set-up.

    Attributes:
        label: Name in the table.
        method: Name of the class.
        origin: Origin of the settings.
        settings: Settings in the folder; may be incomplete.
        scores: Mean and 95 % interval by metric; costs are per analysis.
        errors: RMSE by seed of the truth.
        role: Role: "trivial" rows, the "exact" filter and "informed" methods, whose settings state what is wrong with the
            model, are references, not candidates.
    """

    label: str
    method: str
    origin: str
    settings: Mapping[str, Any]
    scores: Mapping[str, Interval]
    errors: Errors
    role: Literal["method", "trivial", "exact", "informed"] = "method"

    def value(self, metric: str) -> float:
        """Mean of a metric, NaN if it was not scored."""
        return self.scores.get(metric, (math.nan,) * 3)[0]

    @property
    def rmse(self) -> float:
        """Mean over truths, infinite if one of them is not finite."""
        return mean_error(self.errors)

    @property
    def given(self) -> str:
        """What it is given about the model's error, empty for nothing."""
        return " and ".join(what for key, what in INFORMED.items() if self.settings.get(key))

    @property
    def family(self) -> str:
        """Its label without the number of members."""
        return re.sub(r" N=\d+$", "", self.label)

    @property
    def members(self) -> int | None:
        """Ensemble size."""
        members = self.settings.get("members")
        return int(members) if members is not None else None


@dataclass
class CaseResults:
    """Results of all methods on one set-up.

    Attributes:
        title: Description in a few words.
        setup: Plain settings.
        points: Results of the methods.
    """

    title: str
    setup: Mapping[str, Any]
    points: list[MethodResult] = field(default_factory=list)

    def role(self, role: str) -> list[MethodResult]:
        """Points of a role, the smallest error first."""
        return sorted((p for p in self.points if p.role == role), key=lambda p: p.rmse)

    @property
    def floor(self) -> MethodResult | None:
        """The best trivial row."""
        return next(iter(self.role("trivial")), None)

    @property
    def candidates(self) -> list[MethodResult]:
        """Methods better than every trivial row, the smallest error first."""
        least = self.floor.rmse if self.floor else math.inf
        return [p for p in self.role("method") if p.rmse < least]

    @property
    def climate(self) -> float:
        """Error of the climatology, NaN if it was not run."""
        return next((p.rmse for p in self.points if p.method == "Climatology"), math.nan)

    def frontier(self, cost: str) -> list[MethodResult]:
        """Pareto-optimal candidates in error and cost, the cheapest first."""
        points = self.candidates
        kept = pareto([p.value(cost) for p in points], [p.rmse for p in points])
        return sorted((p for p, on in zip(points, kept, strict=True) if on), key=lambda p: p.value(cost))

    @property
    def tied(self) -> list[MethodResult]:
        """Candidates not significantly worse than the best that diverged no more often, the smallest error first."""
        points = self.candidates
        if not points:
            return []
        labels = tied_with_best({p.label: p.errors for p in points})
        most = _divergence(points[0])
        return [p for p in points if p.label in labels and _divergence(p) <= most]

    @property
    def factors(self) -> dict[str, Any]:
        """Density (stride), sensor, model, and the rest of the set-up."""
        setup, seen = self.setup, dict(self.setup["observe"])
        strided = seen["operator"] == "stride"
        pointwise = seen["operator"] in POINTWISE
        sensor = {"scale": seen.get("scale", 1.0), "shift": seen.get("shift", 0.0)} if pointwise else {}
        operator = "identity" if strided else seen["operator"]
        kept = ("every", "start", "missing", "index")
        return {
            "density": int(seen["step"]) if strided else 1,
            "sensor": (operator, seen["noise"], *sensor.values()),
            "model": json.dumps([setup["truth"], {**setup["truth"], **setup["model"]}], sort_keys=True),
            "rest": json.dumps([setup["system"], {k: seen.get(k) for k in kept}], sort_keys=True),
        }


def read_cases(folders: Iterable[str | Path]) -> tuple[list[CaseResults], list[str]]:
    """All results below some folders; those of one set-up are one case.

    Args:
        folders: Folders of `slams bench`, or parents of such.

    Returns:
        Results in the order of the folders' names, and reasons for omitted folders.

    Raises:
        FileNotFoundError: If there is no such folder or no metrics.csv below it.
        ValueError: If a folder's metrics.csv is not of `slams bench`, or no results remain.
    """
    cases: dict[str, CaseResults] = {}
    passed: list[str] = []
    for top in map(Path, folders):
        found = _result_folders(top)
        for folder in found:
            try:
                made, points = _read(folder)
            except ValueError as error:
                if folder == top or len(found) == 1:
                    raise
                passed.append(str(error))
                continue
            key = json.dumps(
                {k: v for k, v in made.items() if k not in ("replicates", "seed")}, sort_keys=True
            )
            case = cases.setdefault(key, CaseResults("", made))
            _join(case, points, folder)
    if not cases:
        raise InvalidValueError(f"nothing to compare; {' '.join(passed) or 'name folders of slams bench.'}")
    _name(list(cases.values()))
    return list(cases.values()), passed


def describe(setup: Mapping[str, Any]) -> str:
    """A set-up in a few words.

    >>> seen = {"operator": "stride", "step": 2, "noise": 1.0}
    >>> describe({"system": "lorenz96", "truth": {"forcing": 11}, "model": {"forcing": 8}, "observe": seen})
    'lorenz96, every 2nd seen, noise 1, truth forcing 11, model forcing 8'
    """
    seen, usual = setup["observe"], DEFAULTS.get(setup["system"], {})
    operator, step = seen["operator"], int(seen.get("step", 1))
    ordinal = {2: "2nd", 3: "3rd"}.get(step, f"{step}th")
    what = {"stride": f"every {ordinal} seen", "identity": "all seen", "select": "some seen"}.get(operator)
    if what is None and operator not in POINTWISE:
        what = f"{operator} seen"
    if what is None:
        scale, shift = float(seen.get("scale", 1.0)), float(seen.get("shift", 0.0))
        inside = f"{scale:g} x" if scale != 1 else "x"
        inside += f" {'+' if shift > 0 else '−'} {abs(shift):g}" if shift else ""
        what = f"{operator}({inside}) seen"
    parts = [setup["system"], what, f"noise {math.sqrt(float(seen['noise'])):.3g}"]
    if int(seen.get("every", 1)) != 1:
        parts.append(f"every {seen['every']} steps")
    for who in ("truth", "model"):
        for key, value in setup.get(who, {}).items():
            if value != usual.get(who, {}).get(key):
                parts.append(f"{who} {key} {value if not isinstance(value, Mapping) else '…'}")
    return ", ".join(parts)


def mismatches(setup: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that differ between model and truth: (truth, model) by name.

    >>> mismatches({"system": "lorenz96", "truth": {"forcing": 11}, "model": {"forcing": 8, "dt": 0.05}})
    {'forcing': (11, 8)}
    """
    make = SYSTEMS.get(setup["system"])
    usual = {k: p.default for k, p in inspect.signature(make).parameters.items()} if make else {}
    truth = {**usual, **setup["truth"]}
    return {k: (truth.get(k), v) for k, v in setup["model"].items() if truth.get(k) != v}


def _result_folders(top: Path) -> list[Path]:
    """Folders with a metrics.csv, this one or those below it."""
    if not top.is_dir():
        raise MissingFileError(f"folder {top} not found; make one with slams bench SYSTEM --out {top}.")
    if (top / "metrics.csv").exists():
        return [top]
    found = sorted(path.parent for path in top.rglob("metrics.csv"))
    if not found:
        raise MissingFileError(f"{top} holds no metrics.csv; make one with slams bench SYSTEM --out {top}.")
    return found


def _read(folder: Path) -> tuple[dict[str, Any], list[MethodResult]]:
    path = folder / "metrics.csv"
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise InvalidValueError(
                f"{path} is not of slams bench: its columns are {', '.join(reader.fieldnames or ['none'])}, "
                f"expected {', '.join(COLUMNS)}."
            )
        rows = with_current_names(list(reader))
    if not rows:
        raise InvalidValueError(f"{path} has no rows; run slams bench again with --out {folder}.")
    if not (folder / "setup.json").exists():
        raise InvalidValueError(
            f"{folder} lacks setup.json, which slams bench writes beside metrics.csv; run it again."
        )
    made = json.loads((folder / "setup.json").read_text(encoding="utf-8"))
    if not isinstance(made, dict) or not {"system", "truth", "model", "observe"} <= set(made):
        raise InvalidValueError(f"{folder / 'setup.json'} is no set-up of slams bench; run it again.")
    groups: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["settings"]), []).append(row)
    every = int(made["observe"].get("every", 1))
    return made, [_point(folder, *key, group, every) for key, group in groups.items()]


def _point(
    folder: Path, label: str, origin: str, rows: Sequence[Mapping[str, str]], every: int
) -> MethodResult:
    """One method from its rows; costs per step become costs per analysis."""
    plain = file_stem(label)  # as slams reproduce names files
    paths = [folder / "runs" / f"{stem}.json" for stem in (label, plain)]
    path = next((path for path in paths if path.exists()), None)
    settings = json.loads(path.read_text(encoding="utf-8")) if path else {}
    settings = renamed("method setting", settings, warn=False)
    method = str(settings.pop("method", label.split(" ", maxsplit=1)[0]))
    scores: dict[str, Interval] = {}
    errors: dict[int, float] = {}
    for row in rows:
        value, lower, upper = (float(row[name] or "nan") for name in ("value", "lower", "upper"))
        if row["replicate"] == "":
            factor = every if row["metric"] in COSTS else 1
            scores[row["metric"]] = (factor * value, factor * lower, factor * upper)
        elif row["metric"] == "rmse":
            errors[int(row["replicate"])] = value
    if "rmse" not in scores or not errors:
        raise InvalidValueError(f"{folder / 'metrics.csv'} has no rmse of {label}; run slams bench again.")
    trivial = method in METHODS and METHODS[method].kind == "trivial"
    informed = any(settings.get(key) for key in INFORMED)
    role: Literal["method", "trivial", "exact", "informed"] = (
        "exact" if origin == "exact" else "trivial" if trivial else "informed" if informed else "method"
    )
    return MethodResult(label, method, origin, settings, scores, errors, role)


def _join(case: CaseResults, points: Sequence[MethodResult], folder: Path) -> None:
    """Add methods; one with a taken name gets the name of its folder."""
    known = {p.label: p for p in case.points}
    for point in points:
        same = known.get(point.label)
        if same is None:
            case.points.append(point)
        elif point.settings != same.settings or point.origin != same.origin:
            renamed = {**vars(point), "label": f"{point.label} ({folder.name})"}
            case.points.append(MethodResult(**renamed))


def _name(cases: Sequence[CaseResults]) -> None:
    """Titles, with the length of the run where nothing else differs."""
    for case in cases:
        case.title = describe(case.setup)
    titles = [case.title for case in cases]
    for case, title in zip(cases, titles, strict=True):
        if titles.count(title) > 1:
            case.title = f"{title}, {case.setup.get('cycles')} analyses after {case.setup.get('burn_in')}"


def _divergence(point: MethodResult) -> float:
    share = point.value("divergence_rate")
    return 0.0 if math.isnan(share) else share
