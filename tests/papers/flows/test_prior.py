"""Laws of the score prior of Kolmogorov flows: symmetries, what the Gaussian is worth, weights that travel."""

import dataclasses

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from slams.core.random import fork
from slams.papers.flows.prior import (
    RATIOS,
    FlowNet,
    FlowObjective,
    build,
    load_covariance,
    load_prior,
    moments_of,
    save_prior,
    share_of_gaussian,
    symmetric,
    train_prior,
)
from slams.systems.flows.kolmogorov import KolmogorovFlow

NET = FlowNet(order=1, size=16, hidden=(6, 8), blocks=(1, 1), lags=4, steps=6, batch=4)


@pytest.fixture(scope="module")
def data():
    flow = KolmogorovFlow(16, 100.0, dtype=torch.float32)
    x = [flow.initial(12, rng=fork(0, "start"))]
    for _ in range(25):
        x.append(flow(x[-1]))
    kept = torch.stack(x[14:], 1)
    return {"train": kept[:8], "valid": kept[8:]}


@pytest.fixture(scope="module")
def trained(data):
    return train_prior(NET, data)


def test_every_symmetry_is_one_of_the_flow():
    """Moved, turned and mirrored fields go where the flow moves them; 32 draws hold each generator many times."""
    flow = KolmogorovFlow(16, 100.0, dtype=torch.float64)
    x = flow.initial(32, rng=fork(0, "x"))
    after = symmetric(flow(x), fork(0, "which"))
    torch.testing.assert_close(flow(symmetric(x, fork(0, "which"))), after, rtol=0, atol=1e-12)
    assert ((after - flow(x)).abs().amax((1, 2, 3)) > 1e-3).sum() >= 30


def test_the_mean_has_the_symmetries_and_is_that_of_symmetric_data(data):
    mean = moments_of(data["train"], 1).mean
    moved = symmetric(mean.expand(32, 2, 16, 16), fork(1, "which"))
    torch.testing.assert_close(moved, mean.expand_as(moved), rtol=0, atol=1e-6)
    x = data["train"].flatten(0, 1)
    many = torch.stack([symmetric(x, fork(2, i)).mean(0) for i in range(100)])
    # 100 averages of 96 dependent fields, 512 numbers: 6 standard errors, a false alarm in 1e6
    error = (many.mean(0) - mean).abs() / (many.std(0) / 10)
    assert error.max() < 6


def test_the_gaussian_makes_the_error_that_is_expected_of_it():
    """Draws of the Gaussian itself: mean error of 400 windows within 6 standard errors at each of four noise levels."""
    rng = fork(0, "gaussian")
    flow = KolmogorovFlow(16, 100.0)
    x = symmetric(torch.stack([flow.initial(200, rng=rng)] * 4, 1), rng)
    x = x + 0.3 * symmetric(torch.stack([flow.initial(200, rng=rng) for _ in range(4)], 1), rng)
    net = dataclasses.replace(NET, hidden=())
    moments = moments_of(x, 4)
    denoiser, objective = build(net, moments), FlowObjective(net, moments)
    windows = x[:, :3]
    for place in (0.1, 0.4, 0.7, 0.9):
        ratio = RATIOS[0] * (RATIOS[1] / RATIOS[0]) ** place
        times = objective.schedule.time(torch.tensor(1 / ratio)).expand(200)
        errors = objective.errors(denoiser, windows, times, rng)
        expected = float(objective.gaussian(times)[0])
        assert abs(float(errors.mean()) - expected) < 6 * float(errors.std()) / 200**0.5 + 0.02 * expected


def test_an_untrained_net_is_the_gaussian(data):
    moments = moments_of(data["train"], NET.lags)
    untrained = build(NET, moments)
    gaussian = build(dataclasses.replace(NET, hidden=()), moments)
    x_t = torch.randn(2, 5, 2, 16, 16, generator=fork(0, "x_t"))
    torch.testing.assert_close(untrained(x_t, torch.tensor(0.4)), gaussian(x_t, torch.tensor(0.4)))


def test_a_net_can_learn_what_the_gaussian_cannot(data):
    """Steps on the same windows and noise over and over bring the error below the Gaussian's."""
    x = data["train"][:4, :3]
    moments = moments_of(data["train"], NET.lags)
    denoiser, objective = build(NET, moments), FlowObjective(NET, moments)
    shares = share_of_gaussian(NET, denoiser, moments, x, ratios=(0.1, 1.0))
    assert shares == pytest.approx({0.1: 1.0, 1.0: 1.0}, rel=1e-5)
    optimiser = torch.optim.Adam(denoiser.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        losses.append(objective(denoiser, x, fork(0, "same")))
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < 0.9 * losses[0]


def test_a_killed_training_goes_on_to_the_same_weights(data, trained, tmp_path, monkeypatch):
    denoiser, _, history = trained
    checkpoint = tmp_path / "resume"
    count = [0]
    whole = FlowObjective.__call__

    def dying(self, *args):
        count[0] += torch.is_grad_enabled()
        if count[0] == 4:
            raise KeyboardInterrupt
        return whole(self, *args)

    monkeypatch.setattr(FlowObjective, "__call__", dying)
    with pytest.raises(KeyboardInterrupt):
        train_prior(NET, data, checkpoint)
    monkeypatch.setattr(FlowObjective, "__call__", whole)
    resumed, _, again = train_prior(NET, data, checkpoint)
    assert again.rows[-1] == history.rows[-1]
    for name, value in denoiser.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value)


def test_weights_come_back_with_moments_to_their_precision(data, trained, tmp_path):
    """Weights are kept in half precision: denoised fields change by its rounding, covariances not at all."""
    denoiser, moments, _ = trained
    path = tmp_path / "net.safetensors"
    save_prior(path, NET, denoiser, moments, archive="small")
    loaded, facts = load_prior(path)
    assert facts["archive"] == "small"
    x_t = torch.randn(2, 5, 2, 16, 16, generator=fork(0, "x_t"))
    for t in (0.1, 0.5, 0.9):
        torch.testing.assert_close(
            loaded(x_t, torch.tensor(t)), denoiser(x_t, torch.tensor(t)), rtol=0, atol=3e-3
        )
    covariance = load_covariance(path, 4)
    values = torch.linalg.eigvalsh(moments.quarter[1, 2])
    torch.testing.assert_close(covariance.values[1, 2], values.float(), rtol=1e-6, atol=1e-6)
    assert load_covariance(path, 9).length == 9


def test_weights_of_another_architecture_are_refused(trained, tmp_path):
    denoiser, moments, _ = trained
    path = tmp_path / "net.safetensors"
    save_prior(path, dataclasses.replace(NET, hidden=(8, 8)), denoiser, moments)
    with pytest.raises(ValueError, match="do not fit its settings"):
        load_prior(path)
    save_prior(path, NET, denoiser, moments)
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file(tensors, path, {"net": '{"width": 3}'})
    with pytest.raises(ValueError, match="do not fit its settings"):
        load_prior(path)
    path.write_bytes(b"not weights")
    with pytest.raises(ValueError, match="is not a valid safetensors file"):
        load_prior(path)
    with pytest.raises(FileNotFoundError, match="--train"):
        load_prior(tmp_path / "none.safetensors")


def test_the_published_net_has_its_parameters(data):
    moments = moments_of(torch.zeros(1, 12, 2, 64, 64), 12)
    denoiser = build(FlowNet(published=True), moments)
    assert sum(p.numel() for p in denoiser.parameters()) == 22_874_922


def test_a_net_without_its_window_is_told():
    with pytest.raises(ValueError, match="order"):
        FlowNet(order=0)
    with pytest.raises(ValueError, match="order"):
        FlowNet(order=6)
