"""The climatology of amounts: days of the season in the training period."""

import torch
from torch import Tensor

from slams.core.random import fork
from slams.pipeline.inputs.fields import Fields, phase_of
from slams.pipeline.model.model import Model

_NEAR = 15 / 365.25  # of a year


def days_of_the_season(model: Model, fields: Fields, name: str, phase: Tensor) -> Tensor:
    """Fields of random training days within 15 days of the season.

    Args:
        model: Trained model.
        fields: Fields of all days.
        name: Name of the modality.
        phase: Phase of the year, (T).

    Returns:
        As many fields as members, (N, T, *S), after the transform.
    """
    recipe = model.recipe
    train = torch.from_numpy(fields.part(recipe.data.train))
    season, rng = phase_of(fields.dates[train.numpy()]), fork(recipe.seed, "days of the season", name)
    found = []
    for each in phase:
        near = ((season - each + 0.5) % 1 - 0.5).abs() <= _NEAR
        some = train[near] if bool(near.any()) else train
        rows = some[torch.randint(len(some), (recipe.assimilation.members,), generator=rng)]
        found.append(fields.values[name][rows])
    return model.codec.masked(name, torch.stack(found, 1))
