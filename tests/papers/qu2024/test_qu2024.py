"""The published experiment: plan, operators, weights, and a whole run on a small archive."""

import csv
import math
from pathlib import Path

import pytest
import torch
from scipy.stats import wasserstein_distance

from slams.core.console import Console
from slams.core.tensorfile import read_facts
from slams.evaluation.metrics import wasserstein
from slams.papers.qu2024 import archive
from slams.papers.qu2024 import run as study
from slams.papers.qu2024.archive import STATE, Truths, truths
from slams.papers.qu2024.observing import LocalGaussian, latent_operator, operator
from slams.papers.qu2024.plan import OFFSET, Setting, read_plan
from slams.papers.qu2024.prior import load_prior, smooth
from slams.papers.qu2024.published import distances, elsewhere, pseudo_observations
from slams.papers.qu2024.report import extreme_figure, panel_figure, write_published
from slams.papers.qu2024.right import VARIANTS, Analyst, observe
from slams.papers.qu2024.scores import FRAMES, Outcome
from slams.papers.qu2024.training import CLIMATE, load_shared
from tests.papers.qu2024.conftest import FILE, HEIGHT, LAT, LON, TINY, WIDTH, waves

QUIET = Console(quiet=True)
WEIGHTS = torch.cos(torch.deg2rad(torch.tensor(LAT)))[:, None].expand(HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("models=lsda_3", "unknown model 'lsda_3'; did you mean lsda_"),
        ("settings=corse_8", "unknown setting 'corse_8'; did you mean coarse_8"),
        ("settings=coarse_5", "coarse_5: blocks of 5 cells do not divide the grid of 32 x 64"),
        ("settings=sparse_64", "sparse_64: cells so far apart"),
        ("size=plant", "unknown size 'plant'; did you mean planet"),
        ("mode=publised", "mode is 'published' or 'right' or 'both'"),
        ("right.members=1", "members must be at least 2"),
        ("published.trajectories=9", "at most trajectories, 8"),
    ],
)
def test_what_cannot_be_run_is_told(override, message):
    with pytest.raises(ValueError, match=message):
        read_plan(FILE, [override])


def test_the_full_size_has_the_published_settings():
    plan = read_plan(FILE, ["size=full"])
    assert [s.name for s in plan.chosen] == [
        *(f"coarse_{r}" for r in (4, 8, 12, 15, 20)),
        *(f"noise_{s}" for s in ("0.5", "1", "2", "4")),
        *(f"sparse_{g}" for g in (4, 8, 12, 16)),
    ]
    assert (
        plan.cells == (120, 240)
        and plan.published.steps == 512
        and plan.frames == [0, 4, 8, 12, 16, 20, 24, 28]
    )
    assert plan.prior.width("sda_0") == plan.prior.width("lsda_2") == (32, 64, 128)
    published = read_plan(FILE, ["size=full", "prior.capacity=published"])
    assert published.prior.width("sda_0") == (64, 128, 256) and published.prior.width("lsda_0") == (
        32,
        64,
        128,
    )


def test_operators_are_area_means_and_cells(rng):
    x = torch.randn(HEIGHT, WIDTH, generator=rng)
    means = operator(Setting("coarse_4", "coarse", 4), WEIGHTS) @ x.flatten()
    block, area = x[4:8, 8:12], WEIGHTS[4:8, 8:12]
    torch.testing.assert_close(means.reshape(4, 8)[1, 2], (block * area).sum() / area.sum())
    cells = operator(Setting("sparse_8", "sparse", 8), WEIGHTS) @ x.flatten()
    assert torch.equal(cells.reshape(2, 4), x[OFFSET::8, OFFSET::8])
    z = x.expand(3, 5, HEIGHT, WIDTH)
    torch.testing.assert_close(
        latent_operator(Setting("noise_2", "noise", 2), z)[1, 2, 1, 2], x[4:8, 8:12].mean()
    )
    assert latent_operator(Setting("sparse_8", "sparse", 8), z).shape == (3, 5, 2, 4)


def test_interpolation_is_the_conditional_mean_and_variance(rng):
    """Against dense matrices of the same covariance, one level at a time."""
    local = LocalGaussian(LAT, LON, 2000.0, torch.tensor([[0.5], [2.0]]).expand(2, HEIGHT))
    h = operator(Setting("sparse_8", "sparse", 8), WEIGHTS)
    gain, left = local.posterior("x", h, torch.tensor([0.1, 0.4]))
    lat, lon = (
        x.flatten()
        for x in torch.meshgrid(*(torch.deg2rad(torch.tensor(v)) for v in (LAT, LON)), indexing="ij")
    )
    xyz = torch.stack([lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()], -1).double()
    chord = (xyz[:, None] - xyz).norm(dim=-1) * 6371.0
    correlation = torch.exp(-0.5 * (chord / 2000) ** 2)
    for level, (variance, noise) in enumerate(((0.5, 0.1), (2.0, 0.4))):
        b = variance * correlation
        wanted = torch.linalg.solve(
            h.double() @ b @ h.mT.double() + noise * torch.eye(len(h)), h.double() @ b
        ).mT
        torch.testing.assert_close(gain[level].double(), wanted, atol=1e-4, rtol=1e-3)
        expected = (b - wanted @ h.double() @ b).diagonal()
        torch.testing.assert_close(left[level].double(), expected, atol=1e-4, rtol=1e-3)


def test_tables_are_from_the_top_to_the_bottom_in_whatever_order_the_levels_are(plan, tmp_path, test_days):
    """The planet's go from 1000 to 10 hPa, the published tables' from 10 on; a panel is of the level that is named."""
    levels = ("850", "500", "300")
    w1 = torch.tensor([[0.0, 0.1, 0.2, 0.3], [0.0, 0.3, 0.4, 0.5]])  # all levels, then each
    fields = torch.arange(3.0)[None, :, None, None].expand(1, 3, HEIGHT, WIDTH)
    example = dict.fromkeys(("truth", "observed", "sample"), fields)
    outcome = Outcome("published", "sda_0", "coarse_4", {("sample", FRAMES, "w1"): w1}, example)
    write_published(plan, [outcome], levels, tmp_path)
    assert [float(row["4"]) for row in read(tmp_path / "sda_0" / "wasserstein_coarse.csv")] == pytest.approx(
        [0.4, 0.3, 0.2]
    )
    figure = extreme_figure(tmp_path, ["sda_0"], "coarse", levels)
    assert [axis.get_title() for axis in figure.axes[:3]] == ["300 hPa", "500 hPa", "850 hPa"]
    assert [axis.lines[0].get_ydata()[0] for axis in figure.axes[:3]] == pytest.approx([0.4, 0.3, 0.2])
    truth = Truths({}, torch.zeros(1, 1), WEIGHTS, levels, LAT, LON)
    panels = panel_figure(outcome, truth, "300")
    assert float(panels.axes[0].collections[0].get_array().max()) == 2.0
    with pytest.raises(ValueError, match="unknown level '85'; did you mean 850"):
        panel_figure(outcome, truth, "85")


def test_the_published_metric_cannot_tell_where_anything_is(rng):
    """SciPy's distance of the pooled values, and the same half round the globe, where the RMSE is not."""
    truth, x = torch.randn(2, 4, 3, HEIGHT, WIDTH, generator=rng)
    found, turned = distances(x, truth), distances(elsewhere(truth), truth)
    for level in range(3):
        expected = wasserstein_distance(x[:, level].flatten().numpy(), truth[:, level].flatten().numpy())
        assert abs(float(found["w1"][level]) - expected) < 1e-5
    assert float(turned["w1"].max()) < 1e-6 and float(turned["rmse"].min()) > 1
    assert float(wasserstein(x[None, 0, 0].flatten(1), x[0, 0].flatten(), torch.ones(HEIGHT * WIDTH))) < 1e-6


def test_observations_are_on_frames_and_the_same_for_all_models(plan, weights, test_days):
    climate = load_shared(weights / CLIMATE, plan.cells).climate
    truth = truths(plan, test_days, climate, (2004,))
    setting = plan.chosen[0]
    seen = {v: observe(plan, setting, truth, "lsda_2", v) for v in VARIANTS}
    unseen = [day for day in range(plan.length) if day % 4]
    for one in seen.values():
        assert torch.equal(one.y.nan_to_num(9), observe(plan, setting, truth, "sda_0").y.nan_to_num(9))
        assert bool(one.y[:, unseen].isnan().all()) and bool(one.y[:, plan.frames].isfinite().all())
    assert not seen["dropped"].others
    assert bool(seen["observed"].others["olr"][:, unseen].isnan().all())
    assert bool(seen["every day"].others["olr"].isfinite().all())
    assert torch.equal(seen["shuffled"].others["olr"][0, 0], seen["observed"].others["olr"][1, 0])
    error = (seen["dropped"].y - truth.anomalies[STATE].flatten(3) @ seen["dropped"].h.mT)[:, plan.frames]
    assert abs(float(error.std()) / 0.1 - 1) < 5 / (2 * error.numel()) ** 0.5


def test_pseudo_observations_are_of_the_encoded_truth_with_all_modalities(plan, weights, test_days):
    """Blocks on frames, cells on all days; another rain is another observation."""
    climate = load_shared(weights / CLIMATE, plan.cells).climate
    truth = truths(plan, test_days, climate, (2004,))
    prior = load_prior(weights / "lsda_2.safetensors", plan.prior, "lsda_2", plan.cells)
    found = {s.kind: pseudo_observations(plan, prior, s, truth)["latent"] for s in plan.chosen}
    exact = prior.encoded(truth.anomalies)
    for kind, observation in found.items():
        days = list(range(plan.length)) if kind == "sparse" else plan.frames
        seen = observation.value.isfinite().flatten(2).all(2).all(0)
        assert seen.nonzero().flatten().tolist() == days
        error = (observation.value - observation.operator(exact))[:, days]
        wanted = 2.0 if kind == "noise" else 0.1
        assert abs(float(error.std()) / wanted - 1) < 5 / (2 * error.numel()) ** 0.5
    other = {**truth.anomalies, "rain": truth.anomalies["rain"] + 1}
    assert not torch.equal(prior.encoded(other), exact)


def test_weights_in_sixteen_bits_are_read_as_they_were(plan, weights):
    """Patterns orthonormal and without small scales, a covariance that is positive, errors that are calibrated."""
    for name in plan.models:
        prior = load_prior(weights / f"{name}.safetensors", plan.prior, name, plan.cells)
        identity = prior.basis.mT @ prior.basis
        torch.testing.assert_close(identity, torch.eye(len(identity)), atol=1e-5, rtol=0)
        fields = prior.basis.mT.reshape(-1, *prior.codec.event)
        torch.testing.assert_close(smooth(fields, plan.prior.wavenumbers), fields, atol=1e-5, rtol=0)
        assert float(torch.linalg.eigvalsh(prior.covariance.double()).min()) > 0
        assert set(prior.facts["calibrated"]) == {"coarse", "noise", "sparse"}
        assert not list(weights.glob("resume_*"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("cells=[32, 64]",), "holds lsda_2 on 16 x 32.*size=planet or full"),
        (
            ("prior.capacity=published", "prior.hidden=[8, 16]"),
            "networks with {'width': .4, 8.}, and the plan has {'width': .8, 16.}; train anew with --train",
        ),
        (("prior.patterns=9",), "with {'patterns': 8}.*train anew"),
    ],
)
def test_weights_of_another_size_are_refused(weights, overrides, message):
    plan = read_plan(FILE, [*TINY, *overrides])
    with pytest.raises(ValueError, match=message):
        load_prior(weights / "lsda_2.safetensors", plan.prior, "lsda_2", plan.cells)


def test_an_archive_of_another_size_is_refused(test_days, monkeypatch):
    monkeypatch.setattr(archive, "simulate_archive", lambda *a, **k: [])
    monkeypatch.setattr(archive, "load_fields", lambda *a: test_days)
    with pytest.raises(ValueError, match="is on 16 x 32, and this experiment on 32 x 64"):
        archive.test_fields(read_plan(FILE), QUIET)


def joint(prior, steps: int) -> torch.Tensor:
    """Precision of T days of a Markov chain with the windows' covariance: of windows, less that of what they share."""
    c, k = prior.covariance.double(), prior.basis.shape[1]
    windows, shared = torch.linalg.inv(c), torch.linalg.inv(c[:-k, :-k])
    total = torch.zeros(steps * k, steps * k, dtype=torch.float64)
    for first in range(steps - len(c) // k + 1):
        here = slice(first * k, first * k + len(c))
        total[here, here] += windows
        if first:
            both = slice(first * k, first * k + len(c) - k)
            total[both, both] -= shared
    return total


@pytest.mark.parametrize("steps", [None, 24])
def test_analyses_within_the_patterns_are_the_joint_posterior(plan, weights, test_days, steps):
    """Dense algebra; of 4,000 draws means and variances within 5 standard errors, and 3 % for the steps of a sampler."""
    climate = load_shared(weights / CLIMATE, plan.cells).climate
    truth = truths(plan, test_days, climate, (2004,))
    prior = load_prior(weights / "sda_0.safetensors", plan.prior, "sda_0", plan.cells)
    torch.nn.init.zeros_(prior.denoiser.network.last.weight)
    torch.nn.init.zeros_(prior.denoiser.network.last.bias)
    setting, count = Setting.of("sparse_8"), prior.basis.shape[1]
    seen, analyst = observe(plan, setting, truth, "sda_0"), Analyst.of(prior, truth, "sparse")
    g = torch.cat([seen.h @ each for each in prior.operators[STATE].split(HEIGHT * WIDTH)]).double()
    left = analyst.local.covariances("sparse_8", seen.h)[1].diagonal(dim1=1, dim2=2)
    variance = (analyst.factors[STATE] * left + setting.std**2).flatten().double()
    precision = joint(prior, plan.length)
    pulled = torch.zeros(2, plan.length, count, dtype=torch.float64)
    for day in plan.frames:
        own = slice(day * count, (day + 1) * count)
        precision[own, own] += g.mT @ (g / variance[:, None])
        pulled[:, day] = seen.y[:, day].flatten(1).double() @ (g / variance[:, None])
    covariance = torch.linalg.inv(precision)
    scale, members = covariance.diagonal().sqrt(), 4000
    a = analyst.coefficients(seen, members, seed=0, steps=steps, label=("test",)).flatten(2).double()
    slack = 0.0 if steps is None else 0.03
    error = (a.mean(1) - pulled.flatten(1) @ covariance) / scale
    assert float(error.abs().max()) < 5 / members**0.5 + slack
    ratio = a.var(1).mean(0) / covariance.diagonal()
    assert float((ratio - 1).abs().max()) < 5 * (2 / (2 * members)) ** 0.5 + slack


def test_analyses_follow_the_observations(plan, weights, test_days):
    """Errors by network and closed form are below the climate's by a fifth."""
    shared = load_shared(weights / CLIMATE, plan.cells)
    truth = truths(plan, test_days, shared.climate, (2004,))
    prior = load_prior(weights / "lsda_2.safetensors", plan.prior, "lsda_2", plan.cells)
    seen = observe(plan, plan.chosen[0], truth, "lsda_2")
    exact = truth.anomalies[STATE][:, plan.frames]
    for steps in (None, 6):
        draws = Analyst.of(prior, truth, "coarse").draws(seen, 16, seed=0, steps=steps)
        mean = torch.stack([x.mean(0) for x in draws])[:, plan.frames]
        assert float((mean - exact).square().mean()) < 0.64 * float(exact.square().mean())


@pytest.fixture(scope="module")
def done(weights, tmp_path_factory) -> Path:
    """A whole run of the small archive with weights trained before."""
    folder = tmp_path_factory.mktemp("done")
    (folder / "weights").symlink_to(weights)
    patch = pytest.MonkeyPatch()
    patch.setattr(study, "test_fields", lambda plan, console: waves((2004,), 60, seed=1))
    study.run(FILE, folder, TINY, QUIET)
    patch.undo()
    return folder


def read(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_run_has_a_row_a_model_setting_and_level(done, plan):
    rows = read(done / "scores.csv")
    for mode, method, metrics in (
        ("published", "sample", {"w1", "rmse"}),
        ("right", "analysis", {"rmse", "crps", "spread_skill", "coverage90_fair", "w1"}),
    ):
        own = [r for r in rows if r["mode"] == mode and r["method"] == method and r["part"] == "frames"]
        keys = {(r["model"], r["setting"], r["level"], r["metric"]) for r in own}
        assert len(keys) == len(own) == 2 * 3 * 4 * len(metrics) and {k[3] for k in keys} == metrics
    right = {r["method"] for r in rows if r["mode"] == "right" and r["model"] == "lsda_2"}
    assert right == {
        "gaussian", "interpolation", "climatology", "reconstruction",
        *(m + v for m in ("analysis", "latent_gaussian") for v in ("", ":every day", ":dropped", ":shuffled")),
    }  # fmt: skip
    assert all(
        math.isfinite(float(r["value"])) for r in rows if r["metric"] == "rmse" and r["mode"] == "right"
    )


def test_a_run_writes_the_published_tables_and_one_page(done, plan):
    for name, columns in (("coarse", ["4"]), ("noise", ["2"]), ("sparse", ["8"])):
        rows = read(done / "lsda_2" / f"wasserstein_{name}.csv")
        assert len(rows) == 3 and list(rows[0]) == columns
    page = (done / "report.html").read_text()
    assert (
        "Published mode" in page and "Right mode" in page and (done / "figures" / "wasserstein.png").exists()
    )
    rows = {row["row"]: row for row in read(done / "rows.csv")}
    turned = [row for name, row in rows.items() if "half round the globe" in name]
    own = [r for r in read(done / "scores.csv") if r["method"] == "sample" and r["level"] == "all"]
    sound = [
        r for r in own if r["metric"] == "w1" and r["value"] and float(r["value"]) <= 1
    ]  # U-Nets of six steps may diverge
    lost = [n for n, row in rows.items() if n.startswith("published") and row["status"] == "FAIL"]
    assert len(lost) == len([r for r in own if r["metric"] == "w1"]) - len(sound)
    assert len(turned) == len(sound) and all(row["status"].startswith("PASS") for row in turned)


def test_a_second_run_reads_what_the_first_kept(done, monkeypatch):
    """No draw and no score is made again, and the intervals of each outcome are computed once."""
    monkeypatch.setattr(study, "test_fields", lambda plan, console: waves((2004,), 60, seed=1))
    monkeypatch.setattr(study, "write_pages", lambda *a: None)
    lines, computed = Outcome.lines, []
    monkeypatch.setattr(Outcome, "lines", lambda self, levels: computed.append(self) or lines(self, levels))
    for name in ("sampled", "scored"):
        monkeypatch.setattr(study, name, lambda *a, **k: pytest.fail("computed again"))
    before = (done / "scores.csv").read_bytes()
    study.run(FILE, done, TINY, QUIET)
    assert (done / "scores.csv").read_bytes() == before
    assert len(computed) == 2 * 2 * 3


def test_weights_work_on_days_of_another_simulation(done, weights, tmp_path, monkeypatch):
    """Rounding of another number of threads makes other weather; the weights carry all that they need."""
    assert "length" in read_facts(weights / CLIMATE)
    other = waves((2004,), 60, seed=1)
    other.values["t"] += 1e-3 * torch.randn(
        other.values["t"].shape, generator=torch.Generator().manual_seed(5)
    )
    monkeypatch.setattr(study, "test_fields", lambda plan, console: other)
    (tmp_path / "weights").symlink_to(weights)
    study.run(FILE, tmp_path, [*TINY, "mode=right", "models=sda_0", "settings=coarse_4"], QUIET)

    def rmse(folder: Path) -> float:
        keys = ("right", "sda_0", "coarse_4", "analysis", "all", "frames", "rmse")
        return next(float(r["value"]) for r in read(folder / "scores.csv") if tuple(r.values())[:7] == keys)

    assert abs(rmse(tmp_path) / rmse(done) - 1) < 0.05
