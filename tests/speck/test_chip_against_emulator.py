"""What a chip that computes event by event answers through samna, and what the emulator's event mode says."""

import numpy as np
from chips import random_net

import nirdeploy as nd
from nirdeploy.errors import NirdeployError

CONVENTION = nd.Convention(dt=1e-3, if_gain="r", reset="subtract", crossing="inclusive", v_min=-50.0)


def test_a_chip_that_sweeps_channel_by_channel_spikes_as_the_emulator_does(world):
    compared = spikes = 0
    for seed in range(40):
        graph = random_net(seed)
        try:
            deployment = nd.deploy(graph, "speck2f", convention=CONVENTION, quantizer="max")
        except NirdeployError:
            continue
        shape = graph.nodes["input"].input_type["input"]
        raster = np.random.default_rng(seed).poisson(0.5, (6, *shape))
        chip = deployment.run(raster, on="chip", record=("spikes",), leak_clock_hz=0)
        emulated = deployment.run(raster, mode="event", record=("spikes",), sweep="cyx", leak_clock_hz=0)
        for key, record in emulated.records.items():
            np.testing.assert_array_equal(chip[key].data, record.data, err_msg=f"seed {seed}, {key}")
            spikes += int(record.data.sum())
        compared += 1
    assert compared >= 15
    assert spikes > 1000
