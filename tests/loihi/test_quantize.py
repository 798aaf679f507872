import dataclasses

import numpy as np
import pytest
from nirdeploy_loihi import BACKEND
from nirdeploy_loihi.agreement import disagreement, reference_of
from nirdeploy_loihi.lowering import lower
from nirdeploy_loihi.quantize import quantize_graph

from nirdeploy.errors import QuantizationError, QuantizationWarning, RasterError
from nirdeploy.pipeline import quantize

RNG = np.random.default_rng(11)


def one(nets, weight, bias=None, **neuron):
    weight = np.atleast_2d(np.asarray(weight, dtype=float))
    node = nets.linear(weight) if bias is None else nets.affine(weight, np.atleast_1d(bias))
    kind = nets.lif if "tau" in neuron else nets.if_
    return nets.chain(
        input=nets.source(weight.shape[1]), w=node, n=kind(len(weight), **neuron), output=nets.output(len(weight))
    )


def by_max(nets, graph, **changes):
    convention = dataclasses.replace(nets.plain, **changes)
    return quantize(graph, "loihi1", convention=convention, quantizer="max")


def unchecked(nets, graph):
    """As `by_max`, without the rules, which refuse what the quantiser would."""
    target = BACKEND.targets()["loihi1"]
    return quantize_graph(graph, target, nets.plain, quantizer="max", calibration=None)


def test_max_by_hand(nets):
    # k = 254 / 0.5 = 508; weights even: 2 round(-76.2) = -152; bias 0.1 * 508 * 64 = 3251.2
    q = by_max(nets, one(nets, [0.5, -0.3], bias=0.1, threshold=1.0))
    assert q["w"].weight.tolist() == [[254, -152]]
    assert q["w"].scale == 1 / 508
    assert (q["n"].mantissa, q["n"].threshold, q["n"].exponent) == (508, 508 << 6, 6)
    assert (q["n"].bias.tolist(), q["n"].bias_exponent) == ([3251], 0)
    assert q["w"].bias.tolist() == [3251]
    # the exponent of a weight node's bias counts in weight integers
    assert q["w"].bias[0] * 2.0 ** q["w"].bias_exponent * q["w"].scale == pytest.approx(0.1, rel=1e-3)
    assert q["n"].scale == 1 / (64 * 508)
    assert (q["n"].decay_u, q["n"].decay_v, q["n"].v_min, q["n"].reset) == (4096, 0, None, "zero")
    assert q.notes == ()


def test_positive_weights_keep_odd_integers(nets):
    assert by_max(nets, one(nets, [1.0, 0.5, 0.1]))["w"].weight.tolist() == [[254, 127, 25]]


@pytest.mark.parametrize(
    ("changes", "decay", "gain"),
    [
        ({}, 205, 0.05 * 3),  # 4096 / 20 = 204.8
        ({"integrator": "exponential"}, 200, 0.05 * 3),  # 4096 (1 - exp(-1/20)) = 199.76
        ({"integrator": "exponential", "gain": "decay"}, 200, 3 * (1 - np.exp(-0.05))),
        ({"gain": "unit"}, 205, 1.0),
        ({"use_r": False}, 205, 0.05),
    ],
)
def test_decay_and_gain_of_a_leaky_population(nets, changes, decay, gain):
    q = by_max(nets, one(nets, [1.0, -1.0], tau=0.02, r=3.0, threshold=0.5), **changes)
    assert q["n"].decay_v == decay
    assert 1 / q["w"].scale == pytest.approx(254 / gain)


@pytest.mark.parametrize(
    ("changes", "gain"),
    [({}, 3.0), ({"if_gain": "r_dt"}, 0.003), ({"gain": "unit"}, 1.0), ({"if_gain": "r_dt", "use_r": False}, 1e-3)],
)
def test_gain_of_an_integrator(nets, changes, gain):
    q = by_max(nets, one(nets, [1.0, -1.0], r=3.0, threshold=0.4), **changes)
    assert 1 / q["w"].scale == pytest.approx(254 / gain)


def test_the_leak_is_part_of_the_bias(nets):
    q = by_max(nets, one(nets, [1.0, -1.0], tau=0.01, r=10.0, leak=0.5, threshold=1.0))
    # 0.1 * 0.5 * 254 * 64 = 812.8
    assert q["n"].bias.tolist() == [813]
    assert q["w"].bias is None


def test_inclusive_and_strict_thresholds(nets):
    graph = one(nets, [1.0, -1.0], threshold=2.0)
    assert by_max(nets, graph)["n"].mantissa == 508
    assert by_max(nets, graph, crossing="inclusive")["n"].mantissa == 507
    uneven = one(nets, [1.0, -1.0], threshold=2.001)  # 508.254
    assert by_max(nets, uneven, crossing="inclusive")["n"].mantissa == 508


def test_a_large_threshold_lowers_the_scale(nets):
    with pytest.warns(QuantizationWarning, match="scale lowered from 254 to 131"):
        q = by_max(nets, one(nets, [1.0, -1.0], threshold=1000.0))
    assert 130_000 < q["n"].mantissa <= 131_071
    assert q["w"].weight.tolist() == [[132, -132]]  # 2 round(131.07 / 2)
    assert q.notes == ("n: scale lowered from 254 to 131.07: threshold mantissa 254000 exceeds 131071",)


@pytest.mark.filterwarnings("ignore::nirdeploy.errors.QuantizationWarning")
def test_a_large_bias_takes_an_exponent_then_lowers_the_scale(nets):
    q = by_max(nets, one(nets, [1.0, -1.0], bias=10.0, threshold=100.0))
    # 10 * 254 * 64 = 162560 = 2540 << 6
    assert (q["n"].bias.tolist(), q["n"].bias_exponent) == ([2540], 6)
    assert (q["w"].bias.tolist(), q["w"].bias_exponent) == ([2540], 0)
    q = by_max(nets, one(nets, [1.0, -1.0], bias=100.0, threshold=100.0))
    assert q["n"].bias_exponent == 7
    assert 4080 < q["n"].bias[0] <= 4095
    assert "bias register" in q.notes[0]


@pytest.mark.filterwarnings("ignore::nirdeploy.errors.QuantizationWarning")
def test_a_wide_fan_in_lowers_the_scale_so_that_u_cannot_wrap(nets):
    q = by_max(nets, one(nets, np.ones((1, 1000)), threshold=10.0))
    assert 130_000 < q["w"].weight.sum() < 1 << 17
    assert "worst synaptic sum of a step 254000 exceeds 131071" in q.notes[0]
    pooled = nets.chain(
        input=nets.source(1, 32, 32),
        p=nets.pool((32, 32)),
        c=nets.conv([[[[1.0]]]]),
        n=nets.if_(1, 1, 1, threshold=10.0),
        output=nets.output(1, 1, 1),
    )
    assert by_max(nets, pooled)["c"].weight.tolist() == [[[[127]]]]


def test_an_average_pool_is_inside_the_kernels_integers(nets):
    graph = nets.chain(
        input=nets.source(1, 4, 4),
        p=nets.pool((2, 2), average=True),
        c=nets.conv([[[[1.0, -0.5]]]]),
        n=nets.if_(1, 2, 1, threshold=1.0),
        output=nets.output(1, 2, 1),
    )
    q = by_max(nets, graph)
    assert q["c"].weight.tolist() == [[[[254, -128]]]]  # 2 round(63.5) = 2 * 64
    assert q["c"].scale == 1 / (4 * 254)
    assert q["n"].mantissa == 4 * 254


def test_several_connections_share_one_scale(nets):
    graph = nets.graph(
        {
            "input": nets.source(2),
            "a": nets.linear([[1.0, -1.0]]),
            "b": nets.linear([[0.5, -0.1]]),
            "n": nets.if_(1),
            "output": nets.output(1),
        },
        [("input", "a"), ("input", "b"), ("a", "n"), ("b", "n"), ("n", "output")],
    )
    q = by_max(nets, graph)
    assert q["a"].scale == q["b"].scale == 1 / 254
    assert q["b"].weight.tolist() == [[128, -26]]  # 2 round(63.5), 2 round(-12.7)


def test_weights_that_become_zero_are_refused_by_name(nets):
    with pytest.raises(QuantizationError, match=r"'n': all weights from 'input' become 0 once .*threshold mantissa"):
        unchecked(nets, one(nets, [1e-6, -1e-6], threshold=1.0))


def test_a_threshold_below_one_integer_is_refused(nets):
    with pytest.raises(QuantizationError, match=r"'n': v_threshold 0.001 becomes mantissa 0, at least 1"):
        unchecked(nets, one(nets, [1.0, -1.0], threshold=0.001))


def test_calibrated_without_data_names_max(nets):
    with pytest.raises(QuantizationError, match="quantizer='max'"):
        quantize(one(nets, [1.0, -1.0]), "loihi1", convention=nets.plain)


def test_calibration_counts_must_be_spikes(nets):
    raster = np.full((4, 1, 2), 3)
    with pytest.raises(RasterError, match="at most 1 a step"):
        quantize(one(nets, [1.0, -1.0]), "loihi1", convention=nets.plain, calibration=raster)


@pytest.mark.parametrize("crossing", ["strict", "inclusive"])
@pytest.mark.parametrize("leaky", [False, True])
def test_calibrated_is_never_worse_than_max_on_its_data(nets, crossing, leaky):
    convention = dataclasses.replace(nets.plain, crossing=crossing)
    kind = (lambda n: nets.lif(n, tau=0.01, r=10.0)) if leaky else nets.if_
    graph = nets.chain(
        input=nets.source(8),
        a=nets.linear(RNG.normal(size=(12, 8))),
        n=kind(12),
        b=nets.linear(RNG.normal(size=(5, 12)) * 0.7),
        m=kind(5),
        output=nets.output(5),
    )
    raster = (RNG.random((40, 3, 8)) < 0.4).astype(int)
    q = quantize(graph, "loihi2", convention=convention, calibration=raster)
    first = quantize(graph, "loihi2", convention=convention, quantizer="max")
    network, given = lower(graph, convention), raster.astype(np.int32)
    wanted = reference_of(graph, network, convention, raster)
    after, _ = disagreement(network, q, given, wanted)
    before, _ = disagreement(network, first, given, wanted)
    assert after <= before
    assert f"{after} spikes differ" in q.notes[-1]
    assert f"{before} with 'max'" in q.notes[-1]
    assert sum(w.sum() for w in wanted.spikes.values()) > 50


def test_calibrated_registers_stay_within_their_limits(nets):
    graph = one(nets, RNG.normal(size=(4, 600)), bias=RNG.normal(size=4), threshold=20.0)
    raster = (RNG.random((10, 2, 600)) < 0.1).astype(int)
    q = quantize(graph, "loihi1", convention=nets.plain, calibration=raster)
    weight = q["w"].weight
    assert np.all(weight % 2 == 0)
    assert -256 <= weight.min() <= weight.max() <= 254
    assert np.maximum(weight, 0).sum(1).max() < 1 << 17
    assert np.abs(q["n"].bias).max() <= 4095


def test_a_composed_chain_is_stored_under_its_last_weight_node(nets):
    graph = nets.chain(
        input=nets.source(2),
        a=nets.affine([[1.0, 0.0], [0.0, 1.0]], [0.5, 0.0]),
        b=nets.linear([[1.0, -1.0], [0.0, 1.0]]),
        n=nets.if_(2, threshold=1.0),
        output=nets.output(2),
    )
    q = by_max(nets, graph)
    assert "a" not in q
    assert q["b"].weight.tolist() == [[254, -254], [0, 254]]
    # 0.5 * 254 * 64 = 8128 = 4064 << 1
    assert (q["n"].bias.tolist(), q["n"].bias_exponent) == ([4064, 0], 1)
    assert q["b"].bias.tolist() == [4064, 0]
