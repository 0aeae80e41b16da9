"""FunctionModel: a model defined by a function of states."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from slams.core.errors import InvalidValueError
from slams.core.geometry.places import Geometry
from slams.core.random import Rng, generator
from slams.systems.base import Dynamics


class FunctionModel(Dynamics):
    """x_{k+1} = f(x_k) with a user-defined function f.

    Args:
        step: Function f: (*B, *S) -> (*B, *S), or of one state (*S) if not `batched`; called with a generator if it
            has a keyword `rng`.
        state_shape: Shape *S of a state.
        dt: Model time between two states.
        initial: States (n, *S) from which initial ones are drawn, or a function of `*shape` and `rng` that draws
            (*shape, *S); without it pass `x0=` to `assimilate`.
        numpy: Whether f takes and returns NumPy arrays, which have no gradients.
        batched: Whether f takes leading axes.
        geometry: Positions of the variables, for localization.

    >>> decay = FunctionModel(lambda x: 0.9 * x, (2,), initial=torch.ones(1, 2))
    >>> decay(decay.initial(3, rng=0))[0]
    tensor([0.9000, 0.9000])
    """

    def __init__(
        self,
        step: Callable[..., Any],
        state_shape: Sequence[int],
        dt: float = 1.0,
        *,
        initial: Tensor | Callable[..., Tensor] | None = None,
        numpy: bool = False,
        batched: bool = True,
        geometry: Geometry | None = None,
    ) -> None:
        super().__init__()
        self.step, self.state_shape, self.dt = step, tuple(state_shape), float(dt)
        self.numpy, self.batched, self.geometry = numpy, batched, geometry
        self._initial = initial
        self._draws = "rng" in inspect.signature(step).parameters

    def initial(self, *shape: int, rng: Rng = None) -> Tensor:
        """See `Dynamics.initial`.

        Raises:
            ValueError: If the model has no initial distribution.
        """
        source = generator(rng, "initial")
        if self._initial is None:
            raise InvalidValueError(
                "this model has no initial states; pass initial= to FunctionModel, or x0= to assimilate."
            )
        if not isinstance(self._initial, Tensor):
            return self._initial(*shape, rng=source)
        index = torch.randint(len(self._initial), shape, generator=source, device=source.device)
        return self._initial[index.to(self._initial.device)]

    def forward(self, x: Tensor, *, rng: Rng = None) -> Tensor:
        """See `Dynamics.forward`."""
        settings = {"rng": generator(rng, "model noise")} if self._draws else {}
        given = x.detach().cpu().numpy().copy() if self.numpy else x
        if self.batched:
            after = self.step(given, **settings)
        else:
            flat = given.reshape(-1, *self.state_shape)
            rows = [torch.as_tensor(self.step(state, **settings)) for state in flat]
            after = torch.stack(rows).reshape(x.shape)
        return torch.as_tensor(after, dtype=x.dtype, device=x.device) if self.numpy else after
