"""Presets held against the libraries themselves: what each made of small networks, recorded by record_libraries.py."""

import nir
import numpy as np
import pytest
from nets import GOLDEN, input_node, make_graph, output_node

import nirdeploy as nd
from nirdeploy.graph import make_node
from nirdeploy.reference.presets import PRESETS

FIELDS = {
    "LIF": ("tau", "r", "v_leak", "v_threshold", "v_reset"),
    "IF": ("r", "v_threshold", "v_reset"),
    "CubaLIF": ("tau_syn", "tau_mem", "r", "v_leak", "v_threshold", "v_reset", "w_in"),
}
# of v, in units of the threshold: libraries sum in float32, some in another order, over at most 100 steps
BOUND = 4e-6
# cases of a library's own layers, which differ from its import by what the preset's limits name
VARIANTS = {
    ("snntorch", "leaky_zero_next"): {"reset_time": "next_step"},
    ("snntorch", "leaky_subtract_next"): {"reset": "subtract", "reset_time": "next_step"},
    ("snntorch", "rleaky"): {},
    ("sinabs", "LIF_norm"): {"gain": "decay"},
    ("sinabs", "CubaLIF"): {"synapse_gain": "decayed"},
}
CASES = [(name, case) for name, preset in PRESETS.items() for case in preset.goldens] + list(VARIANTS)


def network(data, case):
    """Input -> Affine -> population -> Output, with a recurrent Affine where the case has one."""
    kind = str(data[f"{case}_kind"])
    values = {field: data[f"{case}_{field}"] for field in FIELDS[kind] if f"{case}_{field}" in data}
    size = len(values["v_threshold"])
    nodes = {
        "input": input_node(data[f"{case}_weight"].shape[1]),
        "in": make_node(nir.Affine, weight=data[f"{case}_weight"], bias=data[f"{case}_bias"]),
        "n": make_node(getattr(nir, kind), **values),
        "output": output_node(size),
    }
    edges = [("input", "in"), ("in", "n"), ("n", "output")]
    if f"{case}_rec_weight" in data:
        nodes["rec"] = make_node(nir.Affine, weight=data[f"{case}_rec_weight"], bias=data[f"{case}_rec_bias"])
        edges += [("n", "rec"), ("rec", "n")]
    return make_graph(nodes, edges)


@pytest.mark.skipif("v_reset" not in nir.IF.__dataclass_fields__, reason="nir 1.0.4 has no v_reset")
@pytest.mark.parametrize("method", ["loop", "dense", "event"])
@pytest.mark.parametrize(("library", "case"), CASES)
def test_preset_gives_the_librarys_own_spikes_and_v(library, case, method):
    data = np.load(GOLDEN / f"library_{library}.npz")
    convention = nd.convention(library, dt=float(data[f"{case}_dt"]), **VARIANTS.get((library, case), {}))
    found = nd.run(network(data, case), data[f"{case}_raster"], convention=convention, method=method)
    spikes = data[f"{case}_spikes"]
    assert spikes.sum() > 10
    assert np.array_equal(found["n", "spikes"].data, spikes)
    if f"{case}_v" in data:
        threshold = np.asarray(found["n", "v_mem"].threshold)
        assert np.abs((found["n", "v_mem"].data - data[f"{case}_v"]) / threshold).max() <= BOUND
