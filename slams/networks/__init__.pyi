from .autoencoder import GridCoder as GridCoder
from .autoencoder import MultimodalAutoencoder as MultimodalAutoencoder
from .autoencoder import VectorCoder as VectorCoder
from .conv_autoencoder import ConvAE as ConvAE
from .mlp import WindowMLP as WindowMLP
from .observed_unet import ObservedUNet as ObservedUNet
from .score_flow import FlowUNet as FlowUNet
from .score_gated import ScoreGated as ScoreGated
from .score_mlp import ScoreMLP as ScoreMLP
from .score_unet import ScoreUNet as ScoreUNet
from .unet import PublishedUNet as PublishedUNet
from .unet import WindowUNet as WindowUNet

__all__ = [
    "ConvAE",
    "FlowUNet",
    "GridCoder",
    "MultimodalAutoencoder",
    "ObservedUNet",
    "PublishedUNet",
    "ScoreGated",
    "ScoreMLP",
    "ScoreUNet",
    "VectorCoder",
    "WindowMLP",
    "WindowUNet",
]
