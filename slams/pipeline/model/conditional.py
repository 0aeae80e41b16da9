"""Training of the prior's network on random networks of observations."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slams.core.days import Values, daywise, every, mean_of, over
from slams.core.errors import InvalidValueError
from slams.core.random import fork, normal, uniform
from slams.diffusion.denoiser import NetworkDenoiser
from slams.diffusion.exact.window_posterior import System, Systems, WindowPosterior, pulled_back
from slams.diffusion.guidance.conditional import Batch, training_ratio
from slams.networks.autoencoder import MultimodalAutoencoder
from slams.observation.observation import Observations
from slams.pipeline.inputs.observe import observe
from slams.pipeline.model.build import context_channels
from slams.pipeline.model.codec import Anomalies
from slams.pipeline.model.features import ObservationFeatures
from slams.pipeline.model.model import Model

_GROUPS = 4  # random networks of a training step
_LEVELS = 2  # noise levels of each window of a training step
_FREE = 0.125  # share of groups without observations
_VALIDATED = (1e-3, 0.1, 0.5, 2.0, 8.0)
_USUAL = 0.95  # share of days on which a value is there that random networks may observe


@dataclass(frozen=True, eq=False)
class RandomNetwork:
    """A network of observations that the conditional network is trained on.

    Attributes:
        masks: Observed values of each modality, (L, *S).
        extra: Standard deviation of additional noise by modality, in standard deviations of the anomalies.
        system: Decomposed precision of the closed form.
        windows: First days of the training windows with all these values.
    """

    masks: Mapping[str, Tensor]
    extra: Mapping[str, float]
    system: System
    windows: Tensor


class Metric:
    """Squared errors of latents, half as they are and half decoded, weighted by area.

        (e^2 + |D e|^2 / d) / 2,

    D the linear decoders of the state variables in physical units, d such that both halves are equal for white errors.

    Args:
        model: Model with its codec and layouts.
    """

    def __init__(self, model: Model) -> None:
        coder, event = model.codec.autoencoder, model.prior.gaussian.event
        assert isinstance(coder, MultimodalAutoencoder)
        self.weights = torch.ones(())
        total = torch.zeros(event[0], event[0])
        for name in model.states:
            layout = model.layouts[name]
            decoder = coder.coders[name].linear_out.weight.detach().cpu()  # type: ignore[union-attr, operator]
            std = model.codec.statistics[name].std.expand(layout.shape)
            area = layout.weights()
            if len(event) == 1:
                rows = decoder.mT.reshape(event[0], *layout.shape) * (area.sqrt() * std)
                rows = torch.nan_to_num(rows)
            else:
                rows = decoder * std.mean((1, 2))[:, None, None]
            flat = rows.flatten(1) / coder.scales[name]
            own = flat @ flat.mT
            total = total + own / own.diagonal().sum()
        if len(event) > 1:
            area = next(iter(model.layouts.values())).weights()
            pooled = F.avg_pool2d(area[None], area.shape[-1] // event[-1])[0]
            self.weights = (pooled / pooled.mean()).to(model.device)
        values, vectors = torch.linalg.eigh(total * event[0] / total.diagonal().sum())
        self.root = (vectors * values.clamp(min=0).sqrt()).to(model.device)

    def __call__(self, error: Tensor) -> Tensor:
        """(b, L, *Z) -> the same; its mean counts."""
        decoded = torch.einsum("zk,blz...->blk...", self.root, error)
        return self.weights * (error.square() + decoded.square()) / 2


class ConditionalTraining:
    """Loss and validation of a network that is trained on random networks of observations.

    Each training step takes a few random networks (or none), and windows with them: a random subset of modalities, whole
    or in random cells, columns or swaths of 1 to 50 %, with the stated error of a state variable and, in a third of
    them, additional noise. The loss of a window is the squared error of E[z | z_t, y] (see `Metric`) in units of the
    closed form's variance, at noise levels of which two fifths leave almost no signal, where the posterior mean is
    decided.

    Args:
        model: Model with calibrated errors and the network to be trained.
        anomalies: Training anomalies by modality, (n, *S).
        z: Training latents, (n, *Z).
        starts: First days of the training windows.
        progress: Called with 1 for each random network.
    """

    def __init__(
        self,
        model: Model,
        anomalies: Anomalies,
        z: Values,
        starts: Tensor,
        progress: Callable[[int, str], None],
    ) -> None:
        self.model, self.anomalies, self.z, self.starts = model, anomalies, z, starts
        recipe, device = model.recipe, model.device
        self.seed, self.batch = recipe.seed, recipe.prior.fit.batch
        self.gaussian = model.prior.gaussian
        self.errors = model.errors()
        self.jacobians = {name: g.to(device) for name, g in model.jacobians().items()}
        self.features = ObservationFeatures(model.codec, self.jacobians)
        self.channels = context_channels(recipe)
        self.systems = Systems(self.gaussian)
        self.free = self.systems.none()
        self.steps = torch.arange(recipe.prior.window)
        self.metric = Metric(model)
        usual = {
            n: mean_of(daywise(every(x, 7), lambda part: torch.isfinite(part).float()), [0]) > _USUAL
            for n, x in anomalies.items()
        }
        self.usual = {n: mask for n, mask in usual.items() if n not in model.operators and bool(mask.any())}
        self.complete = {
            n: over(anomalies[n], lambda part, mask=mask: torch.isfinite(part[:, mask]).flatten(1).all(1))  # type: ignore[misc]
            for n, mask in self.usual.items()
        }
        self.networks = list[RandomNetwork]()
        for number in range(recipe.prior.networks if self.usual else 0):
            made = self._random(fork(self.seed, "random network", number))
            self.networks += [made] if len(made.windows) else []
            progress(1, "")
        if not self.networks:
            raise InvalidValueError(
                f"no training window has all values of any of {recipe.prior.networks} random networks; complete the "
                "files, or set prior.networks: 0."
            )

    @property
    def trained(self) -> list[str]:
        """Names of the modalities that the network learns from."""
        return sorted({name for network in self.networks for name in network.masks})

    def _random(self, rng: torch.Generator) -> RandomNetwork:
        names = list(self.usual)
        chosen = [n for n in names if float(torch.rand((), generator=rng)) < 0.6]
        chosen = chosen or [names[int(torch.randint(len(names), (), generator=rng))]]
        masks, extra = {n: self._mask(n, rng) for n in chosen}, {}
        for name in chosen:
            noisy, size = torch.rand(2, generator=rng).tolist()
            if noisy < 0.3:
                extra[name] = 0.1 * 10**size
        blank = {n: torch.where(mask, 0.0, torch.nan)[None] for n, mask in masks.items()}
        system = self.systems.of(self._seen(blank, extra).information(self.jacobians, 0))
        whole = torch.stack([self.complete[n] for n in chosen]).all(0)
        return RandomNetwork(
            masks, extra, system, self.starts[whole[self.starts[:, None] + self.steps].all(1)]
        )

    def _mask(self, name: str, rng: torch.Generator) -> Tensor:
        """Observed values (L, *S): all, some cells (the same each day or not), or a swath that moves."""
        layout, length = self.model.layouts[name], len(self.steps)
        usual, weights = self.usual[name].expand(length, *layout.shape), layout.weights()
        kind, share = torch.rand(2, generator=rng).tolist()
        if kind < (0.15 if name in self.model.states else 0.5):
            return usual
        if kind < 0.65 and layout.is_global and name not in self.model.states:
            width = weights.shape[-1]
            band, first = max(1, int(share * width / 2)), int(torch.randint(width, (), generator=rng))
            place = torch.arange(width) - first - band * torch.arange(length)[:, None]
            return usual & (place % width < band)[:, None, None]
        days = 1 if float(torch.rand((), generator=rng)) < 0.6 else length
        count = max(1, round(0.01 * 50**share * weights.numel()))
        mask = torch.zeros(days, weights.numel(), dtype=torch.bool)
        for own in mask:
            own[torch.multinomial(weights.flatten(), count, generator=rng)] = True
        return usual & mask.reshape(days, 1, *weights.shape)

    def _seen(self, values: Mapping[str, Tensor], extra: Mapping[str, float]) -> Observations:
        """Observations (W, L, *S) with the model's errors and additional noise."""
        found = self.model.seen(values, self.errors, self.model.device)
        return Observations(
            {
                n: replace(o, noise=o.noise.widened(extra[n] ** 2)) if n in extra else o
                for n, o in found.items()
            }
        )

    def loss(self, module: nn.Module, rng: torch.Generator) -> Tensor:
        """Loss of one training step."""
        parts = []
        for _ in range(_GROUPS):
            if float(torch.rand((), generator=rng)) < _FREE:
                days = self._days(self.starts, rng)
                found = self._none(len(days))
            else:
                network = self.networks[int(torch.randint(len(self.networks), (), generator=rng))]
                days = self._days(network.windows, rng)
                found = self._given(network, days, rng)
            x = self.z[days].to(self.model.device)
            for _ in range(_LEVELS):  # of the same windows: observations cost as much as the network
                u = uniform((len(x), *[1] * (x.ndim - 1)), like=x, rng=rng)
                parts.append(Batch.of(x, *found, training_ratio(u), rng))
        return Batch.join(parts).errors(module, self.metric).mean()  # type: ignore[arg-type]

    def _days(self, starts: Tensor, rng: torch.Generator) -> Tensor:
        count = max(1, self.batch // (_GROUPS * _LEVELS))
        return starts[torch.randint(len(starts), (count,), generator=rng), None] + self.steps

    def _none(self, count: int) -> tuple[WindowPosterior, Tensor]:
        """The prior as the posterior of no observation, and its features."""
        pulled = self.gaussian.basis.new_zeros(count, self.free.values.numel())
        posterior = WindowPosterior(self.gaussian, [self.free], [0] * count, pulled)
        shape = (count, len(self.steps), self.channels, *self.gaussian.event[1:])
        return posterior, pulled.new_zeros(shape)

    def _given(
        self, network: RandomNetwork, days: Tensor, rng: torch.Generator
    ) -> tuple[WindowPosterior, Tensor]:
        """The closed-form posterior of some windows observed by a network, and its features."""
        seen = {}
        for name, mask in network.masks.items():
            value, stated = self.anomalies[name][days], self.model.recipe.modalities[name].error_std
            width = torch.tensor(network.extra.get(name, 0.0))
            if name in self.model.states and stated is not None:
                width = (width**2 + (stated / self.model.codec.statistics[name].std) ** 2).sqrt()
            value = value + width * normal(value.shape, like=value, rng=rng)
            seen[name] = torch.where(mask, value, torch.nan)
        observations = self._seen(seen, network.extra)
        pulled = pulled_back(observations, self.jacobians)
        posterior = WindowPosterior(self.gaussian, [network.system], [0] * len(days), pulled)
        return posterior, self.features(observations, posterior)

    def batches(self, anomalies: Anomalies, x: Tensor, rows: Tensor) -> list[Batch]:
        """Validation windows with the observations of each set of the recipe, and with none, at some noise levels.

        Args:
            anomalies: Validation anomalies by modality, (n, *S).
            x: Latents of the windows, (W, L, *Z).
            rows: Days of each window, (W, L).
        """
        model, found = self.model, list[Batch]()
        std = {n: s.std for n, s in model.codec.statistics.items()}
        for label, names in {"": (), **model.recipe.experiment.sets}.items():
            own = [n for n in names if n in self.trained]
            if own:
                seen = observe(
                    model.layouts, model.recipe, {n: anomalies[n] for n in own}, own, days=rows, std=std
                )
                observations = self._seen(seen, {})
                posterior = WindowPosterior.given(self.gaussian, observations, self.jacobians)
                given = posterior, self.features(observations, posterior)
            elif names:
                continue
            else:
                given = self._none(len(rows))
            for i, value in enumerate(_VALIDATED):
                ratio = x.new_full((len(x), *[1] * (x.ndim - 1)), value)
                found.append(Batch.of(x, *given, ratio, fork(self.seed, "validation noise", label, i)))
        return found

    @torch.no_grad()
    def losses(
        self, batches: Sequence[Batch], denoiser: NetworkDenoiser, *, corrected: bool = True
    ) -> np.ndarray:
        """Loss of each validation window, (W), relative to that of the closed form in each batch."""
        total = torch.zeros(len(batches[0].x))
        for batch in batches:
            scale = batch.errors(denoiser, self.metric, corrected=False).mean()
            errors = [
                part.errors(denoiser, self.metric, corrected=corrected) / scale for part in batch.split(16)
            ]
            total += torch.cat(errors).cpu() / len(batches)
        found: np.ndarray = total.double().numpy()
        return found

    def validate(self, batches: Sequence[Batch], module: nn.Module) -> float:
        """Mean loss over validation windows."""
        return float(self.losses(batches, module).mean())  # type: ignore[arg-type]
