"""LETKF of a gridded model: one local analysis for all the variables of a column, or of a block of columns."""

from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor

from slams.assimilation.ensemble.inflation import Inflation
from slams.assimilation.ensemble.local import LETKF, Domains, LocalizationKeywords
from slams.core.errors import InvalidValueError
from slams.core.geometry.localization import Localization
from slams.observation.observation import Observation
from slams.systems.base import Dynamics

_GROUPS = 4  # of analyses with about equally many observations, each padded to its largest number


@dataclass(frozen=True)
class PresentInflation(Inflation):
    """Inflation of the variables of the present alone.

    A state that also holds the past would have it inflated with every later observation.

    Attributes:
        present: Leading variables that are inflated; all if 0.
    """

    present: int = 0

    def relax(self, analysis: Tensor, forecast: Tensor) -> Tensor:
        """See `Inflation.relax`."""
        if not self.present:
            return super().relax(analysis, forecast)
        now = super().relax(analysis[..., : self.present], forecast[..., : self.present])
        return torch.cat([now, analysis[..., self.present :]], -1)


class ColumnLETKF(LETKF):
    """LETKF whose localization is that of sites, each with a group of variables that share its analysis.

    It is the `LETKF` with the localization of a site repeated for each of its variables, which for many channels would
    take much memory. Variables of no group are left as they are.

    Args:
        dynamics: The model.
        variables: Variables of the flattened state at each site, (G, m).
        present: Leading variables of the flattened state that are inflated; all if 0.
        iterations: Linearized analyses in turn, as in `LETKF`.
        common: Keywords of `LocalizationKeywords`; `localization` is one between the G sites and the observations.

    Raises:
        ValueError: If there is no such localization, or a variable belongs to two sites.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        *,
        variables: Tensor,
        present: int = 0,
        iterations: int = 1,
        **common: Unpack[LocalizationKeywords],
    ) -> None:
        super().__init__(dynamics, iterations=iterations, **common)
        if not isinstance(self.localization, Localization):
            raise InvalidValueError(
                "ColumnLETKF needs `localization` between sites and observations; without one use LETKF or ETKF."
            )
        if len(variables.unique()) < variables.numel():
            raise InvalidValueError("a variable is in the groups of two sites; give every variable one site.")
        self.variables = variables
        if self.inflation.adaptive and present:
            raise InvalidValueError("adaptive inflation is of the whole forecast; leave out `present`.")
        self.inflation = PresentInflation(**vars(self.inflation), present=present)

    def _checked(self, near: Localization, observation: Observation) -> Localization:
        sites, count = len(self.variables), observation.value.shape[-1]
        if (len(near.index), near.observations) != (sites, count):
            raise InvalidValueError(
                f"the localization is between {len(near.index)} sites and {near.observations} observations, but "
                f"there are {sites} groups of variables and {count} values were observed."
            )
        return near

    def _prepare(self, near: Localization, lasting: bool) -> object:
        counts = (near.weight > 0).sum(-1)
        order = counts.argsort(stable=True)
        found = []
        for part in order[counts[order] > 0].tensor_split(_GROUPS):
            if len(part):
                width = int(counts[part].max())  # neighbours come first, then the padding
                root = near.weight[part, :width].sqrt()
                found.append(Domains(near.index[part, :width], root, self.variables[part]))
        return found


def blocks(channels: int, height: int, width: int, side: int) -> tuple[Tensor, Tensor]:
    """Square blocks of the columns of a grid (C, H, W).

    Args:
        channels: C.
        height: H, a multiple of `side`.
        width: W, a multiple of `side`.
        side: Columns along the side of a block.

    Returns:
        Variables of each block, (G, C side^2), and its columns, (G, side^2).

    Raises:
        ValueError: If the grid is no multiple of a block.

    >>> blocks(1, 2, 4, 2)[0].tolist()
    [[0, 1, 4, 5], [2, 3, 6, 7]]
    """
    if side < 1 or height % side or width % side:
        raise InvalidValueError(f"a grid of {height} x {width} columns has no blocks of {side} x {side}.")
    cells = torch.arange(height * width).reshape(height // side, side, width // side, side)
    columns = cells.permute(0, 2, 1, 3).reshape(-1, side * side)
    variables = columns[:, None, :] + height * width * torch.arange(channels)[None, :, None]
    return variables.flatten(1), columns
