"""Integers of current-based, recurrent, unequal and integrating populations."""

import dataclasses

import nir
import numpy as np
import pytest
from nets import shared
from nirdeploy_loihi import BACKEND
from nirdeploy_loihi.agreement import disagreement, reference_of
from nirdeploy_loihi.calibrate import components
from nirdeploy_loihi.execute import execute
from nirdeploy_loihi.lower_program import program_of
from nirdeploy_loihi.lowering import lower
from nirdeploy_loihi.quantize import quantize_graph

import nirdeploy as nd
from nirdeploy.errors import QuantizationWarning
from nirdeploy.graph import copy_graph, make_graph, make_node

DT = 1e-3
PLAIN = nd.Convention(dt=DT, reset="zero")

needs_v_reset = pytest.mark.skipif("v_reset" not in nir.IF.__dataclass_fields__, reason="nir 1.0.4 has no v_reset")


def neuron(kind, size, **values):
    return make_node(kind, **{key: np.broadcast_to(np.array(value, float), size) for key, value in values.items()})


def cuba(size, kind=nir.CubaLIF, **changes):
    # gains w_in dt/tau_syn = 1 and r dt/tau_mem = 1
    values = {"tau_syn": 0.004, "tau_mem": 0.02, "r": 20.0, "v_leak": 0.0, "w_in": 4.0}
    values |= {"v_threshold": 1.0, "v_reset": 0.0} if kind is nir.CubaLIF else {}
    return neuron(kind, size, **(values | changes))


def by_max(graph, convention=PLAIN, target="loihi2", calibration=None):
    return quantize_graph(graph, BACKEND.targets()[target], convention, quantizer="max", calibration=calibration)


def calibrated(graph, raster, convention=PLAIN):
    return nd.quantize(graph, "loihi2", convention=convention, calibration=raster)


def one(nets, weight, node, bias=None):
    weight = np.atleast_2d(np.array(weight, dtype=float))
    stage = nets.linear(weight) if bias is None else nets.affine(weight, np.atleast_1d(bias))
    return nets.chain(input=nets.source(weight.shape[1]), w=stage, n=node, output=nets.output(len(weight)))


def emulated(quantized, raster, *variables):
    """A run on the integers that keeps some variables of all populations."""
    program = program_of(quantized)
    return execute(program, np.asarray(raster), {p.name: variables for p in program.populations})


# ---------------------------------------------------------------- by hand


def test_a_current_based_population_by_hand(nets):
    q = by_max(one(nets, [1.0, -0.5], cuba(1, v_threshold=2.0)))
    # k = 254: 2 round(63.5) = 128; 4096 / 4 = 1024, 4096 / 20 = 204.8
    assert q["w"].weight.tolist() == [[254, -128]]
    assert (q["n"].decay_u, q["n"].decay_v, q["n"].mantissa) == (1024, 205, 508)
    assert q["n"].scale == 1 / (64 * 254)
    assert q["n"].scale_u == pytest.approx(1 / (64 * 254))  # u is r dt/tau_mem = 1 times i_syn
    assert (q["n"].v_start, q["n"].offset, q["n"].fires) == (0, 0.0, True)


def test_the_membranes_gain_turns_u_back_into_the_current(nets):
    q = by_max(one(nets, [1.0, -0.5], cuba(1, r=5.0)))
    # r dt/tau_mem = 0.25: k = 254 / 0.25, an integer of u is 1 / (64 k) of v and four times that of i_syn
    assert 1 / q["w"].scale == pytest.approx(1016)
    assert q["n"].scale_u == pytest.approx(4 / (64 * 1016))


def test_a_bias_behind_a_filter_is_the_sum_of_axons(nets):
    q = by_max(one(nets, [[1.0, 0.5], [0.5, 1.0]], cuba(2), bias=[2.1, 0.2]))
    # 2.1 * 254 = 533.4 = 254 + 254 + 25, 0.2 * 254 = 50.8
    assert q["n.always_on"].weight.tolist() == [[254, 254, 25], [51, 0, 0]]
    assert q["n.always_on"].scale == 1 / 254
    assert q["n"].bias is None
    assert q["w"].bias is None


def test_a_bias_of_both_signs_is_even(nets):
    q = by_max(one(nets, [[1.0, 0.5], [0.5, 1.0]], cuba(2), bias=[0.5, -0.1]))
    # 2 round(63.5) = 128, 2 round(-12.7) = -26
    assert q["n.always_on"].weight.tolist() == [[128], [-26]]


def test_a_leak_beside_a_filter_stays_in_the_register(nets):
    q = by_max(one(nets, [1.0, -1.0], cuba(1, v_leak=0.5)))
    # 0.5 / 20 * 254 * 64 = 406.4
    assert q["n"].bias.tolist() == [406]


@needs_v_reset
def test_a_reset_potential_shifts_threshold_leak_and_start(nets):
    node = neuron(nir.LIF, 1, tau=0.02, r=20.0, v_leak=-0.25, v_threshold=1.0, v_reset=-0.5)
    q = by_max(one(nets, [1.0, -1.0], node), dataclasses.replace(PLAIN, reset="v_reset", v_start="v_leak"))
    # above -0.5: threshold 1.5, start and leak 0.25: 254 * 1.5, 254 * 16, 254 * 64 * 0.25 / 20 = 203.2
    assert (q["n"].mantissa, q["n"].v_start, q["n"].bias.tolist()) == (381, 4064, [203])
    assert q["n"].offset == -0.5


def test_neurons_that_differ_have_arrays_in_the_populations_shape(nets):
    node = neuron(nir.LIF, 2, tau=[0.02, 0.01], r=[20.0, 5.0], v_leak=0.0, v_threshold=[1.0, 2.0], v_reset=0.0)
    q = by_max(one(nets, [[1.0, -1.0], [1.0, -1.0]], node))
    # gains r dt/tau: 1 and 0.5; k = 254
    assert q["w"].weight.tolist() == [[254, -254], [128, -128]]  # 2 round(63.5) = 128
    assert q["n"].decay_v.tolist() == [205, 410]
    assert q["n"].mantissa.tolist() == [254, 508]
    assert q["n"].threshold.tolist() == [254 << 6, 508 << 6]
    assert q["n"].decay_u == 4096
    assert q["n"].scale_u is None


def test_gains_of_channels_are_inside_a_kernel(nets):
    node = nets.if_(2, 3, 3, threshold=1.0)
    node.r = np.array([1.0, 0.5])[:, None, None] * np.ones((2, 3, 3))
    graph = nets.chain(
        input=nets.source(1, 3, 3), c=nets.conv([[[[1.0]]], [[[1.0]]]]), n=node, output=nets.output(2, 3, 3)
    )
    assert by_max(graph, nets.plain)["c"].weight.tolist() == [[[[254]]], [[[127]]]]


def test_braille_by_hand(nets, braille):
    graph, _ = braille
    q = by_max(graph, nd.Convention(dt=1e-4, reset="zero"))
    # all gains are 1 by construction: k = 254 / the largest weight of a population
    largest = max(np.abs(graph.nodes[name].weight).max() for name in ("fc1", "lif1.w_rec"))
    k = 254 / float(largest)
    assert 1 / q["fc1"].scale == pytest.approx(k)
    assert q["fc1"].scale == q["lif1.w_rec"].scale == q["lif1.lif.always_on"].scale
    for name, at in (("fc1", (0, 0)), ("fc1", (37, 11)), ("lif1.w_rec", (0, 0)), ("lif1.w_rec", (20, 5))):
        assert q[name].weight[at] == 2 * round(k * float(graph.nodes[name].weight[at]) / 2)
    current = graph.nodes["fc1"].bias + graph.nodes["lif1.w_rec"].bias
    assert q["lif1.lif.always_on"].weight.sum(1)[3] == 2 * round(k * float(current[3]) / 2)
    # 4096 * 1e-4 / 2.2222e-4 = 1843.2, 4096 * 1e-4 / 1e-3 = 409.6
    assert (q["lif1.lif"].decay_u, q["lif1.lif"].decay_v) == (1843, 410)
    assert q["lif1.lif"].mantissa == round(k)


# ---------------------------------------------------------------- against the reference


@pytest.fixture
def braille():
    folder = shared("reference", "braille")
    raster = np.load(folder / "braille_input0.npz")["spikes"].astype(int)[:, None]
    return nd.read(folder / "braille_noDelay_bias_zero.nir"), raster


def dequantised(graph, quantized, dt):
    """The graph with the values that its integers stand for: the float recurrence of the registers."""
    found = copy_graph(graph)
    for layer in lower(graph, quantized.convention).layers:
        node, registers = found.nodes[layer.name], quantized[layer.name]
        ones = np.ones(layer.shape)
        node.tau_syn, node.w_in = dt * 4096 / registers.decay_u * ones, 4096 / registers.decay_u * ones
        node.tau_mem, node.r = dt * 4096 / registers.decay_v * ones, 4096 / registers.decay_v * ones
        node.v_threshold = registers.threshold * registers.scale * ones
        constants = [quantized[c.name] for c in layer.constants]
        for connection in layer.connections:
            stage = found.nodes[connection.name]
            stage.weight = quantized[connection.name].weight * quantized[connection.name].scale
            if constants:
                axons = constants.pop()
                stage.bias = axons.weight.sum(1) * axons.scale
            elif hasattr(stage, "bias"):
                stage.bias = np.zeros(len(stage.weight))
    return found


def test_braille_spikes_as_the_reference_with_the_quantised_parameters(braille):
    graph, raster = braille
    convention = nd.Convention(dt=1e-4, reset="zero")
    q = by_max(graph, convention)
    found = emulated(q, raster, "spikes").traces
    reference = nd.run(dequantised(graph, q, 1e-4), raster, convention=convention, record=("spikes",))
    for layer in lower(graph, convention).layers:
        wanted = reference[layer.name, "spikes"].data[: len(raster) - layer.lag]
        assert np.array_equal(found[layer.name, "spikes"][layer.lag :], wanted)
        assert wanted.sum() > 100


def recurrent(nets, rng, weights=1.0):
    nodes = {
        "input": nets.source(4),
        "w": nets.affine(weights * rng.normal(0.2, 0.4, (6, 4)), rng.normal(0, 0.05, 6)),
        "a": cuba(6),
        "rec": nets.linear(weights * rng.normal(0, 0.3, (6, 6))),
        "up": nets.linear(weights * rng.normal(0.1, 0.4, (3, 6))),
        "b": cuba(3),
        "down": nets.linear(weights * rng.normal(0, 0.3, (6, 3))),
        "output": nets.output(3),
    }
    edges = [("input", "w"), ("w", "a"), ("a", "rec"), ("rec", "a"), ("a", "up"), ("up", "b"), ("b", "down")]
    return make_graph(nodes, [*edges, ("down", "a"), ("b", "output")])


def test_the_populations_of_a_loop_are_calibrated_together(nets):
    graph = recurrent(nets, np.random.default_rng(0))
    graph.nodes |= {"x": nets.linear(np.ones((2, 3))), "c": cuba(2), "o": nets.output(2)}
    graph.edges += [("b", "x"), ("x", "c"), ("c", "o")]
    program = program_of(by_max(graph, dataclasses.replace(PLAIN, population_delay=1)))
    assert components(program) == [("a", "b"), ("c",)]


def test_data_measured_in_pieces_is_the_same(nets, monkeypatch):
    nodes = {"w": nets.linear(np.ones((3, 4))), "a": cuba(3), "x": nets.linear(np.ones((2, 3)))}
    graph = nets.chain(input=nets.source(4), **nodes, n=neuron(nir.I, 2, r=1000.0), output=nets.output(2))
    raster = np.random.default_rng(3).integers(0, 2, (30, 7, 4))
    raster[:, -1] = 0  # what counts has been in a piece before the last
    whole = by_max(graph, calibration=raster)
    monkeypatch.setattr("nirdeploy_loihi.quantize._VALUES", 500)  # 30 steps of 7 integers: 2 samples
    pieces = by_max(graph, calibration=raster)
    assert "where it is reset; on the calibration data at most" in whole.notes[0]
    assert whole.activity["a"].min() > 0.1
    assert pieces.notes == whole.notes
    assert {k: v.tolist() for k, v in pieces.activity.items()} == {k: v.tolist() for k, v in whole.activity.items()}


@pytest.mark.parametrize("seed", range(3))
def test_loops_calibrated_together_are_never_worse_than_max(nets, seed):
    rng = np.random.default_rng(seed)
    graph = recurrent(nets, rng)
    convention = dataclasses.replace(PLAIN, population_delay=1)
    raster = (rng.random((50, 3, 4)) < 0.3).astype(int)
    q, first = calibrated(graph, raster, convention), by_max(graph, convention)
    network, flat = lower(graph, convention), raster.astype(np.int32)
    wanted = reference_of(graph, network, convention, raster)
    after, before = (disagreement(network, x, flat, wanted)[0] for x in (q, first))
    assert after <= before
    assert f"{after} spikes differ" in q.notes[-1]
    assert q["w"].scale == q["rec"].scale == q["down"].scale
    assert sum(w.sum() for w in wanted.spikes.values()) > 50


def test_activity_is_the_mean_of_the_chips_spikes(nets):
    rng = np.random.default_rng(2)
    raster = (rng.random((30, 2, 4)) < 0.3).astype(int)
    q = calibrated(recurrent(nets, rng), raster, dataclasses.replace(PLAIN, population_delay=1))
    assert sorted(q.activity) == ["a", "b", "input"]
    assert q.activity["input"].tolist() == raster.mean((0, 1)).tolist()
    assert q.activity["a"].tolist() == emulated(q, raster, "spikes").traces["a", "spikes"].mean((0, 1)).tolist()
    assert by_max(recurrent(nets, rng), dataclasses.replace(PLAIN, population_delay=1)).activity == {}


# ---------------------------------------------------------------- overflow


def test_a_current_that_could_wrap_is_told_with_its_bound(nets):
    graph = one(nets, np.ones((1, 400)), cuba(1, tau_syn=0.1, w_in=100.0, v_threshold=50.0))
    # 400 * 254 << 6 = 6502400; 4096 / 100 = 41: floor(6502399 * 4096 / 41) + 1
    with pytest.warns(QuantizationWarning, match="n: u could reach 649605520 of 8388608, beyond which it wraps"):
        q = nd.quantize(graph, "loihi2", convention=PLAIN, quantizer="max")
    assert q["w"].weight.max() == 254


def test_a_scale_whose_current_wraps_on_the_data_is_never_chosen(nets):
    graph = one(nets, np.ones((1, 400)), cuba(1, tau_syn=0.1, w_in=100.0, v_threshold=50.0))
    raster = np.ones((12, 1, 400), dtype=int)
    first = by_max(graph, calibration=raster)
    wrapped = emulated(first, raster)
    peak, wraps = wrapped.peaks["n"], wrapped.counters["n"]["wraps"]
    assert f"beyond which it wraps; on the calibration data at most {peak}, it wraps {wraps} times" in first.notes[0]
    q = calibrated(graph, raster)
    found = emulated(q, raster)
    assert found.counters["n"]["wraps"] == 0
    assert q.notes[0].endswith(f"beyond which it wraps; on the calibration data at most {found.peaks['n']}")
    assert 1 <= q["w"].weight.max() < 127


# ---------------------------------------------------------------- populations that only integrate


def test_an_integrator_has_the_largest_threshold_and_a_scale_that_keeps_v_below_it(nets):
    node = neuron(nir.LI, 1, tau=0.02, r=20.0, v_leak=0.0)
    q = by_max(one(nets, np.ones((1, 60)), node))
    assert (q["n"].mantissa, q["n"].threshold, q["n"].fires) == (131071, 131071 << 6, False)
    weight = int(q["w"].weight.sum())
    # 205 of 4096: v settles at floor((64 weight - 1) 4096 / 205) + 1, below the threshold and with 255 not
    assert (64 * weight - 1) * 4096 // 205 + 1 < 131071 << 6 <= (64 * (weight + 60) - 1) * 4096 // 205 + 1
    assert "v could reach 19488149 of 8388544" in q.notes[0]


def test_an_integrator_without_leak_is_scaled_by_the_data(nets):
    graph = one(nets, np.ones((1, 60)), neuron(nir.I, 1, r=1000.0))
    with pytest.warns(QuantizationWarning, match="n: v could grow beyond 8388544, where it is reset"):
        first = nd.quantize(graph, "loihi2", convention=PLAIN, quantizer="max")
    raster = np.ones((40, 1, 60), dtype=int)
    resets = emulated(first, raster).counters["n"]["spikes"]
    assert resets > 0
    measured = by_max(graph, calibration=raster)
    assert measured.notes[0].endswith(f"where it is reset; on the calibration data {resets} times")
    q = calibrated(graph, raster)
    found = emulated(q, raster, "v_mem")
    assert found.counters["n"]["spikes"] == 0
    peak = int(np.abs(found.traces["n", "v_mem"]).max())
    assert 2 * peak < 131071 << 6
    assert f"where it is reset; on the calibration data at most {peak}" in q.notes[0]


def test_a_scale_at_which_an_integrator_is_reset_is_never_chosen(nets):
    # 64 * 254 * 200 stays below half of the largest threshold; 400 more in one step pass all of it
    graph = one(nets, np.ones((1, 400)), neuron(nir.I, 1, r=1000.0))
    raster = np.stack([np.arange(400) < 200, np.ones(400), np.zeros(400), np.zeros(400)]).astype(int)[:, None]
    assert emulated(by_max(graph), raster).counters["n"]["spikes"] == 1
    assert emulated(calibrated(graph, raster), raster).counters["n"]["spikes"] == 0


@pytest.mark.parametrize("kind", [nir.LI, nir.CubaLI])
def test_v_of_an_integrator_follows_the_reference(nets, kind):
    rng = np.random.default_rng(4)
    node = cuba(3, kind) if kind is nir.CubaLI else neuron(nir.LI, 3, tau=0.02, r=20.0, v_leak=0.2)
    graph = one(nets, rng.normal(size=(3, 8)), node, bias=[0.1, -0.2, 0.0])
    raster = (rng.random((60, 2, 8)) < 0.3).astype(int)
    q = calibrated(graph, raster)
    network = lower(graph, PLAIN)
    (lag,) = (layer.lag for layer in network.layers)
    v = emulated(q, raster, "v_mem").traces["n", "v_mem"] * q["n"].scale + q["n"].offset
    wanted = reference_of(graph, network, PLAIN, raster).v["n"]
    assert np.abs(v[lag:] - wanted[: len(wanted) - lag]).mean() < 0.02 * np.abs(wanted).mean()
    assert "v of n differs by" in q.notes[-1]
