import itertools

import nir
import numpy as np
import pytest
from nets import (
    chain,
    conv_net,
    conv_node,
    flatten_node,
    if_node,
    input_node,
    lif_node,
    linear_node,
    output_node,
    pool_node,
)

import nirdeploy as nd
from nirdeploy import graph as graphs
from nirdeploy.errors import GraphError
from nirdeploy.graph import make_graph


def wires(edges, *, inputs=("in",), outputs=("out",)):
    """A graph of one-neuron IF nodes with the given edges."""
    names = sorted({n for edge in edges for n in edge})
    nodes = {n: input_node(1) if n in inputs else output_node(1) if n in outputs else if_node((1,)) for n in names}
    return make_graph(nodes, edges)


@pytest.mark.parametrize(
    ("edges", "expected"),
    [
        ([("in", "a"), ("a", "out")], []),
        ([("in", "a"), ("a", "a"), ("a", "out")], [("a", "a")]),
        ([("in", "a"), ("a", "b"), ("b", "a"), ("a", "out")], [("b", "a")]),
        # a skip around a loop: the entry is where the Input comes in
        ([("in", "a"), ("a", "b"), ("b", "c"), ("c", "a"), ("in", "d"), ("d", "out"), ("c", "out")], [("c", "a")]),
        # two nested loops: each is cut at its own entry
        ([("in", "a"), ("a", "b"), ("b", "c"), ("c", "b"), ("c", "a"), ("c", "out")], [("c", "a"), ("c", "b")]),
        # nobody feeds it from outside: the first name
        ([("in", "out"), ("x", "y"), ("y", "x")], [("y", "x")]),
    ],
)
def test_feedback_edges_depend_on_the_graph_alone(edges, expected):
    for shuffled in itertools.islice(itertools.permutations(edges), 60):
        assert nd.feedback_edges(wires(list(shuffled))) == expected


def test_feedback_edges_look_through_subgraphs():
    inner = wires([("i", "n"), ("n", "o")], inputs=("i",), outputs=("o",))
    nodes = {"in": input_node(1), "sub": inner, "w": linear_node([[1.0]]), "out": output_node(1)}
    graph = make_graph(nodes, [("in", "sub"), ("sub", "w"), ("w", "sub"), ("sub", "out")])
    assert nd.feedback_edges(graph) == [("w", "sub.n")]


def test_order_is_topological_with_ties_by_name():
    graph = wires([("in", "b"), ("in", "a"), ("a", "c"), ("b", "c"), ("c", "out")])
    assert graphs.order(graph) == ["in", "a", "b", "c", "out"]


@pytest.mark.parametrize(
    ("node", "given", "expected"),
    [
        (conv_node(np.zeros((4, 2, 3, 5)), None, padding=1), (2, 8, 8), (4, 8, 6)),
        (conv_node(np.zeros((4, 1, 3, 3)), None, groups=2), (2, 8, 8), (4, 6, 6)),
        (conv_node(np.zeros((4, 2, 3, 3)), None, stride=(2, 1), dilation=2), (2, 9, 9), (4, 3, 5)),
        (pool_node(nir.AvgPool2d, 2), (2, 7, 6), (2, 3, 3)),
        (flatten_node((2, 3, 4)), (2, 3, 4), (24,)),
        (linear_node(np.zeros((5, 3))), (3,), (5,)),
        (lif_node((2, 2)), (2, 2), (2, 2)),
    ],
)
def test_shapes_by_hand(node, given, expected):
    assert graphs.output_shape("n", node, given) == expected


def test_same_padding_is_resolved_or_refused():
    node = conv_node(np.zeros((1, 1, 3, 5)), (6, 6))
    node.padding = "same"
    assert graphs.output_shape("n", node, (1, 6, 6)) == (1, 6, 6)
    even = conv_node(np.zeros((1, 1, 2, 3)), (6, 6))
    even.padding = "same"
    with pytest.raises(GraphError, match="'n': padding 'same' with kernel \\(2, 3\\)"):
        graphs.output_shape("n", even, (1, 6, 6))


@pytest.mark.parametrize(
    ("node", "given", "words"),
    [
        (conv_node(np.zeros((1, 3, 3, 3)), None), (2, 8, 8), r"'n': Conv2d .* expects \(3, height, width\), got"),
        (conv_node(np.zeros((1, 1, 9, 9)), None), (1, 8, 8), r"\(9, 9\) kernel leaves nothing"),
        (pool_node(nir.SumPool2d, 9), (1, 8, 8), "window leaves nothing"),
        (pool_node(nir.SumPool2d, 2), (8,), r"expects \(channel, height, width\)"),
        (linear_node(np.zeros((5, 3))), (4,), r"expects \(3,\), got \(4,\)"),
        (if_node((3,)), (4,), r"IF has r of shape \(3,\), its input is \(4,\)"),
    ],
)
def test_shapes_that_do_not_fit_name_node_and_shapes(node, given, words):
    with pytest.raises(GraphError, match=words):
        graphs.output_shape("n", node, given)


@pytest.mark.parametrize(
    ("nodes", "edges", "words"),
    [
        ({}, [], "no nodes"),
        ({"out": output_node(1)}, [], "no Input"),
        ({"in": input_node(1)}, [], "no Output"),
        ({"in": input_node(1), "out": output_node(1)}, [("in", "x")], "names node 'x'"),
        ({"in": input_node(1), "out": output_node(1)}, [("in", "out"), ("in", "out")], "there twice"),
        ({"in": input_node(1), "out": output_node(1)}, [("in", "out"), ("in", "in")], "into an Input"),
        ({"in": input_node(1), "out": output_node(1)}, [("in", "out"), ("out", "out")], "out of an Output"),
        (
            {"in": input_node(1), "n": if_node((1,)), "out": output_node(1)},
            [("in", "out")],
            "'n': IF has no input",
        ),
    ],
)
def test_graphs_without_meaning_are_refused(nodes, edges, words):
    with pytest.raises(GraphError, match=words):
        graphs.validate(make_graph(nodes, edges))


def test_output_of_another_shape_is_refused():
    graph = chain((2,), n=if_node((2,)))
    graph.nodes["output"] = output_node(3)
    with pytest.raises(GraphError, match=r"'output': Output declares shape \(3,\), its input 'n' gives \(2,\)"):
        graphs.shapes(graph)


def test_populations_list_every_chain():
    found = {p.name: [(c.source, c.nodes) for c in p.paths] for p in graphs.populations(conv_net())}
    assert found == {
        "if1": [("input", ("conv1",))],
        "if2": [("if1", ("pool", "conv2"))],
        "if3": [("if2", ("flatten", "fc"))],
        "output": [("if3", ())],
    }


def test_hash_ignores_order_and_metadata_but_no_parameter():
    graph = conv_net()
    other = make_graph(dict(reversed(graph.nodes.items())), graph.edges[::-1], {"note": "x"})
    assert graphs.sha256(graph) == graphs.sha256(other)
    changed = graphs.copy_graph(graph)
    changed.nodes["conv1"].weight[0, 0, 0, 0] += 1
    assert graphs.sha256(changed) != graphs.sha256(graph)


def test_copy_shares_no_array():
    graph = conv_net()
    copied = graphs.copy_graph(graph)
    copied.nodes["if1"].v_threshold[:] = 9
    assert graph.nodes["if1"].v_threshold.max() == 1
