"""How long do the emulators take for 360 images of digits?

Run `python benchmarks/emulation.py`. It prints seconds of the first run (kernels compiled, or taken from numba's
cache) and of the best of three later ones. The reference run of the same raster, in the same process, is the
yardstick: machines differ, ratios less.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from timing import seconds

import nirdeploy as nd

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def main() -> None:
    """Measure reference and both emulators on the calibration images, repeated to 360."""
    graph = nd.read(CONFIGS / "digits.nir")
    data = np.load(CONFIGS / "digits_calibration.npz")["raster"]
    raster = np.tile(data, (1, 6, 1, 1, 1))[:, :360]
    yardstick = seconds(lambda: nd.run(graph, raster))
    print(f"{'executor':12s} {'first s':>8s} {'best s':>8s} {'x reference':>12s}")
    print(f"{'reference':12s} {'':>8s} {yardstick:8.3f} {1.0:12.2f}")
    for target in ("speck2f", "loihi2"):
        deployment = nd.deploy(graph, target, calibration=data)
        first = seconds(lambda deployment=deployment: deployment.run(raster), 1)
        best = seconds(lambda deployment=deployment: deployment.run(raster))
        print(f"{target:12s} {first:8.3f} {best:8.3f} {best / yardstick:12.2f}")


if __name__ == "__main__":
    main()
