"""The command `slams forecast`: its arguments, and the call."""

import argparse
from typing import Any


def add_forecast(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", trust: dict[str, Any]
) -> None:
    """Forecasts, and their scores by lead."""
    add = commands.add_parser(
        "forecast", help="forecast the days behind the last observation, or score such forecasts by lead"
    )
    add.add_argument("trained", metavar="RUN", help="folder of a trained run")
    add.add_argument("--observations", action="append", default=[], metavar="[NAME=]FILE")
    add.add_argument(
        "--score",
        action="store_true",
        help="forecast from many days of the run's test period, and write RUN/forecast.csv: scores by lead beside "
        "damped persistence, climatology and the closed-form Gaussians",
    )
    add.add_argument(
        "--days", type=int, default=5, help="forecast days (default: 5; at most assimilation.horizon)"
    )
    add.add_argument(
        "--from", dest="start", metavar="DATE", help="last day used (default: the last observed)"
    )
    add.add_argument("--starts", type=int, help="days to forecast from, with --score (default: 40)")
    add.add_argument(
        "--out", metavar="PATH", help="forecast to write, .nc or .zarr (default: forecast_DATE.nc)"
    )
    add.add_argument("--members", type=int, help="ensemble size (default: the recipe's)")
    add.add_argument("--modalities", help="names of the modalities to use, separated by commas")
    add.add_argument("--seed", type=int, default=0)
    add.add_argument(
        "--overwrite", action="store_true", help="replace a file of another run or of other settings"
    )
    add.add_argument("settings", nargs="*", default=[], metavar="key=value")
    add.add_argument("--trust", **trust)
    add.set_defaults(run=_forecast)


def _forecast(parsed: argparse.Namespace) -> int:
    from slams.core.console import Console
    from slams.core.errors import InvalidValueError
    from slams.core.foreign import trusting
    from slams.pipeline.forecast import forecast
    from slams.pipeline.results.lead_scores import forecast_scores

    if parsed.score == bool(parsed.observations):
        raise InvalidValueError(
            "slams forecast takes either --observations FILE, to forecast from them, or --score, to score forecasts "
            "over the run's test period."
        )
    given = {
        "--out": parsed.out, "--from": parsed.start, "--modalities": parsed.modalities,
        "--overwrite": parsed.overwrite, "--seed": parsed.seed,
    } if parsed.score else {"--starts": parsed.starts}  # fmt: skip
    unused = [option for option, value in given.items() if value]
    if unused:
        raise InvalidValueError(
            f"slams forecast {'--score' if parsed.score else '--observations'} does not take {', '.join(unused)}; leave "
            "it out (the seed of scores is the recipe's: seed=1)."
        )
    common = {
        "days": parsed.days,
        "members": parsed.members,
        "overrides": parsed.settings,
        "console": Console(),
    }
    with trusting(parsed.trust):
        if parsed.score:
            forecast_scores(parsed.trained, starts=parsed.starts or 40, **common)
            return 0
        forecast(
            parsed.trained,
            parsed.observations,
            parsed.out,
            start=parsed.start,
            modalities=[word.strip() for word in parsed.modalities.split(",")] if parsed.modalities else None,
            seed=parsed.seed,
            overwrite=parsed.overwrite,
            **common,
        )
    return 0
