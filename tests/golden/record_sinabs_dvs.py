"""Record what sinabs 3.1.3's DVSLayer makes of events, and the configuration it writes.

    .venv-sinabs/bin/python tests/golden/record_sinabs_dvs.py FOLDER

Runs where `record_sinabs.py` does, with its stand-in for samna. Writes FOLDER/sinabs_dvs.npz: `cases`, a JSON list of
[input_shape, pool, crop, merge, flip_x, flip_y, swap] and, per case i, `in{i}` and `out{i}` [step, channel, y, x] and
`config{i}`, JSON of sinabs's configuration.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import record_sinabs  # noqa: F401 (the stand-in for samna has to be there before sinabs)
import torch
from sinabs.backend.dynapcnn.dvs_layer import DVSLayer

CASES = [
    [[8, 8], [1, 1], None, False, False, False, False],
    [[8, 12], [2, 4], None, True, False, False, False],
    [[12, 8], [2, 1], [[1, 5], [2, 8]], False, True, False, False],
    [[12, 8], [1, 2], [[3, 9], [1, 4]], True, False, True, True],
    [[16, 16], [4, 4], [[0, 3], [1, 4]], False, True, True, True],
]


def main() -> None:
    folder = Path(sys.argv[1])
    rng = np.random.default_rng(4)
    found = {"cases": np.array(json.dumps(CASES))}
    for index, (size, pool, crop, merge, flip_x, flip_y, swap) in enumerate(CASES):
        layer = DVSLayer(
            tuple(size),
            pool=tuple(pool),
            crop=None if crop is None else tuple(map(tuple, crop)),
            merge_polarities=merge,
            flip_x=flip_x,
            flip_y=flip_y,
            swap_xy=swap,
        )
        events = rng.poisson(0.6, (3, 2, *size))
        found[f"in{index}"] = events.astype(np.uint8)
        found[f"out{index}"] = layer(torch.tensor(events, dtype=torch.float32)).numpy().astype(np.uint8)
        found[f"config{index}"] = np.array(json.dumps(layer.get_config_dict()))
    np.savez_compressed(folder / "sinabs_dvs.npz", **found)


if __name__ == "__main__":
    main()
