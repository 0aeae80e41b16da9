"""Laws of seasonal anomalies, against numpy's least squares."""

import numpy as np
import pytest
import torch

from slams.core.codec import IdentityCodec, SeasonalStandardize

DAYS, SHAPE = 400, (2, 3, 4)


def season(rng, harmonics: int) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Temperatures with a yearly cycle, their phases, and the columns of the regression."""
    phase = (torch.arange(DAYS, dtype=torch.float64) / 365.25) % 1
    x = 280 + 9 * torch.cos(2 * torch.pi * phase)[:, None, None, None]
    x = (
        x
        + torch.randn(DAYS, *SHAPE, dtype=torch.float64, generator=rng)
        * torch.tensor([1.0, 30.0])[:, None, None]
    )
    angle = 2 * np.pi * phase.numpy()
    columns = [np.ones(DAYS)]
    for order in range(1, harmonics + 1):
        columns += [np.cos(order * angle), np.sin(order * angle)]
    return x, phase, np.stack(columns, 1)


def oracle(x: torch.Tensor, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares point by point over the days seen; the mean of each day and each anomaly."""
    values = x.numpy().reshape(DAYS, -1)
    mean = np.empty_like(values)
    for p in range(values.shape[1]):
        seen = np.isfinite(values[:, p])
        solution = np.linalg.lstsq(columns[seen], values[seen, p], rcond=None)[0]
        mean[:, p] = columns @ solution
    return mean.reshape(x.shape), (values - mean.reshape(DAYS, -1)).reshape(x.shape)


@pytest.mark.parametrize("harmonics", [0, 1, 3])
@pytest.mark.parametrize("missing", [False, True])
def test_fit_equals_least_squares_of_the_days_seen(harmonics, missing, rng):
    """Exact where all was seen; else the ridge of 1e-6 that keeps rarely seen points finite moves the mean by
    less than 4e-6 of its 280 K."""
    x, phase, columns = season(rng, harmonics)
    if missing:
        x[torch.rand(x.shape, generator=rng) < 0.3] = float("nan")
    weights = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)[:, None]
    codec = SeasonalStandardize.fit(x, phase, harmonics=harmonics, weights=weights)
    mean, anomaly = oracle(x, columns)
    tolerance = 280 * 4e-6 if missing else 1e-9
    np.testing.assert_allclose(codec.mean(phase).numpy(), mean, rtol=0, atol=tolerance)
    weight = np.broadcast_to(weights.numpy(), x.shape) * np.isfinite(anomaly)
    variance = (weight * np.nan_to_num(anomaly) ** 2).sum((0, 2, 3)) / weight.sum((0, 2, 3))
    np.testing.assert_allclose(codec.std.numpy().squeeze(), np.sqrt(variance), rtol=1e-6)


@pytest.mark.parametrize("lead", [(), (3,), (3, 2)])
def test_decode_inverts_encode(lead, rng):
    x, phase, _ = season(rng, 2)
    codec = SeasonalStandardize.fit(x, phase, harmonics=2)
    sample = x[:7].expand(*lead, 7, *SHAPE)
    z = codec.encode(sample, phase[:7])
    torch.testing.assert_close(codec.decode(z, phase[:7]), sample, rtol=0, atol=1e-11)


def test_anomalies_of_the_training_days_have_mean_zero_and_variance_one(rng):
    x, phase, columns = season(rng, 1)
    z = SeasonalStandardize.fit(x, phase, harmonics=1).encode(x, phase)
    torch.testing.assert_close(
        z.square().mean((0, 2, 3)), torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-10
    )
    projected = torch.einsum("nj,n...->j...", torch.from_numpy(columns), z) / DAYS
    assert float(projected.abs().max()) < 1e-10


def test_missing_values_stay_missing_and_a_point_never_seen_has_mean_zero(rng):
    x, phase, _ = season(rng, 1)
    x[:, 0, 0, 0] = float("nan")
    x[5, 1, 2, 3] = float("nan")
    codec = SeasonalStandardize.fit(x, phase, harmonics=1)
    assert torch.equal(codec.mean(phase)[:, 0, 0, 0], torch.zeros(DAYS, dtype=torch.float64))
    assert torch.equal(torch.isnan(codec.encode(x, phase)), torch.isnan(x))


def test_a_constant_channel_is_refused_by_its_number(rng):
    x, phase, _ = season(rng, 1)
    x[:, 1] = 0.0
    with pytest.raises(ValueError, match="channel 1 has no variance"):
        SeasonalStandardize.fit(x, phase)


def test_statistics_travel_with_the_weights(rng):
    x, phase, _ = season(rng, 1)
    fitted = SeasonalStandardize.fit(x, phase, harmonics=1)
    empty = SeasonalStandardize(torch.zeros_like(fitted.coefficients), torch.ones_like(fitted.std))
    empty.load_state_dict(fitted.state_dict())
    assert torch.equal(empty.encode(x, phase), fitted.encode(x, phase))


def test_identity_is_the_identity(rng):
    x = torch.randn(3, generator=rng)
    assert torch.equal(IdentityCodec().decode(IdentityCodec().encode(x)), x)
