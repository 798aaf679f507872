from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import slow_lava
from hypothesis import given, settings
from hypothesis import strategies as st
from lava_programs import all_states, population, program, synapses
from nirdeploy_loihi.execute import execute, part, sums
from nirdeploy_loihi.program import AlwaysOn, Shown, Window
from nirdeploy_loihi.registers import integrate
from random_programs import random_program, random_raster

from nirdeploy.errors import GraphError, QuantizationError, RasterError, UnsupportedError

HALF = 1 << 23
neurons = partial(population, decay_v=0, vth=1)


def differences(found, raster, read_out="registers"):
    """What `execute` and the slow loop do not agree on."""
    run = execute(found, raster, all_states(found), read_out=read_out)
    states, counters = slow_lava.run(found, raster, read_out)
    wrong = [key for key, values in states.items() if not np.array_equal(run.traces[key].reshape(values.shape), values)]
    return wrong + [(name, found) for name, found in run.counters.items() if found != counters[name]]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["registers", "chip"]))
def test_loops_delays_convolutions_and_constants_equal_a_slow_loop_over_steps(seed, read_out):
    found = random_program(seed)
    assert differences(found, random_raster(seed, found.input_shape), read_out) == []


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_wrapping_u_and_clipped_v_equal_a_slow_loop_over_steps(seed):
    found = random_program(seed, large=True)
    assert differences(found, random_raster(seed, found.input_shape)) == []


def test_the_random_programs_wrap_saturate_spike_and_pause():
    total = dict.fromkeys(("wraps", "saturations", "spikes"), 0)
    for seed in range(10):
        found = random_program(seed, large=True)
        raster = random_raster(seed, found.input_shape)
        counters = execute(found, raster, {}).counters
        for key in total:
            total[key] += sum(count[key] for count in counters.values())
        cells = raster.shape[0] * raster.shape[1] * sum(p.size for p in found.populations)
        assert 0 < sum(count["spikes"] for count in counters.values()) < cells / 2
    assert all(total.values()), total


def one_to_one(delay=0, **registers):
    """A neuron behind an input, weight 2, threshold 1: each spike is handed on."""
    return program((1,), [neurons("n", 1, **registers)], [synapses("in>n", "in", "n", [[2]], delay)])


def spikes_of(found, *steps, n_steps, name="n", keep="spikes", read_out="registers"):
    raster = np.zeros((n_steps, 1, *found.input_shape), np.int32)
    raster[list(steps)] = 1
    return execute(found, raster, {name: [keep]}, read_out=read_out).traces[name, keep].reshape(n_steps, -1)


@pytest.mark.parametrize(("delay", "arrives"), [(0, 1), (1, 2), (61, 62), (62, 63)])
def test_a_spike_arrives_one_step_and_its_delay_later(delay, arrives):
    found = spikes_of(one_to_one(delay), 0, n_steps=70)
    assert np.flatnonzero(found).tolist() == [arrives]


def test_delays_differ_by_target_by_source_or_by_synapse():
    cells = [neurons("n", 2)]
    each = {"target": [[3], [5]], "source": [[3, 5]], "synapse": [[0, 1], [2, 4]]}
    arrive = {"target": ([4], [6]), "source": ([4, 6], [4, 6]), "synapse": ([1, 2], [3, 5])}
    for name, delay in each.items():
        found = program((2,), cells, [synapses("in>n", "in", "n", [[2, 2], [2, 2]], delay)])
        raster = np.zeros((9, 1, 2), np.int32)
        raster[0] = 1
        seen = execute(found, raster, {"n": ["spikes"]}).traces["n", "spikes"][:, 0]
        assert tuple(np.flatnonzero(s).tolist() for s in seen.T) == arrive[name], name


def test_a_loop_onto_itself_repeats_a_spike_in_its_own_time():
    neuron = neurons("n", 1)
    found = program((1,), [neuron], [synapses("in>n", "in", "n", [[2]]), synapses("n>n", "n", "n", [[2]], 3)])
    assert np.flatnonzero(spikes_of(found, 0, n_steps=14)).tolist() == [1, 5, 9, 13]


def test_a_loop_over_three_populations_takes_three_steps():
    cells = [neurons(name, 1) for name in "nmk"]
    around = [synapses(f"{a}>{b}", a, b, [[2]]) for a, b in (("in", "n"), ("n", "m"), ("m", "k"), ("k", "n"))]
    assert np.flatnonzero(spikes_of(program((1,), cells, around), 0, n_steps=9)).tolist() == [1, 4, 7]


def test_always_on_axons_arrive_one_step_after_their_start():
    on = [AlwaysOn("on", 2, 3)]
    neuron = neurons("n", 1, vth=1 << 10)
    found = program((1,), [neuron], [synapses("on>n", "on", "n", [[5, 7]])], on)
    assert spikes_of(found, n_steps=6, keep="i_syn").reshape(-1).tolist() == [0, 0, 0, 0, 12 * 64, 12 * 64]


def test_v_starts_where_it_is_told_in_every_sample():
    found = program((1,), [neurons("n", 2, vth=9, v=[100, -40], decay_v=2048)], [])
    v = execute(found, np.zeros((2, 3, 1), np.int32), {"n": ["v_mem"]}).traces["n", "v_mem"]
    assert v.tolist() == [[[50, -20]] * 3, [[25, -10]] * 3]


def test_v_is_held_for_the_refractory_steps_while_u_goes_on():
    # u halves from 384 on; v is held over the two steps after the spike
    found = program((1,), [neurons("n", 1, vth=5, decay_u=2048, refractory=3)],
                    [synapses("in>n", "in", "n", [[6]])])  # fmt: skip
    assert spikes_of(found, 0, n_steps=7, keep="i_syn").reshape(-1).tolist() == [0, 384, 192, 96, 48, 24, 12]
    assert spikes_of(found, 0, n_steps=7, keep="v_mem").reshape(-1).tolist() == [0, 0, 0, 0, 48, 72, 84]
    assert spikes_of(found, 0, n_steps=7).reshape(-1).tolist() == [0, 1, 0, 0, 0, 0, 0]


def test_a_constant_drive_spikes_every_refractory_steps_and_a_charge_time():
    # v gains 64 a step and passes 64 in the second step after it is let go
    neuron = neurons("n", 1, bias=64, refractory=4)
    assert np.flatnonzero(spikes_of(program((1,), [neuron], []), n_steps=17)).tolist() == [1, 6, 11, 16]


def test_the_chip_shows_128_for_each_refractory_step_left_instead_of_v():
    neuron = neurons("n", 1, bias=64, refractory=3)
    found = program((1,), [neuron], [])
    seen = spikes_of(found, n_steps=8, keep="v_mem", read_out="chip").reshape(-1)
    assert seen.tolist() == [64, 384, 256, 128, 64, 384, 256, 128]
    once = program((1,), [neurons("n", 1, bias=64)], [])
    assert spikes_of(once, n_steps=4, keep="v_mem", read_out="chip").reshape(-1).tolist() == [64, 128, 64, 128]


def narrow_window():
    return Window((1, 1, 2), (1, 1, 1), (1, 1), (0, 0), (1, 1), 1)


def test_a_convolution_without_delays_wraps_its_sum_at_24_bits_and_one_with_delays_does_not():
    weight = np.full((1, 1, 1, 2), (1 << 22) + 1)
    raster = np.zeros((3, 1, 1, 1, 2), np.int32)
    raster[0] = 1
    u = {}
    for delay in (0, 1):
        cells = [neurons("n", 1, 1, 1, vth=131071)]
        found = program((1, 1, 2), cells, [synapses("in>n", "in", "n", weight, delay, narrow_window())])
        u[delay] = execute(found, raster, {"n": ["i_syn"]}).traces["n", "i_syn"].reshape(-1).tolist()
    # 2**23 + 2 folds to -(2**23) + 2; shifted by 6 it is folded once more, by 2**24
    assert u[0] == [0, ((2 - HALF) << 6) + (1 << 24), 0]
    assert u[1] == [0, 0, ((2 + HALF) << 6) - (1 << 24)]


def test_convolutions_of_different_layouts_meet_in_one_population():
    rng = np.random.default_rng(5)
    flat = Window((1, 1, 12), (1, 1, 12), (1, 1), (0, 1), (1, 1), 1)
    deep = Window((3, 2, 2), (3, 2, 2), (1, 1), (1, 1), (1, 1), 3)
    found = program(
        (12,),
        [neurons("n", 12, vth=40, decay_u=900, decay_v=300)],
        [
            synapses("in>n", "in", "n", rng.integers(-90, 99, (1, 1, 1, 3)), 0, flat),
            synapses("in>n", "in", "n", rng.integers(-90, 99, (3, 1, 3, 3)), rng.integers(0, 5, (12, 12)), deep),
        ],
    )
    assert differences(found, random_raster(3, (12,))) == []


def test_an_output_shows_spikes_or_v_in_its_own_shape():
    cells = [neurons("n", 4, bias=[0, 40, 80, 120])]
    outputs = [Shown("s", "n", (2, 2)), Shown("v", "n", (4, 1), "v_mem")]
    run = execute(program((1,), cells, [], outputs=outputs), np.zeros((1, 1, 1), np.int32), {})
    assert run.outputs["s"].tolist() == [[[[0, 0], [1, 1]]]]
    assert run.outputs["v"].reshape(-1).tolist() == [0, 40, 0, 0]
    assert run.traces == {}


def test_spikes_that_would_arrive_after_the_run_are_no_operations():
    found = program((2,), [neurons("n", 3)],
                    [synapses("in>n", "in", "n", np.zeros((3, 2)), [[0], [1], [4]])])  # fmt: skip
    run = execute(found, np.ones((4, 1, 2), np.int32), {})
    # by target: steps 0, 1, 2 arrive; steps 0, 1 arrive; nothing
    assert run.counters["n"]["synaptic_operations"] == 2 * (3 + 2 + 0)


@pytest.mark.parametrize("names", ["a", "b", "c", "ab", "bc", "abc"])
@pytest.mark.parametrize("seed", range(3))
def test_some_populations_alone_do_what_they_do_in_the_network(seed, names):
    found = random_program(seed)
    raster = random_raster(seed, found.input_shape)
    whole = execute(found, raster, all_states(found))
    outside = {"in": raster} | {name: whole.traces[name, "spikes"] for name in "abc" if name not in names}
    alone = part(found, names, outside, dict.fromkeys(names, ("spikes", "v_mem", "i_syn")))
    assert sorted(alone.traces) == sorted(key for key in whole.traces if key[0] in names)
    assert [key for key, values in alone.traces.items() if not np.array_equal(values, whole.traces[key])] == []
    assert alone.counters == {name: whole.counters[name] for name in names}
    assert alone.peaks == {name: whole.peaks[name] for name in names}
    assert alone.outputs == {}


def test_populations_run_alone_need_no_others_in_their_program():
    found = random_program(11)
    raster = random_raster(11, found.input_shape)
    spikes = {"in": raster, "a": execute(found, raster, all_states(found)).traces["a", "spikes"]}
    without = replace(found, populations=found.populations[2:], synapses=found.into("c"))
    assert len(without.populations) == 1
    assert np.array_equal(sums(without, "c", spikes), sums(found, "c", spikes))


def test_sums_and_registers_apart_are_the_population_together():
    found = random_program(11)
    raster = random_raster(11, found.input_shape)
    traces = execute(found, raster, all_states(found)).traces
    a = sums(found, "c", {"in": raster, "a": traces["a", "spikes"]})
    states = integrate(found.population("c"), a, keep_u=True, keep_v=True)
    for variable, values in (("i_syn", states.u), ("v_mem", states.v), ("spikes", states.s)):
        assert np.array_equal(values, traces["c", variable]), variable


def test_sums_are_those_of_each_step_by_hand():
    # spikes of steps 0 and 1 arrive 1 and 2 steps later; the constant flows from step 2 on
    connections = [
        synapses("w", "in", "n", [[3, 5], [7, 2]], [[1, 0], [0, 1]]),
        synapses("on", "on", "n", [[10], [20]]),
    ]
    found = program((2,), [neurons("n", 2)], connections, [AlwaysOn("on", 1, 2)])
    raster = np.array([[1, 1], [1, 0], [0, 0], [0, 0]])[:, None]
    assert sums(found, "n", {"in": raster})[:, 0].tolist() == [[0, 0], [5, 7], [3, 9], [13, 20]]


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_u_is_told_as_it_was_before_it_wrapped(sign):
    # 64 * 100,000 twice, which wraps to -3,977,216; then once more
    found = program((1,), [neurons("n", 1, decay_u=0, vth=131071)], [synapses("w", "in", "n", [[sign * 100_000]])])
    run = execute(found, np.ones((4, 1, 1), np.int32), {"n": ["i_syn"]})
    assert run.traces["n", "i_syn"].reshape(-1).tolist() == [0, 6_400_000 * sign, -3_977_216 * sign, 2_422_784 * sign]
    assert (run.peaks["n"], run.counters["n"]["wraps"]) == (12_800_000, 1)


def test_a_convolution_may_lead_back_to_its_own_population():
    rng = np.random.default_rng(1)
    window = Window((2, 4, 5), (2, 4, 5), (1, 1), (1, 1), (1, 1), 2)
    loop = synapses("rec", "a", "a", rng.integers(-40, 60, (2, 1, 3, 3)), 1, window)
    found = program(
        (40,), [neurons("a", 2, 4, 5, vth=100)], [synapses("w", "in", "a", 70 * np.eye(40, dtype=int)), loop]
    )
    raster = random_raster(1, (40,), density=0.3)
    assert differences(found, raster) == []
    assert execute(found, raster, {}).counters["a"]["spikes"] > 50


def test_integrating_holds_v_for_the_refractory_steps():
    neuron = neurons("n", 2, bias=[64, 0], refractory=3)
    states = integrate(neuron, np.zeros((8, 1, 2), np.int32))
    assert states.s[:, 0].T.tolist() == [[0, 1, 0, 0, 0, 1, 0, 0], [0] * 8]
    assert states.u.size == states.v.size == 0


def test_sums_of_a_population_that_feeds_itself_are_refused():
    found = random_program(0)
    with pytest.raises(UnsupportedError, match="'b': it feeds itself"):
        sums(found, "b", {})


def test_parts_that_are_not_there_and_missing_or_misshapen_spikes_are_refused():
    found = random_program(0)
    raster = random_raster(0, found.input_shape)
    with pytest.raises(GraphError, match="'b': no spikes are given"):
        part(found, "b", {}, {})
    with pytest.raises(GraphError, match="'b': no spikes of 'a' are given"):
        part(found, "b", {"in": np.zeros((3, 1, 4))}, {})
    with pytest.raises(GraphError, match=r"'b': spikes of 'a' have shape \(3, 1, 1000\), expected \[3, 1, "):
        part(found, "b", {"a": np.zeros((3, 1, 1000))}, {})
    with pytest.raises(GraphError, match="no population 'd' to run"):
        part(found, "cd", {"in": raster}, {})
    with pytest.raises(RasterError, match="no population 'a' to record"):
        part(found, "c", {"in": raster}, {"a": ("spikes",)})
    with pytest.raises(RasterError, match="'c': no variable 'u' to record"):
        part(found, "c", {"in": raster}, {"c": ("u",)})


@pytest.mark.parametrize("weight", [1 << 25, -(1 << 25) - 1])
def test_a_u_beyond_32_bits_is_refused(weight):
    found = program((1,), [neurons("n", 1)], [synapses("in>n", "in", "n", [[weight]])])
    with pytest.raises(QuantizationError, match=f"'n': u reaches {weight * 64}, which 32 bits do not hold"):
        spikes_of(found, 0, n_steps=2)


def test_sums_beyond_32_bits_are_refused_not_folded():
    # eight of these add up to 0 in 32 bits
    weight = np.full((1, 8), 1 << 29)
    found = program((8,), [neurons("n", 1)], [synapses("in>n", "in", "n", weight)])
    with pytest.raises(QuantizationError, match=f"'n': u reaches {1 << 38}, "):
        spikes_of(found, 0, n_steps=2)


@pytest.mark.parametrize(
    ("registers", "message"),
    [
        ({"decay_u": 4097}, "decay_u is 4097, expected 0 to 4096"),
        ({"decay_v": -1}, "decay_v is -1, expected 0 to 4096"),
        ({"v": HALF}, "v_start is 8388608, expected -8388607 to 8388607"),
        ({"bias": 1 << 26, "exponent": 6}, "bias is 4294967296, expected"),
    ],
)
def test_registers_out_of_range_are_refused(registers, message):
    with pytest.raises(QuantizationError, match=f"'n': {message}"):
        spikes_of(one_to_one(**registers), n_steps=1)


@pytest.mark.parametrize(
    ("connection", "error", "message"),
    [
        (synapses("in>n", "in", "n", [[1]], 63), QuantizationError, "'in>n' has a delay of 63 steps, expected 0 to 62"),
        (synapses("in>n", "in", "n", [[1]], -1), QuantizationError, "has a delay of -1 steps"),
        (synapses("in>n", "in", "n", [[1 << 31]]), QuantizationError, "has a weight of 2147483648, beyond 32 bits"),
        (synapses("other>n", "other", "n", [[1]]), GraphError, "comes from 'other', which does not exist"),
        (synapses("in>n", "in", "n", [[1, 2]]), GraphError, "has 1 targets and 2 sources, expected 1 and 1"),
        (synapses("in>n", "in", "n", [[1]], [[1, 2]]), GraphError, r"has delays of shape \(1, 2\)"),
        (
            synapses("in>n", "in", "n", np.ones((1, 2, 1, 1)), 0, Window((1, 1, 1), (1, 1, 1), *[(1, 1)] * 3, 1)),
            GraphError,
            r"has a kernel of shape \(1, 2, 1, 1\) for 1 channels",
        ),
    ],
)
def test_connections_that_do_not_fit_are_refused(connection, error, message):
    found = program((1,), [neurons("n", 1)], [connection])
    with pytest.raises(error, match=f"'n': connection .*{message}"):
        spikes_of(found, n_steps=1)


def test_unknown_names_and_shapes_are_refused():
    found = one_to_one()
    raster = np.zeros((2, 1, 1), np.int32)
    with pytest.raises(RasterError, match="no population 'm' to record"):
        execute(found, raster, {"m": ["spikes"]})
    with pytest.raises(RasterError, match="'n': no variable 'u' to record"):
        execute(found, raster, {"n": ["u"]})
    with pytest.raises(UnsupportedError, match="read_out='probe' is unknown"):
        execute(found, raster, {}, read_out="probe")
    with pytest.raises(RasterError, match=r"the raster has shape \(2, 1\)"):
        execute(found, raster[..., 0], {})


def test_spikes_other_than_0_and_1_are_refused():
    with pytest.raises(RasterError, match="spikes of 'in' hold a 2, expected 0 and 1"):
        execute(one_to_one(), np.full((2, 1, 1), 2), {})
