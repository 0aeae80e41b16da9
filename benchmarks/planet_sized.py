"""An untrained model of the planet's size: random weights cost as much as trained ones."""

from pathlib import Path

import torch

import slams
from slams.core.codec import SeasonalStandardize
from slams.diffusion.denoiser import WindowGaussian
from slams.diffusion.schedule import VPCosine
from slams.pipeline.inputs.fields import Place
from slams.pipeline.model.build import build_denoiser
from slams.pipeline.model.model import Belief, Codec, Model
from slams.pipeline.recipe import Recipe, load

LAT = tuple(float(v) for v in torch.linspace(87.2, -87.2, 32))
LON = tuple(5.625 * i for i in range(64))
LEVELS = (10.0, 50.0, 100.0, 200.0, 300.0, 500.0, 700.0, 850.0, 925.0, 1000.0)
PLACES = {
    "t": Place(("level", "lat", "lon"), {"level": LEVELS, "lat": LAT, "lon": LON}, "K", "t"),
    "rain": Place(("lat", "lon"), {"lat": LAT, "lon": LON}, "mm", "precip"),
    "olr": Place(("lat", "lon"), {"lat": LAT, "lon": LON}, "W m-2", "olr"),
}


def recipe() -> Recipe:
    """The planet's."""
    return load(Path(slams.__file__).parent / "configs" / "planet.yaml")


def build(rng: torch.Generator) -> Model:
    """Codec and belief with random linear maps, patterns and operators."""
    chosen = recipe()
    statistics = {
        name: SeasonalStandardize(torch.zeros(5, *place.shape), torch.ones(place.shape[0], 1, 1))
        for name, place in PLACES.items()
    }
    torch.manual_seed(0)
    codec = Codec(chosen, PLACES, statistics)
    days = {name: torch.randn(64, *place.shape, generator=rng) for name, place in PLACES.items()}
    codec.autoencoder.start(days)
    codec.autoencoder.standardize(codec.encode(days))
    event, patterns = codec.autoencoder.event, chosen.prior.patterns
    basis = torch.linalg.qr(torch.randn(torch.Size(event).numel(), patterns, generator=rng))[0]
    covariance = torch.diag(torch.logspace(1, -2, patterns * chosen.prior.window))
    gaussian = WindowGaussian(basis, covariance, 0.05, event, VPCosine())
    sizes = {name: torch.Size(place.shape).numel() for name, place in PLACES.items()}
    belief = Belief(
        build_denoiser(chosen, gaussian, periodic=True),
        {name: torch.randn(size, patterns, generator=rng) / size**0.5 for name, size in sizes.items()},
        {name: torch.full((size,), 0.5) for name, size in sizes.items()},
        {name: torch.full((size,), 0.1) for name, size in sizes.items()},
    )
    return Model(codec, belief)
