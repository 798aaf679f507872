"""Quantisation-aware training for Speck: the integers that are trained are those that the chip gets, exactly."""

import math

import nets
import nir
import numpy as np
import pytest
import torch
from nets import (
    chain,
    conv_net,
    conv_node,
    if_node,
    input_node,
    linear_node,
    output_node,
    pool_node,
    raster,
)
from nirdeploy_speck import grid as grids
from training_steps import nearest, parameters_of, refused, train

import nirdeploy as nd
from nirdeploy.errors import CheckError, NirdeployError, QuantizationError, RasterError, UnsupportedError

PLAIN = nd.Convention(if_gain="r", reset="zero", crossing="inclusive", v_min=-4.0)
SUBTRACT = nd.Convention(if_gain="r", reset="subtract", spikes_per_step="many", v_min="-threshold")
STRICT = nd.Convention(if_gain="r", reset="subtract")
CONVENTIONS = {"plain": PLAIN, "subtract": SUBTRACT, "strict": STRICT}


def biased_net(seed):
    return nets.biased_net(seed, r=2.0)


def merged_net(seed):
    """Two weight nodes, both with biases, that add up in one population."""
    rng = np.random.default_rng(seed)
    nodes = {
        "input": input_node(2, 6, 6),
        "a": conv_node(rng.normal(0.1, 0.4, (3, 2, 3, 3)), None, 1, 1, rng.normal(0, 0.2, 3)),
        "na": if_node((3, 6, 6), 0.7),
        "b": conv_node(rng.normal(0.1, 0.4, (4, 3, 3, 3)), None, 1, 1, rng.normal(0, 0.2, 4)),
        "c": conv_node(rng.normal(0.1, 0.4, (4, 2, 3, 3)), (6, 6), 1, 1, rng.normal(0, 0.2, 4)),
        "nb": if_node((4, 6, 6), 0.9),
        "output": output_node(4, 6, 6),
    }
    edges = [("input", "a"), ("a", "na"), ("na", "b"), ("b", "nb"), ("input", "c"), ("c", "nb"), ("nb", "output")]
    return nd.graph.make_graph(nodes, edges)


NETS = {"pooled": (conv_net, (1, 6, 6)), "biased": (biased_net, (2, 8, 8)), "merged": (merged_net, (2, 6, 6))}


@pytest.mark.parametrize("bits", [None, 4, 2])
@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("name", list(CONVENTIONS))
@pytest.mark.parametrize("net", list(NETS))
def test_what_is_trained_is_what_the_chip_gets(net, name, calibrated, bits):
    make, shape = NETS[net]
    data = raster(shape, 12, 4, 1)
    aware = nd.quantization_aware(
        make(1), "speck2f", bits=bits, convention=CONVENTIONS[name], calibration=data if calibrated else None
    )
    before = parameters_of(aware)
    train(aware, data)
    after = parameters_of(aware)
    assert any(not np.array_equal(before[key], after[key]) for key in before)
    graph = aware.graph()
    quantized = nd.quantize(graph, "speck2f", quantizer="exact", weight_bits=bits)
    most = 2 ** ((bits or 8) - 1)
    simulated = aware.integers()
    for (node, field), value in after.items():
        own = aware.grid.trained[node][field]
        wanted = nearest(value, own)  # NumPy's rounding, not the module's
        assert np.array_equal(simulated[node][field], wanted)
        found = getattr(quantized[node], field)
        found = np.zeros(wanted.shape) if found is None else found
        assert np.array_equal(found.reshape(wanted.shape), wanted), (node, field)
        if field == "weight":
            assert found.min() >= -most
            assert found.max() <= most - 1

    reference = nd.run(graph, data, record=("spikes",))
    deployment = nd.deploy(graph, "speck2f", quantizer="exact", weight_bits=bits)
    chip = deployment.run(data, record=("spikes",))
    assert sum(int(record.data.sum()) for _, record in chip.records.items()) > 0
    for key, record in chip.records.items():
        assert np.array_equal(record.data, reference.records[key].data), key
    with torch.no_grad():
        own = aware.sequence(torch.tensor(data, dtype=torch.float32))[0].numpy()
    assert np.array_equal(own, chip.outputs)


@pytest.mark.parametrize("seed", range(3))
def test_sums_of_a_thousand_inputs_are_exact(seed):
    rng = np.random.default_rng(seed)
    graph = chain((1000,), fc=linear_node(rng.normal(0, 1, (8, 1000))), n=if_node((8,), 3.0))
    data = (rng.random((30, 4, 1000)) < 0.9).astype(np.int64)
    convention = nd.Convention(if_gain="r", reset="subtract", crossing="inclusive", spikes_per_step="many")
    aware = nd.quantization_aware(graph, "speck2f", convention=convention)
    mantissa = math.frexp(aware.grid.trained["fc"]["weight"].step)[0]
    assert mantissa * 2**6 == int(mantissa * 2**6)  # 24 bits, less 18 for 1000 * 128 + 2**15
    trained = aware.graph()
    chip = nd.deploy(trained, "speck2f", quantizer="exact").run(data)
    assert chip.outputs.sum() > 1000
    assert np.array_equal(chip.outputs, nd.run(trained, data).outputs)
    assert np.array_equal(chip.outputs, aware.sequence(torch.tensor(data, dtype=torch.float32))[0].detach().numpy())


def test_v_ends_where_its_register_does_in_training_too():
    weight = np.full((1, 4), -1.0)
    weight[0, 0] = 0.5
    graph = chain((4,), fc=linear_node(weight), n=if_node((1,), 1.0))
    aware = nd.quantization_aware(graph, "speck2f", convention=nd.Convention(if_gain="r", reset="zero"))
    step = (
        aware.grid.fixed["n"]["v_threshold"] / nd.quantize(aware.graph(), "speck2f", quantizer="exact")["n"].threshold
    )
    data = np.zeros((700, 1, 4), np.int64)
    data[:600, 0, 1:] = 1  # 600 times -3: far below -32768 / 128
    data[600:, 0, 0] = 300
    chip = nd.deploy(aware.graph(), "speck2f", quantizer="exact").run(data)
    own = aware.sequence(torch.tensor(data, dtype=torch.float32))[0].detach().numpy()
    assert aware.convention.for_node("n", "IF").v_min == -32768 * step
    assert chip.outputs.sum() > 50
    assert np.array_equal(chip.outputs, own)


def test_a_deployment_of_it_is_saved_and_loaded(tmp_path):
    aware = nd.quantization_aware(biased_net(4), "speck2f", bits=3, convention=SUBTRACT)
    deployment = nd.deploy(aware.graph(), "speck2f", quantizer="exact", weight_bits=3)
    deployment.save(tmp_path / "build")
    again = nd.load_deployment(tmp_path / "build")
    assert again.quantized.quantizer == "exact"
    for node, own in aware.integers().items():
        assert np.array_equal(again.quantized[node].weight.ravel(), own["weight"].ravel())


def conv1d_node(rng, padding):
    weight, bias = rng.normal(0.1, 0.5, (3, 2, 3)).astype(np.float32), np.full(3, 0.1, np.float32)
    return nd.graph.make_node(
        nir.Conv1d, input_shape=9, weight=weight, stride=1, padding=padding, dilation=1, groups=1, bias=bias
    )


def special_nets():
    """Input shape, graph and convention of networks that are lowered in their own ways."""
    rng = np.random.default_rng(0)
    first = {"c": conv_node(rng.normal(0.1, 0.5, (3, 2, 3, 3)), (4, 4), 1, 1), "n": if_node((3, 4, 4))}
    inner = chain((2, 4, 4), **first)
    matrix = linear_node(rng.normal(0.2, 1, (3, 4)))
    for name, kind in (("average", nir.AvgPool2d), ("sum", nir.SumPool2d)):  # left to the DVS layer
        yield f"{name}-pooled input", (2, 8, 8), chain((2, 8, 8), p=pool_node(kind, 2), **first), SUBTRACT
    nodes = {"input": input_node(2, 4, 4), "s": inner, "output": output_node(3, 4, 4)}
    edges = [("input", "s"), ("s", "output")]
    yield "subgraph", (2, 4, 4), nd.graph.make_graph(nodes, edges), STRICT
    yield "line", (2, 9), chain((2, 9), c=conv1d_node(rng, 0), n=if_node((3, 7))), STRICT
    yield "padded line", (2, 9), chain((2, 9), c=conv1d_node(rng, 1), n=if_node((3, 9))), SUBTRACT
    # NIR's own equation: the input gain r dt is 1 here
    scaled = nd.Convention(dt=1e-3, reset="zero")
    yield "r dt", (4,), chain((4,), fc=matrix, n=if_node((3,), r=1000.0)), scaled
    own = nd.Convention(if_gain="r", reset="zero", overrides={"n": {"v_min": -0.3, "crossing": "inclusive"}})
    yield "overrides", (4,), chain((4,), fc=matrix, n=if_node((3,))), own


@pytest.mark.parametrize(("shape", "graph", "convention"), [net[1:] for net in special_nets()],
                         ids=[net[0] for net in special_nets()])  # fmt: skip
def test_networks_that_are_lowered_in_their_own_ways_are_exact_too(shape, graph, convention):
    data = raster(shape, 20, 3, 0)
    aware = nd.quantization_aware(graph, "speck2f", bits=4, convention=convention)
    train(aware, data, steps=2)
    trained = aware.graph()
    chip = nd.deploy(trained, "speck2f", quantizer="exact", weight_bits=4).run(data)
    assert chip.outputs.sum() > 10
    assert np.array_equal(chip.outputs, nd.run(trained, data).outputs)
    own = aware.sequence(torch.tensor(data, dtype=torch.float32))[0].detach().numpy()
    assert np.array_equal(chip.outputs, own)


def test_gradients_pass_straight_through_the_rounding():
    data = raster((2, 8, 8), 12, 4, 2)
    x = torch.tensor(data, dtype=torch.float32)
    aware = nd.quantization_aware(biased_net(2), "speck2f", bits=4, convention=SUBTRACT)
    plain = nd.nir_to_torch(aware.graph())
    for module in (aware, plain):
        (module.sequence(x)[0].sum(0) ** 2).mean().backward()
    for node, own in aware.grid.trained.items():
        for field in own:
            found = getattr(aware.network.get((node,)), field)
            wanted = getattr(plain.get((node,)), field).grad
            inside = torch.from_numpy(np.abs(aware.integers()[node][field])) < own[field].highest
            assert wanted.abs().sum() > 0
            assert torch.equal(found.grad[inside], wanted[inside]), (node, field)


def test_a_step_at_a_time_is_a_sequence():
    data = torch.tensor(raster((2, 8, 8), 12, 4, 2), dtype=torch.float32)
    aware = nd.quantization_aware(biased_net(2), "speck2f", bits=4, convention=PLAIN)
    state, outputs = None, []
    for frame in data:
        out, state = aware(frame, state=state)
        outputs.append(out)
    found, _ = aware.sequence(data)
    assert found.sum() > 0
    assert torch.equal(torch.stack(outputs), found)


@pytest.mark.parametrize(("value", "gradient", "passed"), [
    (9.0, 1.0, 1.0), (9.0, -1.0, 0.0), (-9.0, 1.0, 0.0), (-9.0, -1.0, -1.0), (3.2, 1.0, 1.0), (3.2, -1.0, -1.0),
])  # fmt: skip
def test_beyond_the_ends_only_what_leads_back_is_passed(value, gradient, passed):
    aware = nd.quantization_aware(conv_net(0), "speck2f", bits=4, convention=PLAIN)
    weight, step = aware.network.get(("fc",)).weight, aware.grid.trained["fc"]["weight"].step
    with torch.no_grad():
        weight[0, 0] = value * step
    x = torch.ones(1, 1, 1, 6, 6)
    names = [name for name, own in aware.named_parameters() if own is weight]
    assert len(names) == 1
    held = {}

    def keep(module, args, result):
        held["weight"] = module.weight

    aware.network.get(("fc",)).register_forward_hook(keep)
    aware(x[0])
    assert held["weight"][0, 0].item() == max(-8, min(7, round(value))) * step
    held["weight"].backward(torch.full_like(weight, gradient))
    assert float(weight.grad[0, 0]) == passed


def test_a_module_is_left_as_it_is_and_a_file_keeps_the_integers(tmp_path):
    from nirdeploy.demonstration import DigitsNetwork

    torch.manual_seed(3)
    module = DigitsNetwork((4, 8))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    aware = nd.quantization_aware(module, "speck2f", bits=4, input_shape=(1, 8, 8))
    train(aware, raster((1, 8, 8), 10, 4, 0))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    nd.write(tmp_path / "trained.nir", aware.graph())
    quantized = nd.quantize(nd.read(tmp_path / "trained.nir"), "speck2f", quantizer="exact")
    for node, own in aware.integers().items():
        assert np.array_equal(quantized[node].weight, own["weight"])
    assert set(aware.integers()) == {"conv1", "conv2", "fc"}


def test_what_does_not_train_takes_no_gradient():
    aware = nd.quantization_aware(conv_net(0), "speck2f", convention=PLAIN)
    trainable = {name.removeprefix("_call.network.") for name, own in aware.named_parameters() if own.requires_grad}
    assert trainable == {"conv1.weight", "conv2.weight", "fc.weight"}  # biases are 0: the layers have none on the chip
    with_biases = nd.quantization_aware(biased_net(0), "speck2f", convention=PLAIN)
    trainable = {name.removeprefix("_call.network.") for name, p in with_biases.named_parameters() if p.requires_grad}
    assert trainable == {"c1.weight", "c1.bias", "c2.weight", "c2.bias", "fc.weight"}


def test_the_surrogate_is_the_modules_own_or_the_one_given():
    graph = nd.graph.with_metadata(conv_net(0), convention=PLAIN.to_dict())
    given = nd.nir_to_torch(graph)
    for name in ("if1", "if2", "if3"):
        given.get((name,)).surrogate = nd.Surrogate("atan", 3.0)
    kept = nd.quantization_aware(given, "speck2f")
    assert kept.network.get(("if2",)).surrogate == nd.Surrogate("atan", 3.0)
    other = nd.quantization_aware(given, "speck2f", surrogate="triangle")
    assert other.network.get(("if2",)).surrogate == nd.Surrogate("triangle")


# ---------------------------------------------------------------- the quantiser 'exact'


def one_layer(weight, threshold, bias=None):
    return chain((1, 4, 4), c=conv_node(weight, (4, 4), 1, 1, bias), n=if_node((2, 4, 4), threshold))


@pytest.mark.parametrize("seed", range(20))
def test_exact_finds_the_integers_that_were_multiplied(seed):
    rng = np.random.default_rng(seed)
    weight, bias = rng.integers(-128, 128, (2, 1, 3, 3)), rng.integers(-300, 300, 2)
    threshold = int(rng.integers(1, 20000))
    step = int(rng.integers(128, 256)) * 2.0 ** int(rng.integers(-30, 10))
    graph = one_layer(weight * step, threshold * step, bias * step)
    common = math.gcd(*weight.ravel().tolist(), *bias.tolist(), threshold)
    quantized = nd.quantize(graph, "speck2f", quantizer="exact", convention=nd.Convention(if_gain="r", reset="zero"))
    assert np.array_equal(quantized["c"].weight * common, weight)
    assert np.array_equal(quantized["c"].bias * common, bias)
    assert quantized["n"].threshold == threshold // common + 1  # the chip compares with >=, the graph with >
    assert quantized["n"].v_min == -32768
    assert quantized["c"].scale == quantized["n"].scale == common * step


def test_lowest_terms_are_what_was_simulated_divided():
    weight = np.array([2, -4, 6, 8, -10, 12, 14, 0, 2] * 2).reshape(2, 1, 3, 3)
    aware = nd.quantization_aware(one_layer(weight * 0.1, 2.6), "speck2f", bits=5, convention=PLAIN)
    step = aware.grid.trained["c"]["weight"].step
    with torch.no_grad():
        aware.network.get(("c",)).weight.copy_(torch.tensor(weight * step))
        aware.network.get(("n",)).v_threshold.fill_(26 * step)
    aware.grid.fixed["n"]["v_threshold"] = 26 * step
    graph = aware.graph()
    graph = nd.graph.with_metadata(graph, convention=nd.Convention(if_gain="r", reset="zero").to_dict())
    quantized = nd.quantize(graph, "speck2f", quantizer="exact")
    assert np.array_equal(quantized["c"].weight, weight // 2)
    assert quantized["n"].threshold == 14
    assert np.array_equal(aware.integers()["c"]["weight"], weight)


def test_integers_other_than_the_simulated_are_refused(monkeypatch):
    from dataclasses import replace

    right = grids.exact_integers

    def wrong(layer, bits):
        core = right(layer, bits)
        weight = core.weight.copy()
        weight.flat[3] += 1
        return replace(core, weight=weight)

    aware = nd.quantization_aware(conv_net(0), "speck2f", bits=4, convention=PLAIN)
    monkeypatch.setattr(grids, "exact_integers", wrong)
    with pytest.raises(QuantizationError, match="are not those that were simulated") as caught:
        aware.graph()
    assert caught.value.node == "conv1"


def test_exact_refuses_what_is_not_integers_times_a_number():
    def exact(graph, **options):
        return lambda: nd.quantize(graph, "speck2f", quantizer="exact", convention=PLAIN, **options)

    weight = np.arange(-9, 9).reshape(2, 1, 3, 3)
    refused(exact(conv_net(0)), QuantizationError, "weight goes from -?[0-9]+ to", "conv1")
    many = np.random.default_rng(0).normal(size=(2, 100, 3, 3))
    graph = chain((100, 4, 4), c=conv_node(many, (4, 4), 1, 1), n=if_node((2, 4, 4), 1.0))
    refused(exact(graph), QuantizationError, "1800 different magnitudes", "c")
    refused(exact(one_layer(weight, 5.0), weight_bits=4), QuantizationError, "from -9 to 8, the register holds -8", "c")
    refused(exact(one_layer(weight, 40000.0)), QuantizationError, "threshold goes from 40000", "n")
    refused(exact(one_layer(weight, 5.0, [40000, 1])), QuantizationError, "bias goes from 1 to 40000", "c")
    refused(lambda: nd.quantize(one_layer(weight, 5.0), "speck2f", quantizer="exact", convention=STRICT),
            QuantizationError, "is 1 larger, and would subtract that", "n")  # fmt: skip
    refused(exact(one_layer(weight * 0, 5.0)), QuantizationError, "all weights are zero", "c")


# ---------------------------------------------------------------- bits


@pytest.mark.parametrize("bits", [2, 4, 7])
@pytest.mark.parametrize("quantizer", ["max", "calibrated"])
@pytest.mark.filterwarnings("ignore::nirdeploy.errors.QuantizationWarning")
def test_fewer_bits_a_weight_are_kept_to(bits, quantizer):
    data = raster((1, 6, 6), 16, 4, 0)
    given = {"calibration": data, "convention": SUBTRACT, "quantizer": quantizer}
    found = nd.deploy(conv_net(0), "speck2f", weight_bits=bits, **given).quantized
    for node in ("conv1", "conv2", "fc"):
        most = int(np.abs(found[node].weight).max())
        assert found[node].weight.min() >= -(2 ** (bits - 1))
        assert found[node].weight.max() <= 2 ** (bits - 1) - 1
        assert most >= 2 ** (bits - 2)
    full, plain = (
        nd.quantize(conv_net(0), "speck2f", weight_bits=8, **given),
        nd.quantize(conv_net(0), "speck2f", **given),
    )
    assert all(np.array_equal(full[node].weight, plain[node].weight) for node in ("conv1", "conv2", "fc"))
    few, same = (nd.quantize(conv_net(0), "speck2f", weight_bits=bits, **given) for bits in (4, np.int64(4)))
    assert all(np.array_equal(few[node].weight, same[node].weight) for node in ("conv1", "conv2", "fc"))
    assert nd.quantization_aware(conv_net(0), "speck2f", bits=np.int8(4), convention=PLAIN).weight_bits == 4


@pytest.mark.parametrize("bits", [0, 1, 9, 4.0, True, "4"])
def test_bits_that_the_chip_does_not_have_are_refused(bits):
    words = f"weight_bits is {bits!r}, expected 2 to 8"
    refused(lambda: nd.quantize(conv_net(0), "speck2f", quantizer="max", convention=PLAIN, weight_bits=bits),
            QuantizationError, words)  # fmt: skip
    refused(
        lambda: nd.quantization_aware(conv_net(0), "speck2f", bits=bits, convention=PLAIN), QuantizationError, words
    )


# ---------------------------------------------------------------- refusals of training


def test_what_cannot_be_exact_is_refused():
    def aware(graph, convention=PLAIN, target="speck2f", **options):
        return lambda: nd.quantization_aware(graph, target, convention=convention, **options)

    weight = np.ones((2, 1, 3, 3))
    odd = chain(
        (1, 6, 6),
        c=conv_node(weight, (6, 6), 1, 1),
        n=if_node((2, 6, 6)),
        pool=pool_node(nir.AvgPool2d, 3),
        c2=conv_node(np.ones((2, 2, 1, 1)), (2, 2)),
        n2=if_node((2, 2, 2)),
    )
    # the chip's own rule for pools comes first where it refuses such windows at all
    refused(aware(odd), NirdeployError, "pool")
    gain = chain((1, 4, 4), c=conv_node(weight, (4, 4), 1, 1), n=if_node((2, 4, 4), r=3.0))
    refused(aware(gain), QuantizationError, "input gain is 3, no power of 2", "n")
    refused(aware(one_layer(weight * 0, 1.0)), QuantizationError, "all weights are zero", "c")
    refused(aware(one_layer(weight, -1.0)), CheckError, "threshold")
    refused(aware(conv_net(0), calibration=np.zeros((3, 1, 1, 5, 5))), RasterError, "shape")
    shared = nd.graph.make_graph(
        {
            "input": input_node(1, 4, 4),
            "c": conv_node(weight, (4, 4), 1, 1),
            "n": if_node((2, 4, 4)),
            "m": if_node((2, 4, 4), 2.0),
            "o": output_node(2, 4, 4),
            "p": output_node(2, 4, 4),
        },
        [("input", "c"), ("c", "n"), ("c", "m"), ("n", "o"), ("m", "p")],
    )
    refused(aware(shared), QuantizationError, "read by 'm' and 'n'|read by 'n' and 'm'", "c")
    refused(aware(conv_net(0), target="loihi2"), CheckError, "loihi2 cannot hold this graph")
    refused(aware(3), UnsupportedError, "a int cannot be trained")
