import dataclasses
import warnings

import nir
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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
    raster,
)
from nirdeploy_speck.emulator import Core, run_layer
from nirdeploy_speck.network import log2_ceil, lower
from nirdeploy_speck.quantize import sinabs_scale
from speck_programs import fired

import nirdeploy as nd
from nirdeploy.errors import (
    CheckError,
    PlacementError,
    QuantizationError,
    QuantizationWarning,
    RasterError,
    UnavailableError,
    UnsupportedError,
)
from nirdeploy.graph import make_graph, sha256

PLAIN = nd.Convention(if_gain="r", reset="zero", crossing="inclusive", v_min=-4.0)


def codes(graph, convention=PLAIN, target="speck2f", severity="error"):
    report = nd.check(graph, target, convention=convention)
    return {f.code: f for f in report.findings if f.severity == severity}


def one_layer(weight, size, **options):
    weight = np.asarray(weight, np.float32)
    node = conv_node(weight, size[1:], **options)
    out = nd.graph.output_shape("conv", node, size)
    return chain(size, conv=node, n=if_node(out))


# ---------------------------------------------------------------- rules


@pytest.mark.parametrize(
    ("graph", "code", "words"),
    [
        (one_layer(np.ones((1, 1, 3, 4)), (1, 8, 8)), "kernel_square", "kernel 3x4 is not square"),
        (one_layer(np.ones((1, 1, 17, 17)), (1, 20, 20)), "kernel_size", "17x17 exceeds 16"),
        (one_layer(np.ones((1, 1, 3, 3)), (1, 9, 9), stride=3), "stride", "stride 3 is not one of"),
        (one_layer(np.ones((1, 1, 3, 3)), (1, 9, 9), padding=8), "padding", r"\(8, 8\) exceeds 7"),
        (one_layer(np.ones((1, 1, 3, 3)), (1, 9, 9), dilation=2), "structure", r"dilation \(2, 2\)"),
        (one_layer(np.ones((2, 1, 3, 3)), (2, 9, 9), groups=2), "structure", "groups 2"),
        (one_layer(np.ones((1, 1, 3, 3)), (1, 130, 130), stride=4), "input_size", "130x130 exceeds 128x128"),
        (one_layer(np.ones((1, 1, 1, 1)), (1, 65, 65)), "output_size", "65x65 exceeds 64x64"),
        (one_layer(np.ones((1025, 1, 1, 1)), (1, 2, 2)), "features", "1025 output features exceed 1024"),
        (one_layer(np.ones((300, 64, 3, 3)), (64, 3, 3)), "kernel_memory", r"needs 524288 words .* \(5\) has 65536"),
        (one_layer(np.ones((128, 1, 1, 1)), (1, 64, 64)), "neuron_memory", "needs 524288 words of neuron memory"),
        (one_layer(np.ones((64, 128, 1, 1)), (128, 32, 32)), None, None),
        (chain((2,), fc=linear_node(np.eye(2)), n=lif_node((2,))), "neuron", "LIF: the chip has integrate-and-fire"),
        (chain((2,), n=if_node((2,))), "structure", "0 weight nodes"),
        (
            chain((2,), a=linear_node(np.eye(2)), b=linear_node(np.eye(2)), n=if_node((2,))),
            "structure",
            r"2 weight nodes \(a, b\)",
        ),
        (chain((2,), fc=linear_node(np.eye(2)), n=if_node((2,), v_reset=0.5)), "v_reset", None),
        (chain((2,), fc=linear_node(np.eye(2)), n=if_node((2,), threshold=0.0)), "threshold", "not positive"),
        (
            chain(
                (1, 9, 9),
                p=pool_node(nir.SumPool2d, 3),
                c=conv_node(np.ones((1, 1, 1, 1)), (3, 3)),
                n=if_node((1, 3, 3)),
            ),
            "pooling",
            "before the first convolution",
        ),
        (chain((2,), fc=linear_node(np.eye(2))), "output", "Linear between the last population and the Output"),
    ],
)
def test_each_limit_is_a_finding_with_value_and_limit(graph, code, words):
    found = codes(graph, dataclasses.replace(PLAIN, reset="v_reset"))
    if code is None:
        assert found == {} or "kernel_memory" not in found
        return
    assert code in found
    if words:
        import re

        assert re.search(words, found[code].problem), found[code].problem
    assert found[code].remedy


def pooled(window, kind=nir.SumPool2d, size=8, **options):
    pool = pool_node(kind, window, **options)
    shape = nd.graph.output_shape("p", pool, (1, size, size))
    return chain(
        (1, size, size),
        c1=conv_node(np.ones((1, 1, 1, 1)), None),
        n1=if_node((1, size, size)),
        pool=pool,
        c2=conv_node(np.ones((1, 1, 1, 1)), None),
        n2=if_node(shape),
    )


def test_pooling_of_three_overlapping_or_with_remainder_is_refused():
    assert "pooling by 3 is not one of [1, 2, 4]" in codes(pooled(3, size=9))["pooling"].problem
    assert "side by side" in codes(pooled(2, stride=1))["pooling"].problem
    assert "not divisible by 2" in codes(pooled(2, size=7))["pooling_remainder"].problem
    assert codes(pooled(4)) == {}


def test_fan_out_of_three_is_refused_by_name():
    nodes = {"input": input_node(2), "w0": linear_node(np.eye(2)), "n0": if_node((2,))}
    edges = [("input", "w0"), ("w0", "n0")]
    for i in (1, 2, 3):
        nodes |= {f"w{i}": linear_node(np.eye(2)), f"n{i}": if_node((2,)), f"out{i}": output_node(2)}
        edges += [("n0", f"w{i}"), (f"w{i}", f"n{i}"), (f"n{i}", f"out{i}")]
    found = codes(make_graph(nodes, edges))["destinations"]
    assert (found.node, found.value, found.limit) == ("n0", 3, 2)


def test_ten_layers_on_nine_cores_are_refused():
    nodes = {}
    for i in range(10):
        nodes |= {f"w{i}": linear_node(np.eye(2)), f"n{i}": if_node((2,))}
    assert "10 layers, the chip has 9 cores" in codes(chain((2,), **nodes))["cores"].problem


def test_heterogeneous_thresholds_are_refused_and_uniform_arrays_accepted():
    node = if_node((2,))
    node.v_threshold[1] = 2
    found = codes(chain((2,), fc=linear_node(np.eye(2)), n=node))["heterogeneous"]
    assert "v_threshold has 2 different values" in found.problem
    assert codes(conv_net()) == {}


def test_recurrence_and_several_inputs_are_refused():
    nodes = {"input": input_node(2), "w": linear_node(np.eye(2)), "n": if_node((2,)), "output": output_node(2)}
    edges = [("input", "w"), ("w", "n"), ("n", "output"), ("n", "w")]
    assert codes(make_graph(nodes, edges))["recurrence"].node == "w"
    nodes["more"] = input_node(2)
    assert "inputs" in codes(make_graph(nodes, [*edges[:3], ("more", "w")]))


def test_all_findings_come_at_once_with_torch_paths():
    graph = one_layer(np.ones((1, 1, 17, 17)), (1, 90, 90), padding=8)
    graph = nd.graph.with_metadata(graph, torch_paths={"conv": "features.0"})
    report = nd.check(graph, "speck2f", convention=PLAIN)
    assert {"kernel_size", "padding", "output_size"} <= {f.code for f in report.errors}
    assert all(f.torch_path == "features.0" for f in report.errors)
    assert "'conv' (features.0): kernel 17x17 exceeds 16" in str(report.errors[0])
    with pytest.raises(CheckError, match=r"speck2f cannot hold this graph: 'conv' \(features.0\)") as caught:
        nd.deploy(graph, "speck2f", convention=PLAIN, quantizer="max")
    assert caught.value.report == report


def test_what_the_chip_does_differently_is_a_warning():
    graph = one_layer(np.ones((1, 1, 3, 3)), (1, 8, 8), bias=[1.0])
    found = codes(graph, nd.Convention(if_gain="r", reset="zero"), severity="warning")
    assert set(found) == {"bias", "crossing", "v_min", "event_driven"}


@pytest.mark.parametrize("fields", [{"fires": "before_update"}, {"reset_time": "next_step"}, {"population_delay": 1}])
def test_conventions_the_chip_does_not_follow_are_refused(fields):
    assert "convention" in codes(conv_net(), dataclasses.replace(PLAIN, **fields))


def test_missing_convention_is_a_finding_not_an_exception():
    report = nd.check(conv_net(), "speck2f")
    assert [f.code for f in report.errors] == ["convention"]


# ---------------------------------------------------------------- quantisation


@pytest.mark.parametrize(
    ("values", "bits", "expected"),
    [
        ([0.5, -0.25], 8, 254.0),  # 127 / 0.5
        ([-1.0, 0.5], 8, 128.0),  # |-128 / -1|
        ([127.0, -128.0], 8, 1.0),  # the border: |min| <= |max| 128/127
        ([1.0, -32768.0], 16, 1.0),
    ],
)
def test_sinabs_scale_by_hand(values, bits, expected):
    assert sinabs_scale(np.array(values, np.float32), bits) == np.float32(expected)


def test_max_quantiser_by_hand():
    graph = chain((2,), fc=linear_node([[0.5, -0.25]]), n=if_node((1,), 1.0))
    quantized = nd.quantize(graph, "speck2f", convention=dataclasses.replace(PLAIN, v_min=-1.0), quantizer="max")
    assert quantized["fc"].weight.tolist() == [[127, -64]]  # -63.5 to even
    assert (quantized["n"].threshold, quantized["n"].v_min) == (254, -254)
    assert quantized["n"].scale == pytest.approx(1 / 254)
    assert quantized["fc"].bias is None


def test_input_gain_is_folded_into_the_weights():
    graph = chain((2,), fc=linear_node([[0.5, -0.25]]), n=if_node((1,), 1.0, r=2.0))
    quantized = nd.quantize(graph, "speck2f", convention=dataclasses.replace(PLAIN, v_min=-1.0), quantizer="max")
    assert quantized["fc"].weight.tolist() == [[127, -64]]
    assert quantized["n"].threshold == 127


def test_max_warns_of_its_traps():
    graph = chain((2,), fc=linear_node([[0.5, -0.25]]), n=if_node((1,), 1.0))
    with pytest.warns(QuantizationWarning, match="no lower bound of v, so 'max' scales by 1"):
        quantized = nd.quantize(graph, "speck2f", convention=nd.Convention(if_gain="r"), quantizer="max")
    assert quantized["fc"].weight.tolist() == [[0, 0]]
    biased = one_layer([[[[0.1]]]], (1, 2, 2), bias=[1.0])
    with pytest.warns(QuantizationWarning, match="limits weights to 13 of 127"):
        nd.quantize(biased, "speck2f", convention=PLAIN, quantizer="max")
    small = chain((2,), fc=linear_node([[9.0, -9.0]]), n=if_node((1,), 0.01))
    with pytest.raises(QuantizationError, match="'n': quantizer 'max' rounds the thresholds to 0"):
        nd.quantize(small, "speck2f", convention=PLAIN, quantizer="max")
    fitted = nd.quantize(small, "speck2f", convention=PLAIN, calibration=raster((2,)))
    assert fitted["n"].threshold >= 1
    zero = chain((2,), fc=linear_node([[0.0, 0.0]]), n=if_node((1,)))
    with pytest.raises(QuantizationError, match="'fc': all weights are zero"):
        nd.quantize(zero, "speck2f", convention=PLAIN, quantizer="max")


def test_calibrated_needs_data_and_names_max():
    with pytest.raises(QuantizationError, match="needs calibration data.*quantizer='max'"):
        nd.deploy(conv_net(), "speck2f", convention=PLAIN)
    with pytest.raises(QuantizationError, match="unknown quantizer 'best'"):
        nd.deploy(conv_net(), "speck2f", convention=PLAIN, quantizer="best")


def disagreement(graph, deployment, data, convention):
    reference, found = nd.run(graph, data, convention=convention), deployment.run(data)
    return sum(int(np.abs(reference[n, "spikes"].data - found[n, "spikes"].data).sum()) for n in ("if1", "if2", "if3"))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "convention",
    [
        PLAIN,
        nd.Convention(if_gain="r", reset="zero"),
        nd.Convention(if_gain="r", reset="subtract", spikes_per_step="many", v_min="-threshold"),
    ],
)
@pytest.mark.filterwarnings("ignore::nirdeploy.errors.QuantizationWarning")
def test_calibrated_never_agrees_less_than_max(seed, convention):
    graph, data = conv_net(seed), raster((1, 6, 6), 16, 8, seed)
    by_max = nd.deploy(graph, "speck2f", convention=convention, quantizer="max")
    fitted = nd.deploy(graph, "speck2f", convention=convention, calibration=data)
    assert disagreement(graph, fitted, data, convention) <= disagreement(graph, by_max, data, convention)
    for name in ("if1", "if2", "if3"):
        neuron = fitted.quantized[name]
        assert 1 <= neuron.threshold <= 32767
        assert -32768 <= neuron.v_min <= -1
    assert all(np.abs(fitted.quantized[w].weight).max() <= 128 for w in ("conv1", "conv2", "fc"))


def test_stages_leave_the_graph_as_it_was():
    graph = conv_net()
    before = sha256(graph)
    nd.deploy(graph, "speck2f", convention=PLAIN, calibration=raster((1, 6, 6))).run(raster((1, 6, 6)))
    assert sha256(graph) == before


# ---------------------------------------------------------------- emulator


def slow_layer(layer, core, x):
    """The definition, one neuron at a time."""
    steps, batch = x.shape[:2]
    out, height, width = layer.output_shape
    sy, sx = layer.stride
    py, px = layer.padding
    spikes = np.zeros((steps, batch, out, height, width), int)
    v_mem = np.zeros_like(spikes)
    padded = np.pad(x, ((0, 0), (0, 0), (0, 0), (py, py), (px, px)))
    kh, kw = core.weight.shape[2:]
    for b, o, i, j in np.ndindex(batch, out, height, width):
        v = 0
        for t in range(steps):
            window = padded[t, b, :, i * sy : i * sy + kh, j * sx : j * sx + kw]
            v += int((window * core.weight[o]).sum()) + (0 if core.bias is None else int(core.bias[o]))
            n, v = fired(v, core.threshold, core.v_min, core.subtract, core.many)
            spikes[t, b, o, i, j], v_mem[t, b, o, i, j] = n, v
    return spikes, v_mem


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    stride=st.sampled_from([1, 2]),
    padding=st.integers(0, 2),
    kernel=st.integers(1, 3),
    subtract=st.booleans(),
    many=st.booleans(),
    bias=st.booleans(),
)
def test_emulator_equals_the_definition(seed, stride, padding, kernel, subtract, many, bias):
    rng = np.random.default_rng(seed)
    graph = one_layer(rng.normal(size=(2, 2, kernel, kernel)), (2, 5, 4), stride=stride, padding=padding)
    network, found = lower(graph, PLAIN)
    assert not found
    (layer,) = network.layers
    core = Core(
        rng.integers(-128, 128, (2, 2, kernel, kernel)),
        rng.integers(-300, 300, 2) if bias else None,
        int(rng.integers(1, 400)),
        int(rng.integers(-500, 0)),
        1.0,
        subtract,
        many,
    )
    x = rng.poisson(0.5, (6, 2, 2, 5, 4))
    result = run_layer(layer, core, x)
    spikes, v_mem = slow_layer(layer, core, x)
    assert np.array_equal(result.spikes, spikes)
    assert np.array_equal(result.v_mem, v_mem)


def test_emulator_counts_what_would_not_fit_sixteen_bits():
    graph = chain((1,), fc=linear_node([[1.0]]), n=if_node((1,), 100.0))
    network, _ = lower(graph, PLAIN)
    core = Core(np.array([[[[127]]]]), None, 32767, -1, 1.0, subtract=True, many=True)
    result = run_layer(network.layers[0], core, np.full((1, 1, 1, 1, 1), 300))
    assert result.counters["saturations"] == 1


def test_scale_takes_integers_back_to_model_units():
    graph, data = conv_net(), raster((1, 6, 6), 1, 4, rate=0.2)
    convention = dataclasses.replace(PLAIN, v_min=-30.0)
    deployment = nd.deploy(graph, "speck2f", convention=convention, quantizer="max")
    found = deployment.run(data)["if1", "v_mem"]
    reference = nd.run(graph, data, convention=convention)["if1", "v_mem"]
    # one step: each of at most 9 weights is off by at most half an integer
    same = (
        nd.run(graph, data, convention=convention)["if1", "spikes"].data == deployment.run(data)["if1", "spikes"].data
    )
    assert np.abs(found.values - reference.values)[same].max() <= 9 * 0.5 * found.scale
    assert found.threshold == deployment.quantized["if1"].threshold


def test_runs_without_batch_and_by_node():
    deployment = nd.deploy(conv_net(), "speck2f", convention=PLAIN, quantizer="max")
    data = raster((1, 6, 6))
    with_batch, without = deployment.run(data), deployment.run(data[:, 1], nodes=["if2"], record="spikes")
    assert list(without) == [("if2", "spikes"), ("output", "output")]
    assert np.array_equal(with_batch["if2", "spikes"].data[:, 1], without["if2", "spikes"].data)
    assert with_batch.outputs.shape == (12, 3, 4)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"on": "chip"}, UnavailableError, "samna"),
        ({"on": "emulater"}, UnsupportedError, "Did you mean 'emulator'"),
        ({"mode": "events"}, UnsupportedError, "mode 'events' is unknown. Did you mean 'event'"),
        ({"nodes": ["if9"]}, UnsupportedError, "no population 'if9'"),
    ],
)
def test_runs_that_cannot_be_are_refused(options, error, words):
    deployment = nd.deploy(conv_net(), "speck2f", convention=PLAIN, quantizer="max")
    with pytest.raises(error, match=words):
        deployment.run(raster((1, 6, 6)), **options)
    with pytest.raises(RasterError, match="a negative count"):
        deployment.run(-raster((1, 6, 6)))
    with pytest.raises(RasterError, match="whole counts"):
        deployment.run(raster((1, 6, 6)) * 0.5)


# ---------------------------------------------------------------- placement


@pytest.mark.parametrize(("value", "expected"), [(1, 0), (2, 1), (3, 2), (9, 4), (64, 6), (65, 7)])
def test_log2_ceil(value, expected):
    assert log2_ceil(value) == expected


def deployed(**options):
    return nd.deploy(conv_net(), "speck2f", convention=PLAIN, quantizer="max", **options)


def test_stochastic_cores_are_avoided_by_default():
    cores = {c for found in deployed().placement.cores.values() for c in found}
    assert len(cores) == 3
    assert not cores & {0, 1}


def test_cores_the_user_fixes_are_kept_and_checked():
    assert deployed(cores={"conv1": 7, "if3": 0}).placement.cores["if1"] == (7,)
    with pytest.raises(PlacementError, match="core 9 does not exist"):
        deployed(cores={"conv1": 9})
    with pytest.raises(PlacementError, match="given to two layers"):
        deployed(cores={"conv1": 3, "if2": 3})
    with pytest.raises(PlacementError, match="'convx', which is no layer"):
        deployed(cores={"convx": 3})


def test_no_core_left_names_layer_and_cores():
    with pytest.raises(PlacementError, match="no core is left: 3 layers"):
        deployed(avoid_cores=range(7))


def test_layer_that_fits_no_allowed_core_says_why_for_each():
    # 64 inputs of 3x3 to 50 outputs need exactly 64 Ki kernel words: cores 5 and 6 only
    graph = chain((64, 3, 3), f=flatten_node((64, 3, 3)), fc=linear_node(np.ones((50, 576))), n=if_node((50,)))
    placed = nd.deploy(graph, "speck2f", convention=PLAIN, quantizer="max")
    assert placed.placement.cores["n"][0] in (5, 6)
    words = (
        r"'n': fits no core .*core 4: kernel_memory 65536 of 32768; core 5: avoided, would hold it.*"
        r"nor 2 of them together \(4 \(32 channels\), 8 \(16 channels\)\)\. "
        r"At most 48 output channels of 'n' fit; allow core 2 with avoid_cores=\[0, 1, 3, 5, 6, 7\]\."
    )
    with pytest.raises(PlacementError, match=words):
        nd.deploy(graph, "speck2f", convention=PLAIN, quantizer="max", avoid_cores=(0, 1, 2, 3, 5, 6, 7))


def test_utilization_lists_every_memory():
    rows = {(r["node"], r["resource"]): r for r in deployed().utilization()}
    row = rows["if1", "neuron_memory"]
    assert row["used"] == 3 << 6
    assert row["share"] == row["used"] / row["limit"]
    assert len(rows) == 9


# ---------------------------------------------------------------- files


@pytest.fixture
def saved(tmp_path):
    deployment = nd.deploy(conv_net(), "speck2f", convention=PLAIN, calibration=raster((1, 6, 6)))
    deployment.save(tmp_path / "build")
    return deployment, tmp_path / "build"


def test_deployments_come_back_and_run_the_same(saved):
    deployment, folder = saved
    again = nd.load_deployment(folder)
    assert again.report == deployment.report
    assert again.placement == deployment.placement
    assert again.convention == deployment.convention
    assert again.quantized.notes == deployment.quantized.notes
    a, b = deployment.run(raster((1, 6, 6))), again.run(raster((1, 6, 6)))
    assert all(np.array_equal(a[key].data, b[key].data) for key in a)


def test_stale_and_damaged_deployments_are_refused(saved):
    deployment, folder = saved
    other = dataclasses.replace(deployment, placement=dataclasses.replace(deployment.placement, usage=()))
    other.save(folder.parent / "other")
    (folder / "deployment.h5").write_bytes((folder.parent / "other" / "deployment.h5").read_bytes())
    with pytest.raises(ValueError, match="derived from another deployment.h5"):
        nd.load_deployment(folder)
    (folder / "chip.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        nd.load_deployment(folder)
    with pytest.raises(ValueError, match="does not exist"):
        nd.load_deployment(folder / "none")


def test_targets_are_listed_and_mistyped_ones_suggested():
    assert {"speck2e", "speck2f", "dynapcnn", "speck2cmini", "speck2dmini"} <= set(nd.targets())
    with pytest.raises(ValueError, match="unknown target 'spec2f'. Did you mean 'speck2f'"):
        nd.check(conv_net(), "spec2f", convention=PLAIN)


def test_memories_of_the_mini_chips_are_smaller():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = one_layer(np.ones((4, 1, 3, 3)), (1, 8, 8), bias=np.ones(4))
    assert codes(graph, target="speck2cmini") == {}
    with pytest.raises(PlacementError, match="core 2: bias_memory 4 of 0"):
        nd.deploy(graph, "speck2cmini", convention=PLAIN, calibration=raster((1, 8, 8)), avoid_cores=(0, 1, 3, 4))
