"""The generative ensemble Kalman filter: a LETKF with a pseudo-ensemble beside it, for models that are wrong.

A model with a wrong coefficient makes forecasts that are wrong in the same way at every step, which no covariance of its
own members shows. A generative model of the state given the last observations cannot drift away with it: its members
are a second opinion, and what the forecasts of these members miss is a sample of the model's error.
"""

from typing import Unpack

import torch
from torch import Tensor

from slams.assimilation.ensemble.bias_aware import Mean, begin_increments, evened, note_increment
from slams.assimilation.ensemble.local import LocalizationKeywords
from slams.assimilation.ensemble.pseudo import Generator, ObservationConditioned
from slams.assimilation.memory import Memory
from slams.core.errors import InvalidValueError
from slams.core.random import Rng
from slams.observation.observation import Observation
from slams.systems.base import Dynamics


class GenerativeEnKF(ObservationConditioned):
    """LETKF with a pseudo-ensemble as its second opinion and as a measure of the model's error.

    Beside its members x_i the filter carries pseudo-members g_j, drawn after each analysis from p(g | y_k, y_{k-1}, ...)
    by the generative model. The model forecasts both, and both are corrected by its estimated error e:

        x_i <- M(x_i) + e,    p_j = M(g_j) + e.

    The forecasts are merged at each site, with variances s^2 of the members and q^2 of the pseudo-members,

        r = trust s^2 / q^2,   mean <- mean + r / (1 + r) (mean p - mean),   anomalies <- anomalies / sqrt(1 + r),

    and analysed as by the `LETKF`. A diverged ensemble with a large spread is so corrected; one with a small spread
    is hardly changed. The observations that g is conditioned on are older than the one assimilated, which is used once;
    `trust` below 1 accounts for the older ones shared by both ensembles.

    The error is e = gain u + v. With n steps since the last draw and new draws g',

        u averages (mean g' - mean p) / n + e            over `horizon` analyses,
        v averages (analysis - merged forecast) / n + v   over `closure` analyses.

    u is independent of the filter's accuracy. In the long run it is the mean of g - M(g): 0 if the draws follow the law
    of the model's own states, and the whole error if they follow that of the truth. The fewer observations, the more they
    follow the former, for which `gain` compensates. v, the mean increment, needs no generator. Site by site
    both are shrunk towards their mean over the sites as in `BiasAwareLETKF`: a homogeneous error is averaged over all
    sites, a heterogeneous one is kept.

    With trust, horizon and closure 0 nothing is drawn and the filter is the `LETKF`; with trust and horizon 0 it is a
    `BiasAwareLETKF`, without draws. A draw that is not finite leaves the pseudo-members the forecast that
    they were (diagnostic "draws_lost", 1 at such steps); an observation without a value leaves them, too. "model_error"
    is the mean of e over the sites, "trusted" the mean of r / (1 + r).

    Args:
        dynamics: The model, of states (d).
        generator: Draws members given observations of single sites, with the errors that it was trained with.
        draws: Pseudo-members.
        window: Window of observations, as in `ObservationConditioned`.
        trust: Weight of the pseudo-members' forecast relative to their precision; 0 for none.
        horizon: Analyses over which u is averaged; 0 for none.
        gain: Factor on u.
        closure: Analyses over which v is averaged; 0 for none.
        uniform: Whether the error is homogeneous. Where only some are observed, draws are nearer to
            the model's law at the others, which a `gain` would take for differences between sites.
        common: Keywords of `LocalizationKeywords`; draws beyond `bound` are rejected.

    Raises:
        ValueError: If the generator or the dynamics do not fit, or trust, horizon, gain or closure are negative.

    Source:
        Pseudo-ensembles: Asahi et al. (2023), arXiv:2308.06708. Error of the model from mean increments: Dee & da Silva
        (1998), doi:10.1002/qj.49712454512.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        *,
        generator: Generator,
        draws: int = 8,
        window: int | None = None,
        trust: float = 1.0,
        horizon: int = 200,
        gain: float = 1.0,
        closure: int = 0,
        uniform: bool = False,
        **common: Unpack[LocalizationKeywords],
    ) -> None:
        super().__init__(
            dynamics,
            generator=generator,
            draws=draws,
            window=window,
            **common,
        )
        if min(trust, horizon, gain, closure) < 0:
            raise InvalidValueError(
                f"trust, horizon, gain and closure must not be negative, got {trust}, {horizon}, {gain} and {closure}; "
                "0 leaves each out."
            )
        self.trust, self.horizon, self.gain, self.closure = trust, horizon, gain, closure
        self.uniform = uniform

    @property
    def asks(self) -> bool:
        """Whether the generator is asked at all."""
        return self.trust > 0 or self.horizon > 0

    def start(self, x: Tensor, memory: Memory) -> Tensor:
        """See `Filter.start`."""
        begin_increments(x, memory)
        Mean.blank(x[..., 0, :]).put("draws", memory)
        if not self.asks:
            return x
        memory.carry["pseudo"] = x[..., torch.arange(self.draws, device=x.device) % x.shape[-2], :].clone()
        memory.carry["conditioned"] = torch.zeros_like(
            x[..., 0, 0]
        )  # 1 where the pseudo-members come from draws
        return super().start(x, memory)

    def forecast(self, x: Tensor, memory: Memory, *, rng: Rng = None) -> Tensor:
        """See `Filter.forecast`; of both ensembles."""
        if "age" not in memory.carry:
            self.start(x, memory)
        carry, size = memory.carry, x.shape[-2]
        both = torch.cat([x, carry["pseudo"]], -2) if self.asks else x
        both = super().forecast(both, memory, rng=rng)
        if self.horizon or self.closure:
            both = both + self._error(memory).unsqueeze(-2)
        carry["age"] = carry["age"] + 1
        if not self.asks:
            return both
        x, pseudo = both[..., :size, :], both[..., size:, :]
        sound = (pseudo.abs() < self.bound).all(-1).all(-1)
        carry["pseudo"] = torch.where(sound[..., None, None], pseudo, carry["pseudo"])
        carry["conditioned"] = carry["conditioned"] * sound
        self._shift(memory)
        return x

    def analyse(
        self, forecast: Tensor, observation: Observation, *, rng: Rng = None, memory: Memory | None = None
    ) -> Tensor:
        """See `Filter.analyse`."""
        memory = Memory() if memory is None else memory
        if "age" not in memory.carry:
            self.start(forecast, memory)
        merged = forecast
        if self.trust:
            trust = self.trust * memory.carry["conditioned"]
            merged, memory.diagnostics["trusted"] = merge(forecast, memory.carry["pseudo"], trust)
        analysis = super().analyse(merged, observation, rng=rng, memory=memory)
        age = memory.carry["age"]
        note_increment(merged, analysis, observation, memory, self.closure, self.bound)
        if self.asks:
            self._draw_anew(analysis, observation, age, memory, rng)
        if self.horizon or self.closure:
            memory.diagnostics["model_error"] = self._error(memory).mean(-1)
        return analysis

    def _draw_anew(
        self, analysis: Tensor, observation: Observation, age: Tensor, memory: Memory, rng: Rng
    ) -> None:
        """New pseudo-members, and what the forecast of the old ones missed in the `age` steps since the last, (*B)."""
        carry = memory.carry
        seen = self._note(observation, memory)
        members, sound = self._drawn(analysis, memory, rng)
        fresh = sound & seen
        if self.horizon:
            missed = (members - carry["pseudo"]).mean(-2) / age.clamp(min=1).unsqueeze(-1)
            known = fresh & (carry["conditioned"] > 0) & (age > 0)
            sample = missed + self._error(memory)
            Mean.get("draws", memory).updated(sample, known, self.horizon).put("draws", memory)
        carry["pseudo"] = torch.where(fresh[..., None, None], members, carry["pseudo"])
        carry["conditioned"] = torch.maximum(carry["conditioned"], fresh.to(analysis))

    def _error(self, memory: Memory) -> Tensor:
        """Estimate of the model's error in one step, (*B, d)."""
        missed = Mean.get("draws", memory).estimate(self.horizon)
        error = self.gain * missed + Mean.get("increments", memory).estimate(self.closure)
        return evened(error, self.uniform)


def merge(x: Tensor, pseudo: Tensor, trust: Tensor) -> tuple[Tensor, Tensor]:
    """Two forecasts made one, site by site, weighted by their precision.

    mean <- mean + r / (1 + r) (mean p - mean), anomalies <- anomalies / sqrt(1 + r), r = trust s^2 / q^2: the Kalman
    update by an observation mean p of the mean with variance q^2 / trust.

    Args:
        x: Members, (*B, N, d).
        pseudo: Members of the other, (*B, N', d).
        trust: Weight, (*B).

    Returns:
        (*B, N, d), and the mean of r / (1 + r) over the sites, (*B).

    >>> merge(torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [6.0]]), torch.tensor(1.0))[0].mean(0)
    tensor([3.])
    """
    mean, limits = x.mean(-2, keepdim=True), torch.finfo(x.dtype)
    spread = pseudo.var(-2, keepdim=True).clamp(min=limits.tiny)
    # members all alike, on either side, leave a ratio that is finite, before trust 0 could make NaN of it
    ratio = (x.var(-2, keepdim=True) / spread).clamp(max=1 / limits.eps) * trust[..., None, None]
    share = ratio / (1 + ratio)
    merged = mean + share * (pseudo.mean(-2, keepdim=True) - mean) + (x - mean) * (1 + ratio).rsqrt()
    return merged, share.mean((-2, -1))
