"""Untrained networks of a recipe; their shapes come from the data."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from slams.core import foreign
from slams.core.errors import InvalidValueError
from slams.diffusion.denoiser import NetworkDenoiser, WindowGaussian
from slams.networks.autoencoder import GridCoder, MultimodalAutoencoder, VectorCoder
from slams.networks.conv_autoencoder import LATENT_CHANNELS, SharedGridCodec
from slams.networks.mlp import WindowMLP
from slams.networks.unet import PublishedUNet, WindowUNet
from slams.pipeline.inputs.layout import Layout
from slams.pipeline.recipe import Recipe


def build_autoencoder(
    recipe: Recipe, layouts: Mapping[str, Layout]
) -> MultimodalAutoencoder | SharedGridCodec:
    """The untrained autoencoder of a recipe.

    Raises:
        ValueError: If a gridded latent is asked of modalities that are not all on one grid that the patch divides.
    """
    latent = recipe.latent
    if latent.kind in ("published", "pixel"):
        return _shared_grid(recipe, layouts)
    shapes = {name: layout.shape for name, layout in layouts.items()}
    scales = {name: latent.scales.get(name, 1.0) for name in layouts}
    if latent.kind == "vector":
        scales = {name: scale / torch.Size(shapes[name]).numel() ** 0.5 for name, scale in scales.items()}
        coders: dict[str, GridCoder | VectorCoder] = {
            name: VectorCoder(shape, latent.channels, latent.hidden) for name, shape in shapes.items()
        }
        return MultimodalAutoencoder(coders, (latent.channels,), scales, hidden=latent.hidden)
    height, width = _one_grid(layouts)
    if height % latent.patch or width % latent.patch:
        raise InvalidValueError(f"latent.patch {latent.patch} does not divide the grid {height} x {width}.")
    periodic = next(iter(layouts.values())).is_global
    grid_coders: dict[str, GridCoder | VectorCoder] = {
        name: GridCoder(shape[0], latent.channels, latent.patch, latent.hidden, periodic)
        for name, shape in shapes.items()
    }
    event = (latent.channels, height // latent.patch, width // latent.patch)
    return MultimodalAutoencoder(grid_coders, event, scales, hidden=latent.hidden, periodic=periodic)


def _shared_grid(recipe: Recipe, layouts: Mapping[str, Layout]) -> SharedGridCodec:
    """The published autoencoder, or none: its layers shrink the channels one by one down to the latent's."""
    grid = _one_grid(layouts)
    states = [name for name in layouts if name in recipe.states]
    channels = {name: layout.shape[0] for name, layout in layouts.items()}
    last = recipe.latent.channels
    layers = range(last + len(LATENT_CHANNELS) - 1, last - 1, -1) if recipe.latent.kind == "published" else ()
    return SharedGridCodec(channels, states, grid, tuple(layers))


def _one_grid(layouts: Mapping[str, Layout]) -> tuple[int, int]:
    """The grid that all modalities share."""
    grids = {layout.shape[-2:] for layout in layouts.values() if layout.is_grid}
    if len(grids) != 1 or not all(layout.is_grid for layout in layouts.values()):
        raise InvalidValueError(
            "a gridded latent needs all modalities on one grid, got "
            + ", ".join(f"{name} {layout.shape}" for name, layout in layouts.items())
            + "; use latent.kind: vector."
        )
    height, width = next(iter(grids))
    return height, width


def build_denoiser(recipe: Recipe, gaussian: WindowGaussian, periodic: bool) -> NetworkDenoiser:
    """The untrained denoiser of a recipe around its closed form."""
    prior = recipe.prior
    if prior.network:
        shape = {"length": prior.window, "event": list(gaussian.event)}
        made = foreign.network(prior.network, {**shape, **prior.network_settings}, "prior.network")
        return NetworkDenoiser(gaussian, made)
    if len(gaussian.event) == 1:
        if prior.published:
            raise InvalidValueError(
                "the published network (prior.published) convolves over a grid, and a latent of kind 'vector' has none; "
                "use prior.published: false."
            )
        network: nn.Module = WindowMLP(
            prior.window,
            gaussian.event,
            hidden=prior.hidden[0],
            blocks=prior.blocks,
            context=context_channels(recipe),
        )
        return NetworkDenoiser(gaussian, network)
    settings: dict[str, Any] = {"hidden": prior.hidden, "blocks": prior.blocks, "periodic": periodic}
    if prior.published:
        return NetworkDenoiser(gaussian, PublishedUNet(prior.window, gaussian.event, **settings))
    network = WindowUNet(prior.window, gaussian.event, context=context_channels(recipe), **settings)
    return NetworkDenoiser(gaussian, network)


def context_channels(recipe: Recipe) -> int:
    """Channels a step of `slams.pipeline.model.conditional.ObservationFeatures`; 0 without training on observations."""
    channels = recipe.latent.channels
    return channels + len(recipe.modalities) * (2 * channels + 2) if recipe.prior.networks else 0
