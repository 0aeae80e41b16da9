"""The closed-form Gaussian: the fair zero-shot baseline, and the yardstick for observation errors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

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
        rows = steps.any(0)
        weighted = noise.apply(observation.filled, observation.precision)[..., rows]
        matrices = torch.stack([noise.information(operator, noise.precision(each)) for each in first])
        found = cls(weighted @ operator[rows], matrices, torch.tensor(pattern).reshape(seen.shape[:-1]))
        if not bool(torch.isfinite(found.pulled).all() and torch.isfinite(matrices).all()):
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

    def windows(self, observations: Observations, operators: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Posterior of each window.

        Args:
            observations: Anomalies (W, L, *O); their operators are not used.
            operators: Matrices G_m by modality, (prod(O), K).

        Returns:
            Mean and standard deviation of the scored state, each (W, L, D).

        Raises:
            FloatingPointError: If an operator is not finite.
        """
        return self.given([Evidence.of(o, operators[name]) for name, o in observations.items()])

    def given(self, evidence: Sequence[Evidence]) -> tuple[Tensor, Tensor]:
        """Posterior of each window, given the evidence of some modalities; see `windows`."""
        length, patterns = evidence[0].pattern.shape[1], self.prior.basis.shape[1]
        pulled = torch.stack([each.pulled for each in evidence]).sum(0)
        seen = torch.stack([each.pattern for each in evidence], 1).flatten(1)
        mean = torch.empty(len(seen), length, len(self.decode))
        std = torch.empty_like(mean)
        for row in seen.unique(dim=0):
            windows = (seen == row).all(1).nonzero().squeeze(-1)
            covariance = self._covariance(evidence, int(windows[0]))
            a = pulled[windows].flatten(1) @ covariance
            mean[windows] = a.unflatten(1, (length, patterns)) @ self.decode.mT
            blocks = covariance.unflatten(1, (length, patterns)).unflatten(0, (length, patterns))
            for k in range(length):
                variance = ((self.decode @ blocks[k, :, k, :]) * self.decode).sum(-1) + self.rest
                std[windows, k] = variance.clamp(min=1e-12).sqrt()
        if not bool(torch.isfinite(mean).all() and torch.isfinite(std).all()):
            raise NonFiniteError(
                "the closed form's mean or spread is not finite; check that operators, errors and observations are."
            )
        return mean, std

    def _covariance(self, evidence: Sequence[Evidence], window: int) -> Tensor:
        """Posterior covariance of a window's coefficients, (L K, L K)."""
        total = torch.stack([each.matrices[each.pattern[window]] for each in evidence]).sum(0)
        information = torch.block_diag(*total).double()
        factor = torch.linalg.cholesky(self._precision / self.inflation + (information + information.mT) / 2)
        return torch.cholesky_inverse(factor).to(self.decode)

    @cached_property
    def _precision(self) -> Tensor:
        patterns = self.prior.basis.shape[1]
        nothing = torch.zeros(self.prior.length, patterns, patterns)
        return self.prior.posterior_precision(nothing)


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
    seen = torch.isfinite(residual).sum(0).clamp(min=1)
    each = torch.nan_to_num(residual).square().sum(0) / seen
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
    value, vector = torch.linalg.eigh((matrix + matrix.mT) / 2)
    mean = float(matrix.diagonal().mean())
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
