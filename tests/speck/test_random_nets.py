"""Random networks: graph, layers on the emulator and split cores in plain numpy, integers compared with ==."""

import numpy as np
import pytest
from chips import random_net, simulate
from nets import raster
from nirdeploy_speck.capacity import demands
from nirdeploy_speck.cores import chip_program
from nirdeploy_speck.network import lower, lowered

import nirdeploy as nd
from nirdeploy.backend import find_target

WHOLE = nd.Convention(if_gain="r", reset="subtract", spikes_per_step="many", crossing="inclusive", v_min=-300.0)
# what such a network may be refused for; anything else is a mistake here
REFUSALS = {"kernel_square", "sum_geometry", "pooling", "destinations", "dvs_shift", "output", "empty"}


def placed(graph, rng):
    """Deployed with some layers on cores drawn at random, some of them split where their sources allow it."""
    free = [int(core) for core in rng.permutation(9)]
    cores = {}
    for name, demand in demands(lower(graph, WHOLE)[0], find_target("speck2f")).items():
        if rng.random() < 0.5:
            parts = min(1 + int(rng.integers(2)), demand.most_parts, demand.outputs)
            cores[name] = [free.pop() for _ in range(parts)]
    deployment = nd.deploy(graph, "speck2f", convention=WHOLE, quantizer="max", avoid_cores=[], cores=cores)
    assert all(deployment.placement.cores[name] == tuple(given) for name, given in cores.items())
    return deployment


@pytest.mark.filterwarnings("ignore::nirdeploy.errors.QuantizationWarning")
@pytest.mark.parametrize("block", range(4))
def test_random_networks_compute_the_same_as_graph_as_layers_and_as_cores(block):
    held = {"nets": 0, "splits": 0, "sums": 0, "pooled inputs": 0}
    for seed in range(60 * block, 60 * (block + 1)):
        graph, rng = random_net(seed), np.random.default_rng(seed)
        report = nd.check(graph, "speck2f", convention=WHOLE)
        if not report.ok:
            assert {f.code for f in report.errors} <= REFUSALS, (seed, report.errors)
            continue
        deployment = placed(graph, rng)
        program = chip_program(deployment.quantized, deployment.placement)
        network = lowered(deployment.quantized, deployment.placement)
        data = raster(network.input_shape, steps=4, batch=1, rate=0.6, seed=seed)
        reference, found = nd.run(graph, data, convention=WHOLE), deployment.run(data)
        spikes = simulate(program, network.events(data)[:, 0])
        for name, positions in program.layers.items():
            assert deployment.quantized[name].scale == 1
            for variable in ("spikes", "v_mem"):
                assert np.array_equal(found[name, variable].data, reference[name, variable].data), (seed, name)
            wanted = found[name, "spikes"].data[:, 0]
            parts = np.concatenate([spikes[at] for at in positions], axis=1)
            assert np.array_equal(parts.reshape(wanted.shape), wanted), (seed, name)
        assert all(len(core.destinations) <= 2 for core in program.cores)
        held["nets"] += 1
        held["splits"] += any(len(positions) > 1 for positions in program.layers.values())
        held["sums"] += any(len(layer.inlets) > 1 for layer in network.layers)
        held["pooled inputs"] += network.dvs is not None
    assert all(held.values()), held
