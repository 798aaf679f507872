"""The DVS layer: what sinabs's does, single events and whole rasters alike, by options and out of the graph."""

import json
import subprocess

import nir
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import GOLDEN, chain, conv_node, if_node, input_node, output_node, pool_node, raster, vendor_python
from nirdeploy_speck.config import chip_configuration
from nirdeploy_speck.cores import chip_program
from nirdeploy_speck.dvs import DvsLayer, dvs_options, with_options
from nirdeploy_speck.network import lowered

import nirdeploy as nd
from nirdeploy.backend import find_target
from nirdeploy.errors import PlacementError, RasterError
from nirdeploy.graph import make_graph, make_node

WHOLE = nd.Convention(if_gain="r", reset="subtract", spikes_per_step="many", crossing="inclusive", v_min=-300.0)
TABLE = find_target("speck2f").table["dvs"]


def of_case(size, pool, crop, merge, flip_x, flip_y, swap):
    given = {"input_shape": (2, *size), "pool": pool, "merge": merge, "mirror": (flip_y, flip_x), "swap": swap}
    return dvs_options({**given, "crop": crop}, TABLE)


def cases():
    data = np.load(GOLDEN / "sinabs_dvs.npz")
    return data, json.loads(str(data["cases"]))


@pytest.mark.parametrize("index", range(5))
def test_rasters_and_fields_are_those_of_sinabs(index):
    data, listed = cases()
    wanted = data[f"out{index}"]
    layer = with_options(of_case(*listed[index]), wanted.shape[1:], None, TABLE, "input")
    assert wanted.any()
    assert np.array_equal(layer.events(data[f"in{index}"][:, None].astype(int))[:, 0], wanted)
    weight = np.full((1, wanted.shape[1], 1, 1), 127.0)
    graph = chain(wanted.shape[1:], c=conv_node(weight, None), n=if_node((1, *wanted.shape[2:])))
    fields = deployed(graph, dvs=of_case(*listed[index]))[1]["dvs_layer"]
    config = json.loads(str(data[f"config{index}"]))
    assert {name: fields[name] for name in config} == config


def test_sinabs_itself_still_gives_the_golden(tmp_path):
    script = str(GOLDEN / "record_sinabs_dvs.py")
    python = str(vendor_python(".venv-sinabs"))
    subprocess.run([python, script, str(tmp_path)], check=True, timeout=240, capture_output=True)
    fresh, kept = np.load(tmp_path / "sinabs_dvs.npz"), np.load(GOLDEN / "sinabs_dvs.npz")
    assert set(fresh.files) == set(kept.files)
    assert all(np.array_equal(fresh[key], kept[key]) for key in kept.files)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_single_events_go_where_the_raster_does(data):
    pool = data.draw(st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2])))
    pooled = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    size = (2, pooled[0] * pool[0], pooled[1] * pool[1])
    origin = tuple(data.draw(st.integers(0, n - 1)) for n in pooled)
    cut = tuple(data.draw(st.integers(first, n - 1)) for first, n in zip(origin, pooled, strict=True))
    flags = data.draw(st.tuples(*[st.booleans()] * 4))
    layer = DvsLayer(size, flags[0], pool, origin, cut, (flags[1], flags[2]), flags[3])
    frame = np.random.default_rng(0).poisson(0.8, size)
    events = np.repeat(np.argwhere(frame), frame[frame > 0], axis=0)
    keep, channel, y, x = layer.addresses(*events.T)
    assert keep.sum() == len(channel)
    counts = np.zeros(layer.output_shape, int)
    np.add.at(counts, (channel, y, x), 1)
    assert np.array_equal(counts, layer.events(frame[None, None])[0, 0])


# ---------------------------------------------------------------- out of the graph


def deployed(graph, **options):
    found = nd.deploy(graph, "speck2f", convention=WHOLE, quantizer="max", **options)
    return found, chip_configuration(found.quantized, found.placement)


def pooled_input(kind=nir.SumPool2d, window=(2, 4), size=(2, 8, 8), factor=1):
    rng = np.random.default_rng(0)
    weight = rng.integers(-60, 127, (3, size[0], 2, 2)).astype(float)
    weight.flat[0] = 127
    values = {"kernel_size": window, "stride": window, "padding": (0, 0)}
    pool = make_node(kind, **{key: np.array(value) for key, value in values.items()})
    out = (3, size[1] // window[0] - 1, size[2] // window[1] - 1)
    return chain(size, pool=pool, c=conv_node(weight * factor, None), n=if_node(out, 150.0))


@pytest.mark.parametrize(
    ("kind", "window", "size", "factor"),
    [
        (nir.SumPool2d, (2, 4), (2, 8, 8), 1),
        (nir.AvgPool2d, (2, 2), (2, 8, 8), 4),
        (nir.SumPool2d, (4, 2), (1, 16, 8), 1),
    ],
)
def test_pooling_behind_the_input_goes_to_the_dvs_layer(kind, window, size, factor):
    graph, data = pooled_input(kind, window, size, factor), raster(size, rate=0.5)
    deployment, chip = deployed(graph)
    reference, found = nd.run(graph, data, convention=WHOLE), deployment.run(data)
    assert reference["n", "spikes"].data.sum() > 0
    for variable in ("spikes", "v_mem"):
        assert np.array_equal(found["n", variable].data, reference["n", variable].data)
    fields = chip["dvs_layer"]
    assert fields["pooling"] == {"x": window[1], "y": window[0]}
    assert fields["cut"] == {"x": size[2] // window[1] - 1, "y": size[1] // window[0] - 1}
    assert fields["merge"] == (size[0] == 1)
    assert fields["pass_sensor_events"] is False
    core = deployment.placement.cores["n"][0]
    assert fields["destinations"] == [{"enable": True, "layer": core}, {"enable": False, "layer": 0}]
    assert chip["cnn_layers"][str(core)]["dimensions"]["input_shape"]["size"] == {
        "x": size[2] // window[1],
        "y": size[1] // window[0],
    }


@pytest.mark.parametrize(
    ("graph", "code", "words"),
    [
        (pooled_input(window=(3, 3), size=(2, 9, 9)), "pooling", r"by \(3, 3\); the DVS layer pools by one of"),
        (pooled_input(size=(3, 8, 8)), "dvs_channels", "it has 3 channels; the DVS layer has 2"),
        (pooled_input(window=(4, 4), size=(1, 256, 8)), "dvs_size", "256x8 exceeds the DVS layer's 128x128"),
        (pooled_input(window=(2, 2), size=(2, 9, 8)), "pooling_remainder", r"9x8 map is not divisible by \(2, 2\)"),
    ],
)
def test_what_the_dvs_layer_cannot_pool_is_a_finding(graph, code, words):
    found = {f.code: f for f in nd.check(graph, "speck2f", convention=WHOLE).errors}
    import re

    assert re.search(words, found[code].problem), found[code].problem
    assert found[code].node == "input"
    assert "Pool the raster" in found[code].remedy or "divisible" in found[code].remedy


def readers(count, pools):
    nodes = {"input": input_node(1, 4, 4)}
    edges = []
    for i in range(count):
        out = (1, 4 // pools[i], 4 // pools[i])
        nodes |= {
            f"p{i}": pool_node(nir.SumPool2d, pools[i]),
            f"c{i}": conv_node(np.ones((1, 1, 1, 1)), None),
            f"n{i}": if_node(out),
            f"out{i}": output_node(*out),
        }
        edges += [("input", f"p{i}"), (f"p{i}", f"c{i}"), (f"c{i}", f"n{i}"), (f"n{i}", f"out{i}")]
    return make_graph(nodes, edges)


def test_the_dvs_layer_has_two_readers_and_one_window():
    assert nd.check(readers(2, [2, 2]), "speck2f", convention=WHOLE).ok
    found = {f.code: f for f in nd.check(readers(3, [2, 2, 2]), "speck2f", convention=WHOLE).errors}
    assert "feeds 3 layers (n0, n1, n2), at most 2" in found["destinations"].problem
    found = {f.code: f for f in nd.check(readers(2, [2, 4]), "speck2f", convention=WHOLE).errors}
    assert "'c0' by (2, 2), 'c1' by (4, 4)" in found["pooling"].problem


def test_a_layer_behind_the_dvs_layer_is_split_over_two_cores_at_most():
    graph = pooled_input()
    deployment, _ = deployed(graph, cores={"n": [2, 3]})
    program = chip_program(deployment.quantized, deployment.placement)
    assert [to.core for to in program.entry] == [0, 1]
    with pytest.raises(PlacementError, match="cannot be split over 3 cores: 'input' has 2 destinations for it"):
        deployed(graph, cores={"n": [2, 3, 4]})


@pytest.mark.parametrize("options", [{}, {"dvs": {"input_shape": (2, 16, 32), "pool": 2, "crop": ((0, 8), (4, 12))}}])
@pytest.mark.parametrize("window", [(1, 1), (2, 2)])
def test_a_network_sends_single_events_and_rasters_to_the_same_places(options, window):
    deployment, _ = deployed(pooled_input(window=window), **options)
    network = lowered(deployment.quantized, deployment.placement)
    frame = np.random.default_rng(1).poisson(0.5, network.input_shape)
    address = np.repeat(np.arange(frame.size), frame.reshape(-1))
    keep, channel, y, x = network.addresses(address)
    counts = np.zeros(network.input_map, int)
    np.add.at(counts, (channel, y, x), 1)
    assert keep.sum() == counts.sum() > 0
    assert np.array_equal(counts, network.events(frame[None, None])[0, 0])


# ---------------------------------------------------------------- options


def test_options_set_the_layer_and_the_raster_has_the_shape_that_reaches_it():
    graph = pooled_input(window=(2, 2), size=(1, 8, 8))
    options = {
        "input_shape": (2, 32, 24),
        "pool": (2, 1),
        "merge": True,
        "crop": ((4, 12), (6, 14)),
        "mirror": (False, True),
        "sensor": True,
    }
    deployment, chip = deployed(graph, dvs=options)
    data = raster((2, 32, 24), rate=0.1)
    # by hand, one thing after the other, as the options say
    pooled = data.sum(2, keepdims=True).reshape(*data.shape[:2], 1, 16, 2, 24).sum(4)
    expected = pooled[..., 4:12, 6:14][..., ::-1]
    reference = nd.run(graph, expected, convention=WHOLE)
    found = deployment.run(data)
    assert reference["n", "spikes"].data.sum() > 0
    assert np.array_equal(found["n", "spikes"].data, reference["n", "spikes"].data)
    assert np.array_equal(found["n", "v_mem"].data, reference["n", "v_mem"].data)
    fields = chip["dvs_layer"]
    assert fields["pooling"] == {"x": 2, "y": 4}
    assert fields["origin"] == {"x": 3, "y": 2}
    assert fields["cut"] == {"x": 6, "y": 5}
    assert (fields["merge"], fields["mirror"], fields["mirror_diagonal"]) == (True, {"x": True, "y": False}, False)
    assert fields["pass_sensor_events"] is True
    with pytest.raises(RasterError, match="32"):
        deployment.run(raster((1, 8, 8)))


def test_options_come_back_from_a_file(tmp_path):
    options = {"input_shape": (2, 16, 16), "crop": [[2, 10], [0, 8]], "swap": True}
    deployment, chip = deployed(pooled_input(window=(2, 2)), dvs=options)
    deployment.save(tmp_path)
    again = nd.load_deployment(tmp_path)
    assert again.placement == deployment.placement
    assert chip_configuration(again.quantized, again.placement) == chip
    data = raster((2, 16, 16))
    assert np.array_equal(again.run(data)["n", "spikes"].data, deployment.run(data)["n", "spikes"].data)
    assert lowered(again.quantized, again.placement).dvs == lowered(deployment.quantized, deployment.placement).dvs


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("crop", "dvs is 'crop', expected a mapping"),
        ({"crops": 1}, "dvs has an unknown entry 'crops'. Did you mean 'crop'"),
        ({"input_shape": (3, 8, 8)}, r"dvs input_shape \(3, 8, 8\) exceeds \(2, 128, 128\)"),
        ({"input_shape": (2, 8)}, r"dvs input_shape is \(2, 8\)"),
        ({"input_shape": (2, 8, 8), "pool": 3}, "pools y by 3, which does not divide 8"),
        ({"input_shape": (2, 9, 9), "pool": 3}, r"pools by 3, expected one of \[1, 2, 4\]"),
        ({"input_shape": (2, 8, 8), "pool": 2.0}, r"dvs pool is \(2.0, 2.0\), expected int or"),
        ({"input_shape": (2, 8, 8), "pool": 0}, "pools by 0, expected one of"),
        ({"input_shape": (2, 8, 8), "crop": (1, 2)}, "dvs crop is 1"),
        ({"input_shape": (2, 8, 8), "crop": ((0, 8), (3, 3))}, r"crops x \(3, 3\), expected a part of \(0, 8\)"),
        ({"input_shape": (2, 8, 8), "crop": ((0, 9), (0, 8))}, r"crops y \(0, 9\), expected a part of \(0, 8\)"),
        ({"input_shape": (2, 8, 8), "mirror": True}, "dvs mirror is True"),
        ({"input_shape": (2, 8, 8), "merge": 1}, "dvs merge is 1, expected a bool"),
        (
            {"input_shape": (2, 8, 8), "merge": True},
            r"dvs gives a map \(1, 8, 8\) .*, the graph's Input is \(2, 8, 8\)",
        ),
        ({}, r"dvs gives a map \(2, 128, 128\)"),
        (
            {"input_shape": (2, 9, 9), "crop": ((1, 9), (0, 8))},
            "dvs cuts y 1 to 9 before the graph pools by 2; the chip pools first. Use multiples of 2.",
        ),
        ({"input_shape": (2, 32, 32), "pool": 4}, "dvs pools by 8"),
    ],
)
def test_options_without_meaning_are_refused(options, words):
    with pytest.raises(PlacementError, match=words):
        deployed(pooled_input(window=(2, 2)), dvs=options)


def test_a_vector_is_no_map_for_the_sensor():
    graph = chain((4,), fc=make_node(nir.Linear, weight=np.ones((1, 4), np.float32)), n=if_node((1,)))
    with pytest.raises(PlacementError, match="'input': dvs gives maps, the graph's Input is"):
        deployed(graph, dvs={})
