"""The closed-form Gaussian: the fair zero-shot baseline, and the yardstick for observation errors."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from slams.assimilation.baseline.bias import Bias, BiasPosterior, stacked
from slams.core.errors import NonFiniteError
from slams.diffusion.denoiser import WindowGaussian
from slams.observation.observation import Observation, Observations


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the values of one modality say of a Gaussian's coefficients, window by window.

    Attributes:
        pulled: G^T R^-1 y of each step, (W, L, K).
        matrices: G^T R^-1 G of each pattern of observed values, (n, K, K).
        pattern: Number of the pattern of each step, (W, L).
    """

    pulled: Tensor
    matrices: Tensor
    pattern: Tensor

    @classmethod
    def of(cls, observation: Observation, operator: Tensor) -> Self:
        """Evidence of anomalies (W, L, *O); only the rows of G that were seen at all are touched.

        Args:
            observation: Values; its own operator is not used.
            operator: G, (prod(O), K).

        Raises:
            FloatingPointError: If the operator or the result is not finite.
        """
        seen, noise = observation.seen, observation.noise
        steps = seen.flatten(0, -2)
        numbers: dict[bytes, int] = {}
        pattern = [numbers.setdefault(step.cpu().numpy().tobytes(), len(numbers)) for step in steps]
        first = steps[[pattern.index(number) for number in range(len(numbers))]]
        where, matrices = torch.tensor(pattern), []
        pulled = operator.new_empty(len(steps), operator.shape[1])
        values = observation.filled.flatten(0, -2)
        for number, each in enumerate(first):  # a full precision of every step has no room in memory
            precision, same = noise.precision(each), where == number
            matrices.append(noise.information(operator, precision))
            pulled[same] = noise.apply(values[same], precision)[:, each] @ operator[each]
        shape = seen.shape[:-1]
        found = cls(pulled.unflatten(0, shape), torch.stack(matrices), where.reshape(shape))
        if not bool(torch.isfinite(found.pulled).all() and torch.isfinite(found.matrices).all()):
            bad = int((~torch.isfinite(operator)).any(1).sum())
            raise NonFiniteError(
                f"the closed form of observations is not finite: {bad} of {len(operator)} rows of their operator "
                "are not; a point without training data, or a decoder that diverged, makes such rows."
            )
        return found

    def scaled(self, factor: float) -> "Evidence":
        """The evidence of errors whose covariance is `factor` times as large."""
        return Evidence(self.pulled / factor, self.matrices / factor, self.pattern)


class ClosedFormGaussian:
    """Posterior mean and spread of a Gaussian prior over windows under linear operators.

    State x = V a + e, e ~ N(0, diag(rest)), a over the window ~ N(0, C); modality m: y = G_m a + e_m, e_m ~ N(0, R_m):

        P = (C^-1 + blockdiag_k sum_m G_m^T R_m^-1 G_m)^-1,   a = P sum_m G_m^T R_m^-1 y_m.

    Args:
        prior: Gaussian over windows of the state's coefficients.
        decode: Rows of V for the scored state, (D, K).
        rest: Variance of each scored component outside the patterns, (D).
        inflation: Factor on C.
    """

    def __init__(self, prior: WindowGaussian, decode: Tensor, rest: Tensor, inflation: float = 1.0) -> None:
        self.prior = prior
        self.decode = decode
        self.rest = rest
        self.inflation = inflation

    def windows(
        self, observations: Observations, operators: Mapping[str, Tensor], bias: BiasPosterior | None = None
    ) -> tuple[Tensor, Tensor]:
        """Posterior of each window.

        Args:
            observations: Anomalies (W, L, *O); their operators are not used.
            operators: Matrices G_m by modality, (prod(O), K).
            bias: Biases of the modalities, common to all windows, as `biases` estimates them: their mean is taken out,
                and their covariance adds to the spread.

        Returns:
            Mean and standard deviation of the scored state, each (W, L, D).

        Raises:
            FloatingPointError: If an operator is not finite.
        """
        if bias is None:
            return self.given([Evidence.of(o, operators[name]) for name, o in observations.items()])
        return self.given(augmented(observations, operators, bias.priors), bias)

    def biases(
        self, observations: Observations, operators: Mapping[str, Tensor], priors: Mapping[str, Bias]
    ) -> BiasPosterior:
        """Biases of the modalities, estimated together with the state: variational bias correction.

        With y_w = G a_w + U beta + e_w in each window, a_w ~ N(0, C), beta ~ N(0, T) common to all windows, and
        S = G C G^T + R,

            B = (T^-1 + sum_w share U^T S^-1 U)^-1,   beta = B sum_w share U^T S^-1 y_w.

        The share is the smallest of the modalities'. A bias that only one modality could show is told from the
        weather by the weather's own mean, which is zero: it stays near its prior.

        Args:
            observations: Anomalies (W, L, *O) of windows that do not overlap.
            operators: Matrices G_m by modality, (prod(O), K).
            priors: Priors by modality; those that were not observed stay what they are, uncorrelated.

        Source:
            Dee (2005), doi:10.1256/qj.05.137, section 5, with the state eliminated.
        """
        share = min((priors[name].share for name in observations if name in priors), default=1.0)
        return self.biases_given(augmented(observations, operators, priors), priors, share)

    def biases_given(
        self, evidence: Sequence[Evidence], priors: Mapping[str, Bias], share: float
    ) -> BiasPosterior:
        """`biases`, given the evidence of modalities on the coefficients and, behind them, on the biases of `priors`."""
        patterns = self.prior.basis.shape[1]
        pulled = torch.stack([each.pulled for each in evidence]).sum(0).double()
        precision = torch.linalg.inv(
            torch.block_diag(*[prior.covariance.double() for prior in priors.values()])
        )
        right = precision.new_zeros(len(precision))
        for windows, total in _alike(evidence):
            covariance = self._covariance(total[:, :patterns, :patterns]).double()
            across = total[:, :patterns, patterns:].flatten(0, 1).double()  # G^T R^-1 U
            gain = covariance @ across
            own = total[:, patterns:, patterns:].sum(0).double() - across.mT @ gain
            values = pulled[windows, :, :patterns].flatten(1) @ gain
            right = right + share * (pulled[windows, :, patterns:].sum(1) - values).sum(0)
            precision = precision + share * len(windows) * (own + own.mT) / 2
        found = torch.linalg.inv(precision)
        return BiasPosterior(priors, (found @ right).to(self.decode), found.to(self.decode))

    def given(self, evidence: Sequence[Evidence], bias: BiasPosterior | None = None) -> tuple[Tensor, Tensor]:
        """Posterior of each window, given the evidence of some modalities; see `windows`."""
        length, patterns = evidence[0].pattern.shape[1], self.prior.basis.shape[1]
        pulled = torch.stack([each.pulled for each in evidence]).sum(0)[..., :patterns]
        mean = torch.empty(len(pulled), length, len(self.decode))
        std = torch.empty_like(mean)
        for windows, total in _alike(evidence):
            covariance = self._covariance(total[:, :patterns, :patterns])
            right, extra = pulled[windows].flatten(1), torch.zeros(length, patterns, 1)
            if bias is not None:
                across = total[:, :patterns, patterns:].flatten(0, 1)
                right = right - across @ bias.mean
                extra = (covariance @ across @ bias.root).unflatten(0, (length, patterns))
            mean[windows] = (right @ covariance).unflatten(1, (length, patterns)) @ self.decode.mT
            blocks = covariance.unflatten(1, (length, patterns)).unflatten(0, (length, patterns))
            for k in range(length):
                variance = ((self.decode @ blocks[k, :, k, :]) * self.decode).sum(-1) + self.rest
                variance = variance + (self.decode @ extra[k]).square().sum(-1)
                std[windows, k] = variance.clamp(min=1e-12).sqrt()
        if not bool(torch.isfinite(mean).all() and torch.isfinite(std).all()):
            raise NonFiniteError(
                "the closed form's mean or spread is not finite; check that operators, errors and observations are."
            )
        return mean, std

    def record_means(
        self, evidence: Sequence[Evidence], weights: Tensor, bias: BiasPosterior | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Posterior of the means over all days of a record, windows being independent given the biases.

        With g the weights of a window's coefficients in the mean of its days and P_w their posterior covariance, the
        mean over W windows has the variance sum_w g^T P_w g / W^2, and by the biases that of
        |sum_w g^T P_w G^T R^-1 U B^(1/2)|^2 / W^2.

        Args:
            evidence: Evidence of windows that do not overlap, as of `given`.
            weights: Weights of the scored state in each mean, (M, D).
            bias: Biases of the modalities.

        Returns:
            Means, their variances given the biases, and the variances by the biases, each (M).
        """
        length, patterns = evidence[0].pattern.shape[1], self.prior.basis.shape[1]
        pulled = torch.stack([each.pulled for each in evidence]).sum(0)[..., :patterns]
        g = (weights @ self.decode).repeat(1, length) / length
        mean, variance = torch.zeros(len(g)), torch.zeros(len(g))
        common = torch.zeros(len(g), 1 if bias is None else len(bias.mean))
        for windows, total in _alike(evidence):
            covariance = self._covariance(total[:, :patterns, :patterns])
            right, gain = pulled[windows].flatten(1), g @ covariance
            if bias is not None:
                across = total[:, :patterns, patterns:].flatten(0, 1)
                right = right - across @ bias.mean
                common += len(windows) * gain @ across @ bias.root
            mean += (right @ gain.mT).sum(0)
            variance += len(windows) * (gain * g).sum(1)
        count = len(pulled)
        return mean / count, variance / count**2, (common / count).square().sum(1)

    def _covariance(self, information: Tensor) -> Tensor:
        """Posterior covariance of a window's coefficients (L K, L K), from the information of each step (L, K, K)."""
        matrix = torch.block_diag(*information).double()
        factor = torch.linalg.cholesky(self._precision / self.inflation + (matrix + matrix.mT) / 2)
        return torch.cholesky_inverse(factor).to(self.decode)

    @cached_property
    def _precision(self) -> Tensor:
        patterns = self.prior.basis.shape[1]
        nothing = torch.zeros(self.prior.length, patterns, patterns)
        return self.prior.posterior_precision(nothing)


def _alike(evidence: Sequence[Evidence]) -> Iterator[tuple[Tensor, Tensor]]:
    """Windows that saw the same values, and the information of each of their steps, (L, K, K)."""
    seen = torch.stack([each.pattern for each in evidence], 1).flatten(1)
    for row in seen.unique(dim=0):
        windows = (seen == row).all(1).nonzero().squeeze(-1)
        yield windows, torch.stack([each.matrices[each.pattern[windows[0]]] for each in evidence]).sum(0)


def augmented(
    observations: Observations, operators: Mapping[str, Tensor], priors: Mapping[str, Bias]
) -> list[Evidence]:
    """Evidence of the patterns' coefficients and, behind them, of those of the biases."""
    return [
        Evidence.of(o, torch.cat([operators[name], stacked(priors, name, len(operators[name]))], 1))
        for name, o in observations.items()
    ]


def ridge(a: Tensor, y: Tensor, penalty: float) -> Tensor:
    """Linear operator G of y = G a + e by ridge regression.

    Args:
        a: Coefficients (n, K), mean zero.
        y: Anomalies (n, O), NaN where missing; a column is fitted on the days on which it was seen.
        penalty: Added to the diagonal of a^T a.

    Returns:
        G, (O, K).
    """
    gram = (a.mT @ a).double()
    eye = penalty * torch.eye(a.shape[1], dtype=torch.float64)
    seen = torch.isfinite(y)
    operator = torch.linalg.solve(gram + eye, (a.mT @ torch.nan_to_num(y)).double())
    for column in (~seen.all(0)).nonzero().flatten().tolist():
        rows = seen[:, column]
        if bool(rows.any()):
            part = a[rows]
            operator[:, column] = torch.linalg.solve(
                (part.mT @ part).double() + eye, (part.mT @ y[rows, column]).double()
            )
    return operator.mT.to(a.dtype)


def residual_variance(residual: Tensor) -> Tensor:
    """Variance of each column over the days on which it was seen, with a small floor.

    Args:
        residual: (n, P), NaN where unknown.

    Returns:
        (P).
    """
    return floored(torch.nan_to_num(residual).square().sum(0), torch.isfinite(residual).sum(0))


def floored(squares: Tensor, seen: Tensor) -> Tensor:
    """`residual_variance` of sums over days: of squares (P), and of days on which a column was seen (P)."""
    each = squares / seen.clamp(min=1)
    return each + 1e-3 * each.mean() + 1e-6


def residual_covariance(residual: Tensor, *, floor: float = 1e-3) -> Tensor:
    """Full covariance of residuals with days missing, kept positive definite.

    Args:
        residual: (n, O), NaN where missing.
        floor: Share of the mean variance added to the diagonal.

    Returns:
        (O, O).
    """
    seen = torch.isfinite(residual).to(residual.dtype)
    clean = torch.nan_to_num(residual)
    counts = (seen.mT @ seen).clamp(min=1)
    matrix = (clean.mT @ clean / counts).double()
    matrix = (matrix + matrix.mT) / 2
    mean = float(matrix.diagonal().mean())
    if bool((seen != seen[:1]).any()):  # else it is a product of a matrix with itself
        value, vector = torch.linalg.eigh(matrix)
        matrix = (vector * value.clamp(min=0)) @ vector.mT
    return (matrix + floor * (mean + 1e-9) * torch.eye(len(matrix), dtype=matrix.dtype)).to(residual.dtype)


def normal_crps(error: Tensor, std: Tensor) -> Tensor:
    """CRPS of N(mean, std^2) at a truth that lies `error` above the mean.

    Source:
        Gneiting et al. (2005), doi:10.1175/MWR2904.1, eq. 5.
    """
    u = error / std
    density = torch.exp(-0.5 * u**2) / (2 * torch.pi) ** 0.5
    return std * (u * torch.erf(u / 2**0.5) + 2 * density - torch.pi**-0.5)
