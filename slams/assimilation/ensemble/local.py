"""Localized ensemble Kalman filters: the local transform (LETKF) and serial adjustment (EAKF)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor

from slams.assimilation.ensemble.inflation import InflationKeywords
from slams.assimilation.ensemble.kalman import (
    Departures,
    EnsembleKalman,
    relinearized,
    square_root_update,
)
from slams.assimilation.memory import Memory
from slams.core.covariance import Diagonal
from slams.core.errors import InvalidValueError
from slams.core.geometry.localization import Localization
from slams.core.geometry.localization import half_width as localization_half_width
from slams.core.geometry.places import Geometry, places_of
from slams.core.random import Rng
from slams.observation.observation import Observation
from slams.systems.base import Dynamics

Near = Localization | Callable[[Observation], Localization]

_PIECE = (
    2**18
)  # elements of the temporaries of local analyses done at once: on a CPU they stay in a core's cache
_PIECE_GPU = 2**26
_REMEMBERED = 16  # combinations of modalities whose neighbours are kept


class LocalizationKeywords(InflationKeywords, total=False):
    """Keywords of the localized filters.

    Attributes:
        localization: Neighbours and taper of all observations, in the order of `Observations`; or a function that
            gives them for an observation, for networks that move.
        radius: Published localization radius, in place of `localization`, in the unit of the model's
            `geometry` (sites on a circle, cells on a torus, km on a sphere). The half-width of Gaspari and Cohn's
            function is 1.82 times it.
        half_width: Half-width of the taper, in place of `radius`.
    """

    localization: Near | None
    radius: float | None
    half_width: float | None


class _Localized(EnsembleKalman):
    """Base of the localized filters: neighbour lists for each observation.

    Args:
        dynamics: The model; with a radius, one that has a `geometry`.
        localization: Neighbours and taper, as in `LocalizationKeywords`; no localization without it and both widths.
        radius: Localization radius, as in `LocalizationKeywords`.
        half_width: Half-width of the taper, as in `LocalizationKeywords`.
        common: Keywords of `InflationKeywords`.

    Raises:
        ValueError: If more than one of the three is given, one is not positive, or the model has no geometry.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        *,
        localization: Near | None = None,
        radius: float | None = None,
        half_width: float | None = None,
        **common: Unpack[InflationKeywords],
    ) -> None:
        super().__init__(dynamics, **common)
        given = {"localization": localization, "radius": radius, "half_width": half_width}
        names = [name for name, value in given.items() if value is not None]
        if len(names) > 1:
            raise InvalidValueError(f"{' and '.join(names)} state the same; give one of them.")
        width = localization_half_width(radius) if radius is not None else half_width
        if width is not None and not width > 0:
            raise InvalidValueError(f"a localization {names[0]} must be positive, got {given[names[0]]}.")
        self.localization, self.half_width = localization, width
        if width is not None:
            geometry_of(dynamics)
        self._known: dict[object, tuple[object, object]] = {}

    @property
    def _localizes(self) -> bool:
        return self.localization is not None or self.half_width is not None

    def _lists(self, observation: Observation, like: Tensor) -> object:
        """Prepared neighbour lists of an observation, made once for each combination of modalities."""
        columns, near = observation.columns, self.localization
        if near is not None and not isinstance(near, Localization):
            return self._prepare(self._checked(near(observation), observation).to(like), False)
        operator = None if near is not None else observation.operator
        places = None if columns is None else tuple(columns.tolist())
        key = (id(operator), places, like.dtype, like.device)
        kept, lists = self._known.get(key, (None, None))
        if lists is None or kept is not operator:
            if near is None:
                near = self._around(observation, like)
            elif columns is not None:
                near = near.select(columns)
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            lists = self._prepare(self._checked(near, observation).to(like), True)
            self._known[key] = operator, lists
        return lists

    def _around(self, observation: Observation, like: Tensor) -> Localization:
        """By the geometry of the model and the places of the operator's values, at the mean of `like`, (*B, N, d)."""
        assert self.half_width is not None
        geometry = geometry_of(self.dynamics)
        state = like.reshape(-1, like.shape[-1]).mean(0).reshape(self.dynamics.state_shape)
        places = places_of(observation.operator, state, geometry)
        return Localization.between(geometry, places, self.half_width)

    def _checked(self, near: Localization, observation: Observation) -> Localization:
        size, count = math.prod(self.dynamics.state_shape), observation.value.shape[-1]
        if (len(near.index), near.observations) != (size, count):
            raise InvalidValueError(
                f"the localization is between {len(near.index)} variables and {near.observations} observations, "
                f"but the state has {size} and {count} values were observed; build it for this network, with "
                "Localization.repeated for several variables at one place."
            )
        if not isinstance(observation.noise, Diagonal):
            raise InvalidValueError(
                f"{type(self).__name__} with localization needs independent observation errors, got a "
                f"{type(observation.noise).__name__} covariance; whiten the observations, keep the diagonal, or "
                "pass localization=None."
            )
        return near

    def _prepare(self, near: Localization, lasting: bool) -> object:
        raise NotImplementedError


@dataclass(frozen=True)
class Domains:
    """Local analyses of the same number m of variables each.

    Attributes:
        index: Observations of each of the G analyses, (G, K).
        root: Square roots of their weights, (G, K).
        variables: The variables each analysis is for, (G, m).
    """

    index: Tensor
    root: Tensor
    variables: Tensor

    @classmethod
    def of(cls, near: Localization, *, shared: bool = True) -> "list[Domains]":
        """The analyses of a localization; variables that no observation reaches are in none of them.

        Args:
            near: Neighbours and weights of every variable.
            shared: Whether to find variables with the same neighbours, which takes a sort.
        """
        index, root = near.index, near.weight.sqrt()
        if not shared:
            reached = (root > 0).any(-1).nonzero().squeeze(-1)
            return [cls(index[reached], root[reached], reached[:, None])] if len(reached) else []
        first, group = near.domains()
        counts = torch.bincount(group, minlength=len(first))
        order = torch.argsort(group, stable=True)
        start = counts.cumsum(0) - counts
        reached = (root[first] > 0).any(-1)
        made = []
        for m in counts[reached].unique().tolist():
            chosen = ((counts == m) & reached).nonzero().squeeze(-1)
            variables = order[start[chosen][:, None] + torch.arange(m, device=order.device)]
            made.append(cls(index[first[chosen]], root[first[chosen]], variables))
        return made

    def pieces(self, width: int) -> "list[Domains]":
        """At most `width` analyses at a time."""
        if len(self.index) <= width:
            return [self]
        parts = zip(self.index.split(width), self.root.split(width), self.variables.split(width), strict=True)
        return [Domains(*part) for part in parts]


class LETKF(_Localized):
    """Local ensemble transform Kalman filter: an ETKF for each variable, with the observations near it.

    At each variable R^-1 is multiplied by the taper of the distance to each observation; the symmetric square root
    keeps the transforms of neighbours alike. Variables with the same neighbours share one analysis; without
    localization, or with an infinite radius, the analysis is that of the `ETKF`.

    With `iterations` above 1 each further analysis of the same forecast takes the operator's slopes about the mean of the
    one before, see `relinearized`: Gauss-Newton steps for an operator that bends between the two.

    Args:
        dynamics: The model.
        iterations: Linearized analyses in turn; of a linear operator all are the same.
        common: Keywords of `LocalizationKeywords`.

    Raises:
        ValueError: If `iterations` is below 1.

    Source:
        Hunt, Kostelich & Szunyogh (2007), doi:10.1016/j.physd.2006.11.008, section 2.3, eqs. 20-24, with R^-1 tapered;
        iterations: Bell & Cathey (1993), doi:10.1109/9.250476, with ensemble slopes as in Sakov, Oliver & Bertino (2012),
        doi:10.1175/MWR-D-11-00176.1.
    """

    def __init__(
        self, dynamics: Dynamics, *, iterations: int = 1, **common: Unpack[LocalizationKeywords]
    ) -> None:
        super().__init__(dynamics, **common)
        if iterations < 1:
            raise InvalidValueError(f"needs at least one analysis in turn, got iterations={iterations}.")
        self.iterations = iterations

    def update(
        self, E: Tensor, departures: Departures, *, observation: Observation, memory: Memory, rng: Rng = None
    ) -> Tensor:
        """See `EnsembleKalman.update`."""
        domains = self._lists(observation, E) if self._localizes else None
        assert domains is None or isinstance(domains, list)
        out = E
        for turn in range(self.iterations):
            given = relinearized(E, out, observation, self.dynamics.state_shape) if turn else departures
            if domains is None:
                out = square_root_update(E, given.Y, given.d)
            else:
                out = local_update(E, given.Y, given.d, domains)
        return out

    def _prepare(self, near: Localization, lasting: bool) -> object:
        return Domains.of(near, shared=lasting)


def local_update(
    E: Tensor, Y: Tensor, d: Tensor, domains: list[Domains], *, budget: int | None = None
) -> Tensor:
    """Local analyses with the symmetric square root, one for each domain.

    With S = W^1/2 Y at the observations of a domain, every variable a (N anomalies) of it becomes
    mean + a T^2 S d / (N - 1) + T a,  T = (I + S S^T / (N - 1))^-1/2.

    Args:
        E: Members, (*B, N, d).
        Y: Whitened predicted anomalies, (*B, N, O).
        d: Whitened innovation, (*B, O).
        domains: Local domains of variables with their observations.
        budget: Elements that temporaries may have (one analysis is always done whole); by default what suits the
            device.

    Returns:
        Members, (*B, N, d).
    """
    # members last: what belongs to one variable or observation is one run of memory
    out = E.mT.clone(memory_format=torch.contiguous_format)
    A = out - out.mean(-1, keepdim=True)
    S, replicates, size = Y.mT.contiguous(), E[..., 0, 0].numel(), E.shape[-2]
    budget = budget or (_PIECE if E.device.type == "cpu" else _PIECE_GPU)
    for block in domains:
        m, K = block.variables.shape[1], block.index.shape[1]
        cost = replicates * size * (2 * K + 2 * min(size, K) + 3 * m)
        for piece in block.pieces(max(1, budget // cost)):
            increment = _local_increment(A, S, d, piece)
            out.index_add_(-2, piece.variables.flatten(), increment.flatten(-3, -2))
    return out.mT.contiguous()


def _local_increment(A: Tensor, Y: Tensor, d: Tensor, domains: Domains) -> Tensor:
    """Analysis increment of each variable, (*B, G, m, N), from A (*B, d, N), Y (*B, O, N), d (*B, O)."""
    (groups, m), K, c = domains.variables.shape, domains.index.shape[1], A.shape[-1] - 1.0
    flat, root = domains.index.flatten(), domains.root
    S = Y.index_select(-2, flat).unflatten(-2, (groups, K)) * root.unsqueeze(-1)
    D = (d.index_select(-1, flat).unflatten(-1, (groups, K)) * root).unsqueeze(-2)
    a = A.index_select(-2, domains.variables.flatten()).unflatten(-2, (groups, m))
    if A.shape[-1] > K:
        s, V = torch.linalg.eigh(S @ S.mT / c)
        back = V.mT @ S  # T = I + S^T V scale V^T S / c
        projected, q = a @ back.mT / c, D @ V
        s = s.clamp(min=0).unsqueeze(-2)
        root_s = (1 + s).sqrt()
        scale = -1 / (root_s * (1 + root_s))
    else:
        s, U = torch.linalg.eigh(S.mT @ S / c)
        projected, back, q = a @ U, U.mT, D @ S @ U / c
        s = s.clamp(min=0).unsqueeze(-2)
        root_s = (1 + s).sqrt()
        scale = -s / (root_s * (1 + root_s))  # (1 + s)^-1/2 - 1 without cancellation
    return (projected * scale) @ back + projected @ (q / (1 + s)).mT


@dataclass(frozen=True)
class Reach:
    """Reach of each observation: variables first, then the observations, as one long vector (d + O).

    Attributes:
        index: Places of that vector near each observation, (O, K); None if every row of `weight` is a whole vector.
        weight: Their taper, (O, K) or (O, d + O); padding has weight 0.
    """

    index: Tensor | None
    weight: Tensor

    @classmethod
    def of(cls, near: Localization) -> "Reach":
        """From neighbour lists; whole rows where lists would not be much shorter."""
        states, others = near.transposed(), near.among
        size, width = len(near.index), states.index.shape[1] + others.index.shape[1]
        if 4 * width > size + near.observations:
            return cls(None, torch.cat([near.rho_xy.mT, near.rho_yy], -1))
        index = torch.cat([states.index, size + others.index], -1)
        return cls(index, torch.cat([states.weight, others.weight], -1))


def geometry_of(dynamics: Dynamics) -> Geometry:
    """The geometry of a model.

    Raises:
        ValueError: If it states none.
    """
    if dynamics.geometry is None:
        raise InvalidValueError(
            f"{type(dynamics).__name__} does not state where its variables are, so that a radius has no meaning; set its "
            "`geometry`, such as Geometry.circle(size), or pass localization=."
        )
    return dynamics.geometry


class EAKF(_Localized):
    """Ensemble adjustment Kalman filter: one scalar observation after the other, in the order given.

    The members' predictions of an observation are shifted and contracted to its exact posterior mean and variance, and
    what they moved is regressed on the variables and on the predictions of the observations still to come, both
    tapered. Without localization and with a linear operator mean and covariance are those of the `ETKF`.

    Source:
        Anderson (2003), doi:10.1175/1520-0493(2003)131<0634:ALLSFF>2.0.CO;2: a scalar filter, then a regression; as
        serial filter with localization Karspeck & Anderson (2007), doi:10.1175/JCLI4192.1.
    """

    def update(
        self, E: Tensor, departures: Departures, *, observation: Observation, memory: Memory, rng: Rng = None
    ) -> Tensor:
        """See `EnsembleKalman.update`."""
        reach = self._lists(observation, E) if self._localizes else None
        assert reach is None or isinstance(reach, Reach)
        return serial_update(E, departures.Y, departures.d, reach)

    def _prepare(self, near: Localization, lasting: bool) -> object:
        return Reach.of(near)


def serial_update(E: Tensor, Y: Tensor, d: Tensor, reach: Reach | None = None) -> Tensor:
    """Analysis of one whitened observation after the other.

    With y the anomalies predicted of an observation, s = y y^T and c = N - 1, every variable z (mean m, anomalies a)
    at taper rho changes by

        m <- m + rho (a y^T) d / (c + s),    a <- a - rho (a y^T) y / ((c + s) (1 + sqrt(c / (c + s)))).

    Args:
        E: Members, (*B, N, d).
        Y: Whitened predicted anomalies, (*B, N, O).
        d: Whitened innovation, (*B, O).
        reach: Taper of each observation on all components; no localization if None.

    Returns:
        Members, (*B, N, d).
    """
    members, count, variables = E.shape[-2], Y.shape[-1], E.shape[-1]
    mean = E.mean(-2)
    Z = torch.cat([(E - mean.unsqueeze(-2)).mT, Y.mT], -2).reshape(-1, variables + count, members)
    m = torch.cat([mean, -d], -1).reshape(-1, variables + count)  # predictions count from the observation
    index = None if reach is None else reach.index
    for j in range(count):
        weight = None if reach is None else reach.weight[j]
        y, innovation = Z[:, variables + j].clone(), -m[:, variables + j, None]
        total = (members - 1.0) + y.square().sum(-1, keepdim=True)
        shrink = total + ((members - 1.0) * total).sqrt()
        part = Z if index is None else Z.index_select(1, index[j])
        covariance = torch.bmm(part, y.unsqueeze(-1)).squeeze(-1)
        covariance = covariance if weight is None else covariance * weight
        step = covariance * (innovation / total)
        contraction = (covariance / -shrink).unsqueeze(-1)
        if index is None:
            m += step
            Z.baddbmm_(contraction, y.unsqueeze(-2))
        else:
            m.index_add_(1, index[j], step)
            Z.index_add_(1, index[j], contraction * y.unsqueeze(-2))
    updated = (m[:, :variables, None] + Z[:, :variables]).mT
    return updated.reshape(E.shape).contiguous()
