"""Laws of the study of surface quasi-geostrophic turbulence: what is near, what is seen, and a run that is killed."""

import csv
import dataclasses
import math

import pytest
import torch
import yaml

from slams.assimilation import ETKF
from slams.core.console import Console
from slams.core.geometry.localization import Localization, gaspari_cohn
from slams.core.random import fork
from slams.observation.observation import Observation, Observations
from slams.papers.bao2024_sqg import run as sqg
from slams.papers.bao2024_sqg.archive import SQGArchive, climate, model
from slams.papers.bao2024_sqg.methods import (
    OptimalInterpolation,
    build,
    run,
    truth_spectrum,
)
from slams.papers.bao2024_sqg.plan import read_plan
from slams.papers.bao2024_sqg.problem import (
    Sensors,
    Shocks,
    SQGProblem,
    ensembles_near,
    first_ensembles,
    moments,
    nearby,
)
from slams.papers.reproduce import PAPERS, reproduce
from slams.papers.table import Bar

SHIPPED = PAPERS / "bao2024_sqg" / "bao2024_sqg.yaml"
PLAN = {
    "title": "tiny",
    "source": "nobody",
    "replicates": 2,
    "members": 6,
    "burn_in": 2,
    "cycles": 28,
    "archive": {"size": 8, "length": 30, "spin_up": 4, "adjusted": 4, "climate": 2, "states": 5, "apart": 2},
    "sizes": {"wide": {"members": 7, "archive.size": 10}},
    "experiments": {
        "linear": {
            "runs": {
                "LETKF": {"support": 6000.0, "rtps": 0.5},
                "EnSF": {"support": 6000.0, "reach": 3000.0, "kernel": 0.9, "steps": 3, "rtps": 0.5},
                "RawObservation": {},
                "OptimalInterpolation": {},
            }
        },
        "half": {
            "operator": "arctan",
            "std": 0.01,
            "seen": 0.5,
            "shocks": {"chance": 0.5, "stds": [1.0, 2.0], "shares": [0.5, 0.5]},
            "runs": {"LETKF": {"support": 6000.0, "error": 2.0}, "Persistence": {}, "Climatology": {}},
        },
    },
    "bars": [{"case": "linear", "row": "EnSF", "metric": "rmse", "against": "LETKF", "high": 99.0}],
}


@pytest.fixture
def papers(tmp_path, monkeypatch):
    monkeypatch.setattr("slams.config.DATA_DIR", tmp_path / "data")
    folder = tmp_path / "papers"
    (folder / "bao2024_sqg").mkdir(parents=True)
    (folder / "bao2024_sqg" / "tiny2024_sqg.yaml").write_text(yaml.safe_dump(PLAN, sort_keys=False))
    return folder


@pytest.fixture(scope="module")
def states():
    """Developed enough: 40 states of the model on 8 x 8 points."""
    system, x = model(8), []
    state = system.initial(10, rng=fork(0, "states"))
    for _ in range(4):
        state = system(state)
        x.append(state)
    return torch.cat(x)


def problem(states, sensors, members=6, length=4, burn_in=1):
    truth = torch.stack([states[k::10][:length] for k in range(2)])
    first = first_ensembles(states, [3, 4], members)
    return SQGProblem(model(8), sensors, truth, first, states, [3, 4], burn_in)


def table(path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_what_is_near_is_what_the_shorter_way_round_says():
    """Distances of all pairs by trying all nine images, and the other lid's values by the factor at 1000 km."""
    size, radius, side = 6, 9000.0, 20000.0
    near = nearby(size, radius)
    places = [(i * side / size, j * side / size) for i in range(size) for j in range(size)]
    half = size * size
    for a in range(2 * half):
        row = torch.zeros(2 * half, dtype=torch.float64)
        row[near.index[a]] += near.weight[a]
        for b in range(2 * half):
            (x, y), (u, v) = places[a % half], places[b % half]
            apart = min(
                math.hypot(x - u + i * side, y - v + j * side) for i in (-1, 0, 1) for j in (-1, 0, 1)
            )
            taper = float(gaspari_cohn(torch.tensor(apart, dtype=torch.float64), radius / 2))
            if taper < 1e-3:
                taper = 0.0
            if (a < half) != (b < half):
                taper *= float(gaspari_cohn(torch.tensor(1000.0, dtype=torch.float64), radius / 2))
            assert float(row[b]) == pytest.approx(taper, abs=1e-12)
    assert nearby(size, radius, vertical=False).rho_xy[0, half] == 1
    with pytest.raises(ValueError, match="square matrix of numbers"):
        Localization.line(3, torch.arange(3.0), 1.0).layered(torch.tensor([[1.0, 2.0]]))


def test_one_gaussian_and_no_localization_are_the_ensemble_transform(states):
    """With a kernel as wide as the ensemble and everything near, EnSF and LETKF are the ETKF; in single precision."""
    case = problem(states, Sensors(std=3.0))
    reference, x = ETKF(case.system), case.first
    seen = case.observations.step(0)
    expected = reference.analyse(x, seen)
    moved = float((expected - x).square().mean().sqrt())
    wide = {"support": math.inf}
    for name, more in {"LETKF": {}, "EnSF": {"reach": math.inf, "kernel": 1 - 1e-6}}.items():
        analysis = build(case, name, wide | more).analyse(x, seen)
        assert float((analysis - expected).square().mean().sqrt()) < 5e-3 * moved


def test_observations_are_disturbed_as_often_and_as_much_as_said():
    """Means over 4000 times lie within 5 standard errors (false alarms: below 1e-5); the truth is not touched."""
    shocks = Shocks(0.5, [4.0, 1.0], [0.25, 0.75])
    drawn = shocks.draw(4000, torch.Generator().manual_seed(1))
    struck = drawn > 0
    assert abs(float(struck.double().mean()) - 0.5) < 5 * 0.5 / 4000**0.5
    assert abs(float((drawn[struck] == 4).double().mean()) - 0.25) < 5 * (0.1875 / 2000) ** 0.5
    assert not bool(Shocks().draw(50, None).any())
    truth = torch.zeros(400, 2, 6, 6)
    values = Sensors(std=0.5, shocks=shocks).observe(truth, 7)
    sd = shocks.draw(400, fork(7, "shocks"))
    expected = sd.square() + 0.25
    ratio = values.square().mean(-1) / expected
    assert abs(float(ratio.mean()) - 1) < 5 * (2 / values.numel()) ** 0.5
    assert not bool(truth.any())


def test_sensors_draw_by_the_seed_alone_and_see_the_same_points_of_both_lids():
    truth = torch.linspace(-20, 20, 5 * 2 * 6 * 6).reshape(5, 2, 6, 6)
    sensors = Sensors("arctan", 1e-4, 0.25)
    together = sensors.observations(torch.stack([truth, truth + 1]), [5, 6])["lids"].value
    assert torch.equal(together[1].isnan(), sensors.observe(truth + 1, 6).isnan())
    assert torch.equal(together[1].nan_to_num(), sensors.observe(truth + 1, 6).nan_to_num())
    seen = together.isfinite().unflatten(-1, (2, 36))
    assert torch.equal(seen[..., 0, :], seen[..., 1, :])
    assert bool((seen[..., 0, :].sum(-1) == 9).all()) and not torch.equal(seen[0, 0], seen[0, 1])
    back = sensors.inverse(together[0, 2])
    kept = back.isfinite()
    error = (back - truth[2].flatten())[kept].abs()
    assert bool((error < 6 * 1e-4 * (1 + truth[2].flatten()[kept].square())).all())


def test_optimal_interpolation_is_the_posterior_of_the_climate(states):
    """Mean and members' spread against the textbook's solution in double precision."""
    case = problem(states, Sensors(std=2.0), members=40)
    mean, B = (value.double() for value in moments(states))
    rolled = moments(states.roll(3, -2))
    torch.testing.assert_close(rolled[1].double(), B, atol=1e-3, rtol=1e-4)
    variance = (states - states.mean((0, 2), keepdim=True)).square().mean()
    assert float(B.diagonal().mean()) == pytest.approx(float(variance), rel=1e-4)
    observation = case.observations.step(0)
    y, d = observation.value.double(), B.shape[0]
    gain = torch.linalg.solve(B + 4 * torch.eye(d, dtype=torch.float64), B).mT
    expected = mean.flatten() + (y - mean.flatten()) @ gain.mT
    method = OptimalInterpolation(case)
    found = method.analyse(case.first, observation, rng=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.mean(1).flatten(1).double(), expected, atol=2e-3, rtol=1e-3)
    posterior = B - gain @ B
    torch.testing.assert_close((method.root @ method.root.mT).double(), posterior, atol=5e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="complete linear"):
        OptimalInterpolation(problem(states, Sensors("arctan", 0.01)))


def test_scores_by_lid_and_by_wavenumber_add_up(states):
    """Squared errors and variances are the means of both lids'; shells of the error sum to its kinetic energy."""
    case = problem(states, Sensors(std=1.0))
    result = run(case, "RawObservation", {})
    numbers = result.posterior.diagnostics
    for name in ("squared_error", "predictive_variance", "crps", "covered"):
        both = (numbers[f"{name}_lower"] + numbers[f"{name}_upper"]) / 2
        torch.testing.assert_close(both, numbers[name], rtol=1e-4, atol=1e-5)
    error = result.posterior.mean[:, 0] - case.truth[:, 0]
    energy = case.system.velocity(error).square().sum(-3).mean((-3, -2, -1)) / 2
    shells = torch.stack([v[:, 0] for k, v in numbers.items() if k.startswith("error_")]).sum(0)
    torch.testing.assert_close(shells, energy, rtol=1e-3, atol=1e-6)
    truth = case.system.velocity(case.truth[:, 1::5]).square().sum(-3).mean() / 2
    assert float(truth_spectrum(case).sum()) == pytest.approx(float(truth), rel=1e-3)
    assert float(result.scores["rmse"].mean()) == pytest.approx(1.0, rel=0.2)
    assert float(run(case, "Persistence", {}).scores["rmse"].mean()) > 1.5


def test_a_killed_study_goes_on_and_gives_the_same_rows(papers, tmp_path, monkeypatch):
    """Truths, first ensembles and random numbers come from seeds; only the cost may differ."""
    monkeypatch.setattr(sqg, "pages", lambda *_: None)
    quiet = Console(quiet=True)
    assert reproduce("tiny", out=tmp_path / "whole", papers=papers, console=quiet)
    whole, usual = tmp_path / "whole" / "tiny2024_sqg", sqg.run_method

    def killed(problem, name, settings, *, label, progress, **more):
        def until(k):
            progress(k)
            if label == "EnSF" and k == 24:
                raise KeyboardInterrupt

        return usual(problem, name, settings, label=label, progress=until, **more)

    with monkeypatch.context() as patch:
        patch.setattr(sqg, "run_method", killed)
        with pytest.raises(KeyboardInterrupt):
            reproduce("tiny", out=tmp_path / "parts", papers=papers, console=quiet)
    parts = tmp_path / "parts" / "tiny2024_sqg"
    assert not (parts / "rows.csv").exists()

    def never(*_: object) -> None:
        raise AssertionError("truths and climate are on disk")

    monkeypatch.setattr("slams.papers.bao2024_sqg.archive.simulate", never)
    assert reproduce("tiny", out=tmp_path / "parts", papers=papers, console=quiet)
    assert table(parts / "rows.csv") == table(whole / "rows.csv")
    rows = table(parts / "linear" / "metrics.csv")
    assert {row["level"] for row in rows} == {"all", "lower", "upper"}
    difference = next(row for row in table(parts / "rows.csv") if row["row"] == "linear: EnSF - LETKF")
    means = {
        r["method"]: float(r["value"])
        for r in rows
        if (r["metric"], r["level"], r["replicate"]) == ("rmse", "all", "")
    }
    assert float(difference["value"]) == pytest.approx(means["EnSF"] - means["LETKF"], abs=1e-4)
    with pytest.raises(ValueError, match=r"settings\.rtps|rtps: 0.5 there"):
        more = ["experiments.linear.runs.LETKF.rtps=0.4"]
        reproduce("tiny", out=tmp_path / "parts", papers=papers, console=quiet, overrides=more)


def test_a_collapsed_ensemble_is_told_and_its_bar_missed(papers, tmp_path, monkeypatch):
    monkeypatch.setattr(sqg, "pages", lambda *_: None)
    monkeypatch.setattr(sqg, "first_ensembles", lambda x, seeds, n: x[:1].expand(len(seeds), n, *x.shape[1:]))
    out = tmp_path / "out"
    overrides = ["only=linear", "cycles=2", "members=2"]  # the mean of two equal numbers is exact
    assert not reproduce("tiny", out=out, papers=papers, console=Console(quiet=True), overrides=overrides)
    rows = table(out / "tiny2024_sqg" / "rows.csv")
    assert rows[0]["status"] == "FAIL" and rows[0]["value"] == "inf"
    assert {row["row"] for row in rows} >= {"linear: RawObservation"} and not any(
        r["row"][8:] == "EnSF" for r in rows
    )


def test_figures_and_the_report_are_made(papers, tmp_path):
    out = tmp_path / "out"
    overrides = ["only=half", "cycles=3", "replicates=2"]
    assert reproduce("tiny", out=out, papers=papers, console=Console(quiet=True), overrides=overrides)
    folder = out / "tiny2024_sqg"
    assert {path.stem for path in (folder / "figures").iterdir()} == {
        f"half_{name}" for name in ("scores", "time", "spectra", "maps", "ranks")
    }
    assert "Experiment half" in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    "override, message",
    [
        ("replicate=3", "did you mean replicates"),
        ("archive.lenght=3", "did you mean archive.length"),
        ("only=liner", "did you mean linear"),
        ("size=wid", "did you mean wide"),
        ("cycles=99", "too short for 2 \\+ 99"),
        ("experiments.half.seen=0", "without observations a method is the free run"),
        ("experiments.half.sen=0.5", "did you mean experiments.half.seen"),
        ("experiments.half.operator=arctn", "did you mean arctan"),
        ("experiments.half.shocks.shares=[1.0]", "a share for each"),
        ("experiments.half.shocks.shares=[0.5, 0.4]", "add up to 1"),
        ("experiments.half.runs.x={method: LETFK}", "did you mean LETKF"),
        ("bars=[{case: linear, row: EnFS, metric: rmse}]", "did you mean EnSF"),
        ("bars=[{case: linear, row: EnSF, metric: rmes}]", "did you mean rmse"),
        ("members=1", "members must be at least 2"),
        ("archive=3", "archive must be a mapping of settings"),
        ("archive.size=small", "archive.size must be int"),
        ("bars=[{case: linear, row: EnSF}]", r"bars\[0\] needs metric"),
    ],
)
def test_what_cannot_be_is_refused_by_name(papers, override, message):
    with pytest.raises(ValueError, match=message):
        read_plan(papers / "bao2024_sqg" / "tiny2024_sqg.yaml", [override])


@pytest.mark.parametrize(
    "name, settings, message",
    [
        ("LETKF", {"suport": 1.0}, "did you mean support"),
        ("LETKF", {"reach": 1.0}, "unknown setting of LETKF 'reach'"),
        ("DampedEnSF", {"support": 1.0}, "unknown setting of DampedEnSF 'support'"),
        ("Climatology", {"rtps": 1.0}, "no settings"),
        ("EnFS", {}, "did you mean EnSF"),
    ],
)
def test_what_a_method_does_not_know_is_refused_by_name(states, name, settings, message):
    with pytest.raises(ValueError, match=message):
        build(problem(states, Sensors()), name, settings)


def test_grids_overrides_and_the_shipped_plan(papers):
    path = papers / "bao2024_sqg" / "tiny2024_sqg.yaml"
    plan = read_plan(path, ["size=wide", "replicates=3"])
    assert (plan.members, plan.archive.size, plan.replicates) == (7, 10, 3)
    assert read_plan(path, ["size=wide", "members=5"]).members == 5
    assert plan.facts("half")["observe"]["shocks"]["stds"] == [1.0, 2.0]
    shipped = read_plan(SHIPPED)
    for name in ("linear", "shocks", "arctan", "half"):
        bars = [bar for bar in shipped.bars if bar.case == name and bar.against.startswith("LETKF")]
        assert bars and all(bar.row.startswith("EnSF") for bar in bars)
    assert read_plan(SHIPPED, ["size=full"]).archive.size == 64
    assert shipped.seed >= 1000


def test_names_of_earlier_versions_are_taken_with_a_warning(papers, states):
    """Bars, the size and where the taper vanishes; the same plan and the same analysis."""
    path = papers / "bao2024_sqg" / "tiny2024_sqg.yaml"
    old = "bars=[{experiment: linear, run: EnSF, against: LETKF, metric: rmse, high: 99.0}]"
    with pytest.warns(FutureWarning, match="is now .(row|case)."):
        assert read_plan(path, [old]) == read_plan(path)
    with pytest.warns(FutureWarning, match="is now 'replicates'"):
        assert read_plan(path, ["truths=3"]).replicates == 3
    with pytest.warns(FutureWarning, match="is now 'size'"):
        assert read_plan(path, ["grid=wide"]) == read_plan(path, ["size=wide"])
    case = problem(states, Sensors(std=3.0))
    x, seen = case.first, case.observations.step(0)
    expected = build(case, "LETKF", {"support": 6000.0}).analyse(x, seen)
    with pytest.warns(FutureWarning, match="is now 'support'"):
        assert torch.equal(build(case, "LETKF", {"radius": 6000.0}).analyse(x, seen), expected)


def test_ensembles_need_as_many_states(states, tmp_path):
    with pytest.raises(ValueError, match="41 members need"):
        first_ensembles(states, [0], 41)
    chosen = first_ensembles(states, [0, 1], 20)
    assert torch.equal(chosen[1], first_ensembles(states, [1], 20)[0])
    assert len(chosen[0].flatten(1).unique(dim=0)) == 20
    settings = SQGArchive(size=8, length=1, spin_up=2, adjusted=2, climate=2, states=2, apart=3)
    once = climate(tmp_path, settings, Console(quiet=True))
    for path in tmp_path.glob("climate_1*"):
        path.write_bytes(b"half")
    assert torch.equal(climate(tmp_path, settings, Console(quiet=True)), once)


def test_a_first_ensemble_may_lie_around_the_truth(papers, states):
    """Its noise has the given deviation within 5 standard errors, and depends on the seed alone."""
    truth = torch.stack([states[:2], states[2:4]])
    first = ensembles_near(truth, [3, 4], 50, 2.0)
    noise = first - truth[:, :1]
    assert abs(float(noise.std()) - 2) < 5 * 2 / (2 * noise.numel()) ** 0.5
    assert torch.equal(first[1:], ensembles_near(truth[1:], [4], 50, 2.0))
    path = papers / "bao2024_sqg" / "tiny2024_sqg.yaml"
    assert read_plan(path, ["experiments.half.near=3.0"]).facts("half")["near"] == 3.0
    with pytest.raises(ValueError, match="near is a standard deviation"):
        read_plan(path, ["experiments.half.near=-1.0"])


def test_bars_on_differences_are_of_each_truth(papers, states):
    plan = read_plan(papers / "bao2024_sqg" / "tiny2024_sqg.yaml")
    result = run(problem(states, Sensors()), "RawObservation", {})

    def with_rmse(*values):
        return dataclasses.replace(result, scores=result.scores | {"rmse": torch.tensor(values)})

    found = {"LETKF": with_rmse(1.0, 3.0), "EnSF": with_rmse(0.9, 2.7)}
    bars = [
        Bar("EnSF", "rmse", high=0.0, against="LETKF", case="linear"),
        Bar("EnSF", "rmse", low=-0.1, against="LETKF", case="linear"),
        Bar("LETKF", "rmse", case="half"),
    ]
    verdicts = sqg.judge_experiment(dataclasses.replace(plan, bars=bars), "linear", found)
    assert [(v.value, v.status) for v in verdicts[:2]] == [
        (pytest.approx(-0.2), "PASS (not resolved)"),
        (pytest.approx(-0.2), "FAIL (not resolved)"),
    ]
    assert verdicts[0].upper - verdicts[0].value == pytest.approx(12.706 * 0.1, rel=1e-3)
    assert all(v.status == "INFO" for v in verdicts[2:])


def test_methods_that_trust_the_errors_less_see_the_same_values(states):
    case = problem(states, Sensors(std=2.0))
    trusted: Observations = case.given(3.0)
    part: Observation = trusted["lids"]
    assert torch.equal(part.value, case.observations["lids"].value)
    assert part.noise.variance.unique().tolist() == pytest.approx([36.0])
    curved = problem(states / 4, Sensors("arctan", 1e-4))
    back = curved.given(retrieved=0.5)["lids"]
    error = back.residual(curved.truth) / (1 + curved.truth.flatten(2).square())
    inside = back.value == curved.sensors.inverse(curved.observations["lids"].value)
    assert float(inside.float().mean()) > 0.5 and float(error[inside].abs().max()) < 6e-4
    assert back.noise.variance.unique().tolist() == [0.25]
    with pytest.raises(ValueError, match="error must be positive"):
        case.given(0.0)
