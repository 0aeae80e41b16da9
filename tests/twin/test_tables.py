"""Laws of what the notebooks share."""

import pytest
import torch

from slams.core.covariance import Diagonal
from slams.observation.observation import Observation, Observations
from slams.observation.operators import Select
from slams.twin.runner import Runner
from slams.twin.setup import setup
from slams.twin.tables import (
    autoencoder,
    components,
    density_figure,
    filter_rows,
    flow_figure,
    score_rows,
    seen_from_latent,
)


def test_components_reconstruct_what_they_span_and_have_unit_variance(rng):
    """Fields of three patterns around a mean: three components lose nothing, two the variance of the third."""
    patterns = torch.linalg.qr(torch.randn(12, 3, generator=rng, dtype=torch.float64))[0]
    scale = torch.tensor([3.0, 2.0, 0.5], dtype=torch.float64)
    a = torch.linalg.qr(torch.randn(400, 3, generator=rng, dtype=torch.float64))[0] * 400**0.5
    mean = torch.randn(3, 4, generator=rng, dtype=torch.float64)
    x = mean + ((a * scale) @ patterns.mT).reshape(400, 3, 4)
    whole, part = components(x, mean, 3), components(x, mean, 2)
    torch.testing.assert_close(whole.reconstruct(x), x, rtol=0, atol=1e-10)
    z = whole.encode(x.reshape(4, 100, 3, 4))
    assert z.shape == (4, 100, 3)
    torch.testing.assert_close(z.square().mean((0, 1)), torch.ones(3).double(), rtol=1e-9, atol=0)
    lost = (part.reconstruct(x) - x).square().mean()
    assert float(lost) == pytest.approx(0.25 / 12, rel=1e-9)


def test_an_autoencoder_bends_where_components_cannot():
    """A parabola in the plane through one number: less than a third of what its best straight line leaves."""
    t = torch.linspace(-1.7, 1.7, 2001)
    x = torch.stack([t, t**2 - (t**2).mean()], -1)
    bent = autoencoder(x[::2], x[1::2], 1, hidden=32, steps=300)
    straight = components(x, x.mean(0), 1)
    left = [(coder.reconstruct(x) - x).square().mean().sqrt() for coder in (bent, straight)]
    assert float(left[0]) < float(left[1]) / 3
    one, again = (autoencoder(x[::2], x[1::2], 1, hidden=8, steps=20) for _ in range(2))
    assert torch.equal(again.encode(x), one.encode(x))


def test_what_decoding_leaves_of_a_value_adds_to_its_error(rng):
    """Two of three components, the third seen: its variance is added, and nothing where all is shown."""
    x = torch.randn(500, 3, generator=rng, dtype=torch.float64) * torch.tensor([3.0, 2.0, 0.5])
    coder = components(x, torch.zeros(3, dtype=torch.float64), 2)
    seen = Observations(
        {
            "all": Observation(
                torch.zeros(4, 3).double(), Select(torch.arange(3), 1), Diagonal(torch.ones(3).double())
            ),
        }
    )
    wide = seen_from_latent(seen, coder, x)["all"]
    expected = 1 + (x - coder.reconstruct(x)).square().mean(0)
    torch.testing.assert_close(wide.noise.variance, expected, rtol=1e-12, atol=0)
    assert float(wide.noise.variance[2]) == pytest.approx(1.25, rel=0.15)
    assert torch.equal(wide.value, seen["all"].value)


def test_scores_of_draws_around_the_truth_are_those_of_their_spread(rng):
    """400 draws N(truth + e, 1) with e ~ N(0, 1) for each of 50 truths of 40 numbers: RMSE 1, spread / skill 1, CRPS
    1 / sqrt(pi), within 5 % (2000 errors: 1.6 % each); a single estimate has its absolute error for CRPS."""
    truth = torch.randn(50, 40, 1, generator=rng)
    centre = truth + torch.randn(truth.shape, generator=rng)
    draws = centre.unsqueeze(1) + torch.randn(50, 400, 40, 1, generator=rng)
    many, one = score_rows(
        {"draws": draws, "estimate": centre.unsqueeze(1)},
        truth,
        {"size": lambda x: x.new_full((50,), x.shape[1])},
    )
    assert float(many["rmse"].split()[0]) == pytest.approx(1, rel=0.08)
    assert float(many["spread / skill"]) == pytest.approx(1, rel=0.08)
    assert float(many["crps"]) == pytest.approx(torch.pi**-0.5, rel=0.08)
    assert many["size"] == "400.00" and one["size"] == "1.00" and one["spread / skill"] == ""
    assert float(one["crps"]) == pytest.approx(float((centre - truth).abs().mean()), abs=6e-4)


def test_a_picture_has_a_row_a_trajectory_and_a_column_a_step(rng):
    """Vorticity of u = sin y, v = 0 is -cos y: by central differences of 16 points 2.6 % less, whatever the name."""
    y = (torch.arange(16) + 0.5) * torch.pi / 8
    field = torch.stack([y.sin().expand(16, 16), torch.zeros(16, 16)]).expand(3, 2, 16, 16)
    figure = flow_figure({"a": field, "b": 2 * field}, (0, 2))
    images = [
        axis.images[0].get_array() for axis in figure.axes if axis.images and axis.get_label() != "<colorbar>"
    ]
    assert len(images) == 4
    expected = -y.cos() * torch.sin(torch.tensor(torch.pi / 8)) / (torch.pi / 8)
    torch.testing.assert_close(torch.tensor(images[0].data[:, 0]), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.tensor(images[2].data[:, 3]), 2 * expected, rtol=0, atol=1e-5)


def test_filter_rows_are_the_scores_of_their_runs_and_densities_are_shown():
    """A run and the exact filter of a double well: rows are means, panels darkest where densities are largest."""
    tree = {
        "system": "doublewell",
        "cycles": 30,
        "burn_in": 0,
        "replicates": 2,
        "model": {"flip_chance": 0.05},
    }
    runner = Runner(setup(tree))
    run, exact = runner.run("EnKF", {"members": 30}, keep="members"), runner.exact()
    rows = filter_rows({"EnKF": run, "exact": exact})
    assert [row["method"] for row in rows] == ["EnKF", "exact"]
    assert float(rows[0]["crps"]) == pytest.approx(float(run.scores["crps"].mean()), abs=5e-4)
    assert float(rows[1]["steps to the sign"]) == pytest.approx(
        float(exact.scores["recovery"].mean()), abs=0.05
    )
    points = torch.linspace(-1.8, 1.8, 181, dtype=torch.float64)
    members = run.posterior.samples[0]
    density = torch.exp(-0.5 * ((points - exact.posterior.mean[0]) / 0.1) ** 2)
    figure = density_figure(points, {"members": members, "density": density}, runner.simulated[0][0])
    for axis, mean in zip(figure.axes, (members.mean(0), exact.posterior.mean[0]), strict=True):
        (image,) = axis.images
        cells = torch.as_tensor(image.get_array()).double()
        centre = (cells * points[:, None]).sum(0) / cells.sum(0)
        assert (centre - mean[:, 0]).abs().median() < 0.05
