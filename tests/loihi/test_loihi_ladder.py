"""The ladder down to Lava: two executors and the vendor's own say the same of the integers."""

import nir
import numpy as np
import pytest
from nets import ROOT, vendor_python
from nirdeploy_loihi.ladder import integer_graph

import nirdeploy as nd
from nirdeploy.errors import UnsupportedError
from nirdeploy.graph import make_node
from nirdeploy.reference.convention import Convention


def rung(found, name):
    return next(r for r in found.rungs if r.name == name)


@pytest.fixture(scope="module")
def digits():
    stored = np.load(ROOT / "configs" / "digits_calibration.npz")
    graph = nd.read(ROOT / "configs" / "digits.nir")
    return nd.deploy(graph, "loihi2", calibration=stored["raster"]), stored["raster"][:, :4], stored["labels"][:4]


def test_lava_and_the_reference_with_integer_parameters_agree_with_the_emulator(digits, monkeypatch):
    monkeypatch.setenv("NIRDEPLOY_PYTHON_LOIHI", str(vendor_python(".venv-lava")))
    found = nd.ladder(*digits)
    assert rung(found, "integer states").cost.spikes.reference > 1000
    assert rung(found, "integer states").differing == 0
    assert rung(found, "lava").cost.equal
    assert found.dominating.name == "quantised parameters"
    assert "lava-loihi" in rung(found, "chip").reason


def test_the_cost_of_inclusive_thresholds_is_the_conventions(nets):
    # every input adds a half of the threshold: an inclusive crossing fires at the second, a strict one at the third
    graph = nets.chain(input=nets.source(1), w=nets.linear([[0.5]]), n=nets.if_(1), output=nets.output(1))
    trained = Convention(dt=1e-3, reset="zero", if_gain="r", crossing="inclusive")
    deployment = nd.deploy(graph, "loihi2", convention=trained, quantizer="max")
    found = nd.ladder(deployment, np.ones((12, 1), dtype=np.int64))
    assert rung(found, "chip convention").total.spikes.reference == 6
    assert rung(found, "chip convention").total.spikes.chip == 4


def test_integers_of_a_composed_chain_are_no_nodes_and_said_to_be(nets):
    graph = nets.chain(
        input=nets.source(2),
        a=nets.linear(np.eye(2)),
        b=nets.linear(2 * np.eye(2)),
        n=nets.if_(2),
        output=nets.output(2),
    )
    deployment = nd.deploy(graph, "loihi2", convention=nets.plain, quantizer="max")
    with pytest.raises(UnsupportedError, match="'b': its integers are those of a chain, not of a node"):
        integer_graph(deployment.quantized)
    found = nd.ladder(deployment, np.ones((6, 2), dtype=np.int64))
    assert "those of a chain" in rung(found, "quantised parameters").reason
    assert rung(found, "integer states").cost is not None


def test_biases_behind_a_filter_are_those_of_the_axons_that_are_always_on(nets):
    graph = nets.chain(
        input=nets.source(2), w=nets.affine(np.eye(2), [0.3, 0.1]), n=nets.cuba(2), output=nets.output(2)
    )
    deployment = nd.deploy(graph, "loihi2", convention=Convention(dt=1e-3, reset="zero"), quantizer="max")
    raster = (np.random.default_rng(0).random((60, 2)) < 0.4).astype(np.int64)
    found = nd.ladder(deployment, raster)
    assert rung(found, "integer states").cost.spikes.reference > 10
    assert rung(found, "integer states").differing <= 2  # rounding of u and v alone


def test_a_bias_into_neurons_that_do_not_leak_is_a_current_of_the_float_rung(nets):
    graph = nets.chain(input=nets.source(1), w=nets.affine([[0.5]], [0.3]), n=nets.if_(1), output=nets.output(1))
    trained = Convention(dt=1e-3, reset="zero", if_gain="r", population_delay=1)
    found = nd.ladder(nd.deploy(graph, "loihi2", convention=trained, quantizer="max"), np.zeros((20, 1), dtype=int))
    assert rung(found, "quantised parameters").cost.spikes.chip >= 4
    assert rung(found, "integer states").differing == 0


def test_currents_behind_a_delay_are_not_put_before_it(nets):
    nodes = {
        "input": nets.source(1),
        "a": nets.linear([[0.4]]),
        "late": make_node(nir.Delay, delay=np.array([0.003])),
        "b": nets.affine([[0.2]], [0.5]),
        "n": nets.cuba(1),
        "output": nets.output(1),
    }
    edges = [("input", "a"), ("a", "late"), ("late", "n"), ("input", "b"), ("b", "n"), ("n", "output")]
    graph = nets.graph(nodes, edges)
    deployment = nd.deploy(graph, "loihi2", convention=Convention(dt=1e-3, reset="zero"), quantizer="max")
    changed, _ = integer_graph(deployment.quantized)
    assert isinstance(changed.nodes["a"], nir.Linear)
    assert changed.nodes["b"].bias.tolist() == [deployment.quantized["n.always_on"].weight.sum()]
