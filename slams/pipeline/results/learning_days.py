"""Training and validation days of a run, for baselines that are fitted in its test."""

from functools import cached_property

import numpy as np

from slams.pipeline.inputs.fields import Fields
from slams.pipeline.model.bias import years_of
from slams.pipeline.model.codec import Anomalies, anomalies
from slams.pipeline.model.model import Model


class LearningDays:
    """Days that baselines learn from, read when they are needed.

    Args:
        model: Trained model.
        fields: Fields of all days.
    """

    def __init__(self, model: Model, fields: Fields) -> None:
        self.model, self.fields, self.recipe = model, fields, model.recipe

    @cached_property
    def train(self) -> Anomalies:
        """Training anomalies."""
        return anomalies(self.model.codec, self.fields, self.fields.part(self.recipe.data.train))

    @cached_property
    def validation(self) -> Anomalies:
        """Validation anomalies."""
        return anomalies(self.model.codec, self.fields, self.fields.part(self.recipe.data.validation))

    @cached_property
    def years(self) -> list[np.ndarray]:
        """Rows of the training days of each season that is left out in turn; none without `prior.leave_out`."""
        if not self.recipe.prior.leave_out:
            return []
        return years_of(self.fields.dates[self.fields.part(self.recipe.data.train)])
