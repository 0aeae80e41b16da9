"""Days from which decoders of amounts learn: posterior draws of their latents, seen through networks of observations."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slams.assimilation.baseline.draws import CoefficientPosterior
from slams.core.random import normal
from slams.data.windows import window_starts
from slams.diffusion.exact.window_posterior import Systems, WindowPosterior, pulled_back
from slams.diffusion.guidance.conditional import ConditionalGuidance
from slams.pipeline.inputs.fields import Fields, phase_of
from slams.pipeline.inputs.observe import columns
from slams.pipeline.inputs.operators import thinned
from slams.pipeline.model.codec import Anomalies, anomalies
from slams.pipeline.model.model import Model

_BATCH = 16  # windows through the prior's network at once
_GROWTH = 1.2  # of the network's correction from no signal to whole draws: 1.0 to 1.3 on the planet, in rain's patterns


@dataclass(frozen=True)
class Posteriors:
    """Draws of windows seen through one network of observations.

    Attributes:
        coefficients: (N, W, L, K).
        rows: Days of each window, (W, L).
        hidden: Masks of unobserved values by observed modality, (L, *S).
    """

    coefficients: Tensor
    rows: Tensor
    hidden: Mapping[str, Tensor]


class AmountDays:
    """Days of one part of the data, with posterior draws of their latents.

    Args:
        model: Trained model.
        fields: Fields of all days.
        span: First and last day.
    """

    def __init__(self, model: Model, fields: Fields, span: tuple[str, str]) -> None:
        self.model = model
        self.index = fields.part(span)
        self.values: Anomalies = anomalies(model.codec, fields, self.index)
        self.fields = fields
        self.phase = phase_of(fields.dates[self.index])
        self.starts = window_starts(fields.dates[self.index], model.recipe.prior.window)
        self.errors, self.operators = model.errors(), model.jacobians()
        gaussian = copy.deepcopy(model.prior.gaussian).cpu()
        self.patterns, self.remainder = gaussian.basis.mT.contiguous(), float(gaussian.remainder)
        self.posterior = CoefficientPosterior(gaussian)
        self.systems = Systems(model.prior.gaussian)

    def physical(self, name: str) -> Tensor:
        """Values of a modality on these days, after the transform."""
        return self.model.codec.masked(name, self.fields.values[name][torch.from_numpy(self.index)])

    def network(self, rng: torch.Generator, names: Sequence[str] | None) -> dict[str, Tensor]:
        """Masks of unobserved values (L, *S): of a set of the recipe, or of a random network if None.

        A state variable is seen in columns, 1 to 50 % of them where random; an observation everywhere, or where random at
        1 to 100 % of its points; both at the points and on the days that the recipe's strides and `experiment.every`
        leave. Amounts themselves are rarely among random ones: where they are seen, little is left to learn.
        """
        recipe, layouts = self.model.recipe, self.model.layouts
        known = list(dict.fromkeys(n for group in recipe.experiment.sets.values() for n in group)) or list(
            layouts
        )
        chance = torch.rand(len(known), 3, generator=rng).tolist()
        often = {name: 0.15 if name in recipe.amounts.variables else 0.7 for name in known}
        chosen = names or [n for n, c in zip(known, chance, strict=True) if c[0] < often[n]] or known[:1]
        unseen = torch.arange(recipe.prior.window) % recipe.experiment.every > 0
        found = {}
        for name in chosen:
            seed = int(torch.randint(2**31, (), generator=rng))
            _, whole, size = chance[known.index(name)]
            state, layout = name in recipe.states, layouts[name]
            share = recipe.experiment.share if state else 1.0
            if names is None and (state or whole < 0.5):
                share = 10 ** (-2 + (1.7 if state else 2.0) * size)
            hidden = self._hidden(name, share, seed, rng)
            found[name] = hidden | unseen.reshape(-1, *[1] * len(layout.shape))
        return found

    def _hidden(self, name: str, share: float, seed: int, rng: torch.Generator) -> Tensor:
        """Mask of the unobserved values of one modality, (*S)."""
        recipe, layout = self.model.recipe, self.model.layouts[name]
        hidden = torch.ones(layout.weights().shape, dtype=torch.bool)
        if share == 1 or name in recipe.assimilation.operators:
            hidden[:] = False
        elif layout.is_grid:
            hidden.view(-1)[columns(layout, share, seed)] = False
        else:
            some = torch.randperm(len(hidden), generator=rng)[: max(1, round(share * len(hidden)))]
            hidden[some] = False
        return thinned(recipe, name, torch.zeros(layout.shape).masked_fill(hidden, torch.nan)).isnan()

    def draws(
        self, hidden: Mapping[str, Tensor], windows: int, members: int, rng: torch.Generator
    ) -> Posteriors:
        """Posterior draws of random windows, of evenly spaced ones if there are fewer than ten times as many."""
        model, length = self.model, self.model.recipe.prior.window
        if len(self.starts) > 10 * windows:
            starts = self.starts[torch.randint(len(self.starts), (windows,), generator=rng)]
        else:
            count = min(windows, len(self.starts))
            starts = self.starts[torch.linspace(0, len(self.starts) - 1, count).long()]
        rows = starts[:, None] + torch.arange(length)
        seen = {}
        for name, mask in hidden.items():
            x, error = self.values[name][rows], model.recipe.modalities[name].error_std
            if name in model.states and error is not None:
                x = x + error / model.codec.statistics[name].std * normal(x.shape, like=x, rng=rng)
            seen[name] = x.masked_fill(mask, torch.nan)
        observations = model.seen(seen, self.errors)
        operators = {name: self.operators[name] for name in seen}
        a = self.posterior.draws(observations, operators, members, rng=rng)
        return Posteriors(a + _GROWTH * self._correction(seen, rng), rows, hidden)

    @torch.no_grad()
    def _correction(self, seen: Mapping[str, Tensor], rng: torch.Generator) -> Tensor:
        """By how much the prior's network moves the posterior mean of the coefficients, (W, L, K); 0 without one.

        It is s_t f of `ConditionalGuidance` where x_t has no signal. Draws of the network's posterior are sharper than
        those of the closed form, farther from the climate where it rains; a decoder that learnt from the latter alone
        exaggerates them.
        """
        model, gaussian = self.model, self.model.prior.gaussian
        guidance = model.sda().guidance
        if not isinstance(guidance, ConditionalGuidance) or not set(seen) <= set(guidance.jacobians):
            return torch.zeros(())
        observations = model.seen(seen, self.errors, model.device)
        index, first = observations.patterns()
        systems = [
            self.systems.without_signal(observations.information(guidance.jacobians, window))
            for window in first
        ]
        pulled = pulled_back(observations, guidance.jacobians)
        posterior = WindowPosterior(gaussian, systems, index, pulled)
        context, t = guidance.features(observations, posterior), pulled.new_ones(())
        found = []
        for part in torch.arange(len(index)).split(_BATCH):  # which bounds the memory
            own = WindowPosterior(gaussian, systems, [index[i] for i in part], pulled[part])
            shape = (len(part), *context.shape[1:2], *gaussian.event)
            noise = normal(shape, rng=rng).to(pulled)
            found.append(model.prior.denoiser.correction(noise, own(noise, t), t, context[part]))
        return gaussian.coefficients(torch.cat(found)).unflatten(-1, (gaussian.length, -1)).cpu()

    def latents(self, coefficients: Tensor, rng: torch.Generator) -> Tensor:
        """Latents (*B, *Z) of coefficients (*B, K), with noise of the variance that the prior has outside its patterns.

        The noise is white, so that it adds that variance to the patterns, too, of which even the last has more.
        """
        noise = normal((*coefficients.shape[:-1], self.patterns.shape[1]), rng=rng)
        flat = coefficients @ self.patterns + self.remainder**0.5 * noise
        return flat.unflatten(-1, self.model.codec.autoencoder.event)

    def seen(self, each: Posteriors, windows: Tensor, day: int) -> dict[str, Tensor]:
        """Observed anomalies (n, *S) on one day of some windows."""
        rows = each.rows[windows, day]
        return {n: self.values[n][rows].masked_fill(mask[day], torch.nan) for n, mask in each.hidden.items()}

    def seen_along(self, each: Posteriors, window: int) -> dict[str, Tensor]:
        """Observed anomalies (L, *S) on the days of one window."""
        rows = each.rows[window]
        return {n: self.values[n][rows].masked_fill(mask, torch.nan) for n, mask in each.hidden.items()}
