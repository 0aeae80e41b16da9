"""Laws of the noisy Lorenz-63 system, its archive, its nets and its smoothing problem."""

import dataclasses
import math

import pytest
import torch

from slams.core.random import fork
from slams.papers.rozet2023 import prior as priors
from slams.papers.rozet2023.lorenz63.archive import (
    Lorenz63Archive,
    decode,
    encode,
    noisy_lorenz63,
    simulate,
    trajectories,
)
from slams.papers.rozet2023.lorenz63.problem import (
    Lorenz63Problem,
    Lorenz63Process,
    climatology,
    ensemble_smoothed,
    interpolated,
    scores,
    smoothed,
    variational,
)
from slams.papers.rozet2023.prior import NetSettings, build, load_net, moments, save_net, train_net

SMALL = Lorenz63Archive(count=20, spin_up=100, length=80)
PROCESS = Lorenz63Process(every=4, std=0.05, length=17)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return trajectories(tmp_path_factory.mktemp("lorenz63"), SMALL)


@pytest.fixture(scope="module")
def problem(data):
    return Lorenz63Problem.draw(PROCESS, data["test"], 2, 0, "seen")


def test_entropy_of_the_transitions():
    """E log p(x_2:65 | x_1) = -96 (log(2 pi 0.025) + 1) = 81.7 nats, a chi-square of 192 degrees of freedom around it:
    within 6 standard errors of 400 trajectories."""
    x = decode(simulate(Lorenz63Archive(count=400, spin_up=64, length=65)).double())
    log_prior = noisy_lorenz63(torch.float64).log_transition(x[:, :-1], x[:, 1:]).sum(-1)
    expected = -96 * (math.log(2 * math.pi * 0.025) + 1)
    assert expected == pytest.approx(81.7, abs=0.05)
    # states rounded to float32 cost nothing visible
    assert abs(float(log_prior.mean()) - expected) < 6 * math.sqrt(96 / 400)


def test_a_trajectory_has_its_own_random_numbers():
    few, more = (
        simulate(Lorenz63Archive(count=2, spin_up=3, length=5)),
        simulate(Lorenz63Archive(count=4, spin_up=3, length=5)),
    )
    torch.testing.assert_close(few, more[:2], rtol=0, atol=1e-6)
    assert (few[0] != few[1]).any()


def test_the_archive_is_split_in_order_kept_and_made_anew_when_it_changes(tmp_path):
    first = trajectories(tmp_path, SMALL)
    torch.testing.assert_close(torch.cat(list(first.values())), simulate(SMALL))
    assert [len(first[s]) for s in ("train", "valid", "test")] == [16, 2, 2]
    before = (tmp_path / "trajectories.safetensors").stat().st_mtime_ns
    trajectories(tmp_path, SMALL)
    assert (tmp_path / "trajectories.safetensors").stat().st_mtime_ns == before
    other = trajectories(tmp_path, dataclasses.replace(SMALL, seed=1))
    assert (other["train"] != first["train"]).any()


def test_normalisation_is_undone():
    x = torch.randn(7, 3)
    torch.testing.assert_close(decode(encode(x)), x)


def test_moments_are_those_of_all_windows(data):
    mean, covariance = moments(data["train"], 3)
    flat = data["train"].unfold(1, 3, 1).movedim(-1, 2).reshape(-1, 9).double()
    torch.testing.assert_close(mean.flatten().double(), flat.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(covariance, torch.cov(flat.mT, correction=0), rtol=1e-5, atol=1e-6)


NETS = [
    NetSettings(order=1, width=8, gates=8, dilations=(0,), steps=6, batch=8),
    NetSettings(kind="global", order=1, width=8, gates=8, dilations=(0, 2), steps=6, batch=4, span=12),
    NetSettings(order=1, width=8, published=True, steps=6, batch=8),
    NetSettings(kind="global", width=8, published=True, steps=6, batch=4, span=12),
]


@pytest.mark.parametrize(
    "net", NETS, ids=lambda net: f"{net.kind} {'published' if net.published else 'ours'}"
)
def test_weights_travel_with_their_settings(net, data, tmp_path):
    denoiser, history = train_net(net, data)
    assert history.rows[-1][0] == net.steps
    save_net(tmp_path / "net.safetensors", net, denoiser, archive=repr(SMALL))
    loaded, meta = load_net(tmp_path / "net.safetensors")
    x, t = torch.randn(2, 14, 3), torch.tensor(0.3)
    torch.testing.assert_close(loaded(x, t), denoiser(x, t))
    assert meta["archive"] == repr(SMALL)
    other = dataclasses.replace(net, width=16)
    save_net(tmp_path / "other.safetensors", other, denoiser)
    with pytest.raises(ValueError, match="do not fit its settings"):
        load_net(tmp_path / "other.safetensors")


def test_missing_weights_name_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match="--train"):
        load_net(tmp_path / "none.safetensors")


def test_the_published_nets_have_the_published_sizes():
    """Parameters of the local net of order 4 and of the global one."""
    mean, covariance = torch.zeros(9, 3), torch.eye(27)
    counts = [
        sum(p.numel() for p in build(net, mean, covariance).parameters())
        for net in (
            NetSettings(width=256, published=True),
            NetSettings(kind="global", width=64, published=True),
        )
    ]
    assert counts == [698_403, 178_787]


def test_impossible_nets_are_told():
    with pytest.raises(ValueError, match="order"):
        NetSettings(order=0)
    with pytest.raises(ValueError, match="dilations"):
        NetSettings(dilations=(0, 1))
    with pytest.raises(ValueError, match="ratios"):
        NetSettings(ratios=(3.0, 0.01))


def test_training_times_are_spread_evenly_between_the_ratios(data, monkeypatch):
    """Of n sorted sigma / alpha of a batch, the i-th lies in the i-th of n equal parts of the logarithm."""
    seen = []
    real = priors.denoising_loss

    def spy(module, x, *, times, rng):
        alpha, sigma = module.schedule(times)
        seen.append((sigma / alpha).log().sort().values)
        return real(module, x, times=times, rng=rng)

    monkeypatch.setattr(priors, "denoising_loss", spy)
    train_net(dataclasses.replace(NETS[0], ratios=(0.01, 3.0), steps=2, batch=50), data)
    low, high = math.log(0.01), math.log(3.0)
    for found in seen:
        edges = torch.linspace(low, high, len(found) + 1)
        assert ((found > edges[:-1] - 1e-3) & (found < edges[1:] + 1e-3)).all()
    assert {len(found) for found in seen} >= {50}


def test_the_truth_s_own_scores(problem):
    """The reference is at distance 0 from itself, and the truth has a likelihood that its errors explain (9 sigma)."""
    truth = problem.truth.unsqueeze(1).repeat(1, 4, 1, 1)
    found = scores(problem, truth, truth)
    assert not found["w1"].any() and not found["blown"].any() and not found["rmse"].any()
    seen = 5
    expected = -seen * (0.5 + math.log(math.sqrt(2 * math.pi) * PROCESS.std))
    assert (found["log_likelihood"] - expected).abs().max() < 9 * math.sqrt(seen / 2)


def test_draws_that_left_the_attractor_are_counted_not_averaged(problem):
    x = problem.truth.unsqueeze(1).repeat(1, 4, 1, 1)
    broken = x.clone()
    broken[:, 3, 5, 1] = torch.nan
    found = scores(problem, broken, x)
    assert found["blown"].tolist() == [0.25, 0.25] and not found["w1"].any()


def test_lines_pass_through_what_was_seen(problem, data):
    x = interpolated(problem, 3, data["train"])
    seen = problem.observations["a"].value
    torch.testing.assert_close(x[:, 0, ::4, :1], seen[:, ::4])
    middle = (seen[:, 0] + seen[:, 4]) / 2
    torch.testing.assert_close(x[:, 1, 2, :1], middle)


def test_rivals_come_near_the_smoother_and_climatology_does_not(problem, data):
    """Medians of W1 of 32 draws: ensemble and variational smoothers within three floors, climatology beyond ten."""
    reference, _ = smoothed(problem, 32, particles=4096, backward=True, label="a", seed=0)
    again, _ = smoothed(problem, 32, particles=4096, backward=True, label="b", seed=0)
    climate = data["train"].reshape(-1, 3)
    floor = scores(problem, again, reference)["w1"].mean()

    def distance(samples):
        return scores(problem, samples.float(), reference)["w1"].mean() / floor

    assert distance(ensemble_smoothed(problem, 32, climate, fork(0, "e"))) < 3
    assert distance(variational(problem, 32, climate, fork(0, "v"))) < 3
    assert distance(climatology(problem, 32, data["train"], fork(0, "c"))) > 10
