"""Lorenz-63 and Lorenz-96: the standard chaotic test systems of data assimilation."""

import torch
from torch import Tensor

from slams.core.errors import InvalidValueError
from slams.core.geometry.places import Geometry
from slams.core.integrate import Tendency
from slams.systems.flow import Coefficient, Flow, Gaussian

_CACHED = 2**15  # elements that stay in a core's cache with their temporaries: 4 times faster than 2**17


class Lorenz63(Flow):
    """Convection in three variables: x' = sigma (y - x), y' = x (rho - z) - y, z' = x y - beta z.

    Args:
        sigma: Prandtl number.
        rho: Rayleigh number relative to the critical one.
        beta: Geometric factor.
        dt: Model time between two states.
        substeps: Steps of the method in `dt`.
        noise: Standard deviation of the noise per square root of model time.
        method: "rk4", "heun" or "euler".
        start: Distribution of initial states; N((1.509, -1.531, 25.46), 2 I) if None.
        dtype: Dtype of initial states.

    Raises:
        ValueError: If a setting is out of range or the method unknown.

    Source:
        Lorenz (1963), doi:10.1175/1520-0469(1963)020<0130:DNF>2.0.CO;2, eq. 25-27; start of Sakov, Oliver &
        Bertino (2012), doi:10.1175/MWR-D-11-00176.1.
    """

    coefficients = ("sigma", "rho", "beta")

    def __init__(
        self,
        *,
        sigma: Coefficient = 10.0,
        rho: Coefficient = 28.0,
        beta: Coefficient = 8 / 3,
        dt: float = 0.01,
        substeps: int = 1,
        noise: float = 0.0,
        method: str = "rk4",
        start: Gaussian | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            3,
            {"sigma": sigma, "rho": rho, "beta": beta},
            dt=dt,
            substeps=substeps,
            method=method,
            noise=noise,
            start=start or Gaussian((1.509, -1.531, 25.46), std=2**0.5),
            dtype=dtype,
        )

    def tendency(self, x: Tensor, **coefficients: Coefficient) -> Tensor:
        """See `Flow.tendency`."""
        x, values = self._prepared(x, coefficients)
        return _leading(values)(x.movedim(-1, 0), 0.0).movedim(0, -1)

    def _advance(self, x: Tensor, values: dict[str, Coefficient]) -> Tensor:
        """One `dt` with the variables as leading axis, where each is one block of memory."""
        tendency, x = _leading(values), x.movedim(-1, 0).contiguous()
        for _ in range(self.substeps):
            x = self.step(tendency, x, 0.0, self.dt / self.substeps)
        return x.movedim(0, -1).contiguous()


def _leading(values: dict[str, Coefficient]) -> Tendency:
    """The tendency of Lorenz-63 for states (3, *B)."""
    sigma, rho, beta = (v.squeeze(-1) if isinstance(v, Tensor) and v.ndim else v for v in values.values())

    def tendency(state: Tensor, time: float) -> Tensor:
        x, y, z = state.unbind(0)
        return torch.stack((_times(sigma, y - x), x * (rho - z) - y, x * y - _times(beta, z)))

    return tendency


def _times(number: Coefficient, x: Tensor) -> Tensor:
    """Their product, by the kernel for plain numbers: `*` makes a tensor of one, which costs dual numbers 0.2 ms."""
    if isinstance(number, Tensor):
        return number * x
    product: Tensor = torch.ops.aten.mul.Scalar(x, number)
    return product


class Lorenz96(Flow):
    """Waves on a latitude circle: x_i' = (x_{i+1} - x_{i-2}) x_{i-1} - x_i + F, indices modulo `size`.

    Args:
        size: Number of sites.
        forcing: Forcing F, a number or a tensor whose last axis has length 1 or `size`.
        dt: Model time between two states; 0.05 is often read as 6 hours.
        substeps: Steps of the method in `dt`.
        method: "rk4", "heun" or "euler".
        noise: Standard deviation of the noise per square root of model time.
        start: Distribution of initial states; N(e_1, 0.001 I) if None.
        dtype: Dtype of initial states.

    Raises:
        ValueError: If there are fewer than 4 sites, a setting is out of range, or the method is unknown.

    Source:
        Lorenz (1996), Predictability: a problem partly solved, eq. 1; settings of Sakov & Oke (2008),
        doi:10.1111/j.1600-0870.2007.00299.x.
    """

    coefficients = ("forcing",)

    def __init__(
        self,
        size: int = 40,
        forcing: Coefficient = 8.0,
        dt: float = 0.05,
        *,
        substeps: int = 1,
        method: str = "rk4",
        noise: float = 0.0,
        start: Gaussian | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if size < 4:
            raise InvalidValueError(
                f"Lorenz-96 couples each site to three others and needs size >= 4, got {size}."
            )
        first = torch.zeros(size)
        first[0] = 1.0
        super().__init__(
            size,
            {"forcing": forcing},
            dt=dt,
            substeps=substeps,
            method=method,
            noise=noise,
            start=start or Gaussian(first, std=0.001**0.5),
            dtype=dtype,
        )
        self.geometry = Geometry.circle(size)

    @property
    def _widths(self) -> tuple[int, ...]:
        """The forcing may differ between sites."""
        return (self.size,)

    def tendency(self, x: Tensor, **coefficients: Coefficient) -> Tensor:
        """See `Flow.tendency`."""
        x, values = self._prepared(x, coefficients)
        return _slope(_extended(x, 2, 1), values["forcing"])

    def _advance(self, x: Tensor, values: dict[str, Coefficient]) -> Tensor:
        """One `dt`, on the CPU in pieces that fit a cache."""
        rows = max(1, _CACHED // self.size)
        if x.device.type != "cpu" or x.numel() < 2 * rows * self.size:
            return self._advance_piece(x, values)
        pieces, forcing = x.reshape(-1, self.size).split(rows), values["forcing"]
        if isinstance(forcing, Tensor):
            width = forcing.shape[-1] if forcing.ndim else 1
            parts = forcing.expand(*x.shape[:-1], width).reshape(-1, width).split(rows)
            done = [self._advance_piece(p, {"forcing": f}) for p, f in zip(pieces, parts, strict=True)]
        else:
            done = [self._advance_piece(piece, values) for piece in pieces]
        return torch.cat(done).reshape(x.shape)

    def _advance_piece(self, x: Tensor, values: dict[str, Coefficient]) -> Tensor:
        """One `dt`, by the fast step where it applies."""
        forcing = values["forcing"]
        local = isinstance(forcing, Tensor) and forcing.ndim > 0 and forcing.shape[-1] > 1
        if self.method != "rk4" or local or self.size < 8:
            return super()._advance(x, values)
        for _ in range(self.substeps):
            x = _rk4(x, forcing, self.dt / self.substeps)
        return x


def _extended(x: Tensor, left: int, right: int) -> Tensor:
    """The circle with its last `left` sites repeated before it and its first `right` after it."""
    size = x.shape[-1]
    return torch.cat((x.narrow(-1, size - left, left), x, x.narrow(-1, 0, right)), -1)


def _slope(x: Tensor, forcing: Coefficient) -> Tensor:
    """Tendency of the sites that have two neighbours on the left and one on the right, (*B, m) to m - 3."""
    size = x.shape[-1] - 3
    shear = x.narrow(-1, 3, size) - x.narrow(-1, 0, size)
    # In place on a temporary that no gradient needs.
    return (forcing - x.narrow(-1, 2, size)).addcmul_(shear, x.narrow(-1, 1, size))


def _rk4(x: Tensor, forcing: Coefficient, dt: float) -> Tensor:
    """`core.integrate.rk4` with the circle extended once for all four stages, each using up three sites."""
    size = x.shape[-1]
    y = _extended(x, 8, 4)
    k1 = _slope(y, forcing)
    k2 = _slope(y.narrow(-1, 2, size + 9).add(k1, alpha=dt / 2), forcing)
    k3 = _slope(y.narrow(-1, 4, size + 6).add(k2, alpha=dt / 2), forcing)
    k4 = _slope(y.narrow(-1, 6, size + 3).add(k3, alpha=dt), forcing)
    slope = k4.add_(k1.narrow(-1, 6, size)).add_(k2.narrow(-1, 4, size), alpha=2)
    return x.add(slope.add_(k3.narrow(-1, 2, size), alpha=2), alpha=dt / 6)
