"""Laws of the training loop."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from slams.training.fit import FitSettings, fit

SETTINGS = FitSettings(steps=23, batch=8, learning_rate=0.02, every=5, ema=0.9)
TRUTH = torch.tensor([[1.0, -2.0, 0.5]])


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 1))


def loss(module: nn.Module, rng: torch.Generator) -> torch.Tensor:
    x = torch.randn(SETTINGS.batch, 3, generator=rng)
    return (module(x) - x @ TRUTH.mT).square().mean()


def validate(module: nn.Module) -> float:
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        return float((module(x) - x @ TRUTH.mT).square().mean())


class Killed(Exception):
    pass


def killer(at: int):
    """A progress callback that stops the process after so many steps."""
    done = 0

    def progress(steps: int, message: str) -> None:
        nonlocal done
        done += steps if not message else 0
        if done == at:
            raise Killed

    return progress


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def rows(history) -> list[tuple[int, str, str]]:
    """Losses as exact text, in which NaN equals NaN."""
    return [(step, float(a).hex(), float(b).hex()) for step, a, b in history.rows]


@pytest.mark.parametrize("kills", [(7,), (3, 4, 12), (1, 21, 2)])
def test_killed_and_resumed_equals_undisturbed_bit_for_bit(kills, tmp_path):
    """Before the first saved state, between two, and after the last but one; with the optimiser's state."""
    whole = model()
    expected = fit(whole, loss, validate, SETTINGS, seed=3, name="prior", checkpoint=tmp_path / "whole.pt")
    for at in kills:
        with pytest.raises(Killed):
            fit(
                model(), loss, validate, SETTINGS,
                seed=3, name="prior", checkpoint=tmp_path / "part.pt", progress=killer(at),
            )  # fmt: skip
        torch.manual_seed(at)  # the global generator of a new process is elsewhere
    parts = model()
    found = fit(parts, loss, validate, SETTINGS, seed=3, name="prior", checkpoint=tmp_path / "part.pt")
    assert same(whole, parts) and rows(found) == rows(expected)
    assert (found.best_step, found.best) == (expected.best_step, expected.best)


def test_a_finished_run_is_not_trained_again(tmp_path):
    first, again = model(), model()
    arguments = (loss, validate, SETTINGS)
    expected = fit(first, *arguments, seed=3, name="prior", checkpoint=tmp_path / "a.pt")
    calls = []
    found = fit(
        again, *arguments, seed=3, name="prior", checkpoint=tmp_path / "a.pt",
        progress=lambda steps, message: calls.append((steps, message)),
    )  # fmt: skip
    assert same(first, again) and rows(found) == rows(expected) and len(calls) == 1


def test_the_module_ends_with_the_weights_of_the_best_validation():
    """A learning rate that is too high ends worse than it was; the score kept is the lowest of all rows."""
    module = model()
    wild = dataclasses.replace(SETTINGS, learning_rate=0.5, ema=0.0, steps=40)
    history = fit(module, loss, validate, wild, seed=0, name="prior")
    scores = [score for _, _, score in history.rows]
    assert history.best == min(scores) and history.rows[scores.index(min(scores))][0] == history.best_step
    assert validate(module) == history.best and not module.training


def test_training_finds_a_linear_map():
    """Convex, so that the optimum is known: the residual falls below 1e-3 of the start."""
    module = nn.Linear(3, 1)
    settings = FitSettings(steps=400, learning_rate=0.05, every=50, weight_decay=0.0, ema=0.9)
    history = fit(module, loss, validate, settings, seed=0, name="map")
    assert history.best < 1e-3 * history.rows[0][2]
    torch.testing.assert_close(module.weight.detach(), TRUTH, rtol=0, atol=0.03)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_its_step_and_keeps_the_best_weights(bad, tmp_path):
    """At step 13, the best so far being that of the validation at step 10; resuming meets it again."""
    clean = model()
    expected = fit(clean, loss, validate, SETTINGS, seed=3, name="prior", progress=None)
    short, kept = model(), {}

    def watched(average: nn.Module) -> float:
        score = validate(average)
        kept[score] = {name: value.clone() for name, value in average.state_dict().items()}
        return score

    count = 0

    def broken(module: nn.Module, rng: torch.Generator) -> torch.Tensor:
        nonlocal count
        count += 1
        return loss(module, rng) * (bad if count == 13 else 1)

    with pytest.raises(
        FloatingPointError, match=r"prior met the loss (nan|inf) at step 13 of 23; .* step 10"
    ):
        fit(short, broken, watched, SETTINGS, seed=3, name="prior", checkpoint=tmp_path / "a.pt")
    best = kept[min(kept)]
    assert all(torch.equal(value, best[name]) for name, value in short.state_dict().items())
    assert expected.rows[2][0] == 10 and min(kept) == expected.rows[2][2]
    resumed = model()
    fit(resumed, loss, validate, SETTINGS, seed=3, name="prior", checkpoint=tmp_path / "a.pt")
    assert same(resumed, clean)


@pytest.mark.parametrize("killed", [False, True])
def test_patience_stops_after_so_many_validations_without_progress(killed, tmp_path):
    """Best at the first validation, then two worse ones: stop at step 15 of 23, also if killed between."""
    scores = {0: 1.0, 5: 0.5, 10: 0.7, 15: 0.6, 20: 0.1, 23: 0.1}
    settings = dataclasses.replace(SETTINGS, patience=2)

    def run(progress=None):
        steps = iter(list(scores.values())[start:])
        return fit(
            model(), loss, lambda _: next(steps), settings,
            seed=0, name="prior", checkpoint=tmp_path / "a.pt", progress=progress,
        )  # fmt: skip

    start = 0
    if killed:
        with pytest.raises(Killed):
            run(killer(12))
        start = 3
    history = run()
    assert [step for step, _, _ in history.rows] == [0, 5, 10, 15] and history.best_step == 5
    start = len(scores)
    assert rows(run()) == rows(history)  # a stopped run stays stopped


def test_progress_counts_every_step():
    counted = 0

    def progress(steps: int, message: str) -> None:
        nonlocal counted
        counted += steps

    fit(model(), loss, validate, SETTINGS, seed=0, name="prior", progress=progress)
    assert counted == SETTINGS.steps
