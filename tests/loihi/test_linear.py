import numpy as np
import pytest
import torch
from nirdeploy_loihi import linear
from nirdeploy_loihi.lowering import lower
from torch.nn import functional

from nirdeploy.errors import UnsupportedError

RNG = np.random.default_rng(5)


def test_a_chain_of_two_convolutions_and_an_overlapping_pool_is_one_matrix(nets):
    first, second = RNG.normal(size=(3, 2, 3, 3)), RNG.normal(size=(4, 3, 2, 2))
    b1, b2 = RNG.normal(size=3), RNG.normal(size=4)
    graph = nets.chain(
        input=nets.source(2, 9, 8),
        a=nets.conv(first, b1, padding=(1, 1)),
        p=nets.pool((3, 3), (2, 2), (1, 1), average=True),
        b=nets.conv(second, b2, stride=(2, 1)),
        n=nets.if_(4, 2, 3),
        output=nets.output(4, 2, 3),
    )
    layer = lower(graph, nets.plain).layers[0]
    (connection,) = layer.connections
    assert connection.kernel is None
    assert connection.name == "b"
    matrix = linear.float_weight(graph, connection)
    x = RNG.normal(size=(6, 2, 9, 8))
    t = functional.conv2d(torch.tensor(x), torch.tensor(first), torch.tensor(b1), padding=1)
    t = functional.avg_pool2d(t, 3, 2, 1)
    t = functional.conv2d(t, torch.tensor(second), torch.tensor(b2), stride=(2, 1))
    found = x.reshape(6, -1) @ matrix.T + layer.bias.reshape(-1)
    assert np.abs(found - t.numpy().reshape(6, -1)).max() < 1e-12


def test_two_dense_nodes_are_their_product(nets):
    a, b, bias = RNG.normal(size=(5, 6)), RNG.normal(size=(3, 5)), RNG.normal(size=5)
    graph = nets.chain(
        input=nets.source(6), a=nets.affine(a, bias), b=nets.linear(b), n=nets.if_(3), output=nets.output(3)
    )
    layer = lower(graph, nets.plain).layers[0]
    assert np.abs(linear.float_weight(graph, layer.connections[0]) - b @ a).max() < 1e-12
    assert np.abs(layer.bias - b @ bias).max() < 1e-12


@pytest.mark.parametrize("average", [False, True])
def test_a_disjoint_pool_before_a_convolution_keeps_the_kernel(nets, average):
    kernel = RNG.normal(size=(4, 1, 3, 2))
    graph = nets.chain(
        input=nets.source(2, 9, 8),
        p=nets.pool((2, 2), (2, 3), average=average),
        c=nets.conv(kernel, groups=2, dilation=(1, 2), padding=(1, 1)),
        n=nets.if_(4, 4, 3),
        output=nets.output(4, 4, 3),
    )
    (connection,) = lower(graph, nets.plain).layers[0].connections
    assert connection.kernel is not None
    assert np.array_equal(linear.float_weight(graph, connection), kernel * (0.25 if average else 1.0))


def test_a_bare_edge_becomes_a_matrix_and_a_lone_pool_a_kernel(nets):
    graph = nets.chain(
        input=nets.source(1, 4, 4),
        n=nets.if_(1, 4, 4),
        p=nets.pool((2, 2)),
        m=nets.if_(1, 2, 2),
        output=nets.output(1, 2, 2),
    )
    first, second = (layer.connections[0] for layer in lower(graph, nets.plain).layers)
    assert first.name == "input->n"
    assert np.array_equal(linear.float_weight(graph, first), np.eye(16))
    assert second.name == "p"
    assert np.array_equal(linear.float_weight(graph, second), np.ones((1, 1, 2, 2)))


def test_a_matrix_too_large_to_compose_is_refused_by_name(nets, monkeypatch):
    monkeypatch.setattr(linear, "MATRIX_LIMIT", 8)
    graph = nets.chain(input=nets.source(3), n=nets.if_(3), output=nets.output(3))
    with pytest.raises(UnsupportedError, match="'n': composing the path from 'input' takes 9 weights, more than 8"):
        linear.float_weight(graph, lower(graph, nets.plain).layers[0].connections[0])


def test_parallel_paths_sum_and_a_shared_node_keeps_both_names_apart(nets):
    graph = nets.graph(
        {
            "input": nets.source(2),
            "a": nets.linear([[1, 0], [0, 1]]),
            "n1": nets.if_(2),
            "n2": nets.if_(2),
            "o1": nets.output(2),
            "o2": nets.output(2),
        },
        [("input", "a"), ("a", "n1"), ("a", "n2"), ("n1", "n2"), ("n1", "o1"), ("n2", "o2")],
    )
    network = lower(graph, nets.plain)
    names = {c.name for layer in network.layers for c in layer.connections}
    assert names == {"input->a->n1", "input->a->n2", "n1->n2"}
    assert [layer.lag for layer in network.layers] == [1, 2]
    assert [int(c.delay.max()) for c in network.layers[1].connections] == [1, 0]


def test_a_bias_shared_by_two_paths_counts_once(nets):
    graph = nets.graph(
        {
            "input": nets.source(2),
            "a": nets.linear(np.eye(2)),
            "b": nets.linear(np.eye(2)),
            "c": nets.affine(np.eye(2), [3, 4]),
            "n": nets.if_(2),
            "output": nets.output(2),
        },
        [("input", "a"), ("input", "b"), ("a", "c"), ("b", "c"), ("c", "n"), ("n", "output")],
    )
    (layer,) = lower(graph, nets.plain).layers
    assert layer.bias.tolist() == [3, 4]
    assert [c.name for c in layer.connections] == ["input->a->c->n", "input->b->c->n"]
