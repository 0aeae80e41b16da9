import pytest
import torch

from slams.core.covariance import Diagonal
from slams.diffusion.exact.gaussian import GaussianDenoiser
from slams.diffusion.guidance.sda import GaussianGuidance
from slams.diffusion.schedule import VPCosine
from slams.observation.observation import Observation, Observations
from slams.observation.operators import Identity


def test_each_value_has_its_own_gamma(rng):
    """Two variables with gammas 0.01 and 1 are guided as each of them alone with its gamma."""

    def at(v):
        return torch.tensor(v, dtype=torch.float64)

    r, v, y, t = at([0.2, 0.5]), at([0.7, 0.3]), at([[1.3, -0.4]]), at(0.6)
    x_t = torch.randn(5, 1, 2, dtype=torch.float64, generator=rng)
    prior = GaussianDenoiser(at([0.0, 0.0]), Diagonal(v), VPCosine())
    seen = Observations({"a": Observation(y, Identity(), Diagonal(r))})
    found = GaussianGuidance({"a": at([0.01, 1.0])})(prior, seen)(x_t, t)
    for i, gamma in enumerate((0.01, 1.0)):
        one = GaussianDenoiser(at([0.0]), Diagonal(v[i : i + 1]), VPCosine())
        alone = Observations({"a": Observation(y[:, i : i + 1], Identity(), Diagonal(r[i : i + 1]))})
        expected = GaussianGuidance(gamma)(one, alone)(x_t[..., i : i + 1], t)
        torch.testing.assert_close(found[..., i : i + 1], expected, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="gamma must be positive"):
        GaussianGuidance({"a": at([0.01, 0.0])})(prior, seen)
    with pytest.raises(ValueError, match=r"gamma is for \['b'\]"):
        GaussianGuidance({"b": 0.1})(prior, seen)
