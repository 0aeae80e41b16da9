"""Laws of parameters appended to the state."""

import math

import pytest
import torch

from slams.systems import AugmentedParameters, DampedSpring, Lorenz63, Lorenz96

F64 = torch.float64


def test_each_member_moves_with_its_own_parameters(rng):
    """One call for three members against three systems."""
    x = torch.randn(3, 40, dtype=F64, generator=rng)
    forcing = torch.tensor([6.0, 8.0, 11.0], dtype=F64)
    system = AugmentedParameters(Lorenz96(dtype=F64), {"forcing": (8.0, 1.0)})
    after = system(system.joined(x, {"forcing": forcing}))
    expected = torch.stack([Lorenz96(forcing=float(f))(y) for f, y in zip(forcing, x, strict=True)])
    torch.testing.assert_close(system.state(after), expected, rtol=1e-13, atol=1e-13)
    assert torch.equal(system.parameters_of(after)["forcing"], forcing)


def test_several_parameters_go_to_their_names(rng):
    """The order is that of `start`, not that of the system's own list; batch axes are kept."""
    x = torch.randn(2, 5, 3, dtype=F64, generator=rng)
    system = AugmentedParameters(Lorenz63(dtype=F64), {"beta": (2.5, 0.1), "rho": (28.0, 1.0)})
    after = system(system.joined(x, {"rho": 30.0, "beta": 2.0}))
    torch.testing.assert_close(system.state(after), Lorenz63(rho=30.0, beta=2.0)(x), rtol=1e-13, atol=1e-13)


def test_noise_of_the_system_is_kept():
    """The same draws reach the state as without parameters."""
    bare = Lorenz96(noise=0.3, dtype=F64)
    system = AugmentedParameters(bare, {"forcing": (8.0, 0.0)})
    x = bare.initial(4, rng=torch.Generator().manual_seed(0))
    after = system(system.joined(x, {"forcing": 8.0}), rng=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        system.state(after), bare(x, rng=torch.Generator().manual_seed(1)), rtol=1e-13, atol=1e-13
    )


def test_walk_and_start_have_the_stated_moments(rng):
    """Variance std^2 + k walk^2 dt, within 6 standard errors; a parameter without a walk stays."""
    system = AugmentedParameters(
        Lorenz63(dt=0.04, dtype=F64), {"rho": (28.0, 0.5), "beta": (2.5, 0.1)}, walk={"rho": 2.0}
    )
    n = 40_000
    x = system.initial(n, rng=rng)
    path = system.trajectory(x, 3, rng=rng)
    rho, beta = path[:, :, 3], path[:, :, 4]
    for k in range(4):
        variance = 0.25 + k * 4 * 0.04
        assert float(rho[:, k].var()) == pytest.approx(variance, rel=6 * math.sqrt(2 / n))
        assert float(rho[:, k].mean()) == pytest.approx(28.0, abs=6 * math.sqrt(variance / n))
    assert torch.equal(beta[:, 3], x[:, 4])
    assert float(beta[:, 0].std()) == pytest.approx(0.1, rel=6 / math.sqrt(2 * n))


def test_sensitivity_to_a_parameter_equals_finite_differences(rng):
    system = AugmentedParameters(Lorenz96(8), {"forcing": (8.0, 1.0)})
    x = torch.randn(2, 9, dtype=F64, generator=rng).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: system(y), x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AugmentedParameters(Lorenz96(), {}), "at least one"),
        (lambda: AugmentedParameters(Lorenz96(), {"rho": (1.0, 1.0)}), "which are \\['forcing'\\]"),
        (lambda: AugmentedParameters(DampedSpring(), {"rho": (1.0, 1.0)}), "DampedSpring"),
        (lambda: AugmentedParameters(Lorenz96(), {"forcing": (1.0, -1.0)}), "not be negative"),
        (lambda: AugmentedParameters(Lorenz96(), {"forcing": (1.0, 1.0)})(torch.zeros(40)), "must be 41"),
        (
            lambda: AugmentedParameters(Lorenz96(), {"forcing": (1.0, 1.0)}).joined(torch.zeros(40), {}),
            "give each one value",
        ),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
