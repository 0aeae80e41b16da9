"""Laws of every filter and smoother; a method that is listed inherits them."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import slams.assimilation as methods
from slams.assimilation import Filter
from slams.core.covariance import Diagonal
from slams.core.geometry.localization import Localization
from slams.core.random import normal
from slams.observation import Observations, Survey, operators
from slams.systems import Lorenz96

D = 8
DOUBLE = torch.float64
SYSTEM = Lorenz96(D, dtype=DOUBLE)
MEAN, B = torch.full((D,), 2.3, dtype=DOUBLE), 13.0 * torch.eye(D, dtype=DOUBLE)
NEAR = Localization.periodic(D, torch.arange(0, D, 2, dtype=DOUBLE), 2.0)
PATCH = Localization.periodic(D, torch.arange(D, dtype=DOUBLE), 1.5)


class Drawn:
    """Stands for a generative model: its mean is what was seen last, 2.3 where nothing was."""

    memory, size, evaluations = 3, D, 4

    def draw(self, x: Tensor, values: Tensor, seen: Tensor, *, rng: torch.Generator | None = None) -> Tensor:
        mean = torch.where(seen, values, 2.3).mean(-2, keepdim=True)
        return mean + normal(x.shape, like=x, rng=rng)


# name -> (constructor, whether it draws random numbers in an analysis)
METHODS: dict[str, tuple[Callable[[], Filter], bool]] = {
    "Climatology": (lambda: methods.Climatology(SYSTEM, MEAN, B), False),
    "Persistence": (lambda: methods.Persistence(SYSTEM), True),
    "FreeRun": (lambda: methods.FreeRun(SYSTEM), False),
    "Nudging": (lambda: methods.Nudging(SYSTEM, gain=0.3), False),
    "OptInterp": (lambda: methods.OptInterp(SYSTEM, MEAN, B), False),
    "ThreeDVar": (lambda: methods.ThreeDVar(SYSTEM, B, scale=0.1), False),
    "FourDVar": (lambda: methods.FourDVar(SYSTEM, B, scale=0.1, window=3), False),
    "EKF": (lambda: methods.EKF(SYSTEM, inflation=3.0), False),
    "EnKF": (lambda: methods.EnKF(SYSTEM, inflation=1.05), True),
    "ETKF": (lambda: methods.ETKF(SYSTEM, inflation=1.05), False),
    "ETKF rotated": (lambda: methods.ETKF(SYSTEM, adaptive=True, rotate=True), True),
    "DEnKF": (lambda: methods.DEnKF(SYSTEM, rtps=0.3), False),
    "EnKFN": (lambda: methods.EnKFN(SYSTEM), False),
    "LETKF": (lambda: methods.LETKF(SYSTEM, localization=NEAR, inflation=1.05), False),
    "LETKF iterated": (lambda: methods.LETKF(SYSTEM, localization=NEAR, iterations=2), False),
    "BiasAwareLETKF": (
        lambda: methods.BiasAwareLETKF(SYSTEM, localization=NEAR, inflation=1.05, closure=5),
        False,
    ),
    "EAKF": (lambda: methods.EAKF(SYSTEM, localization=NEAR, inflation=1.05), False),
    "EnSF": (lambda: methods.EnSF(SYSTEM, inflation=1.05, steps=6), False),
    "EnSF local": (lambda: methods.EnSF(SYSTEM, localization=NEAR, patch=PATCH, steps=6), False),
    "EnSF stochastic": (lambda: methods.EnSF(SYSTEM, stochastic=True, steps=6), True),
    "DampedEnSF": (lambda: methods.DampedEnSF(SYSTEM, tolerance=0.1, rtps=0.5), True),
    "SingleMemberEnSF": (lambda: methods.SingleMemberEnSF(SYSTEM, error=0.1, rtps=0.5), True),
    "SSLS": (lambda: methods.SSLS(SYSTEM, inflation=1.05), True),
    "GenerativeEnKF": (
        lambda: methods.GenerativeEnKF(SYSTEM, generator=Drawn(), localization=NEAR, horizon=5, closure=5),
        True,
    ),
    "PseudoEnKF": (lambda: methods.PseudoEnKF(SYSTEM, generator=Drawn(), localization=NEAR), True),
    "EnKS": (lambda: methods.EnKS(SYSTEM, lag=3), True),
    "EnKS etkf": (lambda: methods.EnKS(SYSTEM, lag=3, variant="etkf"), False),
    "IEnKS": (lambda: methods.IEnKS(SYSTEM, lag=2, iterations=3), False),
    "IEnKS smoother": (lambda: methods.IEnKS(SYSTEM, lag=2, iterations=3, output="smoother"), False),
    "BootstrapPF": (lambda: methods.BootstrapPF(SYSTEM, jitter=0.5), True),
    "AuxiliaryPF": (lambda: methods.AuxiliaryPF(SYSTEM, jitter=0.5), True),
}
STEPS, REPLICATES, SIZE = 12, 3, 10
ROUNDING = 1e-7  # chaos lets rounding grow, and an iteration ends for all replicates at once


class Killed(Exception):
    """Stands for a signal."""


@pytest.fixture(scope="module")
def twin() -> tuple[Observations, Tensor]:
    """Every second site seen with variance 1/4, one step not at all, one value missing; and a first ensemble."""
    rng = torch.Generator().manual_seed(5)
    start = SYSTEM.trajectory(SYSTEM.initial(REPLICATES, rng=rng), 80)[:, -1]
    truth = SYSTEM.trajectory(start, STEPS - 1)
    noise = Diagonal(torch.full((D // 2,), 0.25, dtype=DOUBLE))
    times = [k for k in range(STEPS) if k != 5]
    seen = Survey(operators.Stride(2), noise, times=times).observe(truth, rng=rng)
    seen["observation"].value[1, 7, 2] = torch.nan
    x0 = start[:, None] + normal((REPLICATES, SIZE, D), like=start, rng=rng)
    return seen, x0


def run(name: str, observations: Observations, x0: Tensor, **settings) -> methods.Posterior:
    rng = torch.Generator().manual_seed(7)
    return METHODS[name][0]().assimilate(observations, SIZE, x0=x0, rng=rng, **settings)


def test_every_filter_of_the_package_is_listed():
    listed = {type(build()) for build, _ in METHODS.values()}
    there = {
        thing
        for name in methods.__all__
        if isinstance(thing := getattr(methods, name), type)
        and issubclass(thing, Filter)
        and thing not in (Filter, methods.EnsembleKalman)
    }
    assert listed == there


@pytest.mark.parametrize("name", METHODS)
def test_killed_and_resumed_equals_uninterrupted(name, twin, tmp_path):
    """Bit for bit, whatever a method carries: weights, covariances, windows of the past, inflation."""
    whole = run(name, *twin)

    def kill(k: int) -> None:
        if k == 7:
            raise Killed

    path = tmp_path / "run.safetensors"
    with pytest.raises(Killed):
        run(name, *twin, checkpoint=path, every=3, progress=kill)
    done = []
    resumed = run(name, *twin, checkpoint=path, every=3, progress=done.append)
    assert done[0] == 6
    for attribute in ("samples", "mean", "variance"):
        assert torch.equal(getattr(whole, attribute), getattr(resumed, attribute))
    assert whole.diagnostics.keys() == resumed.diagnostics.keys()
    for key, value in whole.diagnostics.items():
        assert torch.equal(torch.nan_to_num(value, 99.0), torch.nan_to_num(resumed.diagnostics[key], 99.0))


@pytest.mark.parametrize("name", METHODS)
def test_the_seed_in_the_posterior_repeats_the_run_and_the_global_generator_is_left_alone(name, twin):
    build, before = METHODS[name][0], torch.get_rng_state()
    fresh = build().assimilate(twin[0], SIZE, x0=twin[1])
    again = build().assimilate(twin[0], SIZE, x0=twin[1], rng=fresh.seed)
    assert again.seed == fresh.seed
    assert torch.equal(again.samples, fresh.samples)
    assert torch.equal(before, torch.get_rng_state())
    if METHODS[name][1]:
        other = build().assimilate(twin[0], SIZE, x0=twin[1], rng=fresh.seed + 1)
        assert not torch.equal(other.samples, fresh.samples)


@pytest.mark.parametrize("name", METHODS)
def test_every_step_is_believed_and_every_analysis_reports_its_innovation(name, twin):
    post = run(name, *twin)
    assert torch.isfinite(post.mean).all()
    assert torch.isfinite(post.samples).all()
    innovation = post.diagnostics["innovation"]
    seen = torch.tensor([k != 5 for k in range(STEPS)])
    assert torch.isfinite(innovation[:, seen]).all()
    assert torch.isnan(innovation[:, 5]).all()


@pytest.mark.parametrize("name", [name for name, (_, draws) in METHODS.items() if not draws])
def test_replicates_do_not_know_each_other(name, twin):
    """The second of three replicates alone gives what it gave among the others."""
    observations, x0 = twin
    o = observations["observation"]
    alone = Observations({"observation": replace(o, value=o.value[1:2])})
    together, single = run(name, observations, x0), run(name, alone, x0[1:2])
    torch.testing.assert_close(together.mean[1:2], single.mean, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(together.variance[1:2], single.variance, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("name", [name for name, (_, draws) in METHODS.items() if not draws])
def test_circle_has_no_first_site(name, twin):
    """Shifting states and observations by two sites shifts the result: grids, localization and all."""
    observations, x0 = twin
    o = observations["observation"]
    shifted = Observations({"observation": replace(o, value=o.value.roll(1, -1))})
    found = run(name, shifted, x0.roll(2, -1))
    expected = run(name, observations, x0)
    if name == "EAKF":  # serial: with localization the order of observations matters, slightly
        torch.testing.assert_close(found.mean, expected.mean.roll(2, -1), rtol=0, atol=0.3)
        return
    torch.testing.assert_close(found.mean, expected.mean.roll(2, -1), rtol=0, atol=ROUNDING)
    torch.testing.assert_close(found.variance, expected.variance.roll(2, -1), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("name", [name for name, (_, draws) in METHODS.items() if not draws])
def test_members_have_no_order(name, twin):
    observations, x0 = twin
    order = torch.randperm(SIZE, generator=torch.Generator().manual_seed(1))
    found, expected = run(name, observations, x0[:, order]), run(name, observations, x0)
    torch.testing.assert_close(found.mean, expected.mean, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(found.variance, expected.variance, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("name", [n for n in METHODS if n not in ("Climatology", "Persistence", "FreeRun")])
def test_observations_help(name, twin):
    """Over the observed steps the mean is closer to the observations' truth than that of a free run."""
    observations, x0 = twin
    value = observations["observation"].value
    free, found = run("FreeRun", observations, x0), run(name, observations, x0)

    def misfit(post: methods.Posterior) -> Tensor:
        return (post.mean[..., ::2] - value)[:, 6:].nan_to_num().square().mean()

    assert misfit(found) < 0.7 * misfit(free)


@pytest.mark.parametrize("name", METHODS)
def test_wrong_operator_is_told(name, twin):
    """Values that do not match what the operator gives: an error that names both shapes."""
    observations, x0 = twin
    wrong = replace(observations["observation"], operator=operators.Identity())
    with pytest.raises(ValueError, match=r"\(8,\).*\(4,\)"):
        run(name, Observations({"observation": wrong}), x0)
