"""Pseudo-ensembles: members that a generative model draws from observations alone, as the prior of an analysis."""

from typing import Protocol, Unpack

import torch
from torch import Tensor

from slams.assimilation.ensemble.local import LETKF, LocalizationKeywords, Near
from slams.assimilation.keywords import Failure
from slams.assimilation.memory import Memory
from slams.core.errors import InvalidValueError
from slams.core.random import Rng
from slams.observation.observation import Observation
from slams.systems.base import Dynamics

_PROBE = 0.7548776662466927  # an irrational step: no two sites of the probe have the same value


class Generator(Protocol):
    """Generator of members, such as `slams.diffusion.pseudo_ensemble.PseudoEnsemble`.

    Attributes:
        memory: Largest number of observation times.
    """

    memory: int

    def draw(self, x: Tensor, values: Tensor, seen: Tensor, *, rng: Rng = None) -> Tensor:
        """Members (*B, N, d) given values (*B, m, d), newest first, where `seen`; x may be ignored."""


class ObservationConditioned(LETKF):
    """Base of filters with a generator: the window of past observations, and checks of draws.

    Args:
        dynamics: The model, of states (d).
        generator: Draws members given observations.
        draws: Number of draws at each analysis.
        window: Number of observation times for the generator, the newest included; its `memory` if None, none if 0.
        common: Keywords of `LocalizationKeywords`.

    Raises:
        ValueError: If states have more than one axis, the generator makes states of another size, or there are fewer than
            two draws, or the window exceeds its memory.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        *,
        generator: Generator,
        draws: int,
        window: int | None = None,
        **common: Unpack[LocalizationKeywords],
    ) -> None:
        super().__init__(
            dynamics,
            **common,
        )
        shape, size = tuple(dynamics.state_shape), getattr(generator, "size", None)
        if len(shape) != 1 or (size is not None and size != shape[0]):
            raise InvalidValueError(
                f"the generator draws states ({'d' if size is None else size}), but those of the dynamics are {shape}; "
                "train one for this system."
            )
        if draws < 2:
            raise InvalidValueError(f"a pseudo-ensemble needs at least 2 draws, got {draws}.")
        window = generator.memory if window is None else window
        if not 0 <= window <= generator.memory:
            raise InvalidValueError(
                f"the generator is conditioned on 0 to {generator.memory} times, got a window of {window}."
            )
        self.generator = generator
        self.draws = draws
        self.window = window

    def start(self, x: Tensor, memory: Memory) -> Tensor:
        """See `Filter.start`; nothing is known of the past."""
        shape = (*x.shape[:-2], max(self.window, 1), x.shape[-1])
        memory.carry["window"] = torch.full(shape, torch.nan, dtype=x.dtype, device=x.device)
        return x

    def _shift(self, memory: Memory) -> None:
        """One step on, nothing seen yet."""
        window = memory.carry["window"].roll(1, -2)
        window[..., 0, :] = torch.nan
        memory.carry["window"] = window

    def _note(self, observation: Observation, memory: Memory) -> Tensor:
        """Write what is seen into the newest row; which replicates saw anything, bool (*B)."""
        window = memory.carry["window"]
        sites = sites_of(observation, window.shape[-1]).to(window.device)
        values = torch.where(observation.seen, observation.filled, torch.nan).to(window)
        row = torch.full_like(window[..., 0, :], torch.nan)
        row[..., sites] = values.expand(*row.shape[:-1], len(sites))
        memory.carry["window"] = torch.cat([row.unsqueeze(-2), window[..., 1:, :]], -2)
        return observation.seen.any(-1).expand(row.shape[:-1])

    def _drawn(self, x: Tensor, memory: Memory, rng: Rng, *, newest: bool = True) -> tuple[Tensor, Tensor]:
        """Pseudo-members given the window, and which replicates have sound ones.

        Args:
            x: Members (*B, N, d) that the generator may start from.
            memory: Holds the window.
            rng: Generator.
            newest: Whether to include the newest observation.

        Returns:
            (*B, draws, d), and bool (*B).
        """
        window = memory.carry["window"]
        seen = torch.isfinite(window) & (self.window > 0)
        if not newest:
            seen[..., 0, :] = False
        of = torch.arange(self.draws, device=x.device) % x.shape[-2]
        start, values = x[..., of, :].float(), torch.where(seen, window, 0.0).float()
        try:
            members = self.generator.draw(start, values, seen, rng=rng).to(x)
        except FloatingPointError:  # of some replicate, so of none it is known to be sound
            members = torch.full_like(x[..., of, :], torch.nan)
        sound = (members.abs() < self.bound).all(-1).all(-1)  # NaN compares as False
        calls = float(getattr(self.generator, "evaluations", 0) * self.draws)
        memory.diagnostics["network_calls"] = torch.full_like(members[..., 0, 0], calls)
        memory.diagnostics["draws_lost"] = (~sound).to(x.dtype)
        return members, sound


class PseudoEnKF(ObservationConditioned):
    """One forecast, corrected by the analysis of a pseudo-ensemble: the published form, done right.

    At every analysis the generator draws members from the observations before the newest, which are the prior of a LETKF
    with the newest; every forecast is drawn towards the mean of its analysis,

        x_i <- (1 - blend) x_i + blend mean(analysis).

    The covariances are those of the generative model, so that one forecast is enough. In the released code the
    members are also conditioned on the newest observation, which the LETKF then assimilates a second time. Several
    forecasts are all drawn to the same states, and their spread is meaningless. Draws that are not finite
    leave the forecast as it is ("draws_lost").

    Args:
        dynamics: The model, of states (d).
        generator: Generator of members, as in `GenerativeEnKF`.
        draws: Members of the pseudo-ensemble.
        window: Window of observations, as in `ObservationConditioned`.
        blend: Share of the analysis, in (0, 1].
        localization: Neighbours and taper, as in `LocalizationKeywords`.
        radius: Localization radius, as in `LocalizationKeywords`.
        half_width: Half-width of the taper, as in `LocalizationKeywords`.
        inflation: Factor on the pseudo-ensemble's anomalies before the analysis.
        failure: Treatment of invalid members, as in `Filter`.
        bound: Largest credible value, as in `Filter`; draws beyond it are rejected.

    Raises:
        ValueError: If the generator or the dynamics do not fit, `blend` is no such share, or inflation is not positive.

    Source:
        Asahi et al. (2023), arXiv:2308.06708.
    """

    least = 1

    def __init__(
        self,
        dynamics: Dynamics,
        *,
        generator: Generator,
        draws: int = 32,
        window: int | None = None,
        blend: float = 0.5,
        localization: Near | None = None,
        radius: float | None = None,
        half_width: float | None = None,
        inflation: float = 1.0,
        failure: Failure = "stop",
        bound: float = float("inf"),
    ) -> None:
        super().__init__(
            dynamics,
            generator=generator,
            draws=draws,
            window=window,
            localization=localization,
            radius=radius,
            half_width=half_width,
            failure=failure,
            bound=bound,
        )
        if not 0 < blend <= 1:
            raise InvalidValueError(f"blend must lie in (0, 1], got {blend}.")
        if not inflation > 0:
            raise InvalidValueError(f"inflation must be positive, got {inflation}; 1 inflates nothing.")
        self.blend = blend
        self.anomaly_factor = inflation

    def forecast(self, x: Tensor, memory: Memory, *, rng: Rng = None) -> Tensor:
        """See `Filter.forecast`."""
        if "window" not in memory.carry:
            self.start(x, memory)
        self._shift(memory)
        return super().forecast(x, memory, rng=rng)

    def analyse(
        self, forecast: Tensor, observation: Observation, *, rng: Rng = None, memory: Memory | None = None
    ) -> Tensor:
        """See `Filter.analyse`."""
        memory = Memory() if memory is None else memory
        if "window" not in memory.carry:
            self.start(forecast, memory)
        seen = self._note(observation, memory)
        members, sound = self._drawn(forecast, memory, rng, newest=False)
        members = torch.where(sound[..., None, None], members, 0.0)
        members = members.mean(-2, keepdim=True).lerp(members, self.anomaly_factor)
        # its innovation is that of the pseudo-ensemble: the forecasts have no spread of their own
        analysed = super().analyse(members, observation, rng=rng, memory=memory)
        innovation = memory.diagnostics["innovation"]
        memory.diagnostics["innovation"] = torch.where(sound, innovation, torch.nan)
        share = self.blend * (sound & seen).to(forecast)[..., None, None]
        return forecast + share * (analysed.mean(-2, keepdim=True) - forecast)


def sites_of(observation: Observation, size: int) -> Tensor:
    """Sites selected by an operator, in the order of its values.

    Args:
        observation: Its operator is asked.
        size: Size of the state.

    Returns:
        Indices, (O).

    Raises:
        ValueError: If it does anything but select sites.
    """
    numbers = torch.arange(size, dtype=observation.value.dtype, device=observation.value.device)
    sites = observation.predict(numbers)
    probe = 2.0 + (numbers * _PROBE) % 1.0
    index = sites.round().long().clamp(0, size - 1)
    if not (torch.equal(sites, index.to(sites)) and torch.equal(observation.predict(probe), probe[index])):
        raise InvalidValueError(
            f"the generator takes values at sites of the state, but {observation.operator} returns others; observe "
            "with Identity, Stride, Mask or Select."
        )
    return index
