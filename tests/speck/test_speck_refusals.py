"""What a Speck cannot do is refused by name: numbers, conventions, types, options."""

import dataclasses

import nir
import numpy as np
import pytest
from nets import chain, conv_net, conv_node, if_node, input_node, linear_node, output_node, raster

import nirdeploy as nd
from nirdeploy.errors import PlacementError, QuantizationError, UnsupportedError
from nirdeploy.graph import make_graph, make_node

PLAIN = nd.Convention(if_gain="r", reset="zero", crossing="inclusive", v_min=-4.0)


def found(graph, convention=PLAIN, severity="error"):
    report = nd.check(graph, "speck2f", convention=convention)
    return {f.code: f for f in report.findings if f.severity == severity}


def small(**fields):
    graph = chain((2,), fc=make_node(nir.Affine, weight=np.ones((1, 2)), bias=np.zeros(1)), n=if_node((1,)))
    for key, value in fields.items():
        node, field = key.split("__")
        setattr(graph.nodes[node], field, value)
    return graph


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("fields", "code", "node", "words"),
    [
        ({"fc__weight": np.array([[np.nan, 1.0]])}, "finite", "fc", "weight holds 1 of 2 values that are not finite"),
        ({"fc__bias": np.array([np.inf])}, "finite", "fc", "bias holds 1 of 1"),
        ({"n__v_threshold": np.array([np.nan])}, "finite", "n", "v_threshold holds"),
        ({"n__r": np.array([np.inf])}, "finite", "n", "r holds"),
        ({"n__v_reset": np.array([np.nan])}, "finite", "n", "v_reset holds"),
        ({"fc__weight": np.ones((1, 2), complex)}, "dtype", "fc", "weight has dtype complex128"),
        ({"fc__weight": np.array([[1, None]], object)}, "dtype", "fc", "weight has dtype object"),
        ({"fc__weight": [[1.0, 2.0]]}, "dtype", "fc", "weight is a list, expected an array"),
        ({"fc__weight": np.array([[1e300, 1.0]])}, "finite", "fc", "weight reaches 1e\\+300"),
        ({"n__r": np.array([1e-60])}, "gain", "n", "input gain is 1e-60"),
        ({"n__v_threshold": np.array([1e-60])}, "threshold", "n", "v_threshold is 0.0 in 32-bit floats"),
        ({"fc__weight": np.ones((0, 2))}, "shape", "fc", "empty weight"),
        ({"fc__bias": np.zeros((4, 1))}, "shape", "fc", r"bias of shape \(4, 1\)"),
        ({"fc__bias": np.zeros(3)}, "shape", "fc", r"bias of shape \(3,\)"),
        ({"n__r": np.ones(3)}, "shape", "n", r"r of shape \(3,\)"),
        ({"fc__weight": np.ones((1, 1, 2))}, "shape", "fc", "3 dimensions"),
    ],
)
def test_numbers_no_core_holds_are_findings(fields, code, node, words):
    finding = found(small(**fields))[code]
    assert finding.node == node
    import re

    assert re.search(words, finding.problem), finding.problem


@pytest.mark.parametrize(("field", "value"), [("stride", 0), ("stride", "a"), ("weight", np.ones((1, 1, 3)))])
def test_options_without_meaning_are_one_shape_finding(field, value):
    graph = chain((1, 4, 4), c=conv_node(np.ones((1, 1, 3, 3)), None), n=if_node((1, 2, 2)))
    setattr(graph.nodes["c"], field, value)
    assert list(found(graph)) == ["shape"]


def test_whatever_the_shapes_raise_is_a_finding(monkeypatch):
    for error in (ZeroDivisionError, TypeError, IndexError, AttributeError, ValueError):

        def fails(graph, error=error):
            raise error("on purpose")

        monkeypatch.setattr("nirdeploy.graph.shapes", fails)
        assert f"{error.__name__}: on purpose" in found(small())["shape"].problem


@pytest.mark.parametrize("kind", [">f4", np.longdouble, np.float64, np.int16])
def test_weights_of_any_real_type_give_the_same_integers(kind):
    weight = np.array([[1, -2]])
    graph = chain((2,), fc=linear_node(weight), n=if_node((1,)))
    graph.nodes["fc"].weight = weight.astype(kind)
    quantized = nd.quantize(graph, "speck2f", convention=PLAIN, quantizer="max")
    assert quantized["fc"].weight.tolist() == [[64, -128]]


# ---------------------------------------------------------------- conventions


@pytest.mark.parametrize("bound", [0.5, 1.0, 3.0, -1e300])
def test_a_lower_bound_that_is_none_is_an_error(bound):
    finding = found(small(), dataclasses.replace(PLAIN, v_min=bound))["v_min"]
    assert finding.node == "n"
    assert "negative, finite bounds" in finding.problem


@pytest.mark.parametrize("bound", [0.0, -0.001])
def test_a_lower_bound_that_rounds_to_zero_becomes_minus_one_with_a_warning(bound):
    convention = dataclasses.replace(PLAIN, v_min=bound)
    assert found(small(), convention) == {}
    assert "rounds to 0, the chip needs <= -1 (erratum" in found(small(), convention, "warning")["v_min"].problem
    with pytest.raises(QuantizationError, match="rounds the thresholds to .* and 0; the chip needs"):
        nd.quantize(small(), "speck2f", convention=convention, quantizer="max")
    quantized = nd.quantize(small(), "speck2f", convention=convention, calibration=raster((2,)))
    assert quantized["n"].v_min == -1
    assert any("v_min" in note and "it becomes -1" in note for note in quantized.notes)
    assert "v_min" not in found(small(), PLAIN, "warning")


def test_fields_that_name_nothing_are_refused():
    used = dataclasses.replace(PLAIN, overrides={"nn": {"reset": "zero"}})
    assert "overrides names 'nn', which is neither a node" in found(small(), used)["convention"].problem
    used = dataclasses.replace(PLAIN, feedback_edges=(("fc", "n"),))
    assert "feedback_edges names 'fc' -> 'n', but the graph has no cycle" in found(small(), used)["convention"].problem
    used = dataclasses.replace(PLAIN, feedback_edges=(), overrides={"n": {"reset": "zero"}, "LIF": {"reset": "zero"}})
    assert found(small(), used) == {}


# ---------------------------------------------------------------- structure


def ladder(stages):
    """Pairs of parallel matrices one behind the other: 2**stages paths."""
    nodes, edges, last = {"input": input_node(2)}, [], ["input"]
    for i in range(stages):
        names = [f"a{i}", f"b{i}"]
        nodes |= {name: linear_node(np.eye(2)) for name in names}
        edges += [(source, name) for source in last for name in names]
        last = names
    nodes |= {"n": if_node((2,)), "output": output_node(2)}
    return make_graph(nodes, [*edges, *((source, "n") for source in last), ("n", "output")])


def test_the_paths_into_a_population_are_counted_before_they_are_followed():
    assert len(nd.graph.populations(ladder(8))[0].paths) == 256
    finding = found(ladder(9))["paths"]
    assert (finding.node, "512 paths lead here" in finding.problem) == ("n", True)
    assert "at most 256 are possible" in found(ladder(400))["paths"].problem


ONE = {"v_leak": np.zeros(2), "v_threshold": np.ones(2), "v_reset": np.zeros(2)}
TYPES = {
    "CubaLIF": {"tau_syn": np.ones(2), "tau_mem": np.ones(2), "r": np.ones(2), "w_in": np.ones(2), **ONE},
    "LI": {"tau": np.ones(2), "r": np.ones(2), "v_leak": np.zeros(2)},
    "CubaLI": {
        "tau_syn": np.ones(2),
        "tau_mem": np.ones(2),
        "r": np.ones(2),
        "w_in": np.ones(2),
        "v_leak": np.zeros(2),
    },
    "I": {"r": np.ones(2)},
    "Scale": {"scale": np.ones(2)},
    "Threshold": {"threshold": np.ones(2)},
    "Delay": {"delay": np.ones(2)},
}


@pytest.mark.parametrize(("kind", "target"), [*((kind, "speck2f") for kind in TYPES), ("Threshold", "loihi1")])
def test_types_the_chips_do_not_have_are_named(kind, target):
    node = make_node(getattr(nir, kind), **TYPES[kind])
    graph = chain((2,), x=node, fc=linear_node(np.eye(2)), n=if_node((2,)))
    report = nd.check(graph, target, convention=nd.Convention(dt=1e-3, reset="zero", if_gain="r"))
    (finding,) = [f for f in report.errors if f.code == "type"]
    assert finding.node == "x"
    assert f"type {kind} " in finding.problem


def with_subgraph(inputs):
    """input -> sub -> n -> output and n -> sub, the subgraph with one Input or two."""
    inner = {"i": input_node(2), "w": linear_node(np.eye(2)), "o": output_node(2)}
    edges = [("i", "w"), ("w", "o")]
    if inputs == 2:
        inner["j"] = input_node(2)
        edges.append(("j", "w"))
    return make_graph(
        {"input": input_node(2), "sub": make_graph(inner, edges), "n": if_node((2,)), "output": output_node(2)},
        [("input", "sub"), ("sub", "n"), ("n", "output"), ("n", "sub")],
    )


@pytest.mark.parametrize("target", ["speck2f", "loihi1"])
def test_subgraphs_whose_edges_say_too_little_are_named(target):
    report = nd.check(with_subgraph(2), target, convention=nd.Convention(dt=1e-3, reset="zero", if_gain="r"))
    assert [f.node for f in report.errors if f.code == "type"] == ["sub"]
    with pytest.raises(UnsupportedError, match="'sub': a subgraph among populations"):
        nd.graph.populations(with_subgraph(2))


@pytest.mark.parametrize("target", ["speck2f", "loihi1"])
def test_other_subgraphs_are_checked_as_their_nodes(target):
    convention = nd.Convention(dt=1e-3, reset="zero", if_gain="r")
    flat = make_graph(
        {"input": input_node(2), "sub.w": linear_node(np.eye(2)), "n": if_node((2,)), "output": output_node(2)},
        [("input", "sub.w"), ("sub.w", "n"), ("n", "output"), ("n", "sub.w")],
    )
    report = nd.check(with_subgraph(1), target, convention=convention)
    assert report.findings == nd.check(flat, target, convention=convention).findings
    assert not [f for f in report.findings if f.code == "type"]


# ---------------------------------------------------------------- options


def deployed(**options):
    return nd.deploy(conv_net(), "speck2f", convention=PLAIN, quantizer="max", **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cores": {"fc": "a"}}, r"cores\['fc'\] has 'a', expected core numbers from 0 to 8"),
        ({"cores": {"fc": 2.5}}, r"cores\['fc'\] has 2.5"),
        ({"cores": {"fc": True}}, r"cores\['fc'\] has True"),
        ({"cores": {"fc": 5, "if3": 6}}, "'if3': cores names it twice, as 'fc' and as itself"),
        ({"cores": {3: 5}}, "cores names 3, which is no layer"),
        ({"cores": [1]}, r"cores is \[1\], expected {layer: core}"),
        ({"avoid_cores": 3}, "avoid_cores is 3, expected a list of core numbers"),
        ({"avoid_cores": "01"}, "avoid_cores is '01'"),
        ({"avoid_cores": [0, False]}, "avoid_cores has False"),
        ({"avoid_cores": [9]}, "core 9 does not exist, the chip has 0 to 8"),
        ({"avoid": [1]}, r"unknown placement option 'avoid' \(\[1\]\). Possible: avoid_cores="),
    ],
)
def test_placement_options_without_meaning_are_refused(options, words):
    with pytest.raises(PlacementError, match=words):
        deployed(**options)


def test_numpy_integers_are_core_numbers():
    assert deployed(cores={"fc": np.int64(5)}, avoid_cores=np.array([0])).placement.cores["if3"] == (5,)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"core_modell": 1}, r"no option 'core_modell' \(given 1\). Did you mean 'core_model'"),
        ({"on": 5}, "on.* 5"),
        ({"record": ("i_syn",)}, "'i_syn' does not exist on this chip"),
        ({"record": ("spikes", "i_syn")}, "'i_syn' does not exist on this chip"),
    ],
)
def test_run_options_without_meaning_are_refused(options, words):
    with pytest.raises(UnsupportedError, match=words):
        deployed().run(raster((1, 6, 6)), **options)


def test_output_is_a_variable_of_the_chip():
    assert list(deployed().run(raster((1, 6, 6)), record=("output",))) == [("output", "output")]
