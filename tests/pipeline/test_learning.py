"""Lines about a training that learnt nothing, and a network that does not pass for an improvement."""

import numpy as np
import pytest
import torch
from torch import nn

from slams.diffusion.denoiser import NetworkDenoiser, WindowGaussian
from slams.diffusion.schedule import VPCosine
from slams.pipeline.model.learning import KEPT, judged, learning_notes, noise_losses
from slams.pipeline.model.model import Model
from slams.pipeline.model.prior import REPLACED

DAYS = np.datetime64("2001-01-01") + 5 * np.arange(60)


class Correction(nn.Module):
    """What turns the closed form of variance 1 into that of `variance`, exactly, plus noise of its own."""

    def __init__(self, variance: float) -> None:
        super().__init__()
        self.variance = variance

    def forward(self, x_t, linear, t):
        alpha, sigma = VPCosine()(t)
        right = alpha * self.variance / (alpha**2 * self.variance + sigma**2)
        return (right * x_t - linear) * (alpha**2 + sigma**2).sqrt() / sigma


def findings(network: nn.Module, variance: float, rng: torch.Generator) -> dict:
    one = torch.ones(1, 1)
    gaussian = WindowGaussian(one, one, 1e-3, (1,), VPCosine())
    train, fresh = (variance**0.5 * torch.randn(60, 1, 1, generator=rng) for _ in range(2))
    denoiser = NetworkDenoiser(gaussian, network)
    closed, own = (noise_losses(denoiser, part, 0, corrected=False) for part in (fresh, train))
    return judged(own.mean(), closed.mean(), closed, noise_losses(denoiser, fresh, 0), DAYS)


def test_a_network_that_is_better_is_kept_and_one_that_is_not_is_replaced(rng):
    """Data of variance 0.1 under a closed form of variance 1: the right correction removes a fifth of the loss."""
    better = findings(Correction(0.1), 0.1, rng)
    assert better["network"] == KEPT and better["gain"][1] > 0.15
    worse = findings(Correction(0.1), 1.0, rng)
    assert worse["network"] == REPLACED and worse["gain"][0] < 0


def test_a_network_without_effect_is_replaced(rng):
    class Nothing(nn.Module):
        def forward(self, x_t, linear, t):
            return torch.zeros_like(x_t)

    found = findings(Nothing(), 1.0, rng)
    assert found["network"] == REPLACED and found["gain"] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("factor", [0.5, 32.0])
def test_a_factor_at_the_end_of_its_grid_is_told(factor, world):
    model = Model.load(world.run)
    model.prior.factors = dict.fromkeys(model.prior.factors, 2.0)
    before = [note for note in learning_notes(model, world.run) if note.startswith("calibration")]
    model.prior.factors["coarse"] = factor
    (note,) = [note for note in learning_notes(model, world.run) if note.startswith("calibration")]
    assert before == [] and f"the error of coarse is x {factor:g}" in note and "try" in note.lower()


def test_a_spread_at_its_limit_is_told(world):
    model = Model.load(world.run)
    for factors, label in ((1.5, "all sets"), ({"few": 1.5, "both": 1.2}, "few")):
        model.prior.inflation = factors
        assert [n for n in learning_notes(model, world.run) if f"the spread of {label} is x 1.5" in n]


@pytest.mark.parametrize(
    ("days", "losses", "told"),
    [(1000, [0.05, 11.0], True), (17, [0.05, 0.05], True), (1000, [0.05, 0.06], False)],
)
def test_a_gaussian_fitted_to_too_few_days_is_told(days, losses, told, world):
    """Six patterns over three days are 18 coefficients."""
    model = Model.load(world.run)
    model.prior.learning |= {"days": days, "loss": losses}
    notes = [
        note
        for note in learning_notes(model, world.run)
        if note.startswith("closed-form Gaussian: 6 patterns")
    ]
    assert bool(notes) == told


def test_a_best_step_of_zero_is_told(world, tmp_path):
    model = Model.load(world.run)
    for best, told in ((0, True), (10, False)):
        losses = {step: 0.5 if step == best else 1.0 for step in (0, 10, 20)}
        rows = "[" + ", ".join(f"[{step}, 1.0, {loss}]" for step, loss in losses.items()) + "]"
        (tmp_path / "history.json").write_text('{"autoencoder": ' + rows + "}")
        notes = [n for n in learning_notes(model, tmp_path) if n.startswith("training of the autoencoder")]
        assert bool(notes) == told
