"""Observation operators and observations."""

from slams.observation import operators
from slams.observation.observation import Observation, Observations
from slams.observation.survey import Survey

__all__ = ["Observation", "Observations", "Survey", "operators"]
