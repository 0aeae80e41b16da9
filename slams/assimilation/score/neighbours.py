"""Lists of what is near the variables of each local analysis of the ensemble score filter."""

from dataclasses import dataclass

import torch
from torch import Tensor

from slams.assimilation.ensemble.kalman import Departures
from slams.assimilation.score.ensemble_mixture import projection
from slams.core.geometry.localization import Localization

_ELEMENTS = 2**18  # of the temporaries of analyses done at once: on a CPU they stay in a core's cache
_ELEMENTS_GPU = 2**26
_ASKED = 32  # local analyses that the width of the kernel is chosen by


@dataclass(frozen=True)
class Neighbours:
    """Lists of what is near the variables of each local analysis.

    Attributes:
        near: Observations, (G, K), and the square roots of their weights.
        root: (G, K).
        patch: Variables that are the coordinates, (G, n).
        there: Which of them are no padding, (G, n).
        variables: What the analysis changes, (G, m).
    """

    near: Tensor
    root: Tensor
    patch: Tensor
    there: Tensor
    variables: Tensor

    @classmethod
    def whole(cls, size: int, d: Tensor) -> "Neighbours":
        """One analysis of everything."""
        all_of = torch.arange(size, device=d.device)[None]
        seen = torch.arange(d.shape[-1], device=d.device)[None]
        return cls(seen, torch.ones_like(seen, dtype=d.dtype), all_of, torch.ones_like(all_of) > 0, all_of)

    @classmethod
    def of(cls, near: Localization, patch: Localization) -> "Neighbours":
        """Neighbours with the same lists share an analysis if they come in groups of one size."""
        count, variables = len(near.index), torch.arange(len(near.index), device=near.index.device)[:, None]
        new = torch.ones(count, dtype=torch.bool, device=near.index.device)
        for lists in (near, patch):
            same = (lists.index[1:] == lists.index[:-1]) & (lists.weight[1:] == lists.weight[:-1])
            new[1:] &= ~same.all(-1)
        first = new.nonzero()[:, 0]
        m = count // len(first)
        if m > 1 and bool((first == torch.arange(0, count, m, device=first.device)[: len(first)]).all()):
            variables = variables.view(-1, m) if count % m == 0 else variables
        one = variables[:, 0]
        there = patch.weight[one] > 0
        return cls(near.index[one], near.weight[one].sqrt(), patch.index[one], there, variables)

    def pieces(self, replicates: int, size: int, device: str) -> tuple[Tensor, ...]:
        """Analyses that are done at once."""
        width = self.near.shape[1] + 4 * self.patch.shape[1] + 3 * size + 2 * self.variables.shape[1]
        most = _ELEMENTS if device == "cpu" else _ELEMENTS_GPU
        return torch.arange(len(self.variables), device=self.variables.device).split(
            max(1, most // (replicates * size * width))
        )

    def asked(self) -> tuple[Tensor, ...]:
        """Analyses, evenly spread, that choose the width of the kernel."""
        count = len(self.variables)
        places = torch.linspace(0, count - 1, min(count, _ASKED), device=self.variables.device).round().long()
        return places.split(32)


@dataclass(frozen=True)
class LocalEnsemble:
    """An ensemble and its neighbour lists; members last: what belongs to one variable is one run of memory.

    Attributes:
        lists: What is near.
        A: Anomalies, (*B, d, N).
        Y: Whitened predictions, (*B, O, N).
        d: Whitened innovation, (*B, O).
        bends: Whether predictions may be more than the coordinates explain.
    """

    lists: Neighbours
    A: Tensor
    Y: Tensor
    d: Tensor
    bends: bool

    @classmethod
    def of(cls, lists: Neighbours, A: Tensor, departures: Departures, bends: bool) -> "LocalEnsemble":
        """From anomalies (*B, N, d) and what they predict."""
        return cls(lists, A.mT.contiguous(), departures.Y.mT.contiguous(), departures.d, bends)

    def anomalies(self, index: Tensor) -> Tensor:
        """Of variables (G, n): (*B, G, N, n)."""
        return self.A.index_select(-2, index.flatten()).unflatten(-2, index.shape).mT

    def patch(self, places: Tensor) -> Tensor:
        """Anomalies of the patches of some analyses, (*B, G, N, n)."""
        return self.anomalies(self.lists.patch[places]) * self.lists.there[places].unsqueeze(-2)

    def part(self, places: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Near some analyses: projection to coordinates (*B, G, n, r), coordinates, tapered Y (*B, G, N, K) and d."""
        patch = self.patch(places)
        W = projection(patch)
        return W, patch @ W, *self.predictions(places)

    def predictions(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Tapered Y (*B, G, N, K) and d (*B, G, K) near some analyses."""
        index, root = self.lists.near[places], self.lists.root[places]
        Y = self.Y.index_select(-2, index.flatten()).unflatten(-2, index.shape) * root.unsqueeze(-1)
        return Y.mT, self.d[..., index] * root
