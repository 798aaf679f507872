"""Runs tell how far they are, end at Ctrl-C, and several at once give what each gives alone."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from nets import ROOT, conv_net, raster
from nirdeploy_loihi import execute
from nirdeploy_speck import event, step
from processes import ENVIRONMENT

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


def runner(how, batch):
    """A run as a function of a raster, and a raster."""
    target, options = HOW[how]
    convention = LOIHI if target == "loihi2" else SPECK
    graph, whole = conv_net(), raster((1, 6, 6), steps=40, batch=batch, rate=0.5)
    if target is None:
        return partial(nd.run, graph, convention=convention, record=("spikes", "v_mem"), **options), whole
    deployment = nd.deploy(graph, target, convention=convention, calibration=whole)
    return partial(deployment.run, record=("spikes", "v_mem"), **options), whole


def small_slices(monkeypatch):
    monkeypatch.setattr(event, "_SLICE", 50)
    monkeypatch.setattr(step, "_SLICE", 1000)
    monkeypatch.setattr(execute, "_MOST_WORK", 2000)


@pytest.mark.parametrize("how", HOW)
def test_a_run_tells_how_far_it_is_and_ends_where_it_is_stopped(how, monkeypatch):
    run, whole = runner(how, 8)
    expected = run(whole)
    small_slices(monkeypatch)
    told = []
    found = run(whole, progress=lambda done, total: told.append((done, total)))
    assert all(np.array_equal(found.records[key].data, expected.records[key].data) for key in expected.records)
    (total,) = {total for _, total in told}
    assert told == sorted(told)
    assert told[-1] == (total, total)
    assert total in (40, 8 * 40)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(whole, progress=stop)


def test_ctrl_c_takes_effect_between_slices_of_one_sample_s_events():
    code = """
import numpy as np, nirdeploy as nd
from nets import conv_net, raster
graph, n, told = conv_net(), 4_000_000, []
rng = np.random.default_rng(0)
convention = nd.convention("sinabs", dt=1e-3, v_min="-threshold")
chip = nd.deploy(graph, "speck2f", convention=convention, calibration=raster((1, 6, 6), steps=9, batch=2, rate=0.5))
events = nd.Events(np.arange(n), *(rng.integers(0, size, n) for size in (1, 6, 6)), shape=(1, 6, 6))
def progress(done, total):
    told.append(done)
    if len(told) == 1:
        print("begun", flush=True)
try:
    chip.run(events, mode="event", record=("spikes",), progress=progress)
except KeyboardInterrupt:
    print("interrupted", told[-1], flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, "PYTHONPATH": os.pathsep.join([ENVIRONMENT["PYTHONPATH"], str(ROOT / "tests")])},
    ) as running:
        assert running.stdout.readline() == "begun\n"
        running.send_signal(signal.SIGINT)
        said = running.stdout.read().split()
    assert said[0] == "interrupted"
    assert int(said[1]) < 3000, "of 4000 steps"


@pytest.mark.parametrize("how", HOW)
def test_runs_in_several_threads_are_the_runs_one_by_one(how):
    run, whole = runner(how, 48)
    chunks = [whole[:, k : k + 2] for k in range(0, 48, 2)]
    expected = [run(chunk) for chunk in chunks]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(run, chunks))
    assert any(record.data.any() for one in expected for record in one.records.values())
    for a, b in zip(expected, found, strict=True):
        assert list(a.records) == list(b.records)
        assert all(np.array_equal(a.records[key].data, b.records[key].data) for key in a.records)
