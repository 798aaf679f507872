"""What a Loihi cannot do is refused by name, and before memory of its size is taken."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from nirdeploy_loihi.lowering import lower

import nirdeploy as nd
from nirdeploy.errors import UnsupportedError
from nirdeploy.graph import make_graph


def small(nets, weight=((1.0, -1.0),), bias=(0.0,), **neuron):
    return nets.chain(input=nets.source(2), w=nets.affine(weight, bias), n=nets.if_(1, **neuron), output=nets.output(1))


def found(graph, used):
    return {f.code: f for f in nd.check(graph, "loihi1", convention=used).errors}


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("node", "field", "value", "code", "words"),
    [
        ("w", "weight", np.ones((1, 2), complex), "dtype", "weight has dtype complex128"),
        ("w", "weight", np.array([[1, None]], object), "dtype", "weight has dtype object"),
        ("w", "weight", [[1.0, 2.0]], "dtype", "weight is a list, expected an array"),
        ("w", "bias", np.array([np.inf]), "finite", "bias holds 1 of 1 values that are not finite"),
        ("w", "weight", np.full((1, 2), np.longdouble("1e4000")), "finite", "weight is beyond 64-bit floats"),
        ("n", "v_threshold", np.array([1j]), "dtype", "v_threshold has dtype complex128"),
        ("w", "weight", np.ones((0, 2)), "shape", "empty weight"),
        ("w", "bias", np.zeros((4, 1)), "shape", "bias of shape (4, 1)"),
        ("n", "r", np.ones(3), "shape", "r of shape (3,)"),
    ],
)
def test_numbers_no_core_holds_are_findings(nets, node, field, value, code, words):
    graph = small(nets)
    setattr(graph.nodes[node], field, value)
    finding = found(graph, nets.plain)[code]
    assert finding.node == node
    assert words in finding.problem


def test_whatever_the_shapes_raise_is_a_finding(nets, monkeypatch):
    for error in (ZeroDivisionError, TypeError, IndexError, AttributeError, ValueError):

        def fails(graph, error=error):
            raise error("on purpose")

        monkeypatch.setattr("nirdeploy.graph.shapes", fails)
        assert f"{error.__name__}: on purpose" in found(small(nets), nets.plain)["shape"].problem


@pytest.mark.parametrize("kind", [">f8", np.longdouble, np.float32, np.int16])
def test_weights_of_any_real_type_give_the_same_integers(nets, kind):
    graph = small(nets, weight=[[1.0, -2.0]], bias=[3.0])
    for field in ("weight", "bias"):
        setattr(graph.nodes["w"], field, getattr(graph.nodes["w"], field).astype(kind))
    quantized = nd.quantize(graph, "loihi1", convention=nets.plain, quantizer="max")
    assert quantized["w"].weight.tolist() == [[128, -254]]  # 2 round(63.5), ties to even


def test_one_bias_for_all_outputs_counts_for_each(nets):
    graph = nets.chain(
        input=nets.source(2), w=nets.affine(np.ones((3, 2)), np.zeros(3)), n=nets.if_(3), output=nets.output(3)
    )
    graph.nodes["w"].bias = np.array([0.5])
    assert lower(graph, nets.plain).layers[0].bias.tolist() == [0.5, 0.5, 0.5]
    quantized = nd.quantize(graph, "loihi1", convention=nets.plain, quantizer="max")
    assert quantized["w"].bias.shape == (3,)


# ---------------------------------------------------------------- conventions


def test_fields_that_name_nothing_are_refused(nets):
    used = dataclasses.replace(nets.plain, overrides={"m": {"reset": "zero"}})
    assert "overrides names 'm', which is neither a node" in found(small(nets), used)["convention"].problem
    used = dataclasses.replace(nets.plain, feedback_edges=(("w", "n"),))
    assert "feedback_edges names 'w' -> 'n'" in found(small(nets), used)["convention"].problem


def test_records_follow_v_unit(nets):
    graph = small(nets, r=4.0)
    data = np.random.default_rng(0).integers(0, 2, (12, 3, 2))
    runs = {}
    for unit in ("model", "gain"):
        used = dataclasses.replace(nets.plain, v_unit=unit)
        deployment = nd.deploy(graph, "loihi1", convention=used, quantizer="max")
        runs[unit] = deployment.run(data)["n", "v_mem"]
        reference = nd.run(graph, data, convention=used)["n", "v_mem"]
        assert runs[unit].units == reference.units
        assert runs[unit].threshold * runs[unit].scale == pytest.approx(reference.threshold, rel=0.02)
    assert runs["gain"].scale == runs["model"].scale / 4
    assert np.array_equal(runs["gain"].data, runs["model"].data)


# ---------------------------------------------------------------- sizes


def test_the_paths_into_a_population_are_bounded(nets):
    nodes, edges, last = {"input": nets.source(2)}, [], ["input"]
    for i in range(9):
        names = [f"a{i}", f"b{i}"]
        nodes |= {name: nets.linear(np.eye(2)) for name in names}
        edges += [(source, name) for source in last for name in names]
        last = names
    nodes |= {"n": nets.if_(2), "output": nets.output(2)}
    graph = make_graph(nodes, [*edges, *((source, "n") for source in last), ("n", "output")])
    finding = found(graph, nets.plain)["graph"]
    assert finding.node == "n"
    assert "512 paths lead here from other populations, at most 256" in finding.problem


def test_maps_and_weights_beyond_a_chip_are_refused_with_the_limit(nets):
    graph = nets.chain(
        input=nets.source(1, 20000, 20000),
        p=nets.pool((10000, 10000)),
        n=nets.if_(1, 2, 2),
        output=nets.output(1, 2, 2),
    )
    finding = found(graph, nets.plain)["size"]
    assert (finding.node, finding.value, finding.limit) == ("input", 400_000_000, 1 << 22)
    graph = small(nets)
    graph.nodes["w"].weight = np.broadcast_to(np.uint8(1), (1, (1 << 25) + 1))
    finding = found(graph, nets.plain)["size"]
    assert (finding.node, finding.limit) == ("w", 1 << 25)
    graph.nodes["w"].weight = np.ones((1, 2))
    graph.nodes["n"].r = np.broadcast_to(np.uint8(1), ((1 << 22) + 1,))
    assert found(graph, nets.plain)["size"].node == "n"


SCRIPT = """
import resource, sys
import nir, numpy as np, nirdeploy as nd
from nirdeploy.graph import make_graph, make_node
def source(*shape): return make_node(nir.Input, input_type={"input": np.array(shape)})
def output(*shape): return make_node(nir.Output, output_type={"output": np.array(shape)})
def neuron(*shape): return make_node(nir.IF, r=np.ones(shape), v_threshold=np.ones(shape), v_reset=np.zeros(shape))
def pool(k): return make_node(nir.SumPool2d, kernel_size=np.array([k, k]), stride=np.array([k, k]), padding=np.zeros(2))
def chain(**nodes): return make_graph(nodes, list(zip(list(nodes), list(nodes)[1:])))
big = np.broadcast_to(np.uint8(1), (4, 90_000_000))
graphs = [
    chain(i=source(1, 20000, 20000), p=pool(10000), n=neuron(1, 2, 2), o=output(1, 2, 2)),
    chain(i=source(90_000_000), w=make_node(nir.Linear, weight=big), n=neuron(4), o=output(4)),
    chain(i=source(1, 2000, 2000), p=pool(200), n=neuron(1, 10, 10), o=output(1, 10, 10)),
]
used = nd.Convention(dt=1e-3, reset="zero", if_gain="r")
nd.check(graphs[0], "loihi1", convention=used)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for graph in graphs:
    nd.check(graph, "loihi1", convention=used)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_check_takes_no_memory_of_the_size_of_what_it_refuses():
    done = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True, timeout=120)
    assert int(done.stdout) < 300  # MB


def test_biases_reach_a_population_through_later_stages_as_before(nets):
    rng = np.random.default_rng(3)
    graph = nets.chain(
        input=nets.source(1, 4, 4),
        c=nets.conv(rng.normal(size=(2, 1, 3, 3)), bias=[0.5, -1.0], padding=(1, 1)),
        p=nets.pool((2, 2), average=True),
        d=nets.conv(rng.normal(size=(1, 2, 1, 1)), bias=[0.25]),
        n=nets.if_(1, 2, 2),
        output=nets.output(1, 2, 2),
    )
    expected = graph.nodes["d"].weight[0, :, 0, 0] @ np.array([0.5, -1.0]) + 0.25
    assert lower(graph, nets.plain).layers[0].bias == pytest.approx(np.full((1, 2, 2), expected))
    # without biases nothing of the map's size is made
    for name in ("c", "d"):
        graph.nodes[name].bias = np.zeros_like(graph.nodes[name].bias)
    assert lower(graph, nets.plain).layers[0].bias.strides == (0, 0, 0)


def test_a_thousand_stages_in_a_row_do_not_exhaust_the_stack(nets):
    stages = {f"f{i:04}": nets.flatten(2) for i in range(1500)}
    graph = nets.chain(
        input=nets.source(2), **stages, w=nets.linear([[1.0, 1.0]]), n=nets.if_(1), output=nets.output(1)
    )
    assert found(graph, nets.plain) == {}


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "words"),
    [({"core_model": 1}, "core_model"), ({"on": 5}, "on.* 5"), ({"on": ["chip"]}, "on.*'chip'")],
)
def test_run_options_without_meaning_are_refused(nets, options, words):
    deployment = nd.deploy(small(nets), "loihi1", convention=nets.plain, quantizer="max")
    with pytest.raises(UnsupportedError, match=words):
        deployment.run(np.ones((2, 2)), **options)
