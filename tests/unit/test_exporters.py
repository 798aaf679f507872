"""Files of other libraries' exporters, repaired where asked for, each repair told; files for their importers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import nir
import numpy as np
import pytest
from nets import if_node, input_node, make_graph, output_node

import nirdeploy as nd
from nirdeploy.convert.frameworks import framework as frameworks
from nirdeploy.convert.frameworks import norse
from nirdeploy.errors import ConfigurationError, UnsupportedError
from nirdeploy.graph import make_node


def network() -> nir.NIRGraph:
    nodes = {
        "input": input_node(2),
        "fc": make_node(nir.Linear, weight=np.eye(2, dtype=np.float32)),
        "lif": if_node((2,)),
        "output": output_node(2),
    }
    return make_graph(nodes, [("input", "fc"), ("fc", "lif"), ("lif", "output")])


@pytest.fixture
def table(monkeypatch):
    def put(**fields: Any) -> None:
        monkeypatch.setattr(norse, "FRAMEWORK", replace(norse.FRAMEWORK, **fields))

    return put


def test_repairs_are_made_on_request_and_listed(table, tmp_path):
    def repair(graph: nir.NIRGraph) -> Any:
        nodes = {**graph.nodes, "lif": if_node((2,), threshold=0.5)}
        return make_graph(nodes, list(graph.edges)), (frameworks.Repair("lif", "v_threshold was doubled"),)

    table(repair=repair)
    nd.write(tmp_path / "n.nir", network(), nd.convention("nir", dt=1e-3, if_gain="r"))
    plain = nd.read(tmp_path / "n.nir")
    assert plain.nodes["lif"].v_threshold.tolist() == [1, 1]
    convention = nd.convention("nir", dt=1e-3, if_gain="r")
    assert not any(f.code == "repaired" for f in nd.check(plain, "speck2f", convention=convention).findings)
    graph = nd.read(tmp_path / "n.nir", exported_by="norse")
    assert graph.nodes["lif"].v_threshold.tolist() == [0.5, 0.5]
    (found,) = [f for f in nd.check(graph, "speck2f", convention=convention).findings if f.code == "repaired"]
    assert (found.node, found.problem, found.severity) == ("lif", "v_threshold was doubled", "warning")


def test_graphs_are_adapted_to_an_importer(table, tmp_path):
    def adapt(graph: nir.NIRGraph, convention: nd.Convention | None) -> nir.NIRGraph:
        if convention is None or convention.reset != "zero":
            raise UnsupportedError("norse resets to zero", node="lif", remedy="Train it so.")
        return make_graph({**graph.nodes, "lif": if_node((2,), threshold=3.0)}, list(graph.edges))

    table(adapt=adapt)
    convention = nd.convention("nir", dt=1e-3, reset="zero")
    nd.write(tmp_path / "n.nir", network(), convention, for_library="norse")
    assert nd.read(tmp_path / "n.nir").nodes["lif"].v_threshold.tolist() == [3, 3]
    with pytest.raises(UnsupportedError, match=r"node 'lif': norse resets to zero. Train it so."):
        nd.write(tmp_path / "o.nir", network(), for_library="norse")
    assert not (tmp_path / "o.nir").exists()


def test_unknown_libraries_are_refused(tmp_path):
    nd.write(tmp_path / "n.nir", network())
    with pytest.raises(ConfigurationError, match=r"unknown library 'nurse'. .*'norse'"):
        nd.read(tmp_path / "n.nir", exported_by="nurse")
    with pytest.raises(ConfigurationError, match="unknown library 'brian'"):
        nd.write(tmp_path / "m.nir", network(), for_library="brian")
