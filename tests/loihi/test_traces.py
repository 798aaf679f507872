"""Programs against recordings of others: real Lava, and a Loihi 2."""

import os
from pathlib import Path

import numpy as np
import pytest
from loihi import slow
from loihi.programs import compartments, everything, net_program, program, synapses
from nirdeploy_loihi.execute import execute

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def lif():
    """The folder of the NIR paper's traces of one neuron."""
    folder = Path(os.environ.get("NIRDEPLOY_SHARED", ROOT.parent / "shared")) / "reference" / "lif"
    if not folder.is_dir():
        pytest.skip("the published traces are not here; set NIRDEPLOY_SHARED to the folder that holds them")
    return folder


def image(array):
    """Lava's [step, x, y, channel] as [step, channel, y, x]; anything else as it is."""
    return array.transpose(0, 3, 2, 1) if array.ndim == 4 else array


@pytest.mark.parametrize(("name", "populations"), [("dense", "12"), ("conv", "13"), ("delay_rec", "12")])
def test_recorded_netx_traces_are_reproduced_bit_for_bit(cases, name, populations):
    stored = np.load(cases / f"{name}.npz")
    raster = image(stored["input"])
    found = net_program(cases / f"{name}.net", raster.shape[1:])
    run = execute(found, raster[:, None], everything(found))
    for number, population in enumerate(populations):
        for variable, key in (("i_syn", "u"), ("v_mem", "v"), ("spikes", "s")):
            expected = image(stored[f"L{number}_{key}"])
            assert np.array_equal(run.traces[population, variable][:, 0], expected), f"{population} {key}"
    assert np.array_equal(run.outputs["output"][:, 0], stored["sink"])


def test_the_slow_loop_reproduces_the_recorded_delays_and_recurrence(cases):
    stored = np.load(cases / "delay_rec.npz")
    found = net_program(cases / "delay_rec.net", stored["input"].shape[1:])
    states, _ = slow.run(found, stored["input"][:, None])
    for number, population in enumerate("12"):
        for variable, key in (("i_syn", "u"), ("v_mem", "v"), ("spikes", "s")):
            assert np.array_equal(states[population, variable][:, 0], stored[f"L{number}_{key}"])


def published_neuron():
    """The integers of the NIR paper's Lava script: tau 2.5 ms, dt 0.1 ms, threshold 0.1."""
    neuron = compartments("lif", 1, threshold=25, decay_v=163, decay_u=4096)
    return program((1,), [neuron], [synapses("input", "lif", [[10]])])


@pytest.mark.parametrize(
    ("name", "read_out"),
    [("lif_lava_cpu_fixed", "registers"), ("lif_lava_loihi_fixed_steps000-599", "chip")],
)
def test_published_traces_of_lava_and_of_a_loihi_2_are_reproduced_in_every_step(lif, name, read_out):
    x, v, s = np.loadtxt(lif / f"{name}.csv", delimiter=",").T
    run = execute(
        published_neuron(), x.astype(np.int32)[:, None, None], {"lif": ["v_mem", "spikes"]}, read_out=read_out
    )
    assert len(x) in (600, 1000)
    assert int((run.traces["lif", "spikes"].reshape(-1) != s).sum()) == 0
    assert int((run.traces["lif", "v_mem"].reshape(-1) != v).sum()) == 0
    assert s.sum() > 0


def test_only_the_steps_of_spikes_look_different_on_the_chip(lif):
    x, v, s = np.loadtxt(lif / "lif_lava_loihi_fixed_steps000-599.csv", delimiter=",").T
    run = execute(published_neuron(), x.astype(np.int32)[:, None, None], {"lif": ["v_mem"]})
    differ = run.traces["lif", "v_mem"].reshape(-1) != v
    assert np.array_equal(differ, s == 1)
    assert set(v[differ]) == {128}
