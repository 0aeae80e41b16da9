"""A trained run in Python: `slams.open_run(folder)`, then `assimilate`, `forecast` and `evaluate`."""

import json
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xarray as xr

from slams.core import foreign
from slams.core.console import Console
from slams.core.device import computing_device
from slams.core.errors import InvalidTypeError, InvalidValueError
from slams.core.random import generator
from slams.data.files.read import write_netcdf
from slams.pipeline.assimilate import analyse, configure, sources_of
from slams.pipeline.evaluate import AnalysisScores, scored
from slams.pipeline.forecast import forecast_tree
from slams.pipeline.model.model import Model
from slams.pipeline.results.analysis_file import write_tree

Labelled = xr.Dataset | xr.DataArray | xr.DataTree
Files = str | Path | Labelled
Given = Files | Sequence[Files] | Mapping[str, Files]


def open_run(folder: str | Path, *, trust: Collection[str] = (), device: str = "auto") -> "Run":
    """Open a trained run.

    Args:
        folder: Folder of `slams train`; it may have been moved.
        trust: Packages that may be imported for a network of the user's own; "." allows the working folder.
        device: Device: "auto", "cpu" or "cuda".

    Returns:
        The run.

    Raises:
        FileNotFoundError: If the folder holds no trained run.
        PermissionError: If its network is of a package that is not in `trust`.
        ValueError: If its weights do not fit its recipe.
    """
    folder = Path(folder).expanduser()
    with foreign.trusting(trust):
        model = Model.load(folder)
    return Run(folder, model, device)


class Run:
    """A trained run.

    Args:
        folder: Folder of the run.
        model: Codec and learnt prior.
        device: Device of the networks.

    Attributes:
        recipe: Recipe of the run.
        modalities: Names of the modalities.
        states: Names of the state variables.
    """

    def __init__(self, folder: Path, model: Model, device: str = "auto") -> None:
        self.folder, self.model, self.recipe = folder, model, model.recipe
        self.modalities, self.states = tuple(model.layouts), tuple(model.states)
        self._device = device

    def __repr__(self) -> str:
        seen = [name for name in self.modalities if name not in self.states]
        return (
            f"Run({str(self.folder)!r}: {self.recipe.name}, analyses {', '.join(self.states)}, trained on "
            f"{' to '.join(self.recipe.data.train)}; observes {', '.join(seen) or 'its states'})"
        )

    def assimilate(
        self,
        observations: Given,
        *,
        members: int | None = None,
        modalities: Sequence[str] | None = None,
        dates: str | None = None,
        seed: int | None = 0,
        baselines: bool = False,
        only_past: bool = False,
        progress: bool = False,
        **settings: Any,
    ) -> xr.DataTree:
        """Analyse every day of the observations.

        Args:
            observations: Paths, "NAME=PATH", Datasets, DataArrays, or any of these by modality. Any subset of the
                modalities will do; a variable is matched by the modality's name, else by its name in the recipe.
            members: Ensemble size N; the recipe's if None.
            modalities: Names of the modalities to use; a state variable is read only if it is named.
            dates: First and last day as "1997-12-01..1998-02-28"; all if None.
            seed: Seed of all random draws; None for a fresh one, kept in the attribute "seed".
            baselines: Whether to add the baselines' analyses as groups.
            only_past: Whether the analysis of a day uses no observation after it (a filter).
            progress: Whether to show progress.
            **settings: Settings of a trained run with their dots as two underscores, such as assimilation__steps=12 or
                withhold__stations=[1, 3].

        Returns:
            The analysis, laid out as the file of `slams assimilate`: state variables (time, member[, level], lat, lon)
            at the root, one group a modality that was observed.

        Raises:
            FileNotFoundError: If a file is not there.
            TypeError: If the observations are of another type.
            ValueError: If a name, setting, variable or date is invalid.
        """
        model = self._configured(members, settings | ({"assimilation__uses": "past"} if only_past else {}))
        seed = generator(None).initial_seed() if seed is None else seed
        console = Console(quiet=not progress)
        with _as_files(observations, "observations") as files:
            sources = sources_of(model.recipe, files, modalities)
            return analyse(
                model, self.folder, sources, dates=dates, seed=seed, baselines=baselines, console=console
            )

    def forecast(
        self,
        observations: Given,
        *,
        days: int = 5,
        start: str | None = None,
        members: int | None = None,
        modalities: Sequence[str] | None = None,
        seed: int | None = 0,
        progress: bool = False,
        **settings: Any,
    ) -> xr.DataTree:
        """Forecast the days behind the last observation.

        Args:
            observations: As of `assimilate`; days without values are missing.
            days: Number of forecast days, at most assimilation.horizon behind the last observed day.
            start: Day of lead 0, the last whose observations are used; the last day with an observation if None.
            members: Ensemble size N; the recipe's if None.
            modalities: Names of the modalities to use; a state variable is read only if it is named.
            seed: Seed of all random draws; None for a fresh one, kept in the attribute "seed".
            progress: Whether to show progress.
            **settings: As of `assimilate`, such as assimilation__memory=12.

        Returns:
            The forecast, laid out as the analysis, with the coordinate `lead` [days] along time.

        Raises:
            FileNotFoundError: If a file is not there.
            TypeError: If the observations are of another type.
            ValueError: If a name, setting, variable or date is invalid, the forecast exceeds the horizon, or there is no
                observation in its memory.
        """
        model = self._configured(members, settings)
        seed = generator(None).initial_seed() if seed is None else seed
        with _as_files(observations, "observations") as files:
            sources = sources_of(model.recipe, files, modalities)
            return forecast_tree(
                model,
                self.folder,
                sources,
                days=days,
                start=start,
                seed=seed,
                console=Console(quiet=not progress),
            )

    def _configured(self, members: int | None, settings: Mapping[str, Any]) -> Model:
        """The model with some settings of a trained run, on its device."""
        overrides = [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in settings.items()]
        recipe = configure(self.recipe, [*overrides, f"device={self._device}"], members)
        return Model(self.model.codec, self.model.prior, recipe).on(computing_device(self._device))

    def evaluate(
        self, analysis: Files, truth: Given, *, report: str | Path | None = None, progress: bool = False
    ) -> AnalysisScores:
        """Score an analysis against the truth, in the unit of the analysis.

        Args:
            analysis: Analysis of `assimilate`, or the path of an analysis file.
            truth: Paths, "NAME=PATH", Datasets, DataArrays, or any of these by modality.
            report: Folder for metrics.csv, report.html and figures/; none is written if None.
            progress: Whether to show progress.

        Returns:
            A table that prints itself; `.rows` and `.to_dataframe()` hold all numbers.

        Raises:
            FileNotFoundError: If a file is not there.
            ValueError: If `analysis` is no analysis, or a truth shares no day with it or lies on other points.
        """
        with _as_files(truth, "truth") as files, tempfile.TemporaryDirectory() as folder:
            if isinstance(analysis, xr.DataTree):
                path = Path(folder) / "analysis.nc"
                write_tree(analysis, path)
            elif isinstance(analysis, (str, Path)):
                path = Path(analysis)
            else:
                raise InvalidTypeError(
                    f"an analysis is what assimilate returns or the path of its file, got {type(analysis).__name__}."
                )
            return scored(path, files, report=report, console=Console(quiet=not progress))


@contextmanager
def _as_files(given: Given, what: str) -> Iterator[list[str]]:
    """[NAME=]PATH of all inputs; labelled arrays are written to temporary files."""
    items: list[tuple[str | None, Any]]
    if isinstance(given, Mapping) and not isinstance(given, (xr.Dataset, xr.DataTree)):
        items = list(given.items())
    elif isinstance(given, Sequence) and not isinstance(given, str):
        items = [(None, each) for each in given]
    else:
        items = [(None, given)]
    if not items:
        raise InvalidValueError(f"the {what} are empty; give at least one file, Dataset or DataArray.")
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for number, (name, each) in enumerate(items):
            if isinstance(each, (xr.Dataset, xr.DataArray, xr.DataTree)):
                path = write_netcdf(_dataset(each, name), Path(folder) / f"{what}_{number}.nc")
            elif isinstance(each, (str, Path)):
                path = Path(each)
            else:
                raise InvalidTypeError(
                    f"{what} are paths, Datasets or DataArrays, got {type(each).__name__}; label an array with its "
                    "dates and places first: xarray.DataArray(values, dims=('time', 'station'), coords=...)."
                )
            files.append(str(path) if name is None else f"{name}={path}")
        yield files


def _dataset(array: Labelled, name: str | None) -> xr.Dataset:
    if isinstance(array, xr.Dataset):
        return array
    if isinstance(array, xr.DataTree):
        return array.to_dataset()
    if array.name is None and name is None:
        raise InvalidValueError("a DataArray without a name could be any modality; pass {modality: array}.")
    return array.to_dataset(name=str(name if name is not None else array.name))
