"""The forecast ensemble as a mixture of kernels in its own coordinates, and its posterior in closed form."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from slams.diffusion.exact.kernel_mixture import KernelMixture, bandwidth

ONE = 1 - 1e-5  # width from which on the mixture is one Gaussian but for a part of 1e-5, without N^2 kernels
WIDTHS = 12  # candidates of a kernel's width


def coordinates(A: Tensor) -> Tensor:
    """Coordinates in which anomalies have covariance 1, 0 along directions without spread.

    Args:
        A: Anomalies, (*B, N, n).

    Returns:
        (*B, N, r), r the smaller of n and N - 1.
    """
    return A @ projection(A)


def projection(A: Tensor) -> Tensor:
    """Whitening matrix of anomalies, V s^-1/2 of their covariance V s V^T.

    Args:
        A: Anomalies, (*B, N, n).

    Returns:
        (*B, n, r), r the smaller of n and N - 1; columns of directions without spread are 0.
    """
    size, n = A.shape[-2:]
    r = min(n, size - 1)
    s, V = torch.linalg.eigh((A.mT @ A if n < size else A @ A.mT) / (size - 1))
    s, V = s[..., -r:], V[..., -r:]
    keep = s > 1e3 * torch.finfo(A.dtype).eps * s[..., -1:]
    safe = torch.where(keep, s, 1.0)
    if n < size:
        return V * (safe.rsqrt() * keep).unsqueeze(-2)
    return A.mT @ (V * (keep / safe).unsqueeze(-2)) / math.sqrt(size - 1)


def candidates(z: Tensor) -> Tensor:
    """Widths to choose from for members (*B, N, r): at equal ratios up to 1, (WIDTHS)."""
    narrowest = math.log(bandwidth(z.shape[-2], 1) / 5)
    return torch.linspace(narrowest, -1e-6, WIDTHS, dtype=z.dtype, device=z.device).exp()


def leave_one_out(z: Tensor, widths: Tensor) -> Tensor:
    """Log-likelihood of each member under the mixture of the others, summed over members.

    sum_i log 1/(N - 1) sum_{j != i} N(z_i; (1 - b^2)^1/2 z_j, b^2 1), up to a constant of b.

    Args:
        z: Members in coordinates of unit covariance, (*B, N, r).
        widths: Candidates of b, (K).

    Returns:
        (*B, K).

    Source:
        Habbema, Hermans & van den Broek (1974); Duin (1976), doi:10.1109/TC.1976.1674577.
    """
    gram = z @ z.mT
    square = gram.diagonal(dim1=-2, dim2=-1)
    rank = (z.abs().amax(-2) > 0).sum(-1)
    itself = torch.eye(z.shape[-2], dtype=torch.bool, device=z.device)
    scores = []
    for b in widths:
        a = (1 - b * b).sqrt()
        apart = square.unsqueeze(-1) + a * a * square.unsqueeze(-2) - 2 * a * gram
        terms = (-0.5 * apart / (b * b)).masked_fill(itself, -math.inf).logsumexp(-1)
        scores.append(terms.sum(-1) - z.shape[-2] * rank * b.log())
    return torch.stack(scores, -1)


def effective(mixture: KernelMixture) -> Tensor:
    """Effective number of components, 1 / sum_j w_j^2, (*B)."""
    return 1 / mixture.logits.softmax(-1).square().sum(-1)


@dataclass(frozen=True)
class Conditioning:
    """An ensemble and what it predicts of an observation, ready for kernels of any width.

    Members z and their predictions Y shrink towards the mean together: component j has the centre a z_j and predicts
    a Y_j there, a = (1 - b^2)^1/2. With slopes G by regression and G^T G = Q diag(g) Q^T, in the basis Q:

        s^2 = b^2 / (1 + b^2 g),    m_j = a z_j + s^2 Q^T G^T (d - a Y_j),
        log w_j = -1/2 |d - a Y_j|^2 + 1/2 |s Q^T G^T (d - a Y_j)|^2.

    At b = 1 there is one Gaussian, whatever the operator; where b is small the predictions are those of the members.

    What of Y the coordinates do not explain, E = Y - z G^T, has the covariance C = E^T E / (N - 1) and shrinks with the
    kernel as well: with 1 + b^2 C = L L^T the observation errors, Y, d and G are multiplied by L^-1 first (`joint`). So
    the coordinates need not hold all that an observation depends on, and at b = 1 the gain is that of the whole ensemble.

    Attributes:
        z: Members in the basis, (*B, N, r).
        Q: The basis, (*B, r, r).
        g: Squared slopes along it, (*B, r).
        pull: Q^T G^T Y_j, (*B, N, r).
        shift: Q^T G^T d, (*B, 1, r).
        cross: d . Y_j, (*B, N).
        square: |Y_j|^2, (*B, N).
    """

    z: Tensor
    Q: Tensor
    g: Tensor
    pull: Tensor
    shift: Tensor
    cross: Tensor
    square: Tensor

    @classmethod
    def of(cls, z: Tensor, Y: Tensor, d: Tensor) -> "Conditioning":
        """From members of unit covariance (*B, N, r), whitened predictions (*B, N, O) and innovation (*B, O)."""
        G = Y.mT @ z / (z.shape[-2] - 1)
        return cls._of(z, G, Y, d)

    @classmethod
    def joint(cls, z: Tensor, Y: Tensor, d: Tensor, b: Tensor) -> "Conditioning":
        """Conditioning with the residual of the regression as an error, for widths b (*B, 1, 1)."""
        size, count = Y.shape[-2:]
        # members without linear dependence explain all they predict
        if z.shape[-1] >= size - 1 and bool((z.abs().amax(-2) > 0).all()):
            return cls.of(z, Y, d)
        Y, d = (Y, d) if count < size else compressed(Y, d)
        G = Y.mT @ z / (size - 1)
        return cls._of(z, *explained(G, Y, d, Y - z @ G.mT, b))

    @classmethod
    def again(cls, z: Tensor, after: Tensor, Y: Tensor, d: Tensor) -> "Conditioning":
        """One Gaussian, linear as the operator is about members `after` an analysis.

        With G by regression of Y on `after`, whose mean is c, the innovation at the mean of z is d + G c; what the
        regression leaves is an error.

        Args:
            z: Members before, of unit covariance, (*B, N, r).
            after: Members after, in the same coordinates.
            Y: Whitened predictions of these, (*B, N, O).
            d: Whitened innovation of their mean, (*B, O).

        Source:
            Garcia-Fernandez, Svensson, Morelande & Sarkka (2015), doi:10.1109/TSP.2015.2454485, algorithm 1.
        """
        Y, d = (Y, d) if Y.shape[-1] < Y.shape[-2] else compressed(Y, d)
        c = after.mean(-2, keepdim=True)
        D, size = after - c, after.shape[-2]
        S = D.mT @ D
        S.diagonal(dim1=-2, dim2=-1).add_(torch.finfo(z.dtype).eps * size)
        G = torch.linalg.solve_ex(S, D.mT @ Y)[0].mT
        d = d + (G @ c.mT)[..., 0]
        G, _, d = explained(G, Y, d, Y - D @ G.mT, z.new_ones(()))
        return cls._of(z, G, z @ G.mT, d)

    @classmethod
    def _of(cls, z: Tensor, G: Tensor, Y: Tensor, d: Tensor) -> "Conditioning":
        g, Q = torch.linalg.eigh(G.mT @ G)
        slopes, column = G @ Q, d.unsqueeze(-1)
        return cls(
            z @ Q, Q, g.clamp(min=0), Y @ slopes, column.mT @ slopes, (Y @ column)[..., 0], Y.square().sum(-1)
        )

    def posterior(self, b: Tensor) -> KernelMixture:
        """In the basis, for widths b (*B, 1, 1)."""
        a = (1 - b * b).sqrt()
        variances = b * b / (1 + b * b * self.g.unsqueeze(-2))
        # without what all components have in common: it would drown the rest where d is large
        fit = (a * self.pull * (0.5 * a * self.pull - self.shift) * variances).sum(-1)
        logits = a[..., 0] * (self.cross - 0.5 * a[..., 0] * self.square) + fit
        return KernelMixture(a * self.z + variances * (self.shift - a * self.pull), variances, logits)

    def prior(self, b: Tensor) -> KernelMixture:
        """Prior mixture for widths b (*B, 1, 1)."""
        return _kernels(self.z, b)


def _kernels(z: Tensor, b: Tensor) -> KernelMixture:
    """Shrunken kernels of equal weight about members (*B, N, r), for widths b (*B, 1, 1)."""
    width = (b * b).expand_as(z[..., :1, :])
    return KernelMixture((1 - b * b).sqrt() * z, width, torch.zeros_like(z[..., 0]))


def compressed(Y: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Sufficient statistics of d for the members: (*B, N, N - 1) and (*B, N - 1)."""
    s, U = torch.linalg.eigh(Y @ Y.mT)
    U, root = U[..., 1:], s[..., 1:].clamp(min=torch.finfo(s.dtype).eps * s[..., -1:]).sqrt()
    return U * root.unsqueeze(-2), ((U.mT @ (Y @ d.unsqueeze(-1)))[..., 0] / root).nan_to_num()


def explained(G: Tensor, Y: Tensor, d: Tensor, E: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Slopes (*B, O, r), predictions and innovation in units of the errors, b^2 E^T E / (N - 1) added to them."""
    C = b * b * (E.mT @ E) / (E.shape[-2] - 1)
    C.diagonal(dim1=-2, dim2=-1).add_(1.0)
    L, r = torch.linalg.cholesky_ex(C)[0], G.shape[-1]
    both = torch.linalg.solve_triangular(L, torch.cat([G, Y.mT, d.unsqueeze(-1)], -1), upper=False)
    return both[..., :r], both[..., r:-1].mT, both[..., -1]


@dataclass(frozen=True)
class EachConditioning:
    """Conditioning of one variable, with a slope for each component.

    G_j is the regression of Y on z with weights exp(-(z - z_j)^2 / (2 b^2)), and the observation of component j is
    linear about the mean of its weighted members.

    Attributes:
        z: Members of unit variance, (*B, N, 1).
        Y: Whitened predictions, (*B, N, O).
        d: Whitened innovation, (*B, O).
    """

    z: Tensor
    Y: Tensor
    d: Tensor

    @property
    def Q(self) -> Tensor:
        """The identity basis."""
        return self.z.new_ones(1, 1)

    def posterior(self, b: Tensor) -> KernelMixture:
        """Posterior mixture for widths b (*B, 1, 1)."""
        z, Y = self.z, self.Y
        w = torch.softmax(-0.5 * ((z - z.mT) / b).square(), -1)
        z_near, Y_near = w @ z, w @ Y
        spread = (w @ z.square() - z_near.square()).clamp(min=torch.finfo(z.dtype).tiny)
        G = (w @ (z * Y) - z_near * Y_near) / spread
        m = (1 - b * b).sqrt() * z
        apart = self.d.unsqueeze(-2) - Y_near - G * (m - z_near)
        g = G.square().sum(-1, keepdim=True)
        variances = b * b / (1 + b * b * g)
        pulled = (G * apart).sum(-1, keepdim=True)
        logits = -0.5 * (
            apart.square().sum(-1, keepdim=True) - pulled.square() * variances + (1 + b * b * g).log()
        )
        return KernelMixture(m + variances * pulled, variances, logits[..., 0])

    def prior(self, b: Tensor) -> KernelMixture:
        """Before the observation."""
        return _kernels(self.z, b)
