"""`slams demo`: three days of a synthetic planet, assimilated with a shipped model in less than a minute."""

import os
from pathlib import Path

import torch
from torch import Tensor

from slams.core.console import Console
from slams.core.errors import InvalidValueError
from slams.evaluation.figures import style
from slams.evaluation.figures.maps import maps
from slams.evaluation.tables import console_table
from slams.papers.qu2024.archive import DAYS, STATE, Truths, shipped_truths
from slams.papers.qu2024.plan import OFFSET, read_plan
from slams.papers.qu2024.prior import load_prior
from slams.papers.qu2024.right import Analyst, climatological, interpolated, observe
from slams.papers.qu2024.scores import ALL, scored
from slams.papers.qu2024.training import CLIMATE, Shared, load_shared
from slams.papers.study import WEIGHTS

PLAN = Path(__file__).with_name("qu2024.yaml")
FOLDER = WEIGHTS / "qu2024_planet"
_MODEL, _LEVEL, _DAY = "lsda_2", "850", 1  # of the figure


def demo(
    folder: str | os.PathLike[str], *, members: int = 16, seed: int = 0, console: Console | None = None
) -> dict[str, dict[str, float]]:
    """Assimilate three shipped days of temperature, rain and radiation, print scores and draw a figure.

    Temperature at ten levels is observed at every eighth cell along both axes, 1.6 % of the cells, with errors of a tenth
    of its standard deviation, rain over land and outgoing radiation everywhere.

    Args:
        folder: Folder of demo.png.
        members: Ensemble size.
        seed: Seed of observation errors and draws.
        console: Console for the result.

    Returns:
        RMSE [K], CRPS [K] and spread over error by method, over all cells, levels and days.

    Raises:
        ValueError: If there are fewer than two members.
    """
    if members < 2:
        raise InvalidValueError(f"the demo scores an ensemble of at least 2 members, got {members}.")
    console = console or Console()
    plan = read_plan(
        PLAN, ["size=reduced", "settings=sparse_8", "length=3", "trajectories=1", "every=1", f"seed={seed}"]
    )
    (setting,) = plan.chosen
    shared = load_shared(FOLDER / CLIMATE, plan.cells)
    prior = load_prior(FOLDER / f"{_MODEL}.safetensors", plan.prior, _MODEL, plan.cells)
    truth = shipped_truths(FOLDER / DAYS, plan)
    seen = {v: observe(plan, setting, truth, _MODEL, v) for v in ("observed", "dropped")}
    analyst, steps = Analyst.of(prior, truth, setting.kind), plan.right.steps
    with console.bar("assimilate", 1) as advance:
        draws = {
            "analysis, temperature + rain + radiation": analyst.draws(
                seen["observed"], members, seed=seed, steps=steps, label=("demo",)
            ),
            "analysis, temperature alone": analyst.draws(
                seen["dropped"], members, seed=seed, steps=steps, label=("demo",)
            ),
            "interpolation": interpolated(
                shared.local, seen["dropped"], members, shared.between[setting.kind], every=1, seed=seed
            ),
            "climatology": climatological(shared.local, truth, members, seed=seed),
        }
        ensembles = {name: next(iter(each)) for name, each in draws.items()}
        advance(1, "")
    unit = shared.climate.statistics[STATE].std.flatten()
    scores = {}
    for name, x in ensembles.items():
        found = scored(x, truth.anomalies[STATE][0], truth, unit, plan.frames)
        scores[name] = {m: float(found[ALL, m][0]) for m in ("rmse", "crps", "spread_skill")}
    path = Path(folder) / "demo.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    _draw(path, shared, truth, next(iter(ensembles.values())), seen["observed"].y[0])
    rows = [{"method": name} | {m: f"{v:.3g}" for m, v in each.items()} for name, each in scores.items()]
    console.rich.print(console_table(rows, title="temperature at ten levels over three days [K]"))
    console.say(f"one case, without intervals; figure: {path.resolve()}")
    return scores


def _draw(path: Path, shared: Shared, truth: Truths, members: Tensor, y: Tensor) -> None:
    """Truth, observations, mean, spread and error of one level and day."""
    level = truth.levels.index(_LEVEL)
    climate, phase = shared.climate.statistics[STATE], truth.phase[0]
    exact = climate.decode(truth.anomalies[STATE][0], phase)[_DAY, level]
    fields = climate.decode(members, phase)[:, _DAY, level]
    anomaly = torch.full_like(truth.anomalies[STATE][0], torch.nan)
    side = (exact.shape[0] - OFFSET + 7) // 8, (exact.shape[1] - OFFSET + 7) // 8
    anomaly[..., OFFSET::8, OFFSET::8] = y.unflatten(-1, side)
    values = climate.decode(anomaly, phase)[_DAY, level, OFFSET::8, OFFSET::8]
    lat, lon = (torch.tensor(x)[OFFSET::8] for x in (truth.lat, truth.lon))
    where = torch.meshgrid(lat, lon, indexing="ij")
    mean = fields.mean(0)
    figure = maps(
        exact, None, mean, fields.std(0), mean - exact, truth.lat, truth.lon,
        f"temperature at {_LEVEL} hPa of a synthetic planet", "K", False,
        (where[0].flatten().numpy(), where[1].flatten().numpy(), values.flatten().numpy()),
    )  # fmt: skip
    style.save_figure(figure, path)
