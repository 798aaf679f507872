"""Norse run live: its networks give the same spikes and voltages here, or are refused by name."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from norse_nets import CELLS, SEQUENCES, forward, layers, networks

import nirdeploy as nd
from nirdeploy.graph import metadata

QUIET = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.filter_too_much]}
CLOSE = 1e-5  # float32 in another order of operations, per step of a layer


def converted(drawn):
    graph, convention = nd.torch_to_nir(drawn.net, sample_input=drawn.sample), nd.convention_of(drawn.net)
    assert metadata(graph)["convention"] == convention.to_dict()
    return graph, convention


def node_of(graph, path):
    """The population of a layer: its node, or the one inside the graph that it is."""
    inner = type(graph.nodes[path]).__name__ == "NIRGraph"
    return f"{path}.neuron" if inner else path


def same(drawn, methods=("dense", "event", "loop")):
    """Every spike and every voltage of the network, against Norse; the number of spikes."""
    watched = layers(drawn)
    for layer in watched:
        close = CLOSE * max(1.0, float(layer.v_before.abs().max()))
        if layer.threshold is not None:  # a crossing that float32 rounding decides proves nothing
            assume(float((layer.v_before - layer.threshold).abs().min()) > 3 * close)
    graph, convention = converted(drawn)
    for method in methods:
        ours = nd.run(graph, drawn.raster.numpy(), convention=convention, method=method)
        for layer in watched:
            name = node_of(graph, layer.path)
            spiking = layer.threshold is not None
            if spiking:
                np.testing.assert_array_equal(ours[name, "spikes"].values, layer.output.numpy(), err_msg=name)
            scale = max(1.0, float(layer.v_before.abs().max()))
            v, theirs = ours[name, "v_mem"].values, layer.v.numpy()
            np.testing.assert_allclose(v, np.broadcast_to(theirs, v.shape), rtol=0, atol=CLOSE * scale, err_msg=name)
        scale = max(1.0, float(watched[-1].v_before.abs().max()))
        np.testing.assert_allclose(np.asarray(ours.outputs), forward(drawn).numpy(), rtol=0, atol=CLOSE * scale)
    return sum(float(layer.output.sum()) for layer in watched if layer.threshold is not None)


# ---------------------------------------------------------------- the contract

LAYERS = [*((name, False) for name in CELLS), *((name, True) for name in SEQUENCES)]


def contract(name, sequence, examples):
    @settings(max_examples=examples, **QUIET)
    @given(networks(sequence, name))
    def check(drawn):
        same(drawn)

    check()


@pytest.mark.parametrize(("name", "sequence"), LAYERS)
def test_networks_give_norses_spikes(name, sequence):
    contract(name, sequence, 6)


@pytest.mark.long
@pytest.mark.parametrize(("name", "sequence"), LAYERS)
def test_many_networks_give_norses_spikes(name, sequence):
    contract(name, sequence, 50)
