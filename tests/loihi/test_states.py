"""Populations stepped for the quantiser are those of real Lava, with delays, recurrence and always-on axons."""

from dataclasses import replace

import h5py
import numpy as np
import pytest
from nirdeploy_loihi.program import AlwaysOn, Compartments, Program, Synapses, Window
from nirdeploy_loihi.states import components, drive, entries, integrate, run_program


def compartments(name, *shape, **changes):
    values = {"decay_u": 4096, "decay_v": 0, "threshold": 1 << 30, "bias_mantissa": 0, "v_start": 0, **changes}
    exponent = values.pop("bias_exponent", 0)
    arrays = {key: np.atleast_1d(np.array(value)) for key, value in values.items()}
    return Compartments(name=name, shape=shape, bias_exponent=exponent, **arrays)


def dense(name, source, target, weight, delay=((0,),)):
    return Synapses(name, source, target, np.array(weight, dtype=np.int64), np.array(delay, dtype=np.int64))


def program(size, populations, synapses, always_on=()):
    return Program("input", (size,), tuple(populations), tuple(synapses), tuple(always_on), ())


def raster(*steps):
    return np.array(steps, dtype=np.int32)[:, None, :]


def lava_layer(layer, name, source, own):
    """A layer of a lava-dl file as compartments and synapses."""
    values = {key: int(layer[f"neuron/{key}"][()]) for key in ("iDecay", "vDecay", "vThMant")}
    bias = layer["bias"][()].astype(np.int64) if "bias" in layer else 0
    weight = layer["weight"][()].astype(np.int64)
    delay = layer["delay"][()].astype(np.int64)[:, None] if "delay" in layer else ((0,),)
    population = compartments(
        name,
        len(weight),
        decay_u=values["iDecay"],
        decay_v=values["vDecay"],
        threshold=values["vThMant"] << 6,
        bias_mantissa=bias,
        bias_exponent=6,
    )
    synapses = [dense(name + ".w", source, name, weight, delay)]
    if own:
        synapses.append(dense(name + ".rec", name, name, layer["weight_rec"][()].astype(np.int64)))
    return population, synapses


def test_recorded_delays_and_recurrence_of_lava_are_reproduced_bit_for_bit(cases):
    stored = np.load(cases / "delay_rec.npz")
    with h5py.File(cases / "delay_rec.net") as file:
        first = lava_layer(file["layer/1"], "a", "input", False)
        second = lava_layer(file["layer/2"], "b", "a", True)
    net = program(12, [first[0], second[0]], [*first[1], *second[1]])
    found = run_program(net, stored["input"][:, None, :], keep_v=("a", "b"))
    for number, name in enumerate("ab"):
        assert np.array_equal(found.spikes[name][:, 0], stored[f"L{number}_s"])
        assert np.array_equal(found.v[name][:, 0], stored[f"L{number}_v"])
        assert found.peak_u[name] == np.abs(stored[f"L{number}_u"]).max()
    assert stored["L1_s"].sum() > 100


def test_spikes_arrive_a_step_and_their_delay_later():
    net = program(1, [compartments("a", 2)], [dense("w", "input", "a", [[3], [5]], [[0], [2]])])
    sums = drive(net, ("a",), {"input": raster([1], [0], [0], [0])})
    assert sums[:, 0].tolist() == [[0, 0], [3, 0], [0, 0], [0, 5]]


def test_delays_of_source_neurons_and_of_single_synapses_are_kept():
    net = program(2, [compartments("a", 1)], [dense("w", "input", "a", [[3, 5]], [[1, 0]])])
    assert drive(net, ("a",), {"input": raster([1, 1], [0, 0], [0, 0])})[:, 0, 0].tolist() == [0, 5, 3]
    both = [dense("w", "input", "a", [[3, 5], [7, 2]], [[1, 0], [0, 1]])]
    net = program(2, [compartments("a", 2)], both)
    assert drive(net, ("a",), {"input": raster([1, 1], [0, 0], [0, 0])})[:, 0].tolist() == [[0, 0], [5, 7], [3, 2]]


def test_always_on_axons_flow_from_their_step_on():
    synapses = [dense("on", "on", "a", [[4, 1]]), dense("w", "input", "a", [[0]])]
    net = program(1, [compartments("a", 1)], synapses, [AlwaysOn("on", 2, 1)])
    assert drive(net, ("a",), {"input": raster(*[[0]] * 4)})[:, 0, 0].tolist() == [0, 0, 5, 5]


def test_v_starts_where_it_is_told_and_neurons_differ():
    # dec(1000, 2048) = 500, dec(1000, 0) = 1000; then +10 << 6
    population = compartments(
        "a", 2, decay_v=[2048, 0], v_start=[1000, -7], threshold=[5000, 600], bias_mantissa=[0, 10], bias_exponent=6
    )
    net = program(1, [population], [dense("w", "input", "a", [[1], [1]])])
    found = integrate(net, ("a",), np.zeros((2, 1, 2), np.int32), keep_v=True)
    assert found.v["a"][:, 0].tolist() == [[500, 0], [250, 0]]  # 640 - 7 > 600, then 640 > 600
    assert found.spikes["a"][:, 0].tolist() == [[0, 1], [0, 1]]


def test_wraps_and_clips_are_counted_with_the_largest_values():
    net = program(1, [compartments("a", 1, decay_u=0)], [dense("w", "input", "a", [[1]])])
    sums = np.full((3, 1, 1), 100_000, dtype=np.int32)  # u: 6.4M, 12.8M wraps to -3977216, 2422784
    found = integrate(net, ("a",), sums, keep_v=True)
    assert (found.wraps["a"], found.clips["a"]) == (1, 0)
    assert (found.peak_u["a"], found.peak_v["a"]) == (12_800_000, 6_400_000)
    assert found.v["a"][:, 0, 0].tolist() == [6_400_000, 2_422_784, 4_845_568]


def slow(net, spikes):
    """The whole network neuron by neuron, from the definition of `Program`."""
    steps = len(spikes)
    matrices = {}
    for s in net.synapses:
        matrices[s.name] = np.zeros((s.n_targets, s.n_sources), dtype=np.int64)
        np.add.at(matrices[s.name], entries(s)[:2], entries(s)[2])
    fired = {net.input: spikes} | {p.name: np.zeros((steps, p.size), np.int64) for p in net.populations}
    state = {p.name: (np.zeros(p.size, np.int64), np.broadcast_to(p.v_start, p.size)) for p in net.populations}
    for t in range(steps):
        for p in net.populations:
            a = np.zeros(p.size, np.int64)
            for s in net.into(p.name):
                delay = np.broadcast_to(s.delay, matrices[s.name].shape)
                for i, j in zip(*np.nonzero(matrices[s.name]), strict=True):
                    when = t - 1 - delay[i, j]
                    a[i] += matrices[s.name][i, j] * (fired[s.source][when, j] if when >= 0 else 0)
            u, v = state[p.name]
            u = np.sign(u) * (np.abs(u) * (4096 - p.decay_u) >> 12) + (a << 6)
            v = np.sign(v) * (np.abs(v) * (4096 - p.decay_v) >> 12) + u + p.bias
            fired[p.name][t] = v > p.threshold
            state[p.name] = u, np.where(v > p.threshold, 0, v)
    return fired


@pytest.mark.parametrize("seed", range(3))
def test_loops_of_several_populations_run_together(seed):
    rng = np.random.default_rng(seed)
    registers = {"decay_u": 1500, "decay_v": 300, "threshold": 150 << 6}
    populations = [compartments(name, 4, **registers) for name in "abc"]
    edges = ["input a", "a a", "a b", "b a", "b c", "input c"]
    synapses = [dense(edge, *edge.split(), rng.integers(-40, 90, (4, 4)), rng.integers(0, 4, (4, 4))) for edge in edges]
    net = program(4, populations, synapses)
    spikes = (rng.random((40, 4)) < 0.4).astype(np.int32)
    found = run_program(net, spikes[:, None])
    wanted = slow(net, spikes)
    assert components(net) == [("a", "b"), ("c",)]
    for name in "abc":
        assert np.array_equal(found.spikes[name][:, 0], wanted[name])
        assert wanted[name].sum() > 10


def test_a_recurrent_convolution_is_its_own_synapses():
    rng = np.random.default_rng(1)
    window = Window((2, 4, 5), (2, 4, 5), (1, 1), (1, 1), (1, 1), 2)
    loop = Synapses("rec", "a", "a", rng.integers(-40, 60, (2, 1, 3, 3)), np.array([[1]]), window)
    net = program(
        40, [compartments("a", 2, 4, 5, threshold=100 << 6)], [dense("w", "input", "a", 70 * np.eye(40)), loop]
    )
    spikes = (rng.random((20, 40)) < 0.3).astype(np.int32)
    found = run_program(net, spikes[:, None]).spikes["a"][:, 0]
    # unrolled: the loop as a second source that repeats the population's spikes
    forward = program(40, [net.populations[0]], [net.synapses[0], replace(loop, source="echo")])
    sums = drive(forward, ("a",), {"input": spikes[:, None], "echo": found[:, None]})
    assert np.array_equal(integrate(forward, ("a",), sums).spikes["a"][:, 0], found)
    assert found.sum() > 50


@pytest.mark.parametrize("shape", [(1, 1), (1, 24), (24, 1), (24, 24)])
@pytest.mark.parametrize("separable", [True, False])
def test_kernels_with_delays_are_their_synapses(shape, separable):
    rng = np.random.default_rng(3)
    delay = rng.integers(0, 4, shape)
    if separable and shape == (24, 24):
        delay = rng.integers(0, 3, (24, 1)) + rng.integers(0, 3, (1, 24))
    window = Window((2, 3, 4), (2, 3, 4), (1, 1), (1, 1), (1, 1), 1)
    kernel = Synapses("w", "input", "a", rng.integers(-9, 9, (2, 2, 3, 3)), delay, window)
    matrix = np.zeros((24, 24), dtype=np.int64)
    np.add.at(matrix, entries(kernel)[:2], entries(kernel)[2])
    spikes = {"input": (rng.random((12, 2, 24)) < 0.4).astype(np.int32)}
    found = [
        drive(program(24, [compartments("a", 24)], [synapses]), ("a",), spikes)
        for synapses in (kernel, replace(kernel, weight=matrix, window=None))
    ]
    assert np.array_equal(*found)
    assert found[0].any()
