"""Samplers of the distribution of a denoiser."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from slams.core.errors import InvalidValueError
from slams.core.random import Rng, normal
from slams.core.renamed import old_keywords
from slams.diffusion.denoiser import Denoiser, WindowGaussian
from slams.diffusion.divergence import data_scale, diverged_step, is_sound
from slams.diffusion.schedule import Schedule


@dataclass(frozen=True)
class Sampler:
    """DDIM (eta = 0) to ancestral sampling (eta = 1), with Langevin corrections, or of higher order.

    With eps = (x_t - alpha_t m) / sigma_t and s < t,

        x_s = alpha_s m + sqrt(sigma_s^2 - c^2) eps + c w,
        c = eta sigma_s sqrt(1 - (alpha_t sigma_s / (alpha_s sigma_t))^2),  w ~ N(0, 1).

    With eta = 0 this is Euler's method for the probability flow, dz / du = eps with z = x / alpha and
    u = sigma / alpha, and the exponential integrator for a constant mean. The multistep methods let the mean vary in
    lambda = log(alpha / sigma): order 2 extrapolates it from this and the last evaluation, m + (m - m') / (2 r), r the
    ratio of the last to this step; order 3 integrates the parabola through the last three against exp(lambda). Heun's
    method evaluates twice a step and averages eps (order 2 without memory); the exponential one takes the mean linear in
    lambda instead, which does not overshoot in long steps such as the first of the time grid "snr".

    With `noise_averaging` = d, the evaluation of a step that ends within `averaging_range` also makes a Langevin step:

        x_s = alpha_s m + (1 - d) sigma_s eps + sqrt(d / 2) sigma_s (w + w'),

    w the normal numbers of this step and w' those of the last. Averaged noise preserves the variance of a Gaussian
    for any d, whereas `corrections` widen it: draws converge to the denoiser's distribution at the present noise,
    independent of its errors at higher noise. Steps outside the range are of the given order, since at noise below
    the narrowest direction order 1 would reduce its width.

    Attributes:
        steps: Number of steps on the way from t = 1 to 0.
        eta: Fraction of ancestral noise.
        corrections: Langevin corrections after each step, of size tau / mean(eps^2) of each sample. They add
            noise: on white noise the variance tends to 1 + tau / 2.
        tau: Size of a correction relative to the score.
        noise_averaging: Strength d in [0, 1]; requires eta = 0 and the multistep method.
        averaging_range: Range of alpha / sigma of steps with averaged noise.
        order: Order of the method, 1, 2 or 3.
        time_grid: Spacing of times, uniform in "time" (the published choice) or in log("snr") between the ratios `ends`,
            which resolves the narrow directions of a posterior.
        ends: Range of alpha / sigma of the time grid "snr", clipped to the schedule's; a posterior of width w needs the
            second well above 1 / w.
        method: Method, "multistep", or with two evaluations a step "heun" or "exponential" (order 2).
        max_step_ratio: Largest extrapolation of order 2, relative to the length of the last step. On the time grid
            "snr" the step to t = 0 is much longer than those before and would amplify the noise of the last.
        batch: Number of leading axes of samples; each sample has its own size of corrections.

    Raises:
        ValueError: If `steps` is below 1, `noise_averaging` not in [0, 1], the order, the time grid or the method
            unknown, or a higher order is combined with noise other than eta with the multistep
            method of order 2.

    Source:
        Song et al. (2021), arXiv:2010.02502, eq. 12 and 16; orders 2 and 3 after Lu et al. (2022), arXiv:2211.01095,
        algorithm 2, and Hochbruck & Ostermann (2010), doi:10.1017/S0962492910000048 (exponential Adams-Bashforth
        methods); Heun's method as in Karras et al. (2022), arXiv:2206.00364, algorithm 1; corrections as in Rozet &
        Louppe (2023), arXiv:2306.10574, algorithm 4; averaged noise as in Leimkuhler & Matthews (2013),
        doi:10.1093/amrx/abs010, eq. 1.6.
    """

    RENAMED: ClassVar = "sampler setting"

    steps: int = 64
    eta: float = 0.0
    corrections: int = 0
    tau: float = 0.5
    noise_averaging: float = 0.0
    averaging_range: tuple[float, float] = (0.0, math.inf)
    order: int = 1
    time_grid: Literal["time", "snr"] = "time"
    ends: tuple[float, float] = (0.05, 60.0)
    method: Literal["multistep", "heun", "exponential"] = "multistep"
    max_step_ratio: float = math.inf
    batch: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InvalidValueError(f"steps must be at least 1, got {self.steps}.")
        if self.order not in (1, 2, 3) or self.time_grid not in ("time", "snr"):
            raise InvalidValueError(
                f"order is 1, 2 or 3 and time_grid 'time' or 'snr', got {self.order} and {self.time_grid!r}."
            )
        twice = self.method != "multistep"
        if self.method not in ("multistep", "heun", "exponential") or (twice and self.order == 3):
            raise InvalidValueError(
                "method is 'multistep', 'heun' or 'exponential' (both of order 2), got "
                f"{self.method!r} with order {self.order}."
            )
        higher = self.order > 1 or twice
        if higher and (self.corrections or (self.eta and (twice or self.order == 3))):
            raise InvalidValueError(
                f"order {max(self.order, 2)} by {self.method!r} draws without fresh noise, but for eta with the "
                "multistep method of order 2; set eta and corrections to 0, or order to 1."
            )
        if not 0 <= self.noise_averaging <= 1 or (self.noise_averaging and (twice or self.eta)):
            raise InvalidValueError(
                f"noise_averaging is in [0, 1] and goes with method 'multistep' and eta = 0; got "
                f"{self.noise_averaging}, {self.method!r} and {self.eta}."
            )
        if not 0 < self.ends[0] < self.ends[1] or self.tau <= 0 or self.batch < 1:
            raise InvalidValueError(
                f"ends are positive and grow, tau is positive and batch at least 1, got {self.ends}, {self.tau} "
                f"and {self.batch}."
            )

    @property
    def evaluations(self) -> int:
        """Number of denoiser evaluations of a draw."""
        again = 0 if self.method == "multistep" else self.steps
        return self.steps + again + self.corrections * (self.steps - 1)

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoiser,
        noise: Tensor,
        *,
        rng: Rng = None,
        progress: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Draws, one for each row of noise.

        Args:
            denoiser: Denoiser of the distribution to sample.
            noise: Standard normal, shape (*B, N, *event); sets the draw.
            rng: Generator of the noise added on the way.
            progress: Called with 1 after each step.

        Returns:
            Draws of the shape of `noise`.

        Raises:
            FloatingPointError: If a draw is not finite, or larger than 1e6 (alpha_t s + sigma_t) with s the `std` that
                the denoiser's parts state (at least 1); names the step, the range of the network's output, and the
                guidance's norm if that was at fault.
        """
        times = self._times(denoiser.schedule).to(noise)
        return self._along(denoiser, denoiser.schedule(times[0])[1] * noise, times, rng, progress)

    @torch.no_grad()
    def onward(self, denoiser: Denoiser, x_t: Tensor, *, depth: float = 1.0, rng: Rng = None) -> Tensor:
        """Draws from x_t at diffusion time `depth` on, by the same number of steps.

        Args:
            denoiser: Denoiser of the distribution to sample.
            x_t: Noisy samples, (*B, N, *event).
            depth: Their time in (0, 1].
            rng: Generator of the noise added on the way.
        """
        return self._along(denoiser, x_t, self._times(denoiser.schedule, depth).to(x_t), rng)

    @torch.no_grad()
    def invert(self, denoiser: Denoiser, x: Tensor, *, depth: float = 1.0) -> Tensor:
        """Clean samples carried up the probability flow to x_t at time `depth`, the way that `onward` comes down.

        Args:
            denoiser: Denoiser of the distribution to sample.
            x: Clean samples, (*B, N, *event).
            depth: Time in (0, 1].

        Raises:
            ValueError: If the sampler adds noise and so is not invertible.

        Source:
            Song et al. (2021), arXiv:2010.02502, section 4.3.
        """
        if self.eta or self.corrections or self.noise_averaging:
            raise InvalidValueError(
                "a sampler with noise is not invertible: set eta, corrections and noise_averaging to 0 to invert."
            )
        times = self._times(denoiser.schedule, depth).flip(0).to(x)
        return self._along(denoiser, denoiser.schedule(times[0])[0] * x, times, None)

    def _along(
        self,
        denoiser: Denoiser,
        x: Tensor,
        times: Tensor,
        rng: Rng,
        progress: Callable[[int], None] | None = None,
    ) -> Tensor:
        """x carried from the first of `times` to the last."""
        past: list[tuple[Tensor, Tensor]] = []
        scale = data_scale(denoiser)
        last = normal(x.shape, like=x, rng=rng) if self.noise_averaging else x
        for i in range(self.steps):
            before = x
            try:
                at = _Step.of(denoiser, x, times[i], times[i + 1], i == self.steps - 1)
                if self._averages(at):
                    fresh = normal(x.shape, like=x, rng=rng)
                    rest = (1 - self.noise_averaging) * at.eps + (self.noise_averaging / 2) ** 0.5 * (
                        last + fresh
                    )
                    x, last = at.alpha_s * at.mean + at.sigma_s * rest, fresh
                    past.clear()
                else:
                    x = self._step(denoiser, at, past, rng)
                for _ in range(self.corrections if i < self.steps - 1 else 0):
                    x = self._correct(denoiser, x, times[i + 1], rng)
            except FloatingPointError as error:
                where = f"step {i + 1} of {self.steps}"
                raise diverged_step(denoiser, before, times[i], None, error, where) from error
            if not is_sound(x, float(at.alpha_s) * scale + float(at.sigma_s)):
                raise diverged_step(denoiser, before, times[i], x, "", f"step {i + 1} of {self.steps}")
            if progress is not None:
                progress(1)
        return x

    def _averages(self, at: "_Step") -> bool:
        low, high = self.averaging_range
        return self.noise_averaging > 0 and not at.last and low <= float(at.alpha_s / at.sigma_s) <= high

    def _step(self, denoiser: Denoiser, at: "_Step", past: list[tuple[Tensor, Tensor]], rng: Rng) -> Tensor:
        """x at the end of a step; `past` holds means and strides in lambda, latest first."""
        if bool(at.sigma_s == 0):  # lambda is infinite there, and all is decided by the mean
            return at.alpha_s * at.mean
        if self.method != "multistep":
            guess = at.alpha_s * at.mean + at.sigma_s * at.eps
            return _heun(at, denoiser(guess, at.s), exponential=self.method == "exponential")
        noisy = self.eta > 0 and not at.last
        kept = fresh = at.sigma_s
        if noisy:
            share = (1 - (at.alpha * at.sigma_s / (at.alpha_s * at.sigma)) ** 2).clamp(min=0)
            fresh = self.eta * at.sigma_s * share.sqrt()
            kept = (at.sigma_s**2 - fresh**2).sqrt()
        if self.order > 1:
            past.insert(0, (at.mean, ((at.alpha_s * at.sigma) / (at.sigma_s * at.alpha)).log()))
            del past[self.order :]
            x = _multistep(at, past, kept, self.max_step_ratio)
        else:
            x = at.alpha_s * at.mean + kept * at.eps
        return x + fresh * normal(x.shape, like=x, rng=rng) if noisy else x

    def _times(self, schedule: Schedule, start: float = 1.0) -> Tensor:
        """From `start` down to 0."""
        if not 0 < start <= 1:
            raise InvalidValueError(f"draws start from a diffusion time in (0, 1], got {start}.")
        alpha, sigma = schedule(torch.tensor([start, 0.0], dtype=torch.float64))
        noisiest, cleanest = (alpha / sigma).tolist()
        low, high = max(self.ends[0], noisiest), min(self.ends[1], cleanest)
        if self.time_grid == "time" or self.steps == 1 or low >= high:
            return torch.linspace(start, 0, self.steps + 1, dtype=torch.float64)
        # a grid that reaches the schedule's own end has no jump left to make there
        count = self.steps if high < cleanest else self.steps + 1
        ratios = torch.exp(torch.linspace(math.log(low), math.log(high), count, dtype=torch.float64))
        inner = schedule.time(ratios)[1 : self.steps]
        return torch.cat([inner.new_tensor([start]), inner, inner.new_zeros(1)])

    def _correct(self, denoiser: Denoiser, x: Tensor, t: Tensor, rng: Rng) -> Tensor:
        alpha, sigma = denoiser.schedule(t)
        eps = (x - alpha * denoiser(x, t)) / sigma
        event = tuple(range(self.batch, x.ndim))
        delta = self.tau / eps.square().mean(event, keepdim=True).clamp(min=1e-12)
        return x - sigma * (delta * eps + (2 * delta).sqrt() * normal(x.shape, like=x, rng=rng))


Sampler.__init__ = old_keywords(Sampler.RENAMED)(Sampler.__init__)  # type: ignore[method-assign]


def ends_for(gaussian: WindowGaussian, ends: tuple[float, float] = (0.05, 60.0)) -> tuple[float, float]:
    """Range of alpha / sigma in which draws of a Gaussian are made, for `Sampler.ends`.

    It begins at a tenth of the reciprocal of the widest direction, or lower: steps from the noisiest time to a ratio at
    which a direction already shows leave it too narrow (half the variance of directions of 20 standard deviations from
    .05 on).

    Args:
        gaussian: Closed form of the prior.
        ends: Range for a Gaussian without wider directions.
    """
    widest = float(gaussian.values.max()) ** 0.5
    return min(ends[0], 0.1 / widest), ends[1]


class _Step(NamedTuple):
    """A step from t to s: signal and noise at both, x at t and what the denoiser said of it."""

    alpha: Tensor
    sigma: Tensor
    alpha_s: Tensor
    sigma_s: Tensor
    s: Tensor
    x: Tensor
    mean: Tensor
    last: bool

    @property
    def eps(self) -> Tensor:
        return (self.x - self.alpha * self.mean) / self.sigma

    @classmethod
    def of(cls, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, last: bool) -> "_Step":
        """Asks the denoiser at t."""
        return cls(*denoiser.schedule(t), *denoiser.schedule(s), s, x, denoiser(x, t), last)


def _heun(at: _Step, ahead: Tensor, *, exponential: bool) -> Tensor:
    """With the mean at the end of the step: averages eps in sigma / alpha, or lets the mean vary along a line."""
    if exponential:
        h = float(((at.alpha_s * at.sigma) / (at.sigma_s * at.alpha)).log())
        moved = h * (_moment(h, 0) * at.mean + _moment(h, 1) * (ahead - at.mean))
        return at.sigma_s / at.sigma * (at.x + at.alpha * moved)
    guess = at.alpha_s * at.mean + at.sigma_s * at.eps
    slope = (at.eps + (guess - at.alpha_s * ahead) / at.sigma_s) / 2
    return at.alpha_s * (at.x / at.alpha + (at.sigma_s / at.alpha_s - at.sigma / at.alpha) * slope)


def _multistep(at: _Step, past: list[tuple[Tensor, Tensor]], kept: Tensor, max_step_ratio: float) -> Tensor:
    """The mean extrapolated from up to three evaluations, by a line or a parabola, beside `kept` of the noise."""
    mean, stride = past[0]
    # a parabola carried over a much longer step than those it was laid through is worse than a line
    if len(past) == 3 and abs(float(stride)) < 1.5 * abs(float(past[1][1])):  # both negative on the way up
        return at.sigma_s / at.sigma * (at.x + at.alpha * _parabola(past))
    ahead = mean
    if len(past) > 1:
        ahead = mean + (mean - past[1][0]) * (stride / past[1][1]).clamp(max=max_step_ratio) / 2
    return kept / at.sigma * at.x + (at.alpha_s - at.alpha * kept / at.sigma) * ahead


def _parabola(past: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Integral over this step of exp(lambda - lambda_t) times the parabola through the last three means."""
    (mean, stride), (second, h1), (third, h2) = past
    h = float(stride)
    # nodes at 0, -p and -q in units of the step; Newton's form of the parabola m0 + u (d1 + (u + p) d2)
    p, q = float(h1) / h, float(h1 + h2) / h
    d1 = (mean - second) / p
    d2 = (d1 - (second - third) / (q - p)) / q
    i0, i1, i2 = (h * _moment(h, k) for k in range(3))
    return i0 * mean + i1 * (d1 + p * d2) + i2 * d2


def _moment(h: float, k: int) -> float:
    """Integral of u^k exp(h u) over (0, 1), by a series of positive terms, which does not cancel for small h."""
    total, term = 0.0, 1.0
    for j in range(80):
        total += term / (j + k + 1)
        term *= h / (j + 1)
    return total
