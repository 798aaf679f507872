"""Programs against recordings of others: real Lava, and a Loihi 2."""

import numpy as np
import pytest
import slow_lava
from lava_programs import all_states, population, program, read_net, synapses
from nets import shared
from nirdeploy_loihi.execute import execute, part, sums
from nirdeploy_loihi.registers import integrate


@pytest.fixture
def lif():
    """The folder of the NIR paper's traces of one neuron."""
    return shared("reference", "lif")


def image(array):
    """Lava's [step, x, y, channel] as [step, channel, y, x]; anything else as it is."""
    return array.transpose(0, 3, 2, 1) if array.ndim == 4 else array


STATES = (("i_syn", "u"), ("v_mem", "v"), ("spikes", "s"))


@pytest.mark.parametrize("case", ["dense", "conv", "delay_rec"])
def test_recorded_netx_traces_are_reproduced_bit_for_bit(cases, case):
    stored = np.load(cases / f"{case}.npz")
    raster, found = image(stored["input"]), read_net(cases / f"{case}.net")
    run = execute(found, raster[:, None], all_states(found))
    slow = slow_lava.execute(found, raster[:, None])
    for number, name in enumerate(p.name for p in found.populations):
        for variable, key in STATES:
            expected = image(stored[f"L{number}_{key}"])
            assert np.array_equal(run.traces[name, variable][:, 0], expected), f"{name} {key}"
            assert np.array_equal(slow[name, variable][:, 0], expected), f"{name} {key}, slow loop"
    assert np.array_equal(run.outputs["output"][:, 0], stored["sink"])


def test_recorded_populations_are_reproduced_one_by_one(cases):
    stored, found = np.load(cases / "delay_rec.npz"), read_net(cases / "delay_rec.net")
    first, second = found.populations
    states = integrate(first, sums(found, first.name, {"input": stored["input"][:, None]}), keep_u=True, keep_v=True)
    for values, key in ((states.u, "u"), (states.v, "v"), (states.s, "s")):
        assert np.array_equal(values[:, 0], stored[f"L0_{key}"]), key
    # the second feeds itself
    run = part(found, [second.name], {first.name: stored["L0_s"][:, None]}, {second.name: dict(STATES)})
    for variable, key in STATES:
        assert np.array_equal(run.traces[second.name, variable][:, 0], stored[f"L1_{key}"]), key
    assert run.peaks[second.name] == np.abs(stored["L1_u"]).max()
    assert stored["L1_s"].sum() > 100


def published_neuron():
    """The integers of the NIR paper's Lava script: tau 2.5 ms, dt 0.1 ms, threshold 0.1."""
    neuron = population("lif", 1, vth=25, decay_v=163, decay_u=4096)
    return program((1,), [neuron], [synapses("w", "in", "lif", [[10]])])


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
