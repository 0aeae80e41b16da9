"""The same filters in DAPPER, timed: run by `classical.py` with the interpreter of an environment that has it.

Prints one JSON object a method: CPU seconds per cycle and the RMSE of the analysis mean after burn-in. Its statistics
are reduced to the error, its plots are off.
"""

import json
import sys
import time

import dapper
import dapper.da_methods as da
import numpy as np
from dapper.dpr_config import rc
from dapper.mods.Lorenz96.sakov2008 import HMM
from dapper.tools.seeding import set_seed

METHODS = {
    "EnKF 40": lambda: da.EnKF("PertObs", N=40, infl=1.06),
    "ETKF 40": lambda: da.EnKF("Sqrt", N=40, infl=1.01, rot=True),
    "LETKF 7": lambda: da.LETKF(N=7, infl=1.04, rot=True, loc_rad=4),
    "LETKF 40": lambda: da.LETKF(N=40, infl=1.01, rot=True, loc_rad=4),
}


def main(cycles: int, seed: int, names: list[str]) -> None:
    """Time the methods on one truth."""
    rc.comps["error_only"] = True
    rc.liveplotting = False
    HMM.tseq.Ko = cycles - 1
    HMM.tseq.BurnIn = 20
    for name in names:
        set_seed(seed)
        truth, observations = HMM.simulate()
        method = METHODS[name]()
        start = time.process_time()
        method.assimilate(HMM, truth, observations)
        seconds = time.process_time() - start
        method.stats.average_in_time()
        error = np.sqrt(np.mean(method.stats.err.a[HMM.tseq.masko] ** 2, axis=-1)).mean()
        row = {
            "method": name,
            "seconds": seconds / cycles,
            "rmse": float(error),
            "version": dapper.__version__,
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:] or list(METHODS))
