"""Fewer bits a weight, and the quantiser 'exact', which takes integers as they are."""

import math
from dataclasses import replace

import nets as shared_nets
import nir
import numpy as np
import pytest
from nirdeploy_loihi.weights import coding, filling, kept_by_lava, round_weights, spacing
from training_steps import refused

import nirdeploy as nd
from nirdeploy.errors import QuantizationError

LIMITS = {"mixed": (-256, 254), "positive": (0, 255), "negative": (-255, 0)}
SIGNS = {"mixed": lambda x: x, "positive": np.abs, "negative": lambda x: -np.abs(x)}


def small(nets, weight, threshold=1.0, bias=None, **neuron):
    weight = np.atleast_2d(np.asarray(weight, dtype=float))
    node = nets.linear(weight) if bias is None else nets.affine(weight, np.asarray(bias, dtype=float))
    kind = nets.lif if "tau" in neuron else nets.if_
    return nets.chain(
        input=nets.source(weight.shape[1]), w=node, n=kind(len(weight), threshold=threshold, **neuron),
        output=nets.output(len(weight)),
    )  # fmt: skip


# ---------------------------------------------------------------- bits


@pytest.mark.parametrize("bits", range(2, 8))
@pytest.mark.parametrize("sign", list(SIGNS))
@pytest.mark.parametrize("seed", range(4))
def test_weights_of_few_bits_are_the_nearest_multiples_of_a_power_of_2(seed, sign, bits):
    weight = SIGNS[sign](np.random.default_rng(seed).normal(0, 1, (6, 7)))
    low, high = {"mixed": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1), "positive": (0, 2**bits - 1)}.get(
        sign, (1 - 2**bits, 0)
    )
    scale = filling(weight, bits)
    for factor in (1.0, 0.7, 0.4, 0.1, 1.6):
        found = round_weights(factor * scale * weight, LIMITS, bits)
        step = spacing(factor * scale * weight, coding(sign, bits))
        assert step & (step - 1) == 0
        counts = found // step
        assert np.array_equal(counts * step, found)
        assert counts.min() >= low
        assert counts.max() <= high
        assert LIMITS[sign][0] <= found.min()
        assert found.max() <= LIMITS[sign][1]
        assert sign != "mixed" or not np.any(found % 2)
        wanted = np.clip(np.rint(factor * scale * weight / step), low, high) * step
        if sign != "negative":
            assert np.array_equal(found, wanted)
        else:  # the most negative ones may have been moved for Lava; of 2 bits -1 and -2 are both powers of 2
            assert kept_by_lava(found) or bits == 2 or not found.any()
            assert np.abs(found - wanted).max() in (0, step)


@pytest.mark.parametrize("sign", list(SIGNS))
@pytest.mark.parametrize("bits", range(2, 8))
def test_the_largest_scale_fills_the_bits_of_one_sign_at_least(bits, sign):
    weight = SIGNS[sign](np.random.default_rng(1).normal(0, 1, (6, 7)))
    code = coding(sign, bits)
    found = round_weights(filling(weight, bits) * weight, LIMITS, bits)
    ends = (code.lowest * code.coarsest, code.highest * code.coarsest)
    assert found.min() == ends[0] or found.max() == ends[1] or sign == "negative"
    # the next larger scale would clip
    beyond = 1.01 * filling(weight, bits) * weight / code.coarsest
    assert beyond.min() < code.lowest or beyond.max() > code.highest


@pytest.mark.parametrize("bits", [2, 4, 7])
@pytest.mark.parametrize("quantizer", ["max", "calibrated"])
@pytest.mark.filterwarnings("ignore::nirdeploy.errors.QuantizationWarning")
def test_fewer_bits_a_weight_are_kept_to(nets, bits, quantizer):
    data = shared_nets.raster((1, 6, 6), 16, 4, 0)
    given = {"calibration": data, "convention": nets.plain, "quantizer": quantizer}
    found = nd.deploy(shared_nets.conv_net(0), "loihi2", weight_bits=bits, **given).quantized
    for node in ("conv1", "conv2", "fc"):
        values = np.unique(found[node].weight)
        common = math.gcd(*values.tolist())
        assert common & -common >= 2
        assert (values // (common & -common)).min() >= -(2 ** (bits - 1))
        assert (values // (common & -common)).max() <= 2 ** (bits - 1) - 1
        assert 2 <= len(values) <= 2**bits
    full = nd.quantize(shared_nets.conv_net(0), "loihi2", weight_bits=8, **given)
    plain = nd.quantize(shared_nets.conv_net(0), "loihi2", **given)
    assert all(np.array_equal(full[node].weight, plain[node].weight) for node in ("conv1", "conv2", "fc"))


@pytest.mark.parametrize("bits", [0, 1, 9, 4.0, True, "4"])
def test_bits_that_the_chip_does_not_have_are_refused(nets, bits):
    graph, words = small(nets, [0.5, -0.3]), f"weight_bits is {bits!r}, expected 2 to 8"
    refused(lambda: nd.quantize(graph, "loihi2", quantizer="max", convention=nets.plain, weight_bits=bits),
            QuantizationError, words)  # fmt: skip
    refused(lambda: nd.quantization_aware(graph, "loihi2", bits=bits, convention=nets.plain), QuantizationError, words)


def test_a_wide_fan_in_keeps_its_bits_at_a_finer_spacing(nets):
    rng = np.random.default_rng(0)
    weight = rng.choice([-1, 1], (3, 3000)) * rng.uniform(0, 1, (3, 3000))
    given = {"convention": nets.plain, "quantizer": "max", "weight_bits": 4}
    with pytest.warns(nd.errors.QuantizationWarning, match="worst synaptic sum"):
        found = nd.quantize(small(nets, weight, threshold=30.0), "loihi2", **given)["w"].weight
    assert len(np.unique(found)) >= 14
    assert np.abs(found).max() < 128
    assert np.maximum(found, 0).sum(1).max() < 1 << 17


# ---------------------------------------------------------------- integers as they are


@pytest.mark.parametrize("seed", range(15))
def test_exact_finds_the_integers_that_were_multiplied(nets, seed):
    rng = np.random.default_rng(seed)
    weight = 2 * rng.integers(-128, 128, (3, 5))
    bias, threshold = rng.integers(-200, 200, 3), int(rng.integers(1, 5000))
    weight[0, 0], weight[0, 1] = 130, -2  # no multiple fits, no divisor is common to all
    step = int(rng.integers(64, 128)) * 2.0 ** int(rng.integers(-30, 10))
    quantized = nd.quantize(
        small(nets, weight * step, threshold * step, bias * step), "loihi2", quantizer="exact", convention=nets.plain
    )
    assert np.array_equal(quantized["w"].weight, weight)
    assert quantized["n"].mantissa == threshold
    assert np.array_equal(quantized["n"].bias << quantized["n"].bias_exponent, 64 * bias)
    assert quantized["w"].scale == pytest.approx(step, rel=1e-15)


def test_exact_takes_the_largest_power_of_2_that_fits(nets):
    weight = [3.0, -5.0, 7.0]
    taken = nd.quantize(small(nets, weight, 11.0), "loihi2", quantizer="exact", convention=nets.plain)
    assert taken["w"].weight.tolist() == [[96, -160, 224]]
    assert taken["n"].mantissa == 11 * 32
    # 4 bits hold -8 to 7: the same
    four = nd.quantize(small(nets, weight, 11.0), "loihi2", quantizer="exact", convention=nets.plain, weight_bits=4)
    assert four["w"].weight.tolist() == [[96, -160, 224]]
    # a threshold of 17 bits stands in the way of more
    high = nd.quantize(small(nets, weight, 20001.0), "loihi2", quantizer="exact", convention=nets.plain)
    assert high["w"].weight.tolist() == [[12, -20, 28]]
    assert high["n"].mantissa == 80004


def test_exact_keeps_decays_and_leak(nets):
    tau, leak = 1e-3 * 4096 / 150, 64 * 4096 / 150 / 64
    graph = small(nets, [20.0, -12.0, 254.0], 100.0, tau=tau, r=1.0, leak=leak)
    found = nd.quantize(graph, "loihi2", quantizer="exact", convention=replace(nets.plain, gain="unit"))
    assert (found["n"].decay_v, found["n"].decay_u, found["n"].mantissa) == (150, 4096, 100)
    assert (found["n"].bias << found["n"].bias_exponent).tolist() == [64]


def test_what_is_not_integers_times_a_number_is_refused(nets):
    def exact(graph, bits=None, **changes):
        convention = replace(nets.plain, **changes)
        return lambda: nd.quantize(graph, "loihi2", quantizer="exact", convention=convention, weight_bits=bits)

    rng = np.random.default_rng(0)
    refused(exact(small(nets, rng.normal(0, 1, (30, 40)))), QuantizationError,
            "1200 different magnitudes, 8 bits have 128", "w")  # fmt: skip
    refused(exact(small(nets, [1.0, 1 / 3])), QuantizationError, "weight goes from", "w")
    refused(exact(small(nets, [3.0, -9.0]), bits=4), QuantizationError,
            "weight goes from -18 to 6, 4 bits hold -8 to 7 times a power of 2 up to 32", "w")  # fmt: skip
    refused(exact(small(nets, [100.0, 101.0], 2000.0), bits=4), QuantizationError, "weight goes from 100 to 101", "w")
    refused(exact(small(nets, [2.0, -254.0], 200000.0)), QuantizationError,
            "threshold mantissa 200000 exceeds 131071", "n")  # fmt: skip
    refused(exact(small(nets, [1.0, 3.0], 5.0, [1e4])), QuantizationError, "bias register .* exceeds", "n")
    refused(exact(small(nets, [1.0, 3.0], 5.0, tau=0.02), gain="unit"), QuantizationError,
            "v loses 204.8 of 4096 a step, no integer", "n")  # fmt: skip
    dyadic = {"tau": 1e-3 * 4096 / 128}
    refused(exact(small(nets, [1.0, 251.0], 7.0, leak=0.3, **dyadic), gain="unit"), QuantizationError,
            r"bias is 0\.6, no integer of its register with exponent 0", "n")  # fmt: skip
    refused(exact(small(nets, [1.0, 3.0], 5.0, **dyadic), gain="unit", crossing="inclusive"), QuantizationError,
            "fires at its threshold, the chip above one, and its v decays to any value", "n")  # fmt: skip
    refused(exact(small(nets, [1.0, 255.0], 5.0, [0.5]), crossing="inclusive"), QuantizationError,
            "and its bias is no whole weight", "n")  # fmt: skip


def test_an_inclusive_threshold_of_whole_weights_is_one_less(nets):
    graph = small(nets, [[2.0, 4.0, 2.0], [2.0, -254.0, 4.0]], 6.0)
    found = nd.quantize(graph, "loihi2", quantizer="exact", convention=replace(nets.plain, crossing="inclusive"))
    assert found["n"].mantissa == 5
    data = shared_nets.raster((3,), 40, 3, 0)
    chip = nd.deploy(graph, "loihi2", quantizer="exact", convention=replace(nets.plain, crossing="inclusive")).run(data)
    wanted = nd.run(graph, data, convention=replace(nets.plain, crossing="inclusive"))
    record = chip["output", "output"]
    assert record.data.sum() > 5
    assert np.array_equal(record.data[record.lag :], wanted.outputs[: len(data) - record.lag])


def test_what_only_integrates_keeps_below_its_threshold_where_it_can(nets):
    """The largest power of 2 would let v of the read-out reach the largest threshold; a smaller one does not."""
    li = nd.graph.make_node(nir.LI, tau=1e-3 * 4096 / 10 * np.ones(1), r=np.ones(1), v_leak=np.zeros(1))
    graph = nets.chain(input=nets.source(3), w=nets.linear([[1.0, 3.0, -5.0]]), n=li, output=nets.output(1))
    found = nd.quantize(graph, "loihi2", quantizer="exact", convention=replace(nets.plain, gain="unit"))
    largest = np.abs(found["w"].weight).max()
    # v settles at sum * 4096 / 10: 4 of 5 parts positive
    assert 409.6 * largest < 131071 <= 409.6 * largest * 2
