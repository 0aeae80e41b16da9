from .denoiser import Denoiser as Denoiser
from .denoiser import NetworkDenoiser as NetworkDenoiser
from .denoiser import WindowGaussian as WindowGaussian
from .exact.gaussian import GaussianDenoiser as GaussianDenoiser
from .exact.mixture import EnsembleDenoiser as EnsembleDenoiser
from .exact.mixture import MixtureDenoiser as MixtureDenoiser
from .guidance.base import Guidance as Guidance
from .guidance.base import GuidedDenoiser as GuidedDenoiser
from .guidance.covariance_matching import CovarianceMatching as CovarianceMatching
from .guidance.dps import PosteriorSampling as PosteriorSampling
from .guidance.moment_matching import DiagonalMatching as DiagonalMatching
from .guidance.moment_matching import MomentMatching as MomentMatching
from .guidance.moment_matching import PseudoInverse as PseudoInverse
from .guidance.sda import CovarianceGuidance as CovarianceGuidance
from .guidance.sda import GaussianGuidance as GaussianGuidance
from .langevin import langevin as langevin
from .loss import denoising_loss as denoising_loss
from .precondition import Detached as Detached
from .precondition import NoisePrediction as NoisePrediction
from .precondition import Preconditioned as Preconditioned
from .sampler import Sampler as Sampler
from .schedule import Rectified as Rectified
from .schedule import Schedule as Schedule
from .schedule import VarianceExploding as VarianceExploding
from .schedule import VPCosine as VPCosine
from .schedule import VPLinear as VPLinear
from .trajectory import MarkovBlanket as MarkovBlanket
from .whitened import WhitenedDenoiser as WhitenedDenoiser

__all__ = [
    "CovarianceGuidance",
    "CovarianceMatching",
    "Denoiser",
    "Detached",
    "DiagonalMatching",
    "EnsembleDenoiser",
    "GaussianDenoiser",
    "GaussianGuidance",
    "Guidance",
    "GuidedDenoiser",
    "MarkovBlanket",
    "MixtureDenoiser",
    "MomentMatching",
    "NetworkDenoiser",
    "NoisePrediction",
    "PosteriorSampling",
    "Preconditioned",
    "PseudoInverse",
    "Rectified",
    "Sampler",
    "Schedule",
    "VPCosine",
    "VPLinear",
    "VarianceExploding",
    "WhitenedDenoiser",
    "WindowGaussian",
    "denoising_loss",
    "langevin",
]
