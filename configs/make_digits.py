"""Make digits.nir and digits_calibration.npz beside this file: the demo's network and 64 of its training images.

python configs/make_digits.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

import nirdeploy as nd
from nirdeploy.demonstration import digits, one_thread, train
from nirdeploy.raster import save_raster

FOLDER = Path(__file__).parent
IMAGES = 64


def main() -> None:
    """Train, trace, write."""
    data = digits()
    with one_thread():
        network = train(data)
    nd.write(FOLDER / "digits.nir", nd.torch_to_nir(network, input_shape=(1, 8, 8)))
    raster = data.train[:, :IMAGES].astype(np.uint8)
    save_raster(FOLDER / "digits_calibration.npz", raster, data.train_labels[:IMAGES])


if __name__ == "__main__":
    main()
