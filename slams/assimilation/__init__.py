"""Assimilation methods: filters, smoothers, variational and score-based methods, and baselines."""

from slams.assimilation.base import Assimilator, Explanation, Posterior
from slams.assimilation.baseline.filters import Climatology, FreeRun, Nudging, OptInterp, Persistence
from slams.assimilation.ensemble.bias_aware import BiasAwareLETKF
from slams.assimilation.ensemble.finite import EnKFN
from slams.assimilation.ensemble.generative import GenerativeEnKF
from slams.assimilation.ensemble.kalman import ETKF, DEnKF, EnKF, EnsembleKalman
from slams.assimilation.ensemble.local import EAKF, LETKF
from slams.assimilation.ensemble.pseudo import PseudoEnKF
from slams.assimilation.ensemble.smoother import EnKS, IEnKS
from slams.assimilation.filter import Filter
from slams.assimilation.particle.backward import BackwardSimulation
from slams.assimilation.particle.bootstrap import AuxiliaryPF, BootstrapPF
from slams.assimilation.score.ensf import EnSF
from slams.assimilation.score.ensf_damped import DampedEnSF, SingleMemberEnSF
from slams.assimilation.score.latent import Latent
from slams.assimilation.score.sda import SDA, TrajectorySDA
from slams.assimilation.score.ssls import SSLS
from slams.assimilation.variational.extended import EKF
from slams.assimilation.variational.fourdvar import FourDVar, ThreeDVar
from slams.assimilation.variational.window import weak_constraint

__all__ = [
    "EAKF",
    "EKF",
    "ETKF",
    "LETKF",
    "SDA",
    "SSLS",
    "Assimilator",
    "AuxiliaryPF",
    "BackwardSimulation",
    "BiasAwareLETKF",
    "BootstrapPF",
    "Climatology",
    "DEnKF",
    "DampedEnSF",
    "EnKF",
    "EnKFN",
    "EnKS",
    "EnSF",
    "EnsembleKalman",
    "Explanation",
    "Filter",
    "FourDVar",
    "FreeRun",
    "GenerativeEnKF",
    "IEnKS",
    "Latent",
    "Nudging",
    "OptInterp",
    "Persistence",
    "Posterior",
    "PseudoEnKF",
    "SingleMemberEnSF",
    "ThreeDVar",
    "TrajectorySDA",
    "weak_constraint",
]
