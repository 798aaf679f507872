"""The convolutional network of the NIR paper on recorded N-MNIST samples, against the counts of a real Speck chip.

No published trace of the 47 samples exists: accuracies were computed beside this project from the same files, and
held against one figure of the paper (.8305359, zero reset, a digit the same notebook shows).
"""

import numpy as np
import pytest
from nets import shared

import nirdeploy as nd
from nirdeploy.binning import events_to_raster
from nirdeploy.comparison.metrics import cosine as cosine_of
from nirdeploy.events import Events

# correct of 47, and the cosine of layer 1's counts over six digits to those of the chip
CASES = {
    "zero": (nd.convention("nir", if_gain="r", reset="zero"), 47, 0.8418),
    "subtract": (nd.convention("nir", if_gain="r", reset="subtract"), 44, 0.8503),
    "sinabs": (nd.convention("sinabs"), 46, 0.9980),
}


def samples():
    """(sample number, label, Events) of every recording."""
    data = np.load(shared("reference", "cnn", "nmnist_test_events.npz"))
    bounds = data["offset"]
    for n, (number, label) in enumerate(zip(data["sample_id"], data["label"], strict=True)):
        a, b = (int(bounds[n]), int(bounds[n + 1]))
        part = {k: data[k][a:b].astype(np.int64) for k in ("x", "y", "p", "t_us")}
        yield int(number), int(label), Events(part["t_us"], part["p"], part["y"], part["x"])


def frames(events, **options):
    """Bins of 1 ms from the first event on, without the incomplete last one."""
    return events_to_raster(events, (2, 34, 34), origin="first", incomplete="drop", **options)


@pytest.mark.parametrize("method", ["dense", "event"])
@pytest.mark.parametrize("name", list(CASES))
def test_accuracy_and_cosine_to_the_chip(name, method):
    convention, expected, cosine = CASES[name]
    module = nd.nir_to_torch(nd.read(shared("reference", "cnn", "cnn_sinabs.nir")), convention=convention)
    listed = list(samples())
    raster = np.stack([frames(e, n_steps=300, outside="drop") for _, _, e in listed], axis=1)
    found = nd.run(module, raster, record="spikes", nodes=["1"], method=method)
    labels = np.array([label for _, label, _ in listed])
    assert int((found.outputs.sum(0).argmax(1) == labels).sum()) == expected

    chip = np.load(shared("reference", "cnn", "speck_layer1_counts.npz"))
    position = {number: n for n, (number, _, _) in enumerate(listed)}
    picked = [position[int(number)] for number in chip["sample_id"]]
    mine = found["1", "spikes"].data[:, picked].sum(0)
    assert len(picked) == 6
    assert round(cosine_of(mine, chip["counts"]), 4) == cosine
