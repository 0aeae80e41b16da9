"""The closed-form Gaussian of trajectories: its filter and its forecasts are exact conditional distributions."""

from collections.abc import Mapping

import torch
from torch import Tensor

from slams.assimilation.baseline.gaussian import ClosedFormGaussian, Evidence
from slams.diffusion.trajectory_gaussian import TrajectoryGaussian
from slams.observation.observation import Observations


class ClosedFormTrajectory(ClosedFormGaussian):
    """Posterior of a Gaussian of windows, extended by its Markov property to trajectories of any length.

    State, observations and arguments as of `ClosedFormGaussian`, with the covariance of `TrajectoryGaussian` over T steps
    in place of C. Steps without observations at the end are a forecast: N(V E[a_k | y], V cov(a_k | y) V^T + rest).
    """

    def trajectories(
        self, observations: Observations, operators: Mapping[str, Tensor], *, last: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Posterior of each trajectory.

        Args:
            observations: Anomalies (W, T, *O); their operators are not used.
            operators: Matrices G_m by modality, (prod(O), K).
            last: Number of steps at the end that are wanted; all if None.

        Returns:
            Mean and standard deviation of the scored state, each (W, last, D).
        """
        steps = observations.steps
        last = steps if last is None else last
        gaussian, (index, first) = TrajectoryGaussian(self.prior, steps), observations.patterns()
        evidence = [Evidence.of(o, operators[name]) for name, o in observations.items()]
        pulled = torch.stack([each.pulled for each in evidence]).sum(0)
        mean = self.decode.new_empty(len(index), last, len(self.decode))
        std = torch.empty_like(mean)
        for number, window in enumerate(first):
            rows = [w for w, n in enumerate(index) if n == number]
            information = torch.stack([each.matrices[each.pattern[window]] for each in evidence]).sum(0)
            a, blocks = gaussian.posterior(information, pulled[rows])
            mean[rows] = a[:, steps - last :].to(self.decode) @ self.decode.mT
            for k in range(last):
                block = blocks[steps - last + k].to(self.decode)
                variance = ((self.decode @ block) * self.decode).sum(-1) + self.rest
                std[rows, k] = variance.clamp(min=1e-12).sqrt()
        return mean, std
