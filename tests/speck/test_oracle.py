"""Held against sinabs: recorded cases beside the repository, goldens in it, and sinabs itself, run live."""

import json
import subprocess

import nir
import numpy as np
import pytest
from nets import (
    GOLDEN,
    chain,
    conv_node,
    flatten_node,
    if_node,
    linear_node,
    make_graph,
    pool_node,
    shared,
    vendor_python,
)
from nirdeploy_speck.config import chip_configuration
from nirdeploy_speck.network import lowered

import nirdeploy as nd

GOLDENS = {
    "pooled": (2, [1.0, 0.7, 1.3], [-1.0, -0.7, -1.3], {}),
    "reset": (1, [0.8, 1.0], [-0.5, -2.0], {"reset": "zero", "spikes_per_step": "one"}),
    "biased": (1, [0.9, 1.1], [-0.4, -1.0], {}),
}


def sinabs_convention(bounds, **fields):
    overrides = {f"if{i}": {"v_min": v} for i, v in enumerate(bounds)}
    return nd.convention("sinabs", overrides=overrides, **fields)


def deploy_max(graph, convention, **options):
    """Deploy with sinabs's rule; its warnings are tested elsewhere."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nd.deploy(graph, "speck2f", convention=convention, quantizer="max", **options)


def golden_graph(name, data):
    _, thresholds, _, _ = GOLDENS[name]
    shape = data["raster"].shape[1:]
    nodes = {}
    for index, threshold in enumerate(thresholds):
        weight, out = data[f"weight{index}"], data[f"q{index}_spikes"].shape[1:]
        if weight.ndim == 4:
            stride, padding = (2, 1) if name == "biased" and index == 0 else (1, int(index == 0))
            bias = data.get(f"bias{index}")
            nodes[f"w{index}"] = conv_node(weight, None, stride, padding, bias)
        else:
            before = (4, 1, 1) if name == "pooled" else (3, 5, 5)
            nodes["flatten"] = flatten_node(before)
            nodes[f"w{index}"] = linear_node(weight)
            out = (weight.shape[0],)
        nodes[f"if{index}"] = if_node(out, threshold)
        if name == "pooled" and index < 2:
            nodes[f"pool{index}"] = pool_node((nir.AvgPool2d, nir.SumPool2d)[index], 2)
    return chain(shape, **nodes)


def assert_equals_sinabs(data, deployment, prefix, names):
    """Weights, thresholds, spikes and voltages, integers compared with ==."""
    raster = data["raster" if "raster" in data else "in_raster"]
    found = deployment.run(raster)
    vmem = "v_mem" if f"{prefix}0_v_mem" in data else "vmem"
    high, low = ("threshold", "v_min") if f"{prefix}0_threshold" in data else ("thr_high", "thr_low")
    for index, name in enumerate(names):
        key = f"{prefix}{index}_"
        weight, neuron = deployment.quantized[f"w{index}"], deployment.quantized[name]
        assert np.array_equal(weight.weight.reshape(data[key + "weight"].shape), data[key + "weight"])
        expected_bias = data[key + "bias"]
        if expected_bias.any():
            assert np.array_equal(weight.bias, expected_bias)
        else:
            assert weight.bias is None
        assert neuron.threshold == data[key + high]
        assert neuron.v_min == data[key + low]
        spikes, voltages = data[key + "spikes"], data[key + vmem]
        assert spikes.sum() > 0 or index > 0
        assert np.array_equal(found[name, "spikes"].data.reshape(spikes.shape), spikes)
        assert np.array_equal(found[name, "v_mem"].data.reshape(voltages.shape), voltages)


def assert_equals_configuration(data, deployment, prefix, names):
    """Per-core fields: memories, weights with x before y, the reset."""
    layers = chip_configuration(deployment.quantized, deployment.placement)["cnn_layers"]
    weights = "config_weights" if f"{prefix}0_config_weights" in data else "cfg_weights"
    reset = "reset_to_zero" if f"{prefix}0_reset_to_zero" in data else "return_to_zero"
    memory = "memory" if f"{prefix}0_memory" in data else "mem"
    for index, (name, layer) in enumerate(zip(names, lowered(deployment.quantized).layers, strict=True)):
        fields = layers[str(deployment.placement.cores[name][0])]
        key = f"{prefix}{index}_"
        assert np.array_equal(np.array(fields["weights"]), data[key + weights])
        assert fields["return_to_zero"] == bool(data[key + reset])
        assert fields["threshold_high"] == deployment.quantized[name].threshold
        assert list(layer.memory.values()) == data[key + memory].tolist()


def assert_equals_every_field(data, deployment):
    """Of the recorded cases, on the cores that sinabs chose: all fields it sets, destinations as they stand."""
    layers = chip_configuration(deployment.quantized, deployment.placement)["cnn_layers"]
    assert len(layers) == int(data["n_layers"])
    for index in range(len(layers)):
        key = f"L{index}_"
        fields = layers[str(int(data[key + "core"]))]
        dimensions = fields["dimensions"]
        assert np.array_equal(np.array(fields["weights"]), data[key + "cfg_weights"])
        assert fields["biases"] == data[key + "bias"].tolist()
        for which, name in (("input_shape", "in_shape"), ("output_shape", "neuron_shape")):
            shape = dimensions[which]
            assert [shape["feature_count"], shape["size"]["y"], shape["size"]["x"]] == data[key + name].tolist()
        for name in ("stride", "padding"):
            assert [dimensions[name]["y"], dimensions[name]["x"]] == data[key + name].tolist()
        assert list(np.shape(fields["neurons_initial_value"])) == data[key + "cfg_neurons_shape"].tolist()
        assert (fields["threshold_high"], fields["threshold_low"]) == (data[key + "thr_high"], data[key + "thr_low"])
        for ours, name in (("leak_enable", "leak_enable"), ("monitor_enable", "monitor"), ("return_to_zero",) * 2):
            assert fields[ours] == bool(data[key + name]), ours
        destinations = [
            [to[n] for n in ("layer", "pooling", "enable", "feature_shift")] for to in fields["destinations"]
        ]
        assert destinations == data[key + "cfg_dest"].tolist()


def on_sinabs_cores(data):
    return {"cores": {f"if{i}": int(data[f"L{i}_core"]) for i in range(int(data["n_layers"]))}}


@pytest.mark.parametrize("name", list(GOLDENS))
def test_goldens_recorded_from_sinabs_are_met_bit_for_bit(name):
    data = dict(np.load(GOLDEN / f"sinabs_{name}.npz"))
    _, thresholds, bounds, fields = GOLDENS[name]
    deployment = deploy_max(golden_graph(name, data), sinabs_convention(bounds, **fields))
    names = [f"if{i}" for i in range(len(thresholds))]
    assert_equals_sinabs(data, deployment, "q", names)
    assert_equals_configuration(data, deployment, "q", names)


def test_sinabs_itself_still_gives_the_goldens(tmp_path):
    python = vendor_python(".venv-sinabs")
    script = str(GOLDEN / "record_sinabs.py")
    subprocess.run([str(python), script, str(tmp_path)], check=True, timeout=240, capture_output=True)
    for name in GOLDENS:
        fresh, kept = np.load(tmp_path / f"sinabs_{name}.npz"), np.load(GOLDEN / f"sinabs_{name}.npz")
        assert set(fresh.files) == set(kept.files)
        for key in kept.files:
            assert np.array_equal(fresh[key], kept[key]), (name, key)


def case_graph(data):
    """The NIR graph of a recorded case, layers named w0, if0, w1, ..."""
    meta = json.loads(str(data["meta"]))
    nodes, bounds, layer = {}, [], 0
    for module in meta["spec"]["mods"]:
        kind = module[0]
        if kind == "conv":
            options, weight = module[3], data[f"p{layer}_weight"]
            bias = data.get(f"p{layer}_bias")
            nodes[f"w{layer}"] = conv_node(weight, None, options.get("s", 1), options.get("p", 0), bias)
        elif kind == "lin":
            nodes[f"w{layer}"] = linear_node(data[f"p{layer}_weight"])
        elif kind == "iaf":
            shape = tuple(int(n) for n in data[f"L{layer}_neuron_shape"])
            linear = nodes[f"w{layer}"].weight.ndim == 2
            nodes[f"if{layer}"] = if_node(shape[:1] if linear else shape, module[1]["thr"])
            bounds.append(module[1]["vmin"])
            layer += 1
        elif kind in ("avg", "sum"):
            nodes[f"pool{layer}"] = pool_node({"avg": nir.AvgPool2d, "sum": nir.SumPool2d}[kind], module[1])
        elif kind == "flat":
            nodes["flatten"] = flatten_node((8, 4, 4))
    return chain(meta["input_shape"], **nodes), sinabs_convention(bounds)


@pytest.mark.parametrize("case", ["1_conv_avg_lin", "2_nonsquare_stride_bias", "4_no_vmin_trap"])
def test_recorded_cases_are_met_bit_for_bit(case):
    data = dict(np.load(shared("cases", "speck", f"{case}.npz")))
    graph, convention = case_graph(data)
    deployment = deploy_max(graph, convention)
    names = [f"if{i}" for i in range(int(data["n_layers"]))]
    assert_equals_sinabs(data, deployment, "L", names)
    assert_equals_configuration(data, deployment, "L", names)
    assert_equals_every_field(data, deploy_max(graph, convention, **on_sinabs_cores(data)))


def test_recorded_residual_is_met_bit_for_bit():
    data = dict(np.load(shared("cases", "speck", "3_residual.npz")))
    graph = chain(
        (2, 12, 12),
        w0=conv_node(data["p0_weight"], None, 1, 1),
        if0=if_node((6, 12, 12)),
        w1=conv_node(data["p1_weight"], None, 1, 1),
        if1=if_node((6, 12, 12)),
        w2=conv_node(data["p2_weight"], None, 2, 1),
        if2=if_node((4, 6, 6)),
    )
    graph = make_graph(graph.nodes, [*graph.edges, ("if0", "w2")])
    deployment = deploy_max(graph, sinabs_convention([-1.0, -1.0, -1.0]))
    assert_equals_sinabs(data, deployment, "L", ["if0", "if1", "if2"])
    assert_equals_configuration(data, deployment, "L", ["if0", "if1", "if2"])
    assert_equals_every_field(data, deploy_max(graph, sinabs_convention([-1.0, -1.0, -1.0]), **on_sinabs_cores(data)))
