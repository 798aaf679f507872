"""Graphs and what they are lowered to compute the same: integers compared with ==, against plain numpy and torch."""

import dataclasses
import itertools

import nir
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from nets import chain, conv_node, flatten_node, if_node, input_node, linear_node, output_node, pool_node, raster
from nirdeploy_speck.geometry import Axis, square
from nirdeploy_speck.network import draft, lower

import nirdeploy as nd
from nirdeploy.graph import make_graph, make_node

# with weights up to 127 'max' scales by 1: the chip's integers are the graph's own numbers
WHOLE = nd.Convention(if_gain="r", reset="subtract", spikes_per_step="many", crossing="inclusive", v_min=-300.0)


def whole(rng, *shape, factor=1):
    """Whole weights, one of them 127 factor."""
    weight = rng.integers(-90, 127, shape)
    weight.flat[0] = 127
    return weight * factor


def errors(graph, convention=WHOLE):
    return {f.code: f for f in nd.check(graph, "speck2f", convention=convention).errors}


def correlate(x, weight, stride, padding):
    """Convolution [n, channel, y, x] in plain numpy."""
    padded = np.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], axis=(2, 3))
    return np.einsum("ncyxkl,ockl->noyx", windows[:, :, :: stride[0], :: stride[1]], weight)


def assert_same_as_reference(graph, data, populations, convention=WHOLE):
    """The emulator's spikes and voltages of the lowered graph are those of the graph itself."""
    deployment = nd.deploy(graph, "speck2f", convention=convention, quantizer="max")
    assert all(deployment.quantized[name].scale == 1 for name in populations)
    reference, found = nd.run(graph, data, convention=convention), deployment.run(data)
    for name in populations:
        assert reference[name, "spikes"].data.sum() > 0, name
        assert np.array_equal(found[name, "spikes"].data, reference[name, "spikes"].data), name
        assert np.array_equal(found[name, "v_mem"].data, reference[name, "v_mem"].data), name
    return deployment


# ---------------------------------------------------------------- square kernels


@settings(max_examples=150, deadline=None)
@given(
    taps=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    stride=st.tuples(st.sampled_from([1, 2, 3]), st.sampled_from([1, 2])),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    seed=st.integers(0, 999),
)
def test_square_kernels_compute_what_the_given_ones_do(taps, size, stride, padding, seed):
    assume(all(n + 2 * p >= k for n, p, k in zip(size, padding, taps, strict=True)))
    rng = np.random.default_rng(seed)
    weight, x = whole(rng, 2, 3, *taps), rng.poisson(0.7, (4, 3, *size))
    node = conv_node(weight, size, stride, padding)
    expected = correlate(x, weight, stride, padding)
    graph = chain((3, *size), conv=node, n=if_node(expected.shape[1:]))
    network, found = draft(graph, WHOLE)
    if not network.layers:
        (finding,) = [f for f in found if f.severity == "error"]
        assert finding.code == "kernel_square"
        assert taps[0] != taps[1]
        return
    (layer,) = network.layers
    assert layer.weight.shape[2] == layer.weight.shape[3] >= max(taps)
    assert np.array_equal(correlate(x, layer.weight.astype(int), layer.stride, layer.padding), expected)
    if taps[0] == taps[1]:
        assert (layer.weight.shape[2:], layer.padding) == (taps, padding)


@pytest.mark.parametrize("size", list(itertools.product([1, 3, 4, 7], [2, 5, 6, 8])))
def test_matrices_over_maps_that_are_not_square_fit_a_square_kernel(size):
    rng = np.random.default_rng(3)
    inputs = 2 * size[0] * size[1]
    graph = chain(
        (2, *size), flat=flatten_node((2, *size)), fc=linear_node(whole(rng, 3, inputs)), n=if_node((3,), 200.0)
    )
    deployment = assert_same_as_reference(graph, raster((2, *size), rate=0.4), ["n"])
    (layer,) = lower(graph, WHOLE)[0].layers
    assert layer.weight.shape == (3, 2, max(size), max(size))
    assert max(layer.padding) <= 7
    # the node keeps integers of its own shape
    assert np.array_equal(deployment.quantized["fc"].weight, graph.nodes["fc"].weight)


def test_a_kernel_of_odd_difference_is_refused_unless_stride_or_output_leave_room():
    odd = chain((1, 8, 8), c=conv_node(np.ones((1, 1, 3, 4)), None), n=if_node((1, 6, 5)))
    finding = errors(odd)["kernel_square"]
    assert (finding.node, finding.value) == ("c", [3, 4])
    assert "zeros around it would give another map than 6x5" in finding.problem
    strided = chain((1, 9, 8), c=conv_node(np.ones((1, 1, 3, 4)), None, 2), n=if_node((1, 4, 3)))
    assert errors(strided) == {}


def test_what_a_square_would_exceed_is_said_of_the_square():
    long = chain((1, 1, 20), f=flatten_node((1, 1, 20)), fc=linear_node(np.ones((2, 20))), n=if_node((2,)))
    found = errors(long)
    assert "kernel 1x20 exceeds 16x16" in found["kernel_size"].problem
    assert "padding (10, 0), which the square kernel of 20 needs, exceeds 7" in found["padding"].problem
    huge = chain((1, 1, 5000), f=flatten_node((1, 1, 5000)), fc=linear_node(np.ones((2, 5000))), n=if_node((2,)))
    assert errors(huge)["size"].limit == 1 << 24


def test_the_least_square_is_taken():
    same = Axis(taps=(3,), paddings=(1,), strides=(1,), size=8, positions=8)
    assert (square(same, same).kernel, square(same, same).padding) == (3, (1, 1))
    line = Axis(taps=(1,), paddings=(0,), strides=(1,), size=1, positions=1)
    one = square(line, dataclasses.replace(line, taps=(4,), size=4))
    assert (one.kernel, one.padding, one.stride) == (4, (2, 0), (2, 1))


# ---------------------------------------------------------------- lines


def conv1d_node(weight, stride=1, padding=0, bias=None, dilation=1):
    bias = np.zeros(weight.shape[0]) if bias is None else bias
    return make_node(
        nir.Conv1d,
        input_shape=None,
        weight=weight.astype(np.float32),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=1,
        bias=bias.astype(np.float32),
    )


@pytest.mark.parametrize(("taps", "stride", "padding"), [(1, 1, 0), (3, 1, 1), (4, 2, 1), (15, 1, 7)])
def test_convolutions_over_lines_are_held(taps, stride, padding):
    rng = np.random.default_rng(taps)
    length = (20 + 2 * padding - taps) // stride + 1
    graph = chain(
        (2, 20),
        c=conv1d_node(whole(rng, 3, 2, taps), stride, padding),
        n=if_node((3, length), 150.0),
        d=conv1d_node(whole(rng, 2, 3, 3), 1, 1),
        m=if_node((2, length), 150.0),
        f=flatten_node((2, length)),
        fc=linear_node(whole(rng, 2, 2 * length)) if length <= 15 else linear_node(np.zeros((2, 2 * length))),
        k=if_node((2,), 150.0),
    )
    if length > 15:  # a matrix over more than 15 pixels in a row needs too large a square
        assert {"kernel_size", "padding"} <= set(errors(graph))
        nodes = {name: graph.nodes[name] for name in ("c", "n", "d", "m")}
        graph = chain((2, 20), **nodes)
    assert_same_as_reference(graph, raster((2, 20), rate=0.5), ["n", "m"])


def test_a_line_too_long_for_a_square_is_refused_by_name():
    graph = chain((1, 40), c=conv1d_node(np.ones((1, 1, 16))), n=if_node((1, 25)))
    assert errors(graph)["padding"].node == "c"
    dilated = chain((1, 40), c=conv1d_node(np.ones((1, 1, 3)), dilation=2), n=if_node((1, 36)))
    assert "dilation 2" in errors(dilated)["structure"].problem


# ---------------------------------------------------------------- sums


def summed(second, shortcut=None, size=(6, 6), stride=1):
    """input -> c -> a; c2(a) + second(a or input) -> b."""
    rng = np.random.default_rng(5)
    nodes = {
        "input": input_node(2, *size),
        "c": conv_node(whole(rng, 3, 2, 3, 3), None, 1, 1),
        "a": if_node((3, *size), 400.0),
        "c2": conv_node(whole(rng, 4, 3, 3, 3), None, stride, 1),
        "second": second,
        "b": if_node((4, size[0] // stride, size[1] // stride), 300.0),
        "output": output_node(4, size[0] // stride, size[1] // stride),
    }
    edges = [("input", "c"), ("c", "a"), ("a", "c2"), ("c2", "b"), ("second", "b"), ("b", "output")]
    return make_graph(nodes, [*edges, (shortcut or "a", "second")])


@pytest.mark.parametrize("source", ["a", "input"])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (1, 1), (5, 1), (1, 2), (3, 2)])
def test_sums_of_differently_weighted_paths_are_one_convolution_side_by_side(source, kernel, stride):
    rng = np.random.default_rng(kernel)
    channels = 3 if source == "a" else 2
    second = conv_node(whole(rng, 4, channels, kernel, kernel), None, stride, kernel // 2)
    graph = summed(second, source, stride=stride)
    deployment = assert_same_as_reference(graph, raster((2, 6, 6), rate=0.5), ["a", "b"])
    layer = lower(graph, WHOLE)[0].layers[1]
    assert layer.input_shape == (3 + channels, 6, 6)
    assert [feed.shift for feed in layer.feeds] == [0, layer.inlets[0].shape[1]]
    for node in ("c2", "second"):
        assert np.array_equal(deployment.quantized[node].weight, graph.nodes[node].weight)


def test_biases_of_a_sum_add_up():
    rng = np.random.default_rng(8)
    graph = summed(conv_node(whole(rng, 4, 3, 1, 1), None, 1, 0, bias=[5.0, -3.0, 0.0, 7.0]))
    graph.nodes["c2"].bias = np.array([1.0, 2.0, -9.0, 0.0], np.float32)
    deployment = assert_same_as_reference(graph, raster((2, 6, 6), rate=0.5), ["a", "b"])
    assert deployment.quantized["second"].bias.tolist() == [5, -3, 0, 7]
    assert deployment.quantized["c2"].bias.tolist() == [1, 2, -9, 0]
    graph.nodes["c2"].bias = np.array([-5.0, 3.0, 0.0, -7.0], np.float32)
    deployment = assert_same_as_reference(graph, raster((2, 6, 6), rate=0.5), ["a", "b"])
    assert deployment.quantized["second"].bias is None


def test_average_pooled_and_plain_inputs_add_up_with_weights_of_their_own():
    rng = np.random.default_rng(9)
    nodes = {
        "input": input_node(2, 8, 8),
        "c": conv_node(whole(rng, 2, 2, 3, 3), None, 1, 1),
        "a": if_node((2, 8, 8), 300.0),
        "pool": pool_node(nir.AvgPool2d, 2),
        "p": conv_node(whole(rng, 3, 2, 3, 3, factor=4), None, 1, 1),
        "d": conv_node(whole(rng, 2, 2, 1, 1), None, 2, 0),
        "e": if_node((2, 4, 4), 300.0),
        "q": conv_node(whole(rng, 3, 2, 1, 1), None),
        "b": if_node((3, 4, 4), 500.0),
        "output": output_node(3, 4, 4),
    }
    pairs = "input c, c a, a pool, pool p, p b, a d, d e, e q, q b, b output"
    graph = make_graph(nodes, [tuple(pair.split()) for pair in pairs.split(", ")])
    deployment = assert_same_as_reference(graph, raster((2, 8, 8), rate=0.5), ["a", "e", "b"])
    # divided by four on the way in: the pool of the chip sums
    assert np.array_equal(deployment.quantized["p"].weight * 4, graph.nodes["p"].weight)


def test_matrices_over_maps_of_different_size_add_up():
    rng = np.random.default_rng(6)
    nodes = {
        "input": input_node(2, 5, 5),
        "c": conv_node(whole(rng, 2, 2, 2, 2), None),
        "a": if_node((2, 4, 4), 300.0),
        "d": conv_node(whole(rng, 3, 2, 4, 2), None, (1, 2), (0, 1)),
        "e": if_node((3, 2, 3), 300.0),
        "fa": flatten_node((2, 4, 4)),
        "fe": flatten_node((3, 2, 3)),
        "wa": linear_node(whole(rng, 3, 32)),
        "we": linear_node(whole(rng, 3, 18)),
        "b": if_node((3,), 500.0),
        "output": output_node(3),
    }
    pairs = "input c, c a, input d, d e, a fa, fa wa, wa b, e fe, fe we, we b, b output"
    graph = make_graph(nodes, [tuple(pair.split()) for pair in pairs.split(", ")])
    assert_same_as_reference(graph, raster((2, 5, 5), rate=0.5), ["a", "e", "b"])
    layer = next(layer for layer in lower(graph, WHOLE)[0].layers if layer.name == "b")
    assert (layer.input_shape, layer.weight.shape) == ((5, 4, 4), (3, 5, 4, 4))


def test_sums_that_are_no_one_convolution_are_refused_by_name():
    strides = summed(conv_node(np.ones((4, 3, 1, 1)), None, 2))
    strides.nodes["c2"] = conv_node(np.ones((4, 3, 4, 4)), None, 1)
    strides.nodes["b"], strides.nodes["output"] = if_node((4, 3, 3)), output_node(4, 3, 3)
    finding = errors(strides)["sum_geometry"]
    assert finding.node == "b"
    assert "'c2' 4x4 stride (1, 1) padding (0, 0), 'second' 1x1 stride (2, 2) padding (0, 0)" in finding.problem


def test_a_matrix_and_a_flattened_convolution_do_not_add_up():
    nodes = {
        "input": input_node(1, 2, 2),
        "c": conv_node(np.ones((2, 1, 1, 1)), None),
        "g": flatten_node((2, 2, 2)),
        "f": flatten_node((1, 2, 2)),
        "fc": linear_node(np.ones((8, 4))),
        "n": if_node((8,)),
        "output": output_node(8),
    }
    pairs = "input c, c g, g n, input f, f fc, fc n, n output"
    found = errors(make_graph(nodes, [tuple(pair.split()) for pair in pairs.split(", ")]))["sum_shape"]
    assert found.node == "n"
    assert "'fc' 8x1x1, 'c' 2x2x2" in found.problem


def test_differently_pooled_inputs_of_one_node_are_refused_with_the_way_out():
    nodes = {
        "input": input_node(1, 4, 4),
        "c": conv_node(np.ones((1, 1, 1, 1)), None),
        "a": if_node((1, 4, 4)),
        "pool": pool_node(nir.AvgPool2d, 2),
        "d": conv_node(np.ones((1, 1, 1, 1)), None, 2),
        "e": if_node((1, 2, 2)),
        "w": conv_node(np.ones((1, 1, 1, 1)), None),
        "b": if_node((1, 2, 2)),
        "output": output_node(1, 2, 2),
    }
    pairs = "input c, c a, a pool, pool w, input d, d e, e w, w b, b output"
    found = errors(make_graph(nodes, [tuple(pair.split()) for pair in pairs.split(", ")]))["rescale"]
    assert (found.node, "[1.0, 4.0]" in found.problem) == ("w", True)
    assert "give each a node of its own" in found.remedy


def test_a_residual_of_pooled_and_plain_maps_meets_the_same_weights():
    rng = np.random.default_rng(12)
    nodes = {
        "input": input_node(2, 8, 8),
        "c": conv_node(whole(rng, 2, 2, 3, 3), None, 1, 1),
        "a": if_node((2, 8, 8), 300.0),
        "pool": pool_node(nir.SumPool2d, 2),
        "d": conv_node(whole(rng, 2, 2, 3, 3), None, 2, 1),
        "e": if_node((2, 4, 4), 300.0),
        "w": conv_node(whole(rng, 3, 2, 3, 3), None, 1, 1),
        "b": if_node((3, 4, 4), 500.0),
        "output": output_node(3, 4, 4),
    }
    pairs = "input c, c a, a pool, pool w, a d, d e, e w, w b, b output"
    graph = make_graph(nodes, [tuple(pair.split()) for pair in pairs.split(", ")])
    assert_same_as_reference(graph, raster((2, 8, 8), rate=0.5), ["a", "e", "b"])


@pytest.mark.parametrize("kind", ["sum", "matrix", "line"])
def test_integers_of_several_nodes_and_of_embedded_kernels_are_fitted_and_come_back_from_files(kind, tmp_path):
    rng = np.random.default_rng(13)
    if kind == "sum":
        graph, data = summed(conv_node(rng.normal(size=(4, 3, 1, 1)), None, bias=[0.5, 0, 0, -0.5])), raster((2, 6, 6))
        names = ["a", "b"]
    elif kind == "matrix":
        fc = linear_node(rng.normal(0.3, 1, (3, 30)))
        graph, data = chain((2, 3, 5), f=flatten_node((2, 3, 5)), fc=fc, n=if_node((3,))), raster((2, 3, 5))
        names = ["n"]
    else:
        graph = chain((2, 12), c=conv1d_node(rng.normal(0.3, 1, (3, 2, 3)), 1, 1), n=if_node((3, 12)))
        data, names = raster((2, 12)), ["n"]
    fitted = nd.deploy(graph, "speck2f", convention=WHOLE, calibration=data)
    fitted.save(tmp_path)
    again = nd.load_deployment(tmp_path)
    reference, a, b = nd.run(graph, data, convention=WHOLE), fitted.run(data), again.run(data)
    for name in names:
        wanted = reference[name, "spikes"].data
        assert np.array_equal(a[name, "spikes"].data, b[name, "spikes"].data)
        assert np.abs(a[name, "spikes"].data - wanted).sum() <= 0.05 * wanted.sum()
    for name, node in graph.nodes.items():
        if name in again.quantized and hasattr(node, "weight"):
            assert again.quantized[name].weight.shape == node.weight.shape


# ---------------------------------------------------------------- pools


def test_chains_of_pools_are_one_window_and_one_factor():
    rng = np.random.default_rng(11)
    tall, wide = (
        make_node(nir.SumPool2d, kernel_size=np.array(k), stride=np.array(k), padding=np.array([0, 0]))
        for k in ([2, 1], [1, 2])
    )
    graph = chain(
        (1, 8, 8),
        c=conv_node(whole(rng, 2, 1, 3, 3), None, 1, 1),
        n=if_node((2, 8, 8), 300.0),
        tall=tall,
        wide=wide,
        avg=pool_node(nir.AvgPool2d, 2),
        d=conv_node(whole(rng, 2, 2, 2, 2, factor=4), None),
        m=if_node((2, 1, 1), 300.0),
    )
    assert_same_as_reference(graph, raster((1, 8, 8), rate=0.5), ["n", "m"])
    (feed,) = lower(graph, WHOLE)[0].layers[1].feeds
    assert (feed.pool, feed.rescale, feed.nodes) == (4, 0.25, ("tall", "wide", "avg"))


def test_a_core_pools_no_rectangles():
    tall = make_node(nir.SumPool2d, kernel_size=np.array([2, 1]), stride=np.array([2, 1]), padding=np.array([0, 0]))
    graph = chain(
        (1, 4, 4),
        c=conv_node(np.ones((1, 1, 1, 1)), None),
        n=if_node((1, 4, 4)),
        tall=tall,
        d=conv_node(np.ones((1, 1, 1, 1)), None),
        m=if_node((1, 2, 4)),
    )
    found = errors(graph)["pooling"]
    assert (found.node, "pools 2x1 in all" in found.problem) == ("tall", True)


# ---------------------------------------------------------------- all findings


def test_limits_are_checked_also_where_other_layers_cannot_be_lowered():
    graph = chain(
        (1, 90, 90),
        scale=make_node(nir.Scale, scale=np.ones((1, 90, 90), np.float32)),
        c=conv_node(np.ones((1, 1, 3, 3)), None, 1, 1),
        n=make_node(
            nir.LIF,
            **{
                key: np.full((1, 90, 90), value, np.float32)
                for key, value in {"tau": 1, "r": 1, "v_leak": 0, "v_threshold": 1, "v_reset": 0}.items()
            },
        ),
        d=conv_node(np.ones((1, 1, 17, 17)), None, 3, 8),
        m=if_node((1, 30, 30), -1.0),
    )
    found = errors(graph)
    assert {"type", "neuron", "kernel_size", "stride", "padding", "threshold"} <= set(found)
    assert found["kernel_size"].node == "d"


def test_a_loop_is_an_error_beside_the_others():
    nodes = {
        "input": input_node(1, 8, 8),
        "c": conv_node(np.ones((1, 1, 1, 1)), None),
        "n": if_node((1, 8, 8)),
        "back": conv_node(np.ones((1, 1, 17, 17)), None, 1, 8),
        "output": output_node(1, 8, 8),
    }
    pairs = "input c, c n, n back, back n, n output"
    found = errors(make_graph(nodes, [tuple(pair.split()) for pair in pairs.split(", ")]))
    assert {"recurrence", "kernel_size", "padding"} <= set(found)
    assert "not a step later" in found["recurrence"].problem


@pytest.mark.parametrize(
    ("weight", "threshold", "code", "words", "severity"),
    [
        ([[100.0, -100.0]], 0.1, "threshold_resolution", "any positive weight makes it fire", "warning"),
        ([[1e-6, 0.0]], 1.0, "weight_resolution", "all of them become 0", "error"),
        ([[0.0, 0.0]], 1.0, "weights", "all weights are zero", "warning"),
    ],
)
def test_numbers_that_vanish_beside_each_other_are_found(weight, threshold, code, words, severity):
    graph = chain((2,), fc=linear_node(weight), n=if_node((1,), threshold))
    report = nd.check(graph, "speck2f", convention=dataclasses.replace(WHOLE, v_min=None))
    (finding,) = [f for f in report.findings if f.code == code]
    assert words in finding.problem
    assert finding.severity == severity


@pytest.mark.parametrize(
    ("fields", "bias", "words"),
    [({"v_min": -1e6}, 0.0, "where v_min 1e+06 fills 16 bits"), ({}, 1e6, "where the bias 1e+06 fills 16 bits")],
)
def test_bounds_and_biases_that_leave_nothing_of_the_weights_are_found(fields, bias, words):
    affine = make_node(nir.Affine, weight=np.array([[1.0, -1.0]], np.float32), bias=np.array([bias], np.float32))
    found = errors(chain((2,), fc=affine, n=if_node((1,))), dataclasses.replace(WHOLE, **fields))
    assert words in found["weight_resolution"].problem
