"""jax-cfd's finite-volume Kolmogorov flow, for `kolmogorov.py`; runs in an environment of its own.

    PYTHON kolmogorov_reference.py speed SIZE BATCH
    PYTHON kolmogorov_reference.py run INPUT.npz OUTPUT.npz STEPS

One thread, float32. `speed` prints CPU seconds per inner step (forward Euler: one non-linear evaluation) and per
0.2 units of time. `run` takes `start` (B, 2, N, N) at the faces of a staggered grid, or, without it, `count` and `size`
for random fields of its own, and writes every 0.2 units the state (B, 1 + STEPS, 2, N, N).
"""

import functools
import json
import math
import os
import sys
import time

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import jax
import jax.numpy as jnp
import jax_cfd.base as cfd
import numpy as np

DT = 0.2


def flow(size):
    """One step of DT on (2, N, N), and the number of inner steps in it; Courant number 1/2 for a speed of 5."""
    grid = cfd.grids.Grid((size, size), domain=((0, 2 * math.pi),) * 2)
    inner = math.ceil(DT / cfd.equations.stable_time_step(5.0, 0.5, 1e-3, grid))
    force = cfd.forcings.simple_turbulence_forcing(
        grid,
        constant_magnitude=1.0,
        constant_wavenumber=4,
        linear_coefficient=-0.1,
        forcing_type="kolmogorov",
    )
    euler = cfd.equations.semi_implicit_navier_stokes(
        density=1.0, viscosity=1e-3, dt=DT / inner, grid=grid, forcing=force
    )
    wrap = functools.partial(cfd.initial_conditions.wrap_variables, grid=grid)
    bounds = (cfd.boundaries.periodic_boundary_conditions(2),) * 2

    def step(x):
        v = wrap(tuple(x), bcs=bounds)
        v = jax.lax.fori_loop(0, inner, lambda _, v: euler(v), v)
        return jnp.stack([c.data for c in v])

    def start(key):
        v = cfd.initial_conditions.filtered_velocity_field(key, grid, 3.0, 4.0)
        return jnp.stack([c.data for c in v])

    return jax.jit(jax.vmap(step)), jax.jit(jax.vmap(start)), inner


def speed(size, batch):
    """CPU seconds, the least of five runs."""
    step, start, inner = flow(size)
    x = start(jax.random.split(jax.random.PRNGKey(0), batch))
    x = step(x).block_until_ready()
    seconds = []
    for _ in range(5):
        begin = time.process_time()
        x = step(x).block_until_ready()
        seconds.append(time.process_time() - begin)
    best = min(seconds)
    print(
        json.dumps({"evaluation": best / inner, "dt": best, "evaluations": inner, "version": cfd_version()})
    )


def cfd_version():
    """Versions of jax-cfd and jax."""
    from importlib.metadata import version

    return f"jax-cfd {version('jax-cfd')}, jax {version('jax')}"


def run(source, target, steps):
    """Trajectories from given or random starts."""
    given = np.load(source)
    size = int(given["start"].shape[-1] if "start" in given else given["size"])
    step, start, _ = flow(size)
    if "start" in given:
        x = jnp.asarray(given["start"], jnp.float32)
    else:
        x = start(jax.random.split(jax.random.PRNGKey(int(given["seed"])), int(given["count"])))
    states = [np.asarray(x)]
    for _ in range(steps):
        x = step(x)
        states.append(np.asarray(x))
    np.savez(target, states=np.stack(states, 1))


if __name__ == "__main__":
    if sys.argv[1] == "speed":
        speed(int(sys.argv[2]), int(sys.argv[3]))
    else:
        run(sys.argv[2], sys.argv[3], int(sys.argv[4]))
