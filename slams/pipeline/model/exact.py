"""Exact posteriors of closed forms along windows and trajectories."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from slams.assimilation.baseline.gaussian import ClosedFormGaussian
from slams.pipeline.model.bias import biases_in
from slams.pipeline.model.model import Model


def latent_gaussian(model: Model) -> tuple[ClosedFormGaussian, Tensor]:
    """The closed form of the latent prior for the states, and the mask of their values with training data, (D)."""
    prior, states = model.prior, model.states
    masks = [model.codec.statistics[n].present.expand(model.layouts[n].shape).flatten() for n in states]
    present = torch.cat(masks)
    decode, rest = (torch.cat([part[n] for n in states]) for part in (prior.operators, prior.errors))
    gaussian = copy.deepcopy(prior.gaussian).cpu()
    return ClosedFormGaussian(gaussian, decode[present], rest[present]), present


def exact_moments(
    model: Model,
    closed: ClosedFormGaussian,
    operators: Mapping[str, Tensor],
    errors: Mapping[str, Tensor],
    observations: Mapping[str, Tensor],
    composed: bool,
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of a closed form's scored values, with the biases of a record estimated.

    Along a trajectory each day is taken from the window in whose middle it is.

    Args:
        model: Trained model.
        closed: The closed form.
        operators: Its linear operators by modality, (prod(O), K).
        errors: Its error covariances or variances by modality.
        observations: Anomalies by modality along a trajectory (T, *S), or of windows (W, L, *S) if not composed.
        composed: Whether they are along a trajectory.

    Returns:
        Each (T, D), or (W, L, D) if not composed.
    """
    length = model.recipe.prior.window
    seen = model.seen(observations, errors)
    bias = biases_in(model, observations, composed, closed, operators, errors)
    windows = seen.windows(length) if composed else seen
    mean, std = closed.windows(windows, operators, bias)
    if not composed:
        return mean, std
    k = length // 2
    mean, std = (torch.cat([v[0, :k], v[:, k], v[-1, length - k :]]) for v in (mean, std))
    return mean, std
