"""Belief and observation to posterior: filters, smoothers, variational and score-based methods, and their floor."""

from slams.assimilation.backward import BackwardSimulation
from slams.assimilation.base import Assimilator, Explanation, Posterior
from slams.assimilation.baseline import Climatology, FreeRun, Nudging, OptInterp, Persistence
from slams.assimilation.ensf import EnSF
from slams.assimilation.ensf_damped import DampedEnSF, SingleMemberEnSF
from slams.assimilation.extended import EKF
from slams.assimilation.filter import Filter
from slams.assimilation.finite import EnKFN
from slams.assimilation.generative import GenerativeEnKF
from slams.assimilation.kalman import ETKF, DEnKF, EnKF
from slams.assimilation.latent import Latent
from slams.assimilation.local import EAKF, LETKF
from slams.assimilation.particle import AuxiliaryPF, BootstrapPF
from slams.assimilation.pseudo import PseudoEnKF
from slams.assimilation.sda import SDA, TrajectorySDA
from slams.assimilation.smoother import EnKS, IEnKS
from slams.assimilation.ssls import SSLS
from slams.assimilation.variational import FourDVar, ThreeDVar
from slams.assimilation.window import weak_constraint

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
    "BootstrapPF",
    "Climatology",
    "DEnKF",
    "DampedEnSF",
    "EnKF",
    "EnKFN",
    "EnKS",
    "EnSF",
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
