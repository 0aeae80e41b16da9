"""Standard normal fields, correlated in space and time, as sums of random waves."""

from torch import Tensor

from slams.core.errors import InvalidValueError
from slams.core.geometry.distance import EARTH_RADIUS, unit_vector
from slams.core.random import Rng, generator, normal

_WAVES = 128  # of all members of a call: more cost time, and no sampling error is left in the variance with any number


def space_time_normal(
    points: Tensor,
    days: int,
    members: int,
    *,
    length: float,
    time: float,
    nugget: float = 0.0,
    rng: Rng = None,
) -> Tensor:
    """Draws of a normal field on the sphere and consecutive days, with mean 0 and variance 1.

    The covariance is

        (1 - nugget) exp(-(d² / length² + k² / time²)^1/2) + nugget [d = 0, k = 0]

    at distances d (straight through the sphere) and k days. Each field is a sum of random waves, whose wave numbers are
    those of the exponential, a Cauchy distribution, and are common to the members of a call; given them, every value is
    standard normal, and the covariance has a sampling error of about 0.09.

    Args:
        points: (latitude, longitude) of the points, (P, 2) [degrees].
        days: Number of days T.
        members: Number of independent draws N.
        length: Decorrelation length [km], positive.
        time: Decorrelation time [days], positive.
        nugget: Share of the variance that is independent at each point and day, in [0, 1].
        rng: Generator or seed.

    Returns:
        (N, T, P).

    Raises:
        ValueError: If a length is not positive or the nugget is no share.

    Source:
        Rahimi & Recht (2007), Random features for large-scale kernel machines, algorithm 1.
    """
    if not (length > 0 and time > 0 and 0 <= nugget <= 1):
        raise InvalidValueError(
            f"a field needs length > 0, time > 0 and a nugget in [0, 1], got {length}, {time} and {nugget}."
        )
    rng = generator(rng, "waves")
    places = (unit_vector(points) * (EARTH_RADIUS / length)).to(points)
    number = normal((_WAVES, 4), like=places, rng=rng) / normal((_WAVES, 1), like=places, rng=rng).abs()
    amplitude = normal((2, _WAVES, members), like=places, rng=rng) * ((1 - nugget) / _WAVES) ** 0.5
    found = normal((members, days, len(points)), like=places, rng=rng) * nugget**0.5
    at = places @ number[:, :3].mT
    for day in range(days):
        angle = at + day / time * number[:, 3]
        found[:, day] += (angle.cos() @ amplitude[0] + angle.sin() @ amplitude[1]).mT
    return found
