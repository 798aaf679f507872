"""Runs in several threads at once give what each gives alone: kernels release the interpreter's lock."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from nets import conv_net, raster

import nirdeploy as nd

SPECK = nd.convention("sinabs", dt=1e-3, v_min="-threshold")
LOIHI = nd.Convention(if_gain="r", reset="zero")
HOW = {
    "reference, dense": (None, {"method": "dense"}),
    "reference, event": (None, {"method": "event"}),
    "speck2f, event": ("speck2f", {"mode": "event"}),
    "speck2f, step": ("speck2f", {"mode": "step"}),
    "loihi2": ("loihi2", {}),
}


@pytest.mark.parametrize("how", HOW)
def test_runs_in_several_threads_are_the_runs_one_by_one(how):
    target, options = HOW[how]
    convention = LOIHI if target == "loihi2" else SPECK
    graph, whole = conv_net(), raster((1, 6, 6), steps=40, batch=48, rate=0.5)
    chunks = [whole[:, k : k + 2] for k in range(0, 48, 2)]
    if target is None:

        def run(chunk):
            return nd.run(graph, chunk, convention=convention, record=("spikes", "v_mem"), **options)
    else:
        deployment = nd.deploy(graph, target, convention=convention, calibration=whole)

        def run(chunk):
            return deployment.run(chunk, record=("spikes", "v_mem"), **options)

    expected = [run(chunk) for chunk in chunks]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(run, chunks))
    assert any(record.data.any() for one in expected for record in one.records.values())
    for a, b in zip(expected, found, strict=True):
        assert list(a.records) == list(b.records)
        assert all(np.array_equal(a.records[key].data, b.records[key].data) for key in a.records)
