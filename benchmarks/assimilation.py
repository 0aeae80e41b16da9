"""Posterior draws a second on a model of the planet's size, and what the network's share of the time is.

    python -m benchmarks.assimilation

A draw is one member of one window of three days, given 5 % of the temperature's columns, rain and OLR, with the
planet's sampler. The ratio is the time with the network over that with the closed-form prior alone.
"""

import json
import time

import torch

from benchmarks.planet_sized import PLACES, build
from slams.assimilation.score.sda import SDA
from slams.pipeline.inputs.observe import observe

WINDOWS, MEMBERS = 2, 8


def main() -> None:
    """Print one line of JSON."""
    rng = torch.Generator().manual_seed(0)
    model = build(rng)
    length = model.recipe.prior.window
    days = torch.arange(WINDOWS * length).reshape(WINDOWS, length)
    anomalies = {name: torch.randn(days.numel(), *p.shape, generator=rng) for name, p in PLACES.items()}
    seen = observe(PLACES, model.recipe, anomalies, list(PLACES), days=days)
    network = model.sda()
    closed = SDA(model.prior.gaussian, network.sampler, guidance=network.guidance)
    seconds = {}
    for name, method in (("closed_form", closed), ("network", network)):
        method.denoiser(torch.zeros(1, 1, length, *network.event), torch.tensor(0.5))  # warm up
        begin = time.perf_counter()
        method.windows(model.observations(seen), MEMBERS, rng=torch.Generator().manual_seed(0))
        seconds[name] = time.perf_counter() - begin
    print(
        json.dumps(
            {
                "benchmark": "assimilation",
                "samples_per_s": round(WINDOWS * MEMBERS / seconds["network"], 3),
                "closed_form_samples_per_s": round(WINDOWS * MEMBERS / seconds["closed_form"], 3),
                "time_ratio_network_to_closed_form": round(seconds["network"] / seconds["closed_form"], 2),
                "steps": network.sampler.steps,
                "threads": torch.get_num_threads(),
            }
        )
    )


if __name__ == "__main__":
    main()
