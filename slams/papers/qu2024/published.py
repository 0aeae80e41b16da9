"""Published mode: pseudo-observations degraded in the latent, the U-Net alone as prior, one sample."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from slams.assimilation.score.sda import SDA
from slams.core.covariance import Isotropic
from slams.core.random import fork, normal
from slams.diffusion.guidance.sda import GaussianGuidance
from slams.diffusion.sampler import Sampler
from slams.diffusion.trajectory import MarkovBlanket
from slams.evaluation.metrics import wasserstein
from slams.observation.observation import Observation, Observations
from slams.papers.qu2024.archive import STATE, Climate, Truths
from slams.papers.qu2024.observing import latent_operator
from slams.papers.qu2024.plan import Qu2024Plan, Setting
from slams.papers.qu2024.prior import ModelPrior


class LatentOperator(nn.Module):
    """`latent_operator` with its values in one axis, (*B, C, H, W) -> (*B, P)."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.setting = setting

    def forward(self, z: Tensor) -> Tensor:  # noqa: D102
        return latent_operator(self.setting, z).flatten(-3)


def pseudo_observations(
    plan: Qu2024Plan, prior: ModelPrior, setting: Setting, truths: Truths
) -> Observations:
    """The dense truth and auxiliary modalities, encoded, degraded in the latent, with errors added there.

    Blocks are seen on frames, single cells on all days, as published.

    Returns:
        One observation "latent", values (R, T, P).
    """
    operator = LatentOperator(setting)
    exact = operator(prior.encoded(truths.anomalies))
    std = setting.std if setting.kind == "noise" else plan.published.std
    y = exact + std * normal(exact.shape, rng=fork(plan.seed, "pseudo", prior.name, setting.name))
    if setting.kind != "sparse":
        unseen = torch.ones(plan.length, dtype=torch.bool)
        unseen[plan.frames] = False
        y[:, unseen] = torch.nan
    return Observations({"latent": Observation(y, operator, Isotropic(std**2))})


@torch.no_grad()
def sampled(plan: Qu2024Plan, prior: ModelPrior, setting: Setting, truths: Truths) -> Tensor:
    """One decoded sample of each trajectory, standardized anomalies (R, T, C, H, W).

    The noise estimate of the U-Net, composed of windows, is guided by SDA with one gamma; neither the closed form nor
    what patterns leave is used.
    """
    p = plan.published
    sampler = Sampler(p.steps, corrections=p.corrections, tau=p.tau)
    method = SDA(
        MarkovBlanket(prior.unet, plan.prior.window), sampler, guidance=GaussianGuidance(p.gamma),
        event=prior.codec.event, rows=1, dtype=torch.float32,
    )  # fmt: skip
    observations = pseudo_observations(plan, prior, setting, truths)
    rng = fork(plan.seed, "published", prior.name, setting.name)
    draws = method.assimilate(observations, 1, rng=rng).samples
    assert draws is not None
    z = draws[:, 0]
    return prior.codec.decode(z.flatten(0, 1), STATE).unflatten(0, z.shape[:2])


def normalised(climate: Climate, x: Tensor, phase: Tensor) -> Tensor:
    """Published units: (value - mean) / deviation of all values of a level, from anomalies (*B, T, C, H, W)."""
    physical = climate.statistics[STATE].decode(x, phase)
    return (physical - climate.mean[:, None, None]) / climate.std[:, None, None]


def distances(x: Tensor, truth: Tensor) -> Mapping[str, Tensor]:
    """Published metric and RMSE by level, (C), of fields (T, C, H, W) in published units.

    W1 of the pooled values of all frames and cells, unweighted; RMSE by cells too.
    """
    flat, exact = (v.transpose(0, 1).flatten(1) for v in (x, truth))
    w1 = [wasserstein(a[None], b, torch.ones(len(b))) for a, b in zip(flat, exact, strict=True)]
    return {"w1": torch.stack(w1), "rmse": (flat - exact).square().mean(1).sqrt()}


def elsewhere(x: Tensor) -> Tensor:
    """Fields turned half round the globe: all values at the wrong longitude, the same histogram."""
    return x.roll(x.shape[-1] // 2, -1)
