"""The chip's kernels and matrices are those of the graph's chains, whatever stands between two populations."""

from itertools import pairwise

import nir
import numpy as np
import pytest
from nirdeploy_loihi import BACKEND
from nirdeploy_loihi.linear import float_stage, float_weight
from nirdeploy_loihi.lower_program import program_of
from nirdeploy_loihi.lowering import lower

import nirdeploy as nd
from nirdeploy.errors import UnsupportedError
from nirdeploy.graph import make_graph, make_node, shapes
from nirdeploy.placement import Placement
from nirdeploy.quantization import Quantized, QuantizedNeuron, QuantizedWeight
from nirdeploy.reference.convention import Convention

PLAIN = Convention(dt=1e-3, reset="zero", if_gain="r")


def quantized(graph, convention=PLAIN, **neurons):
    """Integers equal to the graph's own whole weights, thresholds of 64."""
    layers = {}
    for layer in lower(graph, convention).layers:
        layers[layer.name] = neurons.get(layer.name, QuantizedNeuron(64, None, 1 / 64, mantissa=1, exponent=6))
        for c in layer.connections:
            layers[c.name] = QuantizedWeight(np.rint(float_weight(graph, c)).astype(np.int64), None, 1.0)
        for constant in layer.constants:
            layers[constant.name] = QuantizedWeight(np.rint(constant.value).reshape(-1, 1).astype(np.int64), None, 1.0)
    return Quantized(graph, BACKEND.targets()["loihi2"], convention, "given", layers)


def expanded(synapses):
    """[target, source] of a connection, tap by tap from the definition of a correlation."""
    window = synapses.window
    if window is None:
        return synapses.weight
    channels, height, width = window.source_shape
    outs, rows, columns = window.target_shape
    found = np.zeros((outs, rows, columns, channels, height, width), dtype=np.int64)
    _, per_group, taps_y, taps_x = synapses.weight.shape
    for o in range(outs):
        group = o // (outs // window.groups)
        for y, x, i, ky, kx in np.ndindex(rows, columns, per_group, taps_y, taps_x):
            iy = y * window.stride[0] + ky * window.dilation[0] - window.padding[0]
            ix = x * window.stride[1] + kx * window.dilation[1] - window.padding[1]
            if 0 <= iy < height and 0 <= ix < width:
                found[o, y, x, group * per_group + i, iy, ix] += synapses.weight[o, i, ky, kx]
    return found.reshape(outs * rows * columns, -1)


def wanted(graph, connection):
    size = int(np.prod(connection.source_shape))
    x = np.eye(size).reshape(-1, *connection.source_shape)
    for stage in connection.stages:
        x = float_stage(stage, graph.nodes[stage.node], x, bias=False)
    return x.reshape(size, -1).T


def chain_of(nets, shape, *middle):
    """Input, nodes, a population of whatever shape they give, Output."""
    nodes = {"input": nets.source(*shape), **{f"m{i}": node for i, node in enumerate(middle)}}
    names = [*nodes, "output"]
    probe = make_graph({**nodes, "output": make_node(nir.Output, output_type=None)}, list(pairwise(names)))
    given = shapes(probe)[names[-2]].output
    return nets.chain(**nodes, a=nets.if_(*given), output=nets.output(*given))


def whole(rng, *shape):
    return rng.integers(-9, 10, shape).astype(float)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "case",
    [
        "conv",
        "pool_conv",
        "two_pools_conv",
        "pool_dilated",
        "pool_alone",
        "pool_overlapping",
        "left_over",
        "dense",
    ],
)
def test_kernels_and_matrices_are_those_of_the_chain(nets, case, seed):
    rng = np.random.default_rng(seed)
    pairs = [(1, 1), (2, 1), (1, 2), (2, 2)]
    some = pairs[seed]
    kernel = whole(rng, 2, 2, 3, 2)
    chains = {
        "conv": [
            nets.conv(whole(rng, 4, 1, 3, 2), size=(7, 8), stride=some, padding=(1, 2), groups=2, dilation=some[::-1])
        ],
        "pool_conv": [nets.pool((2, 2)), nets.conv(kernel, size=(4, 4), stride=some, padding=(1, 1))],
        "two_pools_conv": [nets.pool((2, 1)), nets.pool((1, 2)), nets.conv(kernel, size=(4, 4), padding=(1, 0))],
        "pool_dilated": [
            nets.pool((1, 2), stride=(2, 2)),
            nets.conv(kernel, size=(4, 4), dilation=(1, 2), stride=some),
        ],
        "pool_alone": [nets.pool((2, 2), stride=some)],
        "pool_overlapping": [nets.pool((3, 3), stride=(1, 2), padding=(1, 1))],
        "left_over": [nets.pool((3, 3)), nets.conv(whole(rng, 2, 2, 2, 2), size=(2, 2), padding=(1, 1))],
        "dense": [nets.pool((2, 2)), nets.flatten(2, 4, 4), nets.linear(whole(rng, 5, 32))],
    }
    graph = chain_of(nets, (2, 7, 8) if case == "conv" else (2, 8, 8), *chains[case])
    program = program_of(quantized(graph))
    (connection,) = lower(graph, PLAIN).layers[0].connections
    found = expanded(program.synapses[0])
    assert found.any()
    assert np.array_equal(found, wanted(graph, connection))
    assert (program.synapses[0].window is None) == (case in ("left_over", "dense"))


def test_a_pool_alone_is_a_grouped_kernel(nets):
    graph = chain_of(nets, (2, 4, 4), nets.pool((2, 2)))
    (synapses,) = program_of(quantized(graph)).synapses
    assert synapses.window.groups == 2
    assert synapses.weight.tolist() == [[[[1, 1], [1, 1]]]] * 2


def test_registers_that_differ_are_arrays_and_equal_ones_are_one(nets):
    graph = chain_of(nets, (3,), nets.linear(np.eye(3)))
    neuron = QuantizedNeuron(
        np.array([64, 128, 64]), None, 1 / 64, decay_v=np.array([5, 5, 5]), bias=np.array([1, 0, 2]), bias_exponent=3
    )
    program = program_of(quantized(graph, a=neuron), Placement({}, options={"refractory": {"a": 4}}))
    (found,) = program.populations
    assert found.threshold.tolist() == [64, 128, 64]
    assert found.decay_v.tolist() == [5]
    assert found.bias.tolist() == [8, 0, 16]
    assert found.refractory == 4


def test_a_bias_behind_a_synaptic_filter_becomes_an_axon_that_is_always_on(nets):
    graph = nets.chain(
        input=nets.source(2),
        w0=nets.linear(np.eye(2)),
        a=nets.if_(2),
        w=nets.affine(np.eye(2), [3, -4]),
        b=nets.cuba(2, r=1.0, w_in=1.0),
        output=nets.output(2),
    )
    program = program_of(quantized(graph))
    (axons,) = program.always_on
    # step 0 of the graph is step 2 of b on the chip, and a spike takes one
    assert (axons.name, axons.count, axons.start) == ("b.always_on", 1, 1)
    assert program.into("b")[-1].weight.tolist() == [[3], [-4]]
    assert program.sizes == {"input": 2, "b.always_on": 1, "a": 2, "b": 2}


def test_a_matrix_too_large_is_refused_by_name(nets, monkeypatch):
    monkeypatch.setattr("nirdeploy_loihi.lower_program.MATRIX_LIMIT", 1000)
    graph = chain_of(nets, (2, 8, 8), nets.pool((2, 2)), nets.flatten(2, 4, 4), nets.linear(np.ones((9, 32))))
    with pytest.raises(UnsupportedError, match=r"node 'a': the path from 'input' takes a matrix of 1152 weights"):
        program_of(quantized(graph))


def test_one_factor_for_all_before_a_kernel_is_inside_it(nets):
    factor = make_node(nir.Scale, scale=np.full((2, 4, 4), 3.0))
    graph = chain_of(nets, (2, 4, 4), factor, nets.conv(np.ones((1, 2, 2, 2)), size=(4, 4)))
    (synapses,) = program_of(quantized(graph)).synapses
    assert synapses.weight.tolist() == [[[[3, 3], [3, 3]]] * 2]


def test_a_pool_is_called_by_its_own_name_whatever_reshapes_its_map(nets, tmp_path):
    graph = chain_of(nets, (2, 4, 4), nets.pool((2, 2)), nets.flatten(2, 2, 2))
    (connection,) = lower(graph, PLAIN).layers[0].connections
    assert connection.name == "m0"
    deployment = nd.deploy(graph, "loihi2", convention=PLAIN, quantizer="max")
    deployment.save(tmp_path)
    again = nd.load_deployment(tmp_path).quantized["m0"].weight
    assert np.array_equal(again, deployment.quantized["m0"].weight)


def test_a_kernel_that_two_populations_share_is_saved_once_for_each(nets, tmp_path):
    nodes = {
        "input": nets.source(1, 3, 3),
        "c": nets.conv(np.ones((1, 1, 2, 2)), size=(3, 3)),
        "a": nets.if_(1, 2, 2),
        "b": nets.if_(1, 2, 2, threshold=3.0),
        "o1": nets.output(1, 2, 2),
        "o2": nets.output(1, 2, 2),
    }
    graph = make_graph(nodes, [("input", "c"), ("c", "a"), ("c", "b"), ("a", "o1"), ("b", "o2")])
    nd.deploy(graph, "loihi2", convention=PLAIN, quantizer="max").save(tmp_path)
    assert {"input->c->a", "input->c->b"} <= set(nd.load_deployment(tmp_path).quantized)
