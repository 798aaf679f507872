"""Graphs without their subgraphs are the same networks, and go where subgraphs cannot."""

from __future__ import annotations

import nir
import numpy as np
import pytest
import torch
from graphs import cases
from hypothesis import HealthCheck, given, settings

import nirdeploy as nd
from nirdeploy.graph import dissolved, metadata, sha256, shapes, torch_path, with_metadata
from nirdeploy.nodes import make_graph, make_node

LIMITS = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def one(**values):
    return {name: np.full(3, value, np.float32) for name, value in values.items()}


def recurrent():
    """input -> weights -> layer -> output, the layer being neurons with weights back to themselves."""
    matrix = np.array([[0.0, 1.0, -0.5], [0.5, 0.0, 0.25], [-1.0, 0.5, 0.0]], np.float32)
    shape = np.array([3])
    inner = make_graph(
        {
            "i": make_node(nir.Input, input_type={"input": shape}),
            "neuron": make_node(nir.LIF, **one(tau=5e-3, r=1.0, v_leak=0.0, v_threshold=0.25, v_reset=0.0)),
            "back": make_node(nir.Linear, weight=matrix),
            "o": make_node(nir.Output, output_type={"output": shape}),
        },
        [("i", "neuron"), ("neuron", "back"), ("back", "neuron"), ("neuron", "o")],
    )
    nodes = {
        "input": make_node(nir.Input, input_type={"input": shape}),
        "weights": make_node(nir.Linear, weight=np.eye(3, dtype=np.float32) + 0.25),
        "layer": inner,
        "output": make_node(nir.Output, output_type={"output": shape}),
    }
    graph = make_graph(nodes, [("input", "weights"), ("weights", "layer"), ("layer", "output")])
    paths = {"weights": "fc", "layer": "cell"}
    return with_metadata(graph, torch_paths=paths, convention=nd.convention("norse", dt=1e-3).to_dict())


def test_nodes_are_called_as_in_trajectories_and_metadata_stay():
    flat = dissolved(recurrent())
    assert set(flat.nodes) == {"input", "weights", "layer.neuron", "layer.back", "output"}
    assert sorted(flat.edges) == [
        ("input", "weights"),
        ("layer.back", "layer.neuron"),
        ("layer.neuron", "layer.back"),
        ("layer.neuron", "output"),
        ("weights", "layer.neuron"),
    ]
    assert torch_path(flat, "layer.back") == "cell"
    assert torch_path(flat, "weights") == "fc"
    assert metadata(flat)["convention"] == metadata(recurrent())["convention"]
    assert dissolved(flat) is flat
    assert sha256(flat) == sha256(recurrent())


@LIMITS
@given(cases(False, torch.float64))
def test_every_record_is_the_same_without_subgraphs(case):
    flat = dissolved(case.graph)
    assert shapes(flat) == shapes(case.graph)
    assert nd.feedback_edges(flat) == nd.feedback_edges(case.graph)
    rasters = case.rasters if len(case.rasters) > 1 else next(iter(case.rasters.values()))
    both = [
        nd.run(g, rasters, convention=case.convention, record=("spikes", "v_mem", "output")) for g in (case.graph, flat)
    ]
    assert both[0].records.keys() == both[1].records.keys()
    for key, record in both[0].records.items():
        np.testing.assert_array_equal(record.data, both[1].records[key].data, err_msg=str(key))


def test_a_graph_whose_edges_would_become_one_stays_as_it_is():
    shape = np.array([3])
    wires = make_graph(
        {
            "i": make_node(nir.Input, input_type={"input": shape}),
            "o": make_node(nir.Output, output_type={"output": shape}),
        },
        [("i", "o")],
    )
    ends = {"input": make_node(nir.Input, input_type={"input": shape})}
    ends["output"] = make_node(nir.Output, output_type={"output": shape})
    graph = make_graph({**ends, "wire": wires}, [("input", "wire"), ("wire", "output"), ("input", "output")])
    assert dissolved(graph) is graph
    assert "'wire'" in str(nd.check(graph, "loihi2", convention=nd.convention("norse", dt=1e-3)).errors[0])


@pytest.mark.parametrize("target", ["loihi1", "loihi2"])
def test_a_layer_with_weights_of_its_own_goes_to_loihi_as_its_nodes_do(target, tmp_path):
    graph = recurrent()
    raster = np.random.default_rng(0).binomial(1, 0.4, (40, 2, 3))
    assert nd.check(graph, target).ok
    runs = []
    for given_graph in (graph, dissolved(graph)):
        deployed = nd.deploy(given_graph, target, calibration=raster)
        runs.append(deployed.run(raster, on="emulator"))
    deployed = nd.deploy(graph, target, calibration=raster)
    deployed.save(tmp_path / "build")
    runs.append(nd.load_deployment(tmp_path / "build").run(raster, on="emulator"))
    assert runs[0]["layer.neuron", "spikes"].data.sum() > 20
    for other in runs[1:]:
        for key, record in runs[0].records.items():
            np.testing.assert_array_equal(record.data, other.records[key].data)
    found = nd.compare(nd.run(graph, raster), runs[0])
    assert found.spike_agreement > 0.9
