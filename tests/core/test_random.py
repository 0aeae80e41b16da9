"""Laws of explicit randomness."""

import pytest
import torch

from slams.core.covariance import Isotropic
from slams.core.random import fork, generator, normal, permutation, settled, uniform
from slams.observation.operators import Identity
from slams.observation.survey import Survey
from slams.systems import AugmentedParameters, Lorenz63, Lorenz96


def test_normal_repeats_with_its_generator_and_leaves_the_global_one_alone():
    before = torch.get_rng_state()
    first = normal((5,), rng=fork(3, "noise"))
    assert torch.equal(first, normal((5,), rng=fork(3, "noise")))
    assert torch.equal(before, torch.get_rng_state())


def test_normal_takes_the_type_of_like_unless_told():
    like = torch.zeros(1, dtype=torch.float64)
    assert normal((2,), like=like).dtype == torch.float64
    assert normal((2,), like=like, dtype=torch.float32).dtype == torch.float32
    assert normal((2,), dtype=torch.float64).dtype == torch.float64


def test_forks_of_other_names_and_seeds_are_independent():
    """Correlations of 20000 draws within 6 standard errors: each pair one false alarm in 5e8."""
    n = 20000
    labels = [(0, "prior", 1), (0, "prior", 2), (1, "prior", 1)]
    draws = torch.stack([normal((n,), dtype=torch.float64, rng=fork(*label)) for label in labels])
    correlation = torch.corrcoef(draws)
    assert float((correlation - torch.eye(3, dtype=torch.float64)).abs().max()) < 6 / n**0.5


DRAWS = {
    "normal": lambda rng: normal((4,), rng=rng),
    "uniform": lambda rng: uniform((4,), like=torch.zeros(1), rng=rng),
    "permutation": lambda rng: permutation(50, rng=rng),
    "initial": lambda rng: Lorenz96(4).initial(2, rng=rng),
    "trajectory": lambda rng: Lorenz63(noise=1.0).trajectory(torch.ones(3), 4, rng=rng),
    "augmented": lambda rng: AugmentedParameters(Lorenz63(), {"rho": (28.0, 1.0)}).initial(rng=rng),
    "covariance": lambda rng: Isotropic(1.0).sized(4, torch.zeros(4)).sample(rng=rng),
    "survey": lambda rng: Survey(Identity(), 1.0).observe(torch.zeros(3, 4), rng=rng)["observation"].value,
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_seed_is_taken_wherever_a_generator_is(name):
    """Equal seeds give equal numbers, none a fresh seed each time, and the global generator is not used."""
    before, draw = torch.get_rng_state(), DRAWS[name]
    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))
    assert not torch.equal(draw(None), draw(None))
    assert torch.equal(before, torch.get_rng_state())


def test_steps_and_variables_of_one_seed_are_drawn_independently():
    """A seed is turned into a generator once, not anew for each draw."""
    path = Lorenz63(noise=1.0, dt=1e-12).trajectory(torch.ones(3), 3, rng=0)
    jumps = path[1:] - path[:-1]
    assert not torch.allclose(jumps[0], jumps[1])
    values = Survey({"a": Identity(), "b": Identity()}, 1.0).observe(torch.zeros(3, 4), rng=0)
    assert not torch.equal(values["a"].value, values["b"].value)


def test_equal_seeds_share_no_numbers_between_purposes():
    """Start, noise of the model and errors of observations, 20000 draws: correlations within 6 standard errors."""
    n = 20000
    system = Lorenz96(n, noise=1.0, dt=1e-9)
    start = system.initial(rng=0)
    draws = [
        start - system.start.mean,
        system(torch.zeros(n), rng=0),
        Survey(Identity(), 1.0).observe(torch.zeros(1, n), rng=0)["observation"].value[0],
        system.trajectory(torch.zeros(n), 1, rng=0)[1],
    ]
    correlation = torch.corrcoef(torch.stack(draws).double())
    assert float((correlation - torch.eye(4)).abs().max()) < 6 / n**0.5


@pytest.mark.parametrize("wrong", ["0", 1.0, True])
def test_what_is_no_seed_is_refused(wrong):
    with pytest.raises(TypeError, match=r"seed \(an int\) or a torch.Generator"):
        generator(wrong, "truth")


def test_a_settled_source_has_the_seed_that_repeats_it():
    source, seed = settled(None)
    assert source == seed == settled(seed)[1]
    rng = fork(1, "noise")
    assert settled(rng) == (rng, rng.initial_seed())
