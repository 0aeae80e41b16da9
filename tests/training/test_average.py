"""What the averaged weights of a training run are."""

import pytest
import torch
from torch import nn

from slams.training.fit import FitSettings, fit


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_the_weights_kept_are_an_exponential_average_of_those_passed_through(decay):
    """a <- d a + (1 - d) w with d = min(decay, (1 + n) / (10 + n)), which forgets the first weights sooner; the last
    weights with decay 0. The weights of each step are seen by the loss of the next one."""
    seen: list[float] = []

    def loss(module: nn.Module, rng: torch.Generator) -> torch.Tensor:
        seen.append(float(module.weight.detach()))
        return (module.weight - 3).square().sum()

    checks: list[float] = []

    def validate(module: nn.Module) -> float:
        checks.append(float(module.weight.detach()))
        return -float(len(checks))  # always better than before, so that the last is kept

    module = nn.Linear(1, 1, bias=False).double()
    settings = FitSettings(steps=12, learning_rate=0.1, ema=decay, every=1, weight_decay=0.0)
    fit(module, loss, validate, settings, seed=0, name="net")
    average = seen[0]
    for n, weight in enumerate(seen[1:]):
        d = min(decay, (1 + n) / (10 + n)) if decay else 0.0
        average = d * average + (1 - d) * weight
        assert checks[n + 1] == pytest.approx(average, rel=1e-12)
    assert float(module.weight.detach()) == checks[-1]
