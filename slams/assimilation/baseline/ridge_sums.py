"""Ridge regression from sums over days, for anomalies that are too large for memory."""

import numpy as np
import torch
from torch import Tensor

from slams.core.days import Values, total

_COLUMNS = 1 << 14  # solved at once


class RidgeSums:
    """Sums over days from which `ridge` and its residuals follow for any penalty.

    With coefficients a (n, K) and anomalies y (n, P), NaN where missing, these are sum a y^T and sum y^2 over the days on
    which a column was seen, and of columns with gaps their days: columns with the same days share their sum a a^T.

    Args:
        a: Coefficients (n, K), mean zero.
        y: Anomalies (n, *S), P = prod(S).
    """

    def __init__(self, a: Tensor, y: Values) -> None:
        self.a, self.gram = a, (a.mT @ a).double()
        days = list[Tensor]()

        def sums(part: Tensor, rows: slice) -> Tensor:
            flat = part.flatten(1)
            seen = torch.isfinite(flat)
            flat = torch.nan_to_num(flat)
            days.append(torch.from_numpy(np.packbits(seen.numpy(), axis=1)))
            own = torch.stack([flat.square().sum(0), seen.sum(0).float()])
            return torch.cat([a[rows].mT @ flat, own])

        found = total(y, sums)
        self.product, self.squares, self.seen = found[:-2], found[-2], found[-1].long()
        self._days = torch.cat(days)
        self._own = self._grams()

    def _grams(self) -> list[tuple[Tensor, Tensor]]:
        """Columns with gaps, and sum a a^T over their days."""
        columns = ((self.seen < len(self.a)) & (self.seen > 0)).nonzero().flatten().numpy()
        alike = dict[bytes, list[int]]()
        for column in columns.tolist():
            bits = self._days[:, column // 8].numpy() >> (7 - column % 8) & 1
            alike.setdefault(bits.tobytes(), []).append(column)
        found = []
        for bits_, group in alike.items():
            part = self.a[torch.from_numpy(np.frombuffer(bits_, np.uint8).astype(bool))]
            found.append((torch.tensor(group), (part.mT @ part).double()))
        return found

    def operator(self, penalty: float) -> Tensor:
        """G of y = G a + e, (P, K), as of `slams.assimilation.baseline.gaussian.ridge`."""
        eye = penalty * torch.eye(len(self.gram), dtype=torch.float64)
        factor = torch.linalg.cholesky(self.gram + eye)
        parts = [
            torch.cholesky_solve(part.double(), factor).float() for part in self.product.split(_COLUMNS, 1)
        ]
        found = torch.cat(parts, 1)
        for columns, gram in self._own:
            found[:, columns] = torch.linalg.solve(gram + eye, self.product[:, columns].double()).float()
        return found.mT

    def residual_squares(self, operator: Tensor) -> Tensor:
        """Sum of squared residuals of each column for G (P, K), over the days on which it was seen, (P)."""
        grams = [(columns, self.gram) for columns in torch.arange(len(operator)).split(_COLUMNS)]
        found = torch.empty(len(operator))
        for columns, gram in (*grams, *self._own):
            g, product = operator[columns].double(), self.product[:, columns].double()
            explained = 2 * (g * product.mT).sum(1) - ((g @ gram) * g).sum(1)
            found[columns] = (self.squares[columns].double() - explained).clamp(min=0).float()
        return found
