"""Trajectories of a test: days analysed together."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from slams.core.errors import InvalidValueError
from slams.data.windows import runs, window_starts
from slams.pipeline.inputs.fields import Fields


@dataclass
class Trajectories:
    """Test days cut into trajectories, each analysed as a whole.

    Attributes:
        index: Rows of the fields' days of each trajectory, (W, L) stacked windows, or a list of runs.
        compose_windows: Whether each entry is a run longer than a window.
    """

    index: list[Tensor]
    compose_windows: bool

    @property
    def days(self) -> Tensor:
        """All rows, one after another."""
        return torch.cat([rows.flatten() for rows in self.index])


def cut(fields: Fields, span: tuple[str, str], length: int, windows: int, spacing: int) -> Trajectories:
    """Test windows at least `spacing` days apart and spread over the period, or the whole period in runs.

    Raises:
        ValueError: If the period has fewer such windows, or a run is shorter than a window.
    """
    index = fields.part(span)
    dates = fields.dates[index]
    if not windows:
        segments = [torch.from_numpy(index[segment]) for segment in runs(dates)]
        short = [segment for segment in segments if len(segment) < length]
        if short:
            raise InvalidValueError(
                f"a run of {len(short[0])} days from {fields.dates[short[0][0]]} is shorter than the window of {length}."
            )
        return Trajectories(segments, compose_windows=True)
    chosen = windows_apart(dates, length, windows, spacing)
    rows = torch.from_numpy(index[chosen[:, None] + np.arange(length)])
    return Trajectories(list(rows), compose_windows=False)


def windows_apart(dates: np.ndarray, length: int, windows: int, spacing: int) -> np.ndarray:
    """Positions of the first days of windows that are spread over some days.

    Args:
        dates: Days, rising.
        length: Days of a window.
        windows: Number of windows.
        spacing: Least number of days between the starts of two.

    Raises:
        ValueError: If there are fewer such windows.
    """
    starts = window_starts(dates, length).numpy()
    apart: list[int] = []
    for start in starts:
        if not apart or (dates[start] - dates[apart[-1]]).astype(int) >= spacing:
            apart.append(int(start))
    if len(apart) < windows:
        raise InvalidValueError(
            f"the test, {dates[0]} to {dates[-1]}, has {len(apart)} windows {spacing} days apart, but {windows} are "
            "wanted; lower experiment.windows or experiment.spacing."
        )
    return np.array(apart)[np.linspace(0, len(apart) - 1, windows).round().astype(int)]
