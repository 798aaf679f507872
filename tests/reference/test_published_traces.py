"""One LIF neuron over 1000 steps: traces published with the NIR paper, one a platform."""

import numpy as np
import pytest
from nets import shared

import nirdeploy as nd

# v is compared in units of the threshold; the bound is what the order of float32 operations leaves open
BOUND = 1e-6
CASES = {
    "norse": (nd.convention("norse", dt=1e-4), 0.1, 1.0),
    "snntorch": (nd.convention("snntorch", dt=1e-4), 2.5, 1.0),
    "sinabs": (nd.convention("sinabs", dt=1e-4, gain="euler", use_r=True), 0.1, 0.04),
    "lava_cpu_float": (nd.convention("lava", dt=1e-4), 0.1, 1.0),
    "exact": (nd.convention("exact", dt=1e-4), 0.1, 1.0),
}
METHODS = ("loop", "dense", "event")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", list(CASES))
def test_preset_reproduces_the_published_trace(name, method):
    convention, threshold, input_scale = CASES[name]
    graph = nd.read(shared("reference", "lif", "lif_norse.nir"))
    trace = np.loadtxt(shared("reference", "lif", f"lif_{name}.csv"), delimiter=",")
    raster = np.rint(trace[:, 0] / input_scale)
    found = nd.run(graph, raster.reshape(-1, 1), convention=convention, method=method)
    (node,) = (n for n, v in found if v == "spikes")
    assert int(np.sum(found[node, "spikes"].data[:, 0] != trace[:, 2])) == 0
    assert trace[:, 2].sum() > 0
    error = np.abs(found[node, "v_mem"].data[:, 0] - trace[:, 1]).max()
    assert error <= BOUND * threshold


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("file", ["braille_noDelay_bias_zero.nir", "braille_noDelay_bias_zero_subgraph.nir"])
@pytest.mark.parametrize("name", ["snntorch", "norse"])
def test_preset_reproduces_the_published_recurrent_network(name, file, method):
    # as published, the inner edges of the nested file name a node `lif` that is called `lif1`
    rename = {"lif1/lif1": "lif1/lif"} if "subgraph" in file else None
    graph = nd.read(shared("reference", "braille", file), rename=rename)
    raster = np.load(shared("reference", "braille", "braille_input0.npz"))["spikes"]
    published = np.load(shared("reference", "braille", "activity_noDelay_bias_zero.npz"))[name]
    convention = nd.convention(name, dt=1e-4)
    found = nd.run(graph, raster, convention=convention, record="spikes", nodes=["lif1.lif"], method=method)
    assert published.sum() > 100
    assert int(np.sum(found["lif1.lif", "spikes"].data != published)) == 0


def test_feedback_start_is_what_tells_the_two_apart():
    graph = nd.read(shared("reference", "braille", "braille_noDelay_bias_zero.nir"))
    raster = np.load(shared("reference", "braille", "braille_input0.npz"))["spikes"]
    published = np.load(shared("reference", "braille", "activity_noDelay_bias_zero.npz"))["snntorch"]
    swapped = nd.convention("snntorch", dt=1e-4, feedback_start="zero")
    found = nd.run(graph, raster, convention=swapped)["lif1.lif", "spikes"].data
    assert int(np.sum(found != published)) == 23  # as published with the traces


def test_sinabs_trace_is_bit_exact_in_float32():
    convention, _, scale = CASES["sinabs"]
    trace = np.loadtxt(shared("reference", "lif", "lif_sinabs.csv"), delimiter=",", dtype=np.float32)
    graph = nd.read(shared("reference", "lif", "lif_norse.nir"))
    found = nd.run(graph, np.rint(trace[:, :1] / scale), convention=convention)
    (node,) = (n for n, v in found if v == "v_mem")
    assert np.array_equal(found[node, "v_mem"].data[:, 0], trace[:, 1])
