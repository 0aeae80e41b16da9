"""Laws of a reproduction on the Kolmogorov flow: from nothing to rows, its rivals, its bars, and what cannot be."""

import csv
import dataclasses

import pytest
import torch
import yaml

from slams.assimilation.score.sda import SDA
from slams.core.console import Console
from slams.core.settings import read_tree
from slams.diffusion.denoiser import Denoiser
from slams.diffusion.sampler import Sampler
from slams.diffusion.schedule import VPCosine
from slams.diffusion.solenoidal import FlowCovariance, flow_moments
from slams.papers.reproduce import PAPERS, reproduce
from slams.papers.rozet2023.guidance import guidance_of
from slams.papers.rozet2023.kolmogorov import run as sda_kolmogorov
from slams.papers.rozet2023.kolmogorov.baselines import (
    FlowGaussian,
    gaussian_posterior,
    interpolated,
    persistent,
    velocity_of,
)
from slams.papers.rozet2023.kolmogorov.plan import read_plan
from slams.papers.rozet2023.kolmogorov.problem import EVENT, FlowProblem, FlowProcess, scores
from slams.papers.rozet2023.kolmogorov.report import judge_process
from slams.papers.rozet2023.kolmogorov.resimulate import resimulate
from slams.papers.rozet2023.kolmogorov.variational import FlowFourDVar
from slams.papers.rozet2023.outcome import SDAOutcome
from slams.systems.flows.kolmogorov import KolmogorovFlow

SHIPPED = PAPERS / "rozet2023" / "kolmogorov" / "rozet2023_kolmogorov.yaml"
LENGTH = 5
PROCESSES = {
    "means": FlowProcess([{"coarsen": 8}], LENGTH, 0.1, every=2),
    "box": FlowProcess([{"coarsen": 4}, {"box": [4, 12]}], LENGTH, 0.05, times=[0, 3]),
    "points": FlowProcess([{"stride": [16, 7]}], LENGTH, 0.1),
    "saturating": FlowProcess(
        [{"coarsen": 4}, {"vorticity": True}, {"saturate": True}, {"box": [2, 14]}],
        LENGTH,
        0.05,
        times=[0, 4],
    ),
}
RUN = "none / fast / covariance"
PLAN = {
    "title": "tiny",
    "source": "nobody",
    "archive": {"count": 20, "length": 6, "spin_up": 2, "adjusted": 1, "fine": 64, "batch": 4},
    "processes": {
        "stride32": {"sensor": [{"stride": 32}], "length": LENGTH, "every": 4},
        "stride16": {"sensor": [{"stride": 16}], "length": LENGTH, "every": 4},
        "ring": {
            "sensor": [{"vorticity": True}, {"ring": [0.4, 0.6]}],
            "length": LENGTH,
            "times": [-1],
            "value": 0.6,
        },
    },
    "nets": {"none": {"hidden": [], "order": 1, "lags": 5}},
    "samplers": {"fast": {"steps": 3, "order": 2, "time_grid": "snr"}},
    "guidances": {
        "covariance": {"kind": "covariance", "iterations": 4},
        "sda": {"kind": "sda", "gamma": 0.1},
    },
    "main": RUN,
    "variational": {"iterations": 1},
    "climate": 2,
    "sizes": {"quick": {"replicates": 2, "members": 2, "runs": [RUN]}},
}


@pytest.fixture(scope="module")
def flows():
    """Trajectories of the model on 64 x 64 cells."""
    flow = KolmogorovFlow(64, max_courant=1.0)
    x = [flow.initial(6, rng=torch.Generator().manual_seed(3))]
    with torch.no_grad():
        for _ in range(LENGTH + 1):
            x.append(flow(x[-1]))
    return torch.stack(x[2:], 1)


@pytest.fixture(scope="module")
def gaussian(flows):
    mean = flows.mean((0, 1, 3), keepdim=True)[0, 0].expand(EVENT)
    return FlowGaussian(mean, FlowCovariance(flow_moments(flows, mean, LENGTH), LENGTH))


def table(path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_from_nothing_to_rows_and_again_without_work(tmp_path, monkeypatch):
    """A second call makes nothing anew; with more truths only these are made; few truths are not judged."""
    monkeypatch.setattr("slams.config.DATA_DIR", tmp_path / "data")
    papers, quiet = tmp_path / "papers", Console(quiet=True)
    (papers / "rozet2023" / "kolmogorov").mkdir(parents=True)
    (papers / "rozet2023" / "kolmogorov" / "tiny2023_flow.yaml").write_text(yaml.safe_dump(PLAN))
    out = tmp_path / "out"
    only = ["chosen=[stride16]"]
    assert reproduce("tiny", out=out, papers=papers, console=quiet, overrides=["replicates=2"])
    folder = out / "tiny2023_flow"
    rows = table(folder / "rows.csv")
    assert {row["status"] for row in rows} == {"INFO"}
    assert {"residual", "rmse_minus_interpolation", "rmse_minus_climatology", "spread_skill", "crps"} <= {
        row["metric"] for row in rows
    }
    lines = {(line["process"], line["method"]): line for line in table(folder / "results.csv")}
    assert {name for label, name in lines if label == "stride16"} == {
        "climatology", "persistence", "interpolation", "gaussian", "4D-Var", RUN
    }  # fmt: skip
    assert float(lines["stride16", RUN]["evaluations"]) == 3 and lines["ring", RUN]["rmse"] == ""
    for name in ("panel_stride16", "panel_ring", "again_ring", "sweep", "spectra"):
        assert (folder / "figures" / f"{name}.png").exists()
    assert "data:image/png" in (folder / "report.html").read_text()

    def never(*_, **__):
        raise AssertionError("this was done before")

    monkeypatch.setattr(sda_kolmogorov, "write_pages", lambda *_: None)  # seconds of drawing
    monkeypatch.setattr("slams.papers.flows.archive.simulate", never)
    for name in ("SDA", "gaussian_posterior", "FlowFourDVar", "moments_of"):
        monkeypatch.setattr(sda_kolmogorov, name, never)
    assert reproduce("tiny", out=out, papers=papers, console=quiet, overrides=only)
    with pytest.raises(AssertionError, match="done before"):
        reproduce("tiny", out=out, papers=papers, console=quiet, overrides=[*only, "members=3"])
    with pytest.raises(ValueError, match="another architecture"):
        reproduce("tiny", out=out, papers=papers, console=quiet, overrides=[*only, "nets.none.lags=4"])


def test_the_shipped_plan_is_the_papers():
    """Rows of the paper, and every name in the plan known."""
    plan = read_plan(SHIPPED)
    published = plan.processes
    assert published["assimilation"].steps == [0, 4, 8, 12, 16, 20, 24, 28]
    assert published["ring"].steps == [7] and published["loop"].length == 127
    x = torch.zeros(1, 8, *EVENT)
    shapes = {label: tuple(p.operator(x).shape[2:]) for label, p in published.items()}
    assert shapes["assimilation"] == (2, 8, 8) and shapes["extrapolation"] == (2, 8, 8)
    assert shapes["saturating"] == (12, 12) and shapes["offset16"] == (2, 4, 4) and shapes["loop"] == EVENT
    for size in read_tree(SHIPPED)["sizes"]:
        assert read_plan(SHIPPED, [f"size={size}"]).labels


@pytest.mark.parametrize("name", ["means", "box", "points"])
def test_gaussian_posterior_is_where_its_gradient_vanishes(name, flows, gaussian):
    """x - m = C H^T R^-1 (y - H x), whatever way it was solved; in float64, as R^-1 blows rounding up 400 times."""
    mean = gaussian.mean.double()
    moments = flow_moments(flows.double(), mean, LENGTH)
    gaussian = FlowGaussian(mean, FlowCovariance(moments, LENGTH, torch.float64))
    problem = FlowProblem.draw(PROCESSES[name], flows[:1].double(), 0, name)
    _, best = gaussian_posterior(problem, gaussian, 1, torch.Generator().manual_seed(0))
    system = problem.process.system(gaussian.covariance)
    residual = problem.seen.value[0, system.steps] - system.seen(best[0])
    pulled = gaussian.covariance_product(system.pulled(residual / problem.process.std**2))
    torch.testing.assert_close(best[0] - gaussian.mean, pulled, rtol=0, atol=1e-8)


def test_draws_of_a_gaussian_meet_truths_of_it_to_the_error(gaussian):
    """y - H x has variance R under the posterior; 640 values of 4 draws: 5 standard errors are 0.14 of the std."""
    rng = torch.Generator().manual_seed(1)
    problem = FlowProblem.draw(PROCESSES["points"], gaussian.sample(4, rng=rng), 0, "points")
    draws, _ = gaussian_posterior(problem, gaussian, 4, rng)
    found = scores(problem, draws)
    assert float(found["misfit"].mean().sqrt()) == pytest.approx(problem.process.std, rel=0.14)


def test_a_saturating_sensor_is_met_better_than_by_its_inverse(flows, gaussian):
    """The most likely trajectory fits the values to about their error, from 1 to 2 of it; interpolation does not."""
    problem = FlowProblem.draw(PROCESSES["saturating"], flows[:2], 0, "saturating")
    draws, best = gaussian_posterior(problem, gaussian, 4, torch.Generator().manual_seed(0))
    rough = interpolated(problem, gaussian.mean)
    own, other = (float(problem.residual(x[:, None]).square().mean().sqrt()) for x in (best, rough))
    assert own < 2 * problem.process.std < other
    assert float(scores(problem, draws, best)["squared_error"].mean()) < float(
        scores(problem, rough[:, None])["squared_error"].mean()
    )


@pytest.mark.parametrize("name", ["points", "box"])
def test_interpolation_keeps_what_it_was_given(name, flows, gaussian):
    """Points are met where they stand, and at observed steps persistence says the same."""
    problem = FlowProblem.draw(PROCESSES[name], flows[:2], 0, name)
    x, steps = interpolated(problem, gaussian.mean), problem.process.steps
    torch.testing.assert_close(x[:, steps], persistent(problem, gaussian.mean)[:, steps], rtol=0, atol=1e-5)
    if name == "points":
        assert float(problem.residual(x[:, None]).abs().max()) < 1e-5


def test_velocity_of_undoes_vorticity(flows):
    x = flows[:2, 0]
    again = velocity_of(KolmogorovFlow(64).vorticity(x))
    torch.testing.assert_close(again, x - x.mean((-2, -1), keepdim=True), rtol=0, atol=1e-4)


def test_a_perfect_model_finds_the_start(flows):
    """Strong constraint, every second point seen for two steps: the error falls far below that of the values."""
    process = FlowProcess([{"stride": 4}], 3, 0.02)
    problem = FlowProblem.draw(process, flows[:1], 0, "perfect")
    method = FlowFourDVar(flows, samples=2, iterations=25, strong=True)
    guess = interpolated(problem, method.mean)
    best, _ = method.assimilate(problem, guess[:, 0])
    before, after = (float(scores(problem, x[:, None])["squared_error"].mean().sqrt()) for x in (guess, best))
    assert after < before / 2


def test_the_solver_agrees_with_itself(flows):
    """A draw that is a trajectory of the solver is met by it exactly; one with its states shuffled is not."""
    plain = KolmogorovFlow(64)
    states = [flows[:2, 0]]
    with torch.no_grad():
        for _ in range(2):
            states.append(plain(states[-1]))
    x = torch.stack(states, 1)
    assert float(resimulate(x, 64).error.max()) < 1e-5
    assert float(resimulate(x.flip(1), 64).error.max()) > 0.1


def outcome(error: torch.Tensor, misfit: float) -> SDAOutcome:
    names = ("crps", "coverage90", "spectral")
    filled = {name: torch.full_like(error, 0.5) for name in names}
    return SDAOutcome(
        {**filled, "squared_error": error**2, "variance": error**2, "misfit": error * 0 + misfit**2}, {}
    )


def test_bars_pass_and_fail_where_they_say():
    """A gain holds only if its paired interval does; the residual within 15 %; few truths are not judged."""
    plan = read_plan(SHIPPED, ["size=reduced", "chosen=[stride4]", "runs=[local2 / fast / covariance]"])
    wobble = torch.linspace(-0.3, 0.3, 16, dtype=torch.float64)
    found = {
        plan.main: outcome(0.5 + wobble, 0.114),
        "interpolation": outcome(0.51 + wobble + 0.001 * wobble.flip(0), 0.1),
        "climatology": outcome(0.51 + wobble.flip(0), 1.0),
    }
    status = {verdict.metric: verdict.status for verdict in judge_process(plan, "stride4", found)}
    assert status["residual"] == "PASS" and status["spread_skill"] == "PASS"
    assert status["rmse_minus_interpolation"] == "PASS"
    assert status["rmse_minus_climatology"] == "FAIL (not resolved)"
    found[plan.main] = outcome(0.5 + wobble, 0.116)
    assert {v.metric: v.status for v in judge_process(plan, "stride4", found)}["residual"] == "FAIL"
    few = dataclasses.replace(plan, replicates=15)
    assert {v.status for v in judge_process(few, "stride4", found)} == {"INFO"}


class Broken(Denoiser):
    """Not finite once less noise is left."""

    schedule = VPCosine()

    def forward(self, x_t, t):
        return x_t / (0.0 if float(t) < 0.9 else 1.0)


def test_a_draw_that_is_not_finite_names_step_and_guidance(flows, gaussian):
    problem = FlowProblem.draw(PROCESSES["points"], flows[:1], 0, "points")
    make = guidance_of(
        {"kind": "covariance"}, gaussian.covariance, problem.process.system(gaussian.covariance)
    )
    method = SDA(Broken(), Sampler(4), event=EVENT, guidance=make)
    with pytest.raises(
        FloatingPointError, match=r"in step 2 of 4: .*norm of the finite part of the guidance"
    ):
        method.assimilate(problem.observations, 1, rng=torch.Generator().manual_seed(0))


def test_what_cannot_be_is_refused(flows):
    with pytest.raises(ValueError, match="must be positive"):
        FlowProcess([{"coarsen": 8}], std=0.0)
    with pytest.raises(ValueError, match="did you mean vorticity"):
        FlowProcess([{"vorticty": True}])
    with pytest.raises(ValueError, match="gamma must be positive, got 0"):
        read_plan(SHIPPED, ["guidances.sda.gamma=0"])
    with pytest.raises(ValueError, match="error must be positive, got -1"):
        read_plan(SHIPPED, ["guidances.covariance.error=-1"])
    with pytest.raises(ValueError, match="fewer than the windows of 5"):
        read_plan(SHIPPED, ["processes.stride2.length=4"])
    with pytest.raises(ValueError, match="did you mean reduced"):
        read_plan(SHIPPED, ["size=redced"])
    with pytest.raises(ValueError, match="shorten the process"):
        FlowProblem.draw(FlowProcess([{"coarsen": 8}], 40), flows, 0, "long")
