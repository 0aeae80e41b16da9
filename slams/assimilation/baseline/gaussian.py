"""The closed-form Gaussian: the fair zero-shot baseline, and the yardstick for observation errors."""

from collections.abc import Mapping

import torch
from torch import Tensor

from slams.diffusion.denoiser import WindowGaussian
from slams.observation.observation import Observations


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
        """
        index, first = observations.patterns()
        length, patterns = observations.steps, self.prior.basis.shape[1]
        pulled = sum(
            (
                o.noise.apply(torch.nan_to_num(o.value).flatten(-o.event), o.precision) @ operators[name]
                for name, o in observations.items()
            ),
            start=torch.zeros(()),
        )
        mean = torch.empty(len(index), length, len(self.decode))
        std = torch.empty_like(mean)
        prior = (
            self.prior.posterior_precision(torch.zeros(length, patterns, patterns)).double() / self.inflation
        )
        for number, window in enumerate(first):
            information = torch.block_diag(*observations.information(operators, window)).double()
            factor = torch.linalg.cholesky(prior + (information + information.mT) / 2)
            covariance = torch.cholesky_inverse(factor).float()
            rows = [w for w, n in enumerate(index) if n == number]
            a = pulled[rows].flatten(1) @ covariance
            mean[rows] = a.unflatten(1, (length, patterns)) @ self.decode.mT
            blocks = covariance.unflatten(1, (length, patterns)).unflatten(0, (length, patterns))
            for k in range(length):
                variance = ((self.decode @ blocks[k, :, k, :]) * self.decode).sum(-1) + self.rest
                std[rows, k] = variance.clamp(min=1e-12).sqrt()
        return mean, std


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
