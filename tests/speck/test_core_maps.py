"""The map a core is configured for is its source core's own, and integers never wrap."""

import dataclasses

import nir
import numpy as np
import pytest
from nets import chain, conv_node, flatten_node, if_node, input_node, linear_node, output_node, pool_node, raster
from nirdeploy_speck.config import chip_configuration
from nirdeploy_speck.emulator import Core, layer_input, run_layer
from nirdeploy_speck.network import lower, lowered

import nirdeploy as nd
from nirdeploy.errors import QuantizationError
from nirdeploy.graph import make_graph, make_node

PLAIN = nd.Convention(if_gain="r", reset="zero", crossing="inclusive", v_min=-4.0)


def deployed(graph, convention=PLAIN):
    return nd.deploy(graph, "speck2f", convention=convention, quantizer="max")


def findings(graph, convention=PLAIN):
    return {f.code: f for f in nd.check(graph, "speck2f", convention=convention).errors}


def flattened(early, pool=False):
    """Conv (2, 4, 4), IF, perhaps a pool, Flatten before or behind the IF, matrix, IF."""
    rng = np.random.default_rng(1)
    nodes = {"conv": conv_node(rng.normal(size=(2, 1, 3, 3)), None, padding=1)}
    if early:
        nodes |= {"flat": flatten_node((2, 4, 4)), "a": if_node((32,))}
    else:
        nodes["a"] = if_node((2, 4, 4))
        nodes |= {"pool": pool_node(nir.SumPool2d, 2)} if pool else {}
        nodes["flat"] = flatten_node((2, 2, 2) if pool else (2, 4, 4))
    size = 8 if pool else 32
    return chain((1, 4, 4), **nodes, fc=linear_node(rng.normal(size=(3, size))), b=if_node((3,)))


def test_a_matrix_behind_a_flattened_population_is_a_kernel_over_the_map_on_the_core():
    early, late = deployed(flattened(True)), deployed(flattened(False))
    first, second = lowered(early.quantized).layers
    assert second.input_shape == first.output_shape == (2, 4, 4)
    assert second.weight.shape == (3, 2, 4, 4)
    data = raster((1, 4, 4))
    runs = early.run(data), late.run(data)
    assert runs[0]["b", "spikes"].data.sum() > 0
    assert np.array_equal(runs[0]["b", "v_mem"].data, runs[1]["b", "v_mem"].data)
    assert runs[0]["a", "spikes"].data.shape == (12, 3, 32)
    given = [chip_configuration(d.quantized, d.placement)["cnn_layers"] for d in (early, late)]
    assert given[0] == given[1]
    core = given[0][str(early.placement.cores["b"][0])]
    assert core["dimensions"]["input_shape"] == {"feature_count": 2, "size": {"x": 4, "y": 4}}
    assert core["dimensions"]["kernel_size"] == 4
    # 2 inputs of 16 taps to 3 outputs, and not 32 inputs of one
    assert second.memory["kernel_memory"] == 2 << (4 + 2)


def test_a_pool_on_the_way_makes_the_map_smaller():
    _, layer = lowered(deployed(flattened(False, pool=True)).quantized).layers
    assert layer.input_shape == (2, 2, 2)


def merged(other):
    """Two populations of 32 neurons, (2, 4, 4) and `other`, each flattened into one matrix."""
    kernel = np.ones((other[0], 1, 1, 1))
    nodes = {
        "input": input_node(1, 4, 4),
        "c": conv_node(np.ones((2, 1, 1, 1)), None),
        "n": if_node((2, 4, 4)),
        "d": conv_node(kernel, None, stride=4 // other[1]),
        "m": if_node(other),
        "f": flatten_node((2, 4, 4)),
        "g": flatten_node(other),
        "fc": linear_node(np.ones((3, 32))),
        "k": if_node((3,)),
        "output": output_node(3),
    }
    edges = [("input", "c"), ("c", "n"), ("n", "f"), ("f", "fc"), ("input", "d"), ("d", "m"), ("m", "g"), ("g", "fc")]
    return make_graph(nodes, [*edges, ("fc", "k"), ("k", "output")])


def test_a_merge_of_different_maps_is_refused_and_of_equal_ones_adds():
    found = findings(merged((8, 2, 2)))["merge_shape"]
    assert found.node == "fc"
    assert "'n' 2x4x4, 'm' 8x2x2" in found.problem
    deployment = deployed(merged((2, 4, 4)))
    data = raster((1, 4, 4))
    found = deployment.run(data)
    both = found["n", "spikes"].data.astype(int) + found["m", "spikes"].data
    weight = deployment.quantized["fc"].weight
    first = both[0].reshape(3, -1) @ weight.T
    assert np.array_equal(found["k", "spikes"].data[0], first >= deployment.quantized["k"].threshold)


def test_an_input_reshaped_before_a_convolution_is_refused():
    flatten = make_node(nir.Flatten, input_type={"input": np.array([2, 2, 4, 4])}, start_dim=0, end_dim=1)
    graph = chain((2, 2, 4, 4), f=flatten, c=conv_node(np.ones((1, 4, 1, 1)), None), n=if_node((1, 4, 4)))
    found = findings(graph)["reshape"]
    assert found.node == "c"
    assert "expects (4, 4, 4) where 'input' sends a map (64, 1, 1)" in found.problem


def test_events_of_another_map_are_never_reshaped_silently():
    network, _ = lower(flattened(False), PLAIN)
    with pytest.raises(
        QuantizationError, match=r"'b': events of 'a' come as \(32, 1, 1\), the core expects \(2, 4, 4\)"
    ):
        layer_input(network.layers[1], {"a": np.zeros((1, 1, 32, 1, 1), np.int32)})


# ---------------------------------------------------------------- 32 bits


def single(threshold=1.0):
    return chain((1,), fc=linear_node([[1.0]]), n=if_node((1,), threshold))


def core(subtract, many, threshold=1):
    return Core(np.array([[[[127]]]]), None, threshold, -1, 1.0, subtract=subtract, many=many)


@pytest.mark.parametrize(
    ("count", "subtract", "many", "words"),
    [
        (2**31 - 1, True, True, "its spike count reaches 272730423169"),
        (2**30, True, False, "v reaches 136365211647"),
    ],
)
def test_counts_and_voltages_beyond_32_bits_are_refused_not_wrapped(count, subtract, many, words):
    layer = lower(single(), PLAIN)[0].layers[0]
    with pytest.raises(QuantizationError, match=f"'n': {words}, which 32 bits do not hold"):
        run_layer(layer, core(subtract, many), np.full((1, 1, 1, 1, 1), count))


def test_large_inputs_whose_states_fit_are_computed():
    layer = lower(single(), PLAIN)[0].layers[0]
    result = run_layer(layer, core(False, True, 32767), np.full((2, 1, 1, 1, 1), 2**31 - 1))
    assert result.spikes.dtype == np.int32
    assert result.spikes.reshape(-1).tolist() == [127 * (2**31 - 1) // 32767] * 2
    assert result.v_mem.reshape(-1).tolist() == [0, 0]


def test_a_voltage_that_would_leave_64_bits_is_refused():
    layer = lower(single(), PLAIN)[0].layers[0]
    with pytest.raises(QuantizationError, match="'n': v can reach .* 64 bits"):
        run_layer(layer, core(True, False), np.full((600, 1, 1, 1, 1), 2**46))


def test_sums_of_feeds_do_not_wrap():
    layer = lower(merged((2, 4, 4)), PLAIN)[0].layers[2]
    many = np.full((1, 1, 2, 4, 4), 2**31 - 1, np.int32)
    assert layer_input(layer, {"n": many, "m": many}).max() == 2**32 - 2


# ---------------------------------------------------------------- units


def test_records_follow_v_unit():
    graph = chain((2,), fc=linear_node([[0.5, -0.25]]), n=if_node((1,), 1.0, r=2.0))
    data = raster((2,), rate=0.5)
    runs = {}
    for unit in ("model", "gain"):
        convention = dataclasses.replace(PLAIN, v_unit=unit)
        runs[unit] = deployed(graph, convention).run(data)["n", "v_mem"]
        reference = nd.run(graph, data, convention=convention)["n", "v_mem"]
        found = runs[unit]
        assert found.units == reference.units
        assert found.threshold * found.scale == pytest.approx(reference.threshold, rel=0.01)
    assert runs["gain"].scale == runs["model"].scale / 2
    assert np.array_equal(runs["gain"].data, runs["model"].data)
