"""Laws of the multimodal autoencoder."""

import numpy as np
import pytest
import torch

from slams.networks.autoencoder import GridCoder, MultimodalAutoencoder, VectorCoder

SCALES = {"t": 1.0, "olr": 0.5, "rain": 2.0}
GRID = {"t": (2, 4, 8), "olr": (1, 4, 8), "rain": (1, 8, 16)}
VECTOR = {"t": (2, 3, 4), "olr": (1, 3, 4), "rain": (1, 7)}
DAYS = 40


def make(kind: str, latent: int = 5, *, random: bool = True) -> MultimodalAutoencoder:
    """An autoencoder of three modalities; random weights reach the corrections that start at zero."""
    torch.manual_seed(0)
    if kind == "grid":
        patch = {"t": 2, "olr": 2, "rain": 4}
        coders = {m: GridCoder(s[0], latent, patch[m], 6, True) for m, s in GRID.items()}
        event: tuple[int, ...] = (latent, 2, 4)
    else:
        coders = {m: VectorCoder(s, latent, 6) for m, s in VECTOR.items()}
        event = (latent,)
    model = MultimodalAutoencoder(coders, event, SCALES, hidden=4).double()
    if random:
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(0.2 * torch.randn(p.shape))
            model.mean.copy_(0.3 * torch.randn(model.mean.shape))
            model.std.fill_(1.7)
    return model


def fields(kind: str, rng, days: int = DAYS) -> dict[str, torch.Tensor]:
    """Anomalies that share a few patterns, so that some of them can be kept."""
    a = torch.randn(days, 4, dtype=torch.float64, generator=rng)
    found = {}
    for m, shape in (GRID if kind == "grid" else VECTOR).items():
        size = torch.Size(shape).numel()
        pattern = torch.randn(4, size, dtype=torch.float64, generator=rng)
        noise = 0.5 * torch.randn(days, size, dtype=torch.float64, generator=rng)
        found[m] = (a @ pattern + noise).reshape(days, *shape)
    return found


KINDS = pytest.mark.parametrize("kind", ["grid", "vector"])


@KINDS
@pytest.mark.parametrize("given", [("t",), ("rain", "olr"), ("t", "olr", "rain")])
def test_a_latent_does_not_know_what_else_is_in_the_batch(kind, given, rng):
    """Bit for bit when the other frames change; to rounding when their number does (other matrix kernels)."""
    model, x = make(kind), fields(kind, rng, 6)
    other = {
        m: torch.cat([v[:1], 100 * torch.randn(v[1:].shape, generator=rng).double()]) for m, v in x.items()
    }
    z = model.encode({m: x[m] for m in given})
    assert torch.equal(z[0], model.encode({m: other[m] for m in given})[0])
    alone = model.encode({m: x[m][:1] for m in given})
    torch.testing.assert_close(z[:1], alone, rtol=0, atol=1e-12)


@KINDS
def test_the_order_of_modalities_is_irrelevant(kind, rng):
    """To the last bit: they are summed in the model's own order."""
    model, x = make(kind), fields(kind, rng, 3)
    assert torch.equal(model.encode(x), model.encode(dict(reversed(x.items()))))


@KINDS
def test_every_subset_has_its_own_latent_and_decodes_to_every_modality(kind, rng):
    """7 subsets of 3: what was not given is made up for by the flags, not by zeros alone."""
    model, x = make(kind), fields(kind, rng, 2)
    latents = []
    for number in range(1, 8):
        given = {m: v for bit, (m, v) in enumerate(x.items()) if number >> bit & 1}
        z = model.encode(given)
        zeros = {m: given.get(m, torch.zeros_like(v)) for m, v in x.items()}
        if number < 7:
            assert float((z - model.encode(zeros)).detach().abs().max()) > 1e-3
        for m, v in x.items():
            assert model.decode(z, m).shape == v.shape
        latents.append(z.flatten())
    stack = torch.stack(latents).detach()
    distance = torch.cdist(stack, stack) + torch.eye(7)
    assert float(distance.min()) > 1e-3


@KINDS
def test_missing_values_count_as_no_anomaly(kind, rng):
    model, x = make(kind), fields(kind, rng, 3)
    x["t"][0, 0, 1] = float("nan")
    filled = {**x, "t": torch.nan_to_num(x["t"])}
    assert torch.equal(model.encode(x), model.encode(filled))


@KINDS
def test_decoding_takes_any_leading_axes(kind, rng):
    model = make(kind)
    z = torch.randn(2, 3, *model.event, dtype=torch.float64, generator=rng)
    for m in model.names:
        each = torch.stack([model.decode(z[i], m) for i in range(2)])
        torch.testing.assert_close(model.decode(z, m), each, rtol=0, atol=1e-12)


def rows(kind: str, model: MultimodalAutoencoder, x: dict[str, torch.Tensor]) -> np.ndarray:
    """All modalities side by side, scaled: days for vectors, patches of days for grids; by numpy."""
    parts = []
    for m, v in x.items():
        values = v.numpy() * SCALES[m]
        if kind == "vector":
            parts.append(values.reshape(len(values), -1))
            continue
        patch = values.shape[-1] // 4
        blocks = values.reshape(len(values), values.shape[1], 2, patch, 4, patch).transpose(0, 2, 4, 1, 3, 5)
        parts.append(blocks.reshape(len(values) * 8, -1))
    return np.concatenate(parts, 1)


@KINDS
@pytest.mark.parametrize("latent", [2, 5])
def test_start_gives_the_best_linear_code(kind, latent, rng):
    """Error of the decoded fields = that of the truncated singular value decomposition (Eckart-Young)."""
    model, x = make(kind, latent, random=False), fields(kind, rng)
    kept = model.start(x)
    matrix = rows(kind, model, x)
    singular = np.linalg.svd(matrix, compute_uv=False)
    assert kept == pytest.approx((singular[:latent] ** 2).sum() / (singular**2).sum(), rel=1e-10)
    with torch.no_grad():
        z = model.encode(x)
        left = sum(float(((model.decode(z, m) - v) * SCALES[m]).square().sum()) for m, v in x.items())
    assert left == pytest.approx((singular[latent:] ** 2).sum(), rel=1e-6)
    spread = (z.square().sum((0, *range(2, z.ndim)))).numpy()
    np.testing.assert_allclose(spread, singular[:latent] ** 2, rtol=1e-6)


def test_start_weights_rows_by_area(rng):
    """The leading patch pattern is the first singular vector of rows times the root of their weight."""
    model, x = make("grid", 1, random=False), fields("grid", rng)
    weights = torch.rand(8, dtype=torch.float64, generator=rng)
    model.start(x, weights)
    matrix = rows("grid", model, x) * np.tile(np.sqrt(weights.numpy()), DAYS)[:, None]
    first = np.linalg.svd(matrix, full_matrices=False)[2][0]
    found = torch.cat([model.coders[m].linear_in.weight.detach().flatten() for m in model.names]).numpy()
    assert abs(float(found @ first)) == pytest.approx(1, abs=1e-8)


def test_a_latent_larger_than_the_fields_stays_unused(rng):
    x = {"a": torch.randn(20, 1, 3, dtype=torch.float64, generator=rng)}
    model = MultimodalAutoencoder({"a": VectorCoder((1, 3), 5, 4)}, (5,), {"a": 1.0}).double()
    assert model.start(x) == pytest.approx(1.0)
    z = model.encode(x)
    assert bool((z[:, 3:] == 0).all())
    torch.testing.assert_close(model.decode(z, "a"), x["a"], rtol=0, atol=1e-12)


@KINDS
def test_standardize_centres_channels_and_leaves_the_decoded_fields_alone(kind, rng):
    """Twice does nothing more; channels keep their relative sizes."""
    model, x = make(kind), fields(kind, rng)
    with torch.no_grad():
        before = model.encode(x)
        decoded = {m: model.decode(before, m) for m in x}
        for _ in range(2):
            model.standardize(model.encode(x))
            z = model.encode(x)
            axes = (0, *range(2, z.ndim))
            torch.testing.assert_close(z.mean(axes), torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-10)
            assert float(z.square().mean()) == pytest.approx(1, rel=1e-10)
            ratio = z.var(axes) / before.var(axes)
            torch.testing.assert_close(ratio, ratio[:1].expand(5), rtol=1e-9, atol=0)
            for m in x:
                torch.testing.assert_close(model.decode(z, m), decoded[m], rtol=0, atol=1e-10)


@KINDS
def test_loss_is_the_weighted_error_of_what_was_observed(kind, rng):
    """Each modality's own weighted mean over its observed values, joined by squared scales; by numpy."""
    model, x = make(kind), fields(kind, rng, 4)
    x["t"][torch.rand(x["t"].shape, generator=rng) < 0.2] = float("nan")
    weights = {m: torch.rand(v.shape[-1], dtype=torch.float64, generator=rng) for m, v in x.items()}
    with torch.no_grad():
        found = float(model.loss(x, ["olr", "t"], weights))
        z = model.encode({"t": x["t"], "olr": x["olr"]})
        total = 0.0
        for m, v in x.items():
            error = (model.decode(z, m) - v).numpy() ** 2
            weight = np.broadcast_to(weights[m].numpy(), error.shape)
            seen = np.isfinite(error)
            total += SCALES[m] ** 2 * (weight[seen] * error[seen]).sum() / weight[seen].sum()
    assert found == pytest.approx(total / sum(s**2 for s in SCALES.values()), rel=1e-12)


def test_loss_has_a_finite_gradient_where_values_are_missing(rng):
    model, x = make("vector"), fields("vector", rng, 4)
    x["rain"][:] = float("nan")
    model.loss(x, ["t", "rain"], {m: torch.ones(1) for m in x}).backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)


def test_a_grid_code_is_circular_in_longitude(rng):
    """Fields rolled by a patch give the latent rolled by a cell."""
    model, x = make("grid"), fields("grid", rng, 2)
    model.mean.zero_()
    rolled = {m: v.roll(v.shape[-1] // 4, -1) for m, v in x.items()}
    torch.testing.assert_close(model.encode(rolled), model.encode(x).roll(1, -1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("given", [(), ("t", "snow")])
def test_no_modality_or_an_unknown_one_is_refused(given):
    model = make("vector")
    with pytest.raises(ValueError, match=r"can encode any subset of \['t', 'olr', 'rain'\]"):
        model.encode({m: torch.zeros(1, 2, 3, 4) for m in given})


@pytest.mark.parametrize(("kind", "excess"), [("grid", 1.0), ("vector", 0.1)])
def test_gaps_get_their_expectation_given_what_is_known(kind, excess, rng):
    """Four patterns and noise: the error is near the least possible, that of the true covariance.

    Patches of a grid have patterns of their own, more than there are components: better than no anomaly.
    """
    model, days = make(kind, random=False), 1500
    whole = fields(kind, rng, days)
    seen = {m: torch.rand(x.shape, generator=rng) > 0.3 for m, x in whole.items()}
    gappy = {m: torch.where(seen[m], x, torch.nan) for m, x in whole.items()}
    model.start(gappy)
    found = model.complete(gappy)
    assert all(torch.equal(found[m][seen[m]], x[seen[m]]) for m, x in whole.items())
    rows, known = model._rows(whole), torch.isfinite(model._rows(gappy))
    covariance = rows.mT @ rows / len(rows)
    best = torch.stack(
        [
            torch.where(k, x, covariance[:, k] @ torch.linalg.solve(covariance[k][:, k], x[k]))
            for x, k in zip(rows[:300], known[:300], strict=True)
        ]
    )
    error, least, zero = (
        float((rows[:300] - estimate)[~known[:300]].square().mean())
        for estimate in (model._rows(found)[:300], best, torch.zeros_like(best))
    )
    assert least < error < least + excess * (zero - least)


def test_without_gaps_nothing_is_estimated(rng):
    model, whole = make("vector", random=False), fields("vector", rng)
    model.start(whole)
    assert all(found is whole[m] for m, found in model.complete(whole).items())


def test_components_of_data_with_gaps_are_those_of_the_whole(rng):
    """With gaps as days without anomaly, the kept share of the variance of the true fields would be 7 % less."""
    whole = fields("vector", rng, 3000)
    gappy = {m: torch.where(torch.rand(x.shape, generator=rng) > 0.5, x, torch.nan) for m, x in whole.items()}
    shares = []
    for given in (whole, gappy):
        model = make("vector", 4, random=False)
        model.start(given)
        loading = torch.cat([model.coders[m].linear_in.weight.mT for m in model.names])
        rows = model._rows(whole)
        shares.append(float((rows @ loading).square().sum() / rows.square().sum()))
    assert shares[1] > 0.995 * shares[0]
