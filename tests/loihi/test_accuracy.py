"""Whole networks on a Loihi predict what the reference predicts, with as many spikes within 2 %."""

import numpy as np
from nets import ROOT, shared

import nirdeploy as nd


def counts(reference, chip):
    """Population -> spikes of reference and chip in the steps that both have."""
    found = {}
    for (name, variable), record in chip.records.items():
        if variable == "spikes":
            wanted = reference[name, "spikes"].data
            found[name] = int(wanted[: len(wanted) - record.lag].sum()), int(record.data.sum())
    return found


def within(found, share):
    return {name: pair for name, pair in found.items() if abs(pair[1] - pair[0]) > share * pair[0]}


def test_digits():
    stored = np.load(ROOT / "configs" / "digits_calibration.npz")
    graph = nd.read(ROOT / "configs" / "digits.nir")
    deployment = nd.deploy(graph, "loihi2", calibration=stored["raster"])
    reference, chip = nd.run(graph, stored["raster"]), deployment.run(stored["raster"])
    assert np.array_equal(reference.outputs.sum(0).argmax(1), chip.outputs.sum(0).argmax(1))
    found = counts(reference, chip)
    assert within(found, 0.02) == {}
    assert min(pair[0] for pair in found.values()) > 500


def test_braille():
    folder = shared("reference", "braille")
    graph = nd.read(folder / "braille_noDelay_bias_zero.nir")
    raster = np.load(folder / "braille_input0.npz")["spikes"].astype(np.int64)
    convention = nd.convention("snntorch", dt=1e-4, reset="zero", reset_time="same_step")
    deployment = nd.deploy(graph, "loihi2", convention=convention, calibration=raster[:, None])
    reference, chip = nd.run(graph, raster, convention=convention), deployment.run(raster)
    assert reference.outputs.sum(0).argmax() == chip.outputs.sum(0).argmax() == 1
    found = counts(reference, chip)
    assert within(found, 0.02) == {}
    assert sum(pair[0] for pair in found.values()) > 500
