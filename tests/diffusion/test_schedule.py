"""Laws of noise schedules."""

import pytest
import torch

from slams.diffusion.schedule import VPCosine


@pytest.mark.parametrize("eta", [1e-3, 0.1])
def test_schedule_goes_from_data_to_noise_and_keeps_unit_variance(eta):
    """alpha^2 + sigma^2 = 1 + eta^2 at every time, with eta of noise left at 0 and of signal left at 1."""
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    alpha, sigma = VPCosine(eta)(t)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.full_like(t, 1 + eta**2), rtol=0, atol=1e-14)
    assert float(alpha[0]) == 1 and float(sigma[0]) == pytest.approx(eta, rel=1e-9)
    assert float(alpha[-1]) == pytest.approx(eta, rel=1e-9)
    assert bool((alpha.diff() < 0).all()) and bool((sigma.diff() > 0).all())


@pytest.mark.parametrize("eta", [0.0, 1.0, -0.1])
def test_an_eta_that_is_none_is_refused(eta):
    with pytest.raises(ValueError, match="eta must be in"):
        VPCosine(eta)
