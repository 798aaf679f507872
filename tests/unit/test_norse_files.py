"""Files for Norse without Norse: the graph that is written stands for the same spikes, or is refused by name."""

from __future__ import annotations

import nir
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from norse_graphs import between, full, importable, simple, spiking, steady

import nirdeploy as nd
from nirdeploy.errors import ConventionError, UnsupportedError
from nirdeploy.graph import metadata
from nirdeploy.nodes import make_graph, make_node

DT = 1e-3


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=importable())
def test_the_file_for_norse_gives_the_same_spikes_under_norses_preset(tmp_path_factory, case):
    graph, raster, convention = case
    ours = steady(graph, raster, convention)
    assume(ours is not None)
    path = tmp_path_factory.mktemp("norse") / "net.nir"
    nd.write(path, graph, convention=convention, for_library="norse")
    found = nd.run(nd.read(path), raster, convention=nd.convention("norse", dt=convention.dt)).outputs
    np.testing.assert_array_equal(found, ours)


REFUSED = [
    (spiking("LIF"), {"reset": "subtract"}, "reset='subtract': a file cannot tell Norse's importer"),
    (
        spiking("LIF"),
        {"crossing": "inclusive"},
        "crossing='inclusive': the neurons that Norse's importer makes have 's",
    ),
    (spiking("LIF"), {"spikes_per_step": "many"}, "spikes_per_step='many'"),
    (spiking("LIF"), {"reset_time": "next_step"}, "reset_time='next_step'"),
    (spiking("LIF"), {"fires": "before_update"}, "fires='before_update'"),
    (spiking("LIF"), {"v_min": -1.0}, "v_min=-1.0"),
    (spiking("LIF"), {"integrator": "exact"}, "integrator='exact'"),
    (spiking("LIF", v_leak=0.5), {"v_start": "zero"}, r"v starts at 0 \(v_start='zero'\), and in Norse at 0.5"),
    (spiking("IF", v_reset=0.5), {"reset": "v_reset"}, r"v starts at 0 \(v_start='v_leak'\), and in Norse at 0.5"),
    (spiking("LIF", r=-1.0), {"overrides": {}}, "its input gain is -0.1, and Norse's importer takes r as 1"),
    (spiking("CubaLIF", v_leak=0.5), {}, "v_leak is 0.5 above the reset, and Norse's importer lets the synapse leak"),
    (simple(make_node(nir.LI, **full(tau=1e-2, r=1.0, v_leak=0.0))), {}, "LI is left out by Norse's importer"),
    (simple(make_node(nir.Scale, scale=np.ones(2))), {}, "Scale is left out by Norse's importer"),
    (simple(make_node(nir.Delay, delay=np.full(2, 1e-3))), {}, "Delay is left out by Norse's importer"),
]


@pytest.mark.parametrize(("graph", "fields", "message"), REFUSED)
def test_what_norse_would_make_something_else_of_is_refused(tmp_path, graph, fields, message):
    convention = nd.convention("norse", dt=DT, **fields)
    with pytest.raises(UnsupportedError, match=f"node 'node'.*{message}"):
        nd.write(tmp_path / "net.nir", graph, convention=convention, for_library="norse")
    assert not (tmp_path / "net.nir").exists()


def test_a_file_for_norse_needs_a_convention_and_one_delay(tmp_path):
    with pytest.raises(ConventionError, match="a file for Norse needs a convention with dt"):
        nd.write(tmp_path / "net.nir", spiking("LIF"), for_library="norse")
    late = nd.convention("norse", dt=DT, population_delay=1)
    with pytest.raises(UnsupportedError, match="population_delay=1: Norse's populations"):
        nd.write(tmp_path / "net.nir", spiking("LIF"), convention=late, for_library="norse")


UNORDERED = [
    (
        between("a", "b", edges=[("input", "a"), ("input", "b"), ("a", "node"), ("b", "node")]),
        "node 'node'.*would take the last step's output of '[ab]'",
    ),
    (between("a_1", "a.1", edges=[("node", "a.1"), ("a.1", "a_1"), ("a_1", "output")]), "takes its name for that of"),
]


@pytest.mark.parametrize(("graph", "message"), UNORDERED)
def test_graphs_that_nirtorch_runs_in_another_order_are_refused(tmp_path, graph, message):
    with pytest.raises(UnsupportedError, match=message):
        nd.write(tmp_path / "net.nir", graph, convention=nd.convention("norse", dt=DT), for_library="norse")


def test_a_bias_that_acts_a_step_later_in_norse_is_refused(tmp_path):
    graph = spiking("LIF")
    biased = make_node(nir.Affine, weight=np.eye(2, dtype=np.float32), bias=np.ones(2, np.float32))
    looped = make_graph({**graph.nodes, "back": biased}, [*graph.edges, ("node", "back"), ("back", "node")])
    silence = nd.convention("norse", dt=DT, feedback_start="silence")
    with pytest.raises(UnsupportedError, match="node 'back'.*acts from the first step"):
        nd.write(tmp_path / "net.nir", looped, convention=silence, for_library="norse")


# ---------------------------------------------------------------- files of the exporter


def as_exported(**values):
    """input -> fc -> neuron -> output as Norse's exporter writes it: one number for all, tau times dt, a batch of 4."""
    nodes = {
        "input": make_node(nir.Input, input_type={"input": np.array([4, 3])}),
        "fc": make_node(nir.Affine, weight=np.eye(2, 3, dtype=np.float32), bias=np.zeros(2, np.float32)),
        "neuron": make_node(nir.CubaLIF, **{key: np.float32(value) for key, value in values.items()}),
        "output": make_node(nir.Output, output_type={"output": np.array([4, 2])}),
    }
    return make_graph(nodes, [("input", "fc"), ("fc", "neuron"), ("neuron", "output")])


def test_a_file_of_norses_exporter_is_read_as_what_it_stands_for(tmp_path):
    values = {"r": 1.0, "v_leak": 0.0, "v_threshold": 1.0, "v_reset": 0.0, "w_in": 1.0}
    nd.write(tmp_path / "net.nir", as_exported(tau_mem=1e-5, tau_syn=5e-6, **values))
    graph = nd.read(tmp_path / "net.nir", exported_by="norse")
    assert tuple(graph.nodes["input"].input_type["input"]) == (3,)
    assert tuple(graph.nodes["output"].output_type["output"]) == (2,)
    neuron = graph.nodes["neuron"]
    for key, value in {"tau_mem": 1e-2, "tau_syn": 5e-3, "w_in": 5.0, "v_threshold": 1.0}.items():
        np.testing.assert_allclose(getattr(neuron, key), np.full(2, value), rtol=1e-6, err_msg=key)
    repairs = metadata(graph)["repairs"]
    assert [node for node, _ in repairs] == ["input", "output", *["neuron"] * 5]
    assert all(text.startswith(("the exporter", "an input adds 1")) for _, text in repairs)
    with pytest.raises(
        UnsupportedError, match="node 'neuron'.*tau_mem is 0.01.*is 10 s: the file was written with another"
    ):
        repaired(as_exported(tau_mem=1e-2, tau_syn=5e-6, **values), tmp_path)


def repaired(graph, folder):
    nd.write(folder / "other.nir", graph)
    return nd.read(folder / "other.nir", exported_by="norse")
