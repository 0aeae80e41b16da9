"""The generative model of Lorenz-96: its training data by their laws, the shipped weights on runs they never saw."""

import dataclasses

import pytest
import torch

from slams.core.random import fork, normal
from slams.systems.lorenz import Lorenz96
from slams.twin import generator
from slams.twin.generator import (
    FILE,
    GeneratorSettings,
    load_generator,
    masks,
    states,
    train_generator,
    windows,
)

TINY = GeneratorSettings(
    learning_rate=1e-2,
    ema=0.9,
    memory=3,
    features=4,
    encoder=(6, 8, 8),
    hidden=(6, 8, 8),
    runs=8,
    length=40,
    steps=40,
    batch=8,
    seed=3,
)
N, MEMBERS = 96, 9  # states held out, draws of each


def test_windows_are_pieces_of_runs_newest_first():
    """A step of the model leads from each state to the one before it in the window, wherever the ring was cut."""
    x = states(TINY, 4, 30, "law").double()
    piece = windows(x, 50, 3, fork(0, "windows"))
    stepped = Lorenz96(40, 8.0, 0.05)(piece[:, 1:])
    torch.testing.assert_close(stepped, piece[:, :-1], rtol=0, atol=1e-4)
    assert len({round(float(first), 4) for first in piece[:, 0, 0]}) > 40  # not one window again and again


def test_runs_are_on_the_attractor_of_their_forcing_and_differ_by_label():
    """Energy balance of a stationary run, <x^2> = F <x>, within 3 % for 64 runs of 10 units (sampling error 0.6 %)."""
    for forcing in (5.0, 8.0):
        x = states(TINY, 64, 200, "law", forcing=forcing)
        assert abs(float(x.square().mean() / (forcing * x.mean())) - 1) < 0.03
    assert not torch.equal(states(TINY, 2, 3, "train"), states(TINY, 2, 3, "valid"))


def test_masks_are_networks_of_three_strides_and_show_all_kinds_of_times():
    """4000 masks; shares within 5 standard errors."""
    seen = masks(4000, 4, 8, fork(1, "masks"))
    times = seen.any(-1)
    sites = seen.any(1)
    none = float((~times.any(1)).double().mean())
    assert abs(none - 1 / 8) < 0.1  # some are empty by missing values
    assert float((times[:, 0] & ~times[:, 1:].any(1)).double().mean()) > 0.1  # the newest alone
    assert float((~times[:, 0] & times[:, 1:].any(1)).double().mean()) > 0.1  # what came before
    assert float(times.all(1).double().mean()) > 0.1
    full = sites.sum(1)
    for stride in (1, 2, 4):
        assert float((full == 8 // stride).double().mean()) > 0.1
    lag = (seen[..., 1:] & seen[..., :-1]).any((1, 2))  # neighbours seen: stride 1 only
    assert abs(float(lag[full >= 5].double().mean()) - 1) < 1e-9
    rate = float(seen[full == 2].double().mean((0, 1)).std())  # every site is as likely as any other
    assert rate < 0.03


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generator")
    return folder, train_generator(folder, TINY)


def test_training_learns_and_is_kept(trained):
    folder, _ = trained
    _, meta = generator._read(folder / FILE, (folder / FILE).stat().st_mtime_ns)
    assert meta["valid"] < 0.8 * meta["untrained"]
    assert meta["scale"] == pytest.approx(3.64, abs=0.1)


def test_a_killed_training_goes_on(trained, tmp_path, monkeypatch):
    """Stopped by an error in the middle and started again, it ends with the same weights."""
    asked = []

    def dies(*args):
        asked.append(1)
        if len(asked) == 25:
            raise KeyboardInterrupt
        return windows(*args)

    monkeypatch.setattr(generator, "windows", dies)
    with pytest.raises(KeyboardInterrupt):
        train_generator(tmp_path, TINY)
    again = train_generator(tmp_path, TINY)
    whole = trained[1].denoiser.state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in again.denoiser.state_dict().items())


def test_weights_that_do_not_fit_or_are_missing_are_named(trained, tmp_path):
    folder, pseudo = trained
    other = dataclasses.replace(TINY, features=5)
    generator.save_generator(tmp_path / FILE, other, pseudo.denoiser, 0.0, 1.0)
    with pytest.raises(ValueError, match="holds weights that do not fit"):
        load_generator(tmp_path / FILE)
    with pytest.raises(FileNotFoundError, match="train it with --train"):
        load_generator(tmp_path / "none.safetensors")


@pytest.fixture(scope="module")
def held_out():
    """Windows of runs with a seed of their own, and observations of them with errors N(0, 1)."""
    x = states(GeneratorSettings(seed=4242), N, 100, "held out")
    window = windows(x, N, 16, fork(4242, "windows"))
    values = window + normal(window.shape, like=window, rng=fork(4242, "errors"))
    ring = torch.stack([x.roll(k, -1) for k in range(40)]).flatten(1)
    return window[:, 0], values, torch.cov(ring.double()).float(), float(x.mean())


def seen_of(values, stride, times, newest):
    """Every `stride`-th site, offset 1, at the newest `times`, or at as many before the newest."""
    seen = torch.zeros_like(values, dtype=torch.bool)
    first = 0 if newest else 1
    seen[:, first : first + times, 1::stride] = True
    return seen


def interpolated(held_out, seen):
    """Optimal interpolation of the newest observations with the covariance of the climate."""
    _, values, covariance, mean = held_out
    sites = seen[0, 0]
    gain = covariance[:, sites] @ torch.linalg.inv(covariance[sites][:, sites] + torch.eye(int(sites.sum())))
    return mean + (values[:, 0, sites] - mean) @ gain.T


def rmse(truth, estimate):
    return float((estimate - truth).square().mean().sqrt())


@pytest.mark.parametrize(("stride", "most"), [(1, 0.95), (2, 0.97), (4, 1.0)])
def test_shipped_model_knows_more_of_one_observation_than_its_covariance(held_out, stride, most):
    """E[x | y] against optimal interpolation on the same 96 states."""
    truth, values, _, _ = held_out
    seen = seen_of(values, stride, 1, True)
    mean = load_generator(depth=1.0).estimate(values[:, :1], values, seen)[:, 0]
    assert rmse(truth, mean) < most * rmse(truth, interpolated(held_out, seen))


@pytest.mark.parametrize(
    ("stride", "times", "newest", "most"),
    [
        (1, 8, True, 0.42),
        (1, 15, True, 0.38),
        (1, 15, False, 0.42),
        (2, 8, True, 0.9),
        (2, 15, True, 0.65),
        (2, 15, False, 0.73),
        (4, 15, True, 1.8),
        (4, 15, False, 1.9),
    ],
)
def test_shipped_model_learns_from_what_came_before(held_out, stride, times, newest, most):
    """E[x | y] of states it never saw; the deviation of the climate is 3.64, that of an observation 1."""
    truth, values, _, _ = held_out
    mean = load_generator(depth=1.0).estimate(values[:, :1], values, seen_of(values, stride, times, newest))
    assert rmse(truth, mean[:, 0]) < most


@pytest.mark.parametrize(
    ("stride", "times", "newest"), [(1, 1, True), (1, 16, True), (2, 8, False), (4, 4, True)]
)
def test_draws_of_the_shipped_model_are_calibrated(held_out, stride, times, newest):
    """Eight in ten truths lie among 9 draws: 3840 of them, of which some 700 are independent, leave 1.5 % of chance, of
    which 3.3 are allowed (false alarm 0.001 each); and the spread is the error of the mean within 12 %."""
    truth, values, _, _ = held_out
    x = values.new_zeros(N, MEMBERS, values.shape[-1])
    seen = seen_of(values, stride, times, newest)
    draws = load_generator(steps=8, eta=0.0).draw(x, values, seen, rng=fork(0, "noise"))
    below = (draws < truth[:, None]).sum(1)
    inside = float(((below > 0) & (below < MEMBERS)).double().mean())
    assert abs(inside - 0.8) < 0.05
    spread = float((draws.var(1).mean() * (1 + 1 / MEMBERS)).sqrt())
    assert 0.88 < spread / rmse(truth, draws.mean(1)) < 1.12


def test_shipped_model_without_observations_draws_the_climate(held_out):
    """Mean and deviation of 96 x 9 draws within 3 %, and the correlation of second neighbours within 0.05."""
    _, values, covariance, mean = held_out
    x = values.new_zeros(N, MEMBERS, values.shape[-1])
    nothing = torch.zeros_like(values, dtype=torch.bool)
    draws = load_generator(steps=8, eta=0.0).draw(x, values, nothing, rng=fork(0, "noise"))
    deviation = float(covariance[0, 0].sqrt())
    assert abs(float(draws.mean()) - mean) < 0.03 * deviation
    assert abs(float(draws.std()) / deviation - 1) < 0.03
    z = (draws - mean) / deviation
    for lag in (1, 2, 3):
        assert abs(float((z * z.roll(lag, -1)).mean() - covariance[0, lag] / deviation**2)) < 0.05
