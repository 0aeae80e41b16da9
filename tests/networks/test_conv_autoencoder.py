"""Laws of the published autoencoder and of pixel space."""

import pytest
import torch

from slams.networks.conv_autoencoder import ConvAE, SharedGridCodec
from slams.training.fit import FitSettings, fit

CHANNELS = {"t": 3, "rain": 1, "olr": 1}
GRID = (6, 8)


def codec(latent=(4, 2)) -> SharedGridCodec:
    torch.manual_seed(0)
    return SharedGridCodec(CHANNELS, ["t"], GRID, latent).double()


def fields(rng, days: int = 5) -> dict[str, torch.Tensor]:
    found = {n: torch.randn(days, c, *GRID, dtype=torch.float64, generator=rng) for n, c in CHANNELS.items()}
    found["rain"][:, :, :2] = torch.nan
    return found


@pytest.mark.parametrize(("inputs", "count"), [(10, 14695), (11, 14920), (12, 15145)])
def test_parameters_are_those_published(inputs: int, count: int) -> None:
    """convae_2: 7,795 in the encoder and 7,350 in the decoder, batch normalization included."""
    network = ConvAE(inputs, 10)
    assert sum(p.numel() for p in network.parameters()) == count
    assert sum(p.numel() for p in network.decoder.parameters()) == 7350


def test_a_cell_sees_ten_cells_each_way_and_no_further(rng) -> None:
    """Five layers of kernel 5 reach 10 cells; no normalization looks further once training is over."""
    network = ConvAE(1, 1).double().eval()
    x = torch.randn(1, 1, 25, 25, dtype=torch.float64, generator=rng, requires_grad=True)
    network.encoder(x)[0, :, 12, 12].sum().backward()
    reached = (x.grad[0, 0] != 0).nonzero()
    assert reached.min() == 2 and reached.max() == 22


def test_what_was_not_seen_enters_as_no_anomaly(rng) -> None:
    model, x = codec().eval(), fields(rng)
    absent = {"t": x["t"], "rain": torch.zeros_like(x["rain"]), "olr": torch.full_like(x["olr"], torch.nan)}
    torch.testing.assert_close(model.encode({"t": x["t"]}), model.encode(absent))


def test_auxiliary_modalities_teach_the_autoencoder_nothing(rng) -> None:
    """Gradients of its weights are those of the states' error alone, as published."""
    model, x = codec(), fields(rng)
    model.loss(x).backward()
    whole = [p.grad.clone() for p in model.network.parameters()]
    model.zero_grad()
    latent = model.network.encoder(torch.cat([torch.nan_to_num(x[n]) for n in CHANNELS], 1))
    ((model.network.decoder(latent) - x["t"]).square().mean() * 3 / 5).backward()
    for one, two in zip(whole, (p.grad for p in model.network.parameters()), strict=True):
        torch.testing.assert_close(one, two)


def test_missing_cells_do_not_count(rng) -> None:
    model, x = codec(), fields(rng)
    model.eval()
    whole = model.loss(x)
    shifted = {**x, "t": x["t"].clone()}
    shifted["t"][:, :, 0] = torch.nan
    decoded = model.decode(model.encode(shifted), "t")
    error = (decoded - shifted["t"])[:, :, 1:].square().mean()
    alone = SharedGridCodec({"t": 3}, ["t"], GRID, (4, 2)).double()
    assert torch.isfinite(whole) and torch.isfinite(alone.loss({"t": shifted["t"]}))
    aux = sum(
        (
            torch.where(
                torch.isfinite(x[n]), model.decode(model.encode(shifted), n) - torch.nan_to_num(x[n]), 0.0
            )
        )
        .square()
        .sum()
        / torch.isfinite(x[n]).sum()
        for n in ("rain", "olr")
    )
    torch.testing.assert_close(model.loss(shifted), (3 * error + aux) / 5)


def test_standardized_latents_have_mean_zero_and_one_spread(rng) -> None:
    model, x = codec().eval(), fields(rng, 40)
    decoded = model.decode(model.encode(x), "t")
    for _ in range(2):  # a second time changes nothing
        model.standardize(model.encode(x))
        z = model.encode(x)
        torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-10)
        torch.testing.assert_close(z.square().mean(), torch.ones((), dtype=torch.float64))
        torch.testing.assert_close(model.decode(z, "t"), decoded)


def test_averaged_weights_come_with_what_the_normalization_saw(rng) -> None:
    """Of the same batch n times, the running mean is 1 - 0.9^n of its mean, whatever the average of the weights is."""
    model, x = codec(), fields(rng)
    settings = FitSettings(steps=5, batch=5, learning_rate=1e-9, weight_decay=0.0, ema=0.9, every=5)
    with torch.no_grad():
        first = model.network.encoder[0](torch.cat([torch.nan_to_num(x[n]) for n in CHANNELS], 1))
    scores = iter([2.0, 1.0])
    fit(model, lambda module, rng: module.loss(x), lambda module: next(scores), settings, seed=0, name="test")
    mean = (1 - 0.9**5) * first.mean((0, 2, 3))
    torch.testing.assert_close(model.network.encoder[1].running_mean, mean, rtol=1e-5, atol=1e-7)


def test_pixel_space_is_the_states_themselves(rng) -> None:
    x = {n: torch.randn(6, c, *GRID, dtype=torch.float64, generator=rng) for n, c in (("t", 3), ("q", 2))}
    model = SharedGridCodec({"t": 3, "q": 2}, ["t", "q"], GRID, ()).double()
    assert not list(model.parameters())
    model.standardize(model.encode(x))
    z = model.encode(x)
    for name, value in x.items():
        torch.testing.assert_close(model.decode(z, name), value)
    assert float(model.loss(x)) == 0
    with pytest.raises(ValueError, match="are auxiliary"):
        SharedGridCodec(CHANNELS, ["t"], GRID, ())
    with pytest.raises(ValueError, match="any subset"):
        model.encode({"rain": x["t"]})
