"""Every method follows a model that varies in time (`Dynamics.advance`): none forecasts with a frozen one."""

import math

import pytest
import torch

from slams.assimilation import (
    EKF,
    ETKF,
    AuxiliaryPF,
    BootstrapPF,
    DEnKF,
    EnKF,
    EnKFN,
    EnKS,
    EnSF,
    FourDVar,
    IEnKS,
    Nudging,
    ThreeDVar,
)
from slams.core.covariance import Isotropic
from slams.observation import Survey, operators
from slams.systems.base import Dynamics

C = torch.eye(2, dtype=torch.float64)


class Season(Dynamics):
    """x_{k+1} = 0.9 x_k + 3 sin(2 pi k / 10): the forcing moves a state by up to 3, the noise of a value is 1."""

    state_shape, dt = (2,), 1.0

    def initial(self, *shape, rng=None):
        return torch.randn(*shape, 2, generator=rng, dtype=torch.float64)

    def forward(self, x, *, rng=None):
        return 0.9 * x

    def advance(self, x, k, *, rng=None):
        return self(x, rng=rng) + 3 * math.sin(2 * math.pi * k / 10)


METHODS = {
    "EnKF": (lambda s: EnKF(s), 40),
    "ETKF": (lambda s: ETKF(s), 40),
    "DEnKF": (lambda s: DEnKF(s), 40),
    "EnKFN": (lambda s: EnKFN(s), 40),
    "EnSF": (lambda s: EnSF(s), 40),
    "EnKS": (lambda s: EnKS(s, lag=3), 40),
    "IEnKS": (lambda s: IEnKS(s, lag=2), 40),
    "IEnKS, lag 0": (lambda s: IEnKS(s, lag=0), 40),
    "EKF": (lambda s: EKF(s), 40),
    "ThreeDVar": (lambda s: ThreeDVar(s, C), 1),
    "FourDVar": (lambda s: FourDVar(s, C, window=5), 1),
    "Nudging": (lambda s: Nudging(s, gain=0.3), 1),
    "BootstrapPF": (lambda s: BootstrapPF(s, jitter=0.3), 400),
    "AuxiliaryPF": (lambda s: AuxiliaryPF(s, jitter=0.3), 400),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_follows_a_model_that_varies_in_time(name):
    """Errors stay below 1, that of the raw observations; with a frozen model they are 2.7 to 3.6."""
    season = Season()
    rng = torch.Generator().manual_seed(0)
    truth = season.trajectory(season.initial(8, rng=rng), 60, rng=rng)
    survey = Survey(operators.Identity(event=1), Isotropic(1.0), every=2, start=1)
    observations = survey.observe(truth, rng=rng)
    build, members = METHODS[name]
    posterior = build(season).assimilate(observations, members, rng=1, keep="moments")
    assert float((posterior.mean - truth).square().mean().sqrt()) < 1.0
