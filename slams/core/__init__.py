"""The mathematics the other packages share; imports nothing of ours."""

from slams.core.covariance import Covariance, Dense, Diagonal, Isotropic

__all__ = ["Covariance", "Dense", "Diagonal", "Isotropic"]
