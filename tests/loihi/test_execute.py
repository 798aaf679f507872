import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loihi import slow
from loihi.programs import ALL, compartments, everything, program, random_program, random_raster, synapses
from nirdeploy_loihi.execute import execute, population, sums
from nirdeploy_loihi.program import AlwaysOn, Shown, Window
from nirdeploy_loihi.registers import integrate

from nirdeploy.errors import GraphError, QuantizationError, RasterError, UnsupportedError

HALF = 1 << 23


def differences(found, raster, read_out="registers"):
    """What `execute` and the slow loop do not agree on."""
    run = execute(found, raster, everything(found), read_out=read_out)
    states, counters = slow.run(found, raster, read_out)
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
    return program((1,), [compartments("n", 1, threshold=1, **registers)], [synapses("input", "n", [[2]], delay)])


def spikes_of(found, *steps, n_steps, name="n", keep="spikes", read_out="registers"):
    raster = np.zeros((n_steps, 1, *found.input_shape), np.int32)
    raster[list(steps)] = 1
    return execute(found, raster, {name: [keep]}, read_out=read_out).traces[name, keep].reshape(n_steps, -1)


@pytest.mark.parametrize(("delay", "arrives"), [(0, 1), (1, 2), (61, 62), (62, 63)])
def test_a_spike_arrives_one_step_and_its_delay_later(delay, arrives):
    found = spikes_of(one_to_one(delay), 0, n_steps=70)
    assert np.flatnonzero(found).tolist() == [arrives]


def test_delays_differ_by_target_by_source_or_by_synapse():
    neurons = [compartments("n", 2, threshold=1)]
    each = {"target": [[3], [5]], "source": [[3, 5]], "synapse": [[0, 1], [2, 4]]}
    arrive = {"target": ([4], [6]), "source": ([4, 6], [4, 6]), "synapse": ([1, 2], [3, 5])}
    for name, delay in each.items():
        found = program((2,), neurons, [synapses("input", "n", [[2, 2], [2, 2]], delay)])
        raster = np.zeros((9, 1, 2), np.int32)
        raster[0] = 1
        seen = execute(found, raster, {"n": ["spikes"]}).traces["n", "spikes"][:, 0]
        assert tuple(np.flatnonzero(s).tolist() for s in seen.T) == arrive[name], name


def test_a_loop_onto_itself_repeats_a_spike_in_its_own_time():
    neuron = compartments("n", 1, threshold=1)
    found = program((1,), [neuron], [synapses("input", "n", [[2]]), synapses("n", "n", [[2]], 3)])
    assert np.flatnonzero(spikes_of(found, 0, n_steps=14)).tolist() == [1, 5, 9, 13]


def test_a_loop_over_three_populations_takes_three_steps():
    neurons = [compartments(name, 1, threshold=1) for name in "nmk"]
    around = [synapses(a, b, [[2]]) for a, b in (("input", "n"), ("n", "m"), ("m", "k"), ("k", "n"))]
    assert np.flatnonzero(spikes_of(program((1,), neurons, around), 0, n_steps=9)).tolist() == [1, 4, 7]


def test_always_on_axons_arrive_one_step_after_their_start():
    on = [AlwaysOn("on", 2, 3)]
    neuron = compartments("n", 1, threshold=1 << 10)
    found = program((1,), [neuron], [synapses("on", "n", [[5, 7]])], on)
    assert spikes_of(found, n_steps=6, keep="i_syn").reshape(-1).tolist() == [0, 0, 0, 0, 12 * 64, 12 * 64]


def test_v_starts_where_it_is_told_in_every_sample():
    found = program((1,), [compartments("n", 2, threshold=9, v_start=[100, -40], decay_v=2048)], [])
    v = execute(found, np.zeros((2, 3, 1), np.int32), {"n": ["v_mem"]}).traces["n", "v_mem"]
    assert v.tolist() == [[[50, -20]] * 3, [[25, -10]] * 3]


def test_v_is_held_for_the_refractory_steps_while_u_goes_on():
    # u halves from 384 on; v is held over the two steps after the spike
    found = program((1,), [compartments("n", 1, threshold=5, decay_u=2048, refractory=3)],
                    [synapses("input", "n", [[6]])])  # fmt: skip
    assert spikes_of(found, 0, n_steps=7, keep="i_syn").reshape(-1).tolist() == [0, 384, 192, 96, 48, 24, 12]
    assert spikes_of(found, 0, n_steps=7, keep="v_mem").reshape(-1).tolist() == [0, 0, 0, 0, 48, 72, 84]
    assert spikes_of(found, 0, n_steps=7).reshape(-1).tolist() == [0, 1, 0, 0, 0, 0, 0]


def test_a_constant_drive_spikes_every_refractory_steps_and_a_charge_time():
    # v gains 64 a step and passes 64 in the second step after it is let go
    neuron = compartments("n", 1, threshold=1, bias=64, refractory=4)
    assert np.flatnonzero(spikes_of(program((1,), [neuron], []), n_steps=17)).tolist() == [1, 6, 11, 16]


def test_the_chip_shows_128_for_each_refractory_step_left_instead_of_v():
    neuron = compartments("n", 1, threshold=1, bias=64, refractory=3)
    found = program((1,), [neuron], [])
    seen = spikes_of(found, n_steps=8, keep="v_mem", read_out="chip").reshape(-1)
    assert seen.tolist() == [64, 384, 256, 128, 64, 384, 256, 128]
    once = program((1,), [compartments("n", 1, threshold=1, bias=64)], [])
    assert spikes_of(once, n_steps=4, keep="v_mem", read_out="chip").reshape(-1).tolist() == [64, 128, 64, 128]


def narrow_window():
    return Window((1, 1, 2), (1, 1, 1), (1, 1), (0, 0), (1, 1), 1)


def test_a_convolution_without_delays_wraps_its_sum_at_24_bits_and_one_with_delays_does_not():
    weight = np.full((1, 1, 1, 2), (1 << 22) + 1)
    raster = np.zeros((3, 1, 1, 1, 2), np.int32)
    raster[0] = 1
    u = {}
    for delay in (0, 1):
        cells = [compartments("n", 1, 1, 1, threshold=131071)]
        found = program((1, 1, 2), cells, [synapses("input", "n", weight, delay, narrow_window())])
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
        [compartments("n", 12, threshold=40, decay_u=900, decay_v=300)],
        [
            synapses("input", "n", rng.integers(-90, 99, (1, 1, 1, 3)), 0, flat),
            synapses("input", "n", rng.integers(-90, 99, (3, 1, 3, 3)), rng.integers(0, 5, (12, 12)), deep),
        ],
    )
    assert differences(found, random_raster(3, (12,))) == []


def test_an_output_shows_spikes_or_v_in_its_own_shape():
    neurons = [compartments("n", 4, threshold=1, bias=[0, 40, 80, 120])]
    outputs = [Shown("s", "n", (2, 2)), Shown("v", "n", (4, 1), "v_mem")]
    run = execute(program((1,), neurons, [], outputs=outputs), np.zeros((1, 1, 1), np.int32), {})
    assert run.outputs["s"].tolist() == [[[[0, 0], [1, 1]]]]
    assert run.outputs["v"].reshape(-1).tolist() == [0, 40, 0, 0]
    assert run.traces == {}


def test_spikes_that_would_arrive_after_the_run_are_no_operations():
    found = program((2,), [compartments("n", 3, threshold=1)],
                    [synapses("input", "n", np.zeros((3, 2)), [[0], [1], [4]])])  # fmt: skip
    run = execute(found, np.ones((4, 1, 2), np.int32), {})
    # by target: steps 0, 1, 2 arrive; steps 0, 1 arrive; nothing
    assert run.counters["n"]["synaptic_operations"] == 2 * (3 + 2 + 0)


@pytest.mark.parametrize("seed", range(4))
def test_one_population_alone_does_what_it_does_in_the_network(seed):
    found = random_program(seed)
    raster = random_raster(seed, found.input_shape)
    traces = execute(found, raster, everything(found)).traces
    for name in "abc":
        given_spikes = {"input": raster} | {other: traces[other, "spikes"] for other in "abc"}
        states = population(found, name, given_spikes, keep=ALL)
        for variable, values in (("i_syn", states.u), ("v_mem", states.v), ("spikes", states.s)):
            assert np.array_equal(values, traces[name, variable].reshape(values.shape)), (name, variable)


def test_sums_and_registers_apart_are_the_population_together():
    found = random_program(11)
    raster = random_raster(11, found.input_shape)
    traces = execute(found, raster, everything(found)).traces
    sources = {"input": raster, "a": traces["a", "spikes"]}
    a = sums(found, "c", sources)
    states = integrate(found.population("c"), a, keep_u=True, keep_v=True)
    for variable, values in (("i_syn", states.u), ("v_mem", states.v), ("spikes", states.s)):
        assert np.array_equal(values, traces["c", variable].reshape(values.shape)), variable


def test_integrating_holds_v_for_the_refractory_steps():
    neuron = compartments("n", 2, threshold=1, bias=[64, 0], refractory=3)
    states = integrate(neuron, np.zeros((8, 1, 2), np.int32))
    assert states.s[:, 0].T.tolist() == [[0, 1, 0, 0, 0, 1, 0, 0], [0] * 8]
    assert states.u.size == states.v.size == 0


def test_sums_of_a_population_that_feeds_itself_are_refused():
    found = random_program(0)
    with pytest.raises(UnsupportedError, match="'b': it feeds itself"):
        sums(found, "b", {})


def test_missing_and_misshapen_spikes_are_refused():
    found = random_program(0)
    with pytest.raises(GraphError, match="'b': no spikes are given"):
        population(found, "b", {})
    with pytest.raises(GraphError, match="'b': no spikes of 'a' are given"):
        population(found, "b", {"input": np.zeros((3, 1, 4))})
    with pytest.raises(GraphError, match=r"'b': spikes of 'a' have shape \(3, 1, 1000\), expected \[3, 1, "):
        population(found, "b", {"a": np.zeros((3, 1, 1000))})


@pytest.mark.parametrize("weight", [1 << 25, -(1 << 25) - 1])
def test_a_u_beyond_32_bits_is_refused(weight):
    found = program((1,), [compartments("n", 1)], [synapses("input", "n", [[weight]])])
    with pytest.raises(QuantizationError, match=f"'n': u reaches {weight * 64}, which 32 bits do not hold"):
        spikes_of(found, 0, n_steps=2)


def test_sums_beyond_32_bits_are_refused_not_folded():
    # eight of these add up to 0 in 32 bits
    weight = np.full((1, 8), 1 << 29)
    found = program((8,), [compartments("n", 1)], [synapses("input", "n", weight)])
    with pytest.raises(QuantizationError, match=f"'n': u reaches {1 << 38}, "):
        spikes_of(found, 0, n_steps=2)


@pytest.mark.parametrize(
    ("registers", "message"),
    [
        ({"decay_u": 4097}, "decay_u is 4097, expected 0 to 4096"),
        ({"decay_v": -1}, "decay_v is -1, expected 0 to 4096"),
        ({"v_start": HALF}, "v_start is 8388608, expected -8388607 to 8388607"),
        ({"bias": 1 << 26, "bias_exponent": 6}, "bias is 4294967296, expected"),
    ],
)
def test_registers_out_of_range_are_refused(registers, message):
    with pytest.raises(QuantizationError, match=f"'n': {message}"):
        spikes_of(one_to_one(**registers), n_steps=1)


@pytest.mark.parametrize(
    ("connection", "error", "message"),
    [
        (synapses("input", "n", [[1]], 63), QuantizationError, "'input>n' has a delay of 63 steps, expected 0 to 62"),
        (synapses("input", "n", [[1]], -1), QuantizationError, "has a delay of -1 steps"),
        (synapses("input", "n", [[1 << 31]]), QuantizationError, "has a weight of 2147483648, beyond 32 bits"),
        (synapses("other", "n", [[1]]), GraphError, "comes from 'other', which does not exist"),
        (synapses("input", "n", [[1, 2]]), GraphError, "has 1 targets and 2 sources, expected 1 and 1"),
        (synapses("input", "n", [[1]], [[1, 2]]), GraphError, r"has delays of shape \(1, 2\)"),
        (
            synapses("input", "n", np.ones((1, 2, 1, 1)), 0, Window((1, 1, 1), (1, 1, 1), *[(1, 1)] * 3, 1)),
            GraphError,
            r"has a kernel of shape \(1, 2, 1, 1\) for 1 channels",
        ),
    ],
)
def test_connections_that_do_not_fit_are_refused(connection, error, message):
    found = program((1,), [compartments("n", 1)], [connection])
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
    with pytest.raises(RasterError, match="spikes of 'input' hold a 2, expected 0 and 1"):
        execute(one_to_one(), np.full((2, 1, 1), 2), {})
