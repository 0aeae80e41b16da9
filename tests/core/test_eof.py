"""Laws of empirical orthogonal functions, against numpy's singular value decomposition."""

import numpy as np
import pytest
import torch

from slams.core.eof import eof


@pytest.fixture(params=[(40, 12), (12, 40)], ids=["many days", "many points"])
def anomalies(request, rng) -> torch.Tensor:
    """(n, D) with a falling spectrum."""
    n, size = request.param
    scale = 1 / torch.arange(1, size + 1, dtype=torch.float64)
    return torch.randn(n, size, dtype=torch.float64, generator=rng) * scale


@pytest.mark.parametrize("most", [1, 5, None])
def test_patterns_equal_the_singular_vectors(anomalies, most):
    n = len(anomalies)
    _, singular, right = np.linalg.svd(anomalies.numpy(), full_matrices=False)
    found = eof(anomalies, most=most)
    count = found.basis.shape[1]
    assert count == (most or len(singular))
    np.testing.assert_allclose(found.variance.numpy(), singular[:count] ** 2 / n, rtol=1e-10)
    cosine = np.abs((found.basis.numpy() * right[:count].T).sum(0))  # the sign of a pattern is free
    np.testing.assert_allclose(cosine, 1, atol=1e-9)
    eye = torch.eye(count, dtype=torch.float64)
    torch.testing.assert_close(found.basis.mT @ found.basis, eye, rtol=0, atol=1e-9)
    share = (singular[:count] ** 2).sum() / (singular**2).sum()
    assert found.explained == pytest.approx(share, rel=1e-12)


def test_patterns_and_remainder_hold_all_the_variance(anomalies):
    found = eof(anomalies, most=4)
    residual = anomalies - anomalies @ found.basis @ found.basis.mT
    torch.testing.assert_close(found.remainder, residual.square().mean(0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("fraction", [0.3, 0.8, 0.99])
def test_fewest_patterns_that_reach_the_fraction(anomalies, fraction):
    singular = np.linalg.svd(anomalies.numpy(), compute_uv=False)
    share = np.cumsum(singular**2) / (singular**2).sum()
    assert eof(anomalies, fraction=fraction).basis.shape[1] == int(np.searchsorted(share, fraction)) + 1


def test_rank_limits_the_patterns(rng):
    x = torch.randn(30, 2, dtype=torch.float64, generator=rng) @ torch.randn(
        2, 8, dtype=torch.float64, generator=rng
    )
    assert eof(x).basis.shape[1] == 2


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1])
def test_a_fraction_that_is_none_is_refused(fraction):
    with pytest.raises(ValueError, match="fraction must be in"):
        eof(torch.ones(3, 2), fraction=fraction)


def test_anomalies_without_variance_are_refused():
    with pytest.raises(ValueError, match="no variance"):
        eof(torch.zeros(3, 2))
