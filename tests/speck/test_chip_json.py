"""chip.json: each field of samna's configuration classes, and that a chip set by nothing else computes the network."""

import json

import nir
import numpy as np
import pytest
from nets import chain, conv_net, conv_node, flatten_node, if_node, linear_node, pool_node, raster
from nirdeploy_speck.config import chip_configuration
from speck_programs import fired

import nirdeploy as nd
from nirdeploy.errors import PlacementError

PLAIN = nd.Convention(if_gain="r", reset="subtract", spikes_per_step="many", crossing="inclusive", v_min=-4.0)

# the fields that the facts list, by section; x before y everywhere
CORE = {
    "dimensions",
    "weights",
    "biases",
    "neurons_initial_value",
    "leak_enable",
    "leak_internal_slow_clk_enable",
    "threshold_high",
    "threshold_low",
    "return_to_zero",
    "monitor_enable",
    "destinations",
    "input_congestion_balancer_enable",
    "output_decimator_enable",
    "output_decimator_interval",
}
SECTIONS = {
    "dvs_layer": {
        "merge",
        "on_channel",
        "off_channel",
        "pooling",
        "origin",
        "cut",
        "mirror",
        "mirror_diagonal",
        "pass_sensor_events",
        "monitor_enable",
        "raw_monitor_enable",
        "destinations",
    },
    "dvs_filter": {
        "enable",
        "filter_size",
        "threshold",
        "hot_pixel_filter_enable",
        "low_pass_mode_enable",
        "internal_slow_clk",
    },
    "readout": {
        "enable",
        "threshold",
        "readout_configuration_sel",
        "output_mode_sel",
        "low_pass_filter_disable",
        "low_pass_filter32_not16",
        "override_threshold_max",
        "monitor_enable",
        "readout_pin_monitor_enable",
        "output_neuron_num",
        "internal_slow_clk",
    },
    "factory_config": {"internal_slow_clk_divider", "io_sel"},
}


def deployed(graph, target="speck2f", **options):
    return nd.deploy(graph, target, convention=PLAIN, quantizer="max", **options)


def chip_of(deployment, tmp_path):
    """chip.json as it lies in the folder."""
    deployment.save(tmp_path / "build")
    return json.loads((tmp_path / "build" / "chip.json").read_text())


def run_chip(chip, raster, entries):
    """Spikes [step, feature, x, y] of each core, from the fields alone; coordinates are x, y as on the chip."""
    cores = {int(number): fields for number, fields in chip["cnn_layers"].items()}
    states = {c: np.array(f["neurons_initial_value"]) for c, f in cores.items()}
    spikes = {c: [] for c in cores}
    order = ordered(cores)
    for frame in raster.swapaxes(2, 3):
        inputs = {c: np.zeros(sizes(f, "input_shape"), int) for c, f in cores.items()}
        for core, pooling, shift in entries:
            send(inputs[core], frame, pooling, shift)
        for c in order:
            f, v = cores[c], states[c]
            pad, stride = f["dimensions"]["padding"], f["dimensions"]["stride"]
            x = np.pad(inputs[c], ((0, 0), (pad["x"],) * 2, (pad["y"],) * 2))
            kernel, weight = f["dimensions"]["kernel_size"], np.array(f["weights"])
            assert weight.shape[2:] == (kernel, kernel)
            for i, j in np.ndindex(v.shape[1:]):
                left, top = i * stride["x"], j * stride["y"]
                v[:, i, j] += np.tensordot(weight, x[:, left : left + kernel, top : top + kernel], 3)
            v += np.array(f["biases"])[:, None, None] if f["leak_enable"] else 0
            subtract = not f["return_to_zero"]
            n, states[c] = fired(v, f["threshold_high"], f["threshold_low"], subtract, many=True)
            spikes[c].append(n)
            for to in f["destinations"]:
                if to["enable"] and to["layer"] != 12:
                    send(inputs[to["layer"]], n, to["pooling"], to["feature_shift"])
    return {c: np.array(found) for c, found in spikes.items()}


def sizes(fields, which):
    shape = fields["dimensions"][which]
    return shape["feature_count"], shape["size"]["x"], shape["size"]["y"]


def ordered(cores):
    """Cores so that events only go forward."""
    left, found = set(cores), []
    while left:
        fed = {to["layer"] for c in left for to in cores[c]["destinations"] if to["enable"]}
        ready = sorted(left - fed)
        assert ready
        found += ready
        left -= set(ready)
    return found


def send(target, frame, pooling, shift):
    for c, x, y in np.argwhere(frame):
        target[c + shift, x // pooling, y // pooling] += frame[c, x, y]


def net():
    rng = np.random.default_rng(0)
    return chain(
        (2, 6, 8),
        c=conv_node(rng.normal(0.2, 0.5, (4, 2, 3, 5)), None, 1, 1),
        a=if_node((4, 6, 6)),
        pool=pool_node(nir.AvgPool2d, 2),
        d=conv_node(rng.normal(0.3, 0.6, (3, 4, 3, 3)), None, 1, 1, bias=rng.normal(0, 0.2, 3)),
        b=if_node((3, 3, 3)),
        flat=flatten_node((3, 3, 3)),
        fc=linear_node(rng.normal(0.2, 0.4, (5, 27))),
        k=if_node((5,)),
    )


@pytest.mark.parametrize("cores", [{}, {"a": [2, 3]}, {"b": [5, 4], "k": [8, 7]}])
def test_a_chip_set_by_the_file_alone_computes_the_network(cores, tmp_path):
    deployment, data = deployed(net(), cores=cores), raster((2, 6, 8), steps=8, batch=1, rate=0.5)
    chip = chip_of(deployment, tmp_path)
    expected = deployment.run(data)
    found = run_chip(chip, data[:, 0], [(core, 1, 0) for core in deployment.placement.cores["a"]])
    for name, numbers in deployment.placement.cores.items():
        spikes = np.concatenate([found[core] for core in numbers], axis=1).swapaxes(2, 3)
        wanted = expected[name, "spikes"].data[:, 0]
        assert wanted.sum() > 0
        assert np.array_equal(spikes.reshape(wanted.shape), wanted), name


def test_every_field_is_there_within_its_range(tmp_path):
    chip = chip_of(deployed(net(), cores={"a": [2, 3]}), tmp_path)
    assert set(chip) == {"deployment_sha256", "target", "cnn_layers", *SECTIONS}
    for section, names in SECTIONS.items():
        assert set(chip[section]) == names
    for fields in chip["cnn_layers"].values():
        assert set(fields) == CORE
        assert np.abs(np.array(fields["weights"])).max() <= 128
        assert np.abs(np.array(fields["biases"])).max() <= 32768
        assert 1 <= fields["threshold_high"] <= 32767
        assert -32768 <= fields["threshold_low"] <= -1
        assert fields["leak_enable"] is bool(np.any(fields["biases"]))
        assert np.shape(fields["neurons_initial_value"]) == sizes(fields, "output_shape")
        assert len(fields["destinations"]) == 2
        for to in fields["destinations"]:
            assert set(to) == {"enable", "layer", "pooling", "feature_shift"}
            assert not to["enable"] or str(to["layer"]) in chip["cnn_layers"]
    monitored = [fields["monitor_enable"] for fields in chip["cnn_layers"].values()]
    assert sum(monitored) == 1
    assert chip["dvs_layer"]["destinations"] == [{"enable": False, "layer": 0}] * 2
    assert chip["dvs_layer"]["cut"] == {"x": 127, "y": 127}
    assert chip["dvs_filter"]["enable"] is False
    assert chip["readout"]["enable"] is False


# ---------------------------------------------------------------- readout


def fields_of(deployment, population):
    chip = chip_configuration(deployment.quantized, deployment.placement)
    return chip, chip["cnn_layers"][str(deployment.placement.cores[population][0])]


def test_the_readout_of_speck_2f_reads_every_fourth_feature():
    plain, read = deployed(conv_net()), deployed(conv_net(), readout={"threshold": 7, "average": 32})
    _, before = fields_of(plain, "if3")
    chip, after = fields_of(read, "if3")
    assert after["destinations"][0] == {"enable": True, "layer": 12, "pooling": 1, "feature_shift": 0}
    assert after["dimensions"]["output_shape"]["feature_count"] == (4 - 1) * 4 + 1
    weights = np.array(after["weights"])
    assert np.array_equal(weights[::4], before["weights"])
    assert not np.delete(weights, [0, 4, 8, 12], axis=0).any()
    assert np.shape(after["biases"]) == (13,)
    assert np.shape(after["neurons_initial_value"]) == (13, 1, 1)
    assert chip["readout"] == {
        "enable": True,
        "threshold": 7,
        "readout_configuration_sel": 3,
        "output_mode_sel": 1,
        "low_pass_filter_disable": False,
        "low_pass_filter32_not16": True,
        "override_threshold_max": False,
        "monitor_enable": True,
        "readout_pin_monitor_enable": True,
        "output_neuron_num": 0,
        "internal_slow_clk": False,
    }
    rows = {(row["node"], row["resource"]): row["used"] for row in read.utilization()}
    assert rows["if3", "neuron_memory"] == 13
    # 4 channels in, 4 taps, 13 features out
    assert rows["if3", "kernel_memory"] == 4 << (2 + 4)
    data = raster((1, 6, 6))
    assert np.array_equal(plain.run(data).outputs.data, read.run(data).outputs.data)


def test_the_remap_can_be_left_out_and_other_chips_have_none():
    chip, fields = fields_of(deployed(conv_net(), readout={"remap": False, "average": 1}), "if3")
    assert fields["dimensions"]["output_shape"]["feature_count"] == 4
    assert chip["readout"]["low_pass_filter_disable"] is True
    _, fields = fields_of(deployed(conv_net(), "dynapcnn", readout={}), "if3")
    assert fields["dimensions"]["output_shape"]["feature_count"] == 4
    _, fields = fields_of(deployed(conv_net(), "dynapcnn", readout={"remap": False}), "if3")
    assert fields["dimensions"]["output_shape"]["feature_count"] == 4


def test_other_addressings_read_maps():
    graph = chain((1, 2, 2), c=conv_node(np.ones((2, 1, 1, 1)), None), n=if_node((2, 2, 2)))
    chip, _ = fields_of(deployed(graph, readout={"addressing": 0, "remap": False}), "n")
    assert chip["readout"]["readout_configuration_sel"] == 0
    with pytest.raises(PlacementError, match="'n': its map .2, 2, 2. .* does not go into readout addressing 3"):
        deployed(graph, readout={})
    with pytest.raises(PlacementError, match="'n': readout remap needs addressing 3"):
        deployed(graph, readout={"addressing": 0})


def many(classes):
    return chain((4,), fc=linear_node(np.ones((classes, 4))), n=if_node((classes,)))


@pytest.mark.parametrize(
    ("graph", "options", "words"),
    [
        (conv_net(), {"readout": 3}, "readout is 3, expected a mapping"),
        (conv_net(), {"readout": {"treshold": 3}}, "unknown entry 'treshold'. Did you mean 'threshold'"),
        (conv_net(), {"readout": {"threshold": 65536}}, "readout threshold is 65536, expected 0 to 65535"),
        (conv_net(), {"readout": {"threshold": True}}, "readout threshold is True"),
        (conv_net(), {"readout": {"average": 8}}, r"readout average is 8, expected one of \[1, 16, 32\]"),
        (conv_net(), {"readout": {"output_mode": 4}}, "readout output_mode is 4, expected 0 to 3"),
        (conv_net(), {"readout": {"remap": 1}}, "readout remap is 1, expected a bool"),
        (conv_net(), {"readout": {"node": "fc"}}, "readout node is 'fc', expected a population"),
        (conv_net(), {"readout": {"node": "if1"}}, "'if1': its map .3, 6, 6. "),
        (many(16), {"readout": {}}, r"'n': its map \(16, 1, 1\) .*at most 15 in all"),
        (
            conv_net(),
            {"readout": {}, "cores": {"if3": [2, 3]}},
            "'if3': cannot be split over 2 cores: the readout reads one core",
        ),
    ],
)
def test_readouts_without_meaning_are_refused(graph, options, words):
    with pytest.raises(PlacementError, match=words):
        deployed(graph, **options)


def test_fifteen_classes_are_read():
    _, fields = fields_of(deployed(many(15), readout={}), "n")
    assert fields["dimensions"]["output_shape"]["feature_count"] == 14 * 4 + 1


def test_a_population_with_two_targets_has_no_destination_left_for_the_readout():
    nodes = {"fc": linear_node(np.ones((2, 4))), "a": if_node((2,))}
    graph = chain((4,), **nodes, fd=linear_node(np.ones((2, 2))), b=if_node((2,)))
    assert fields_of(deployed(graph, readout={"node": "a"}), "a")[1]["destinations"][1]["layer"] == 12
    graph = nd.graph.make_graph(
        {**graph.nodes, "fe": linear_node(np.ones((2, 2))), "k": if_node((2,))},
        [*graph.edges, ("a", "fe"), ("fe", "k")],
    )
    with pytest.raises(PlacementError, match="'a': feeds b, k and the readout, at most 2 destinations"):
        deployed(graph, readout={"node": "a"})
