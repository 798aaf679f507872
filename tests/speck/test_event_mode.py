"""Event mode and step mode from what the chip is told, held against definitions written out and against silicon."""

import dataclasses
import subprocess
import sys

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import chain, conv_net, conv_node, flatten_node, if_node, linear_node, raster, shared
from nirdeploy_speck import event, step
from nirdeploy_speck.emulator import _counters
from nirdeploy_speck.event import run_events, trace_events
from nirdeploy_speck.options import EventOptions
from nirdeploy_speck.packed import pack
from nirdeploy_speck.step import run_steps
from nirdeploy_speck.stream import arrivals, make_stream
from speck_programs import SlowChip, chain_of_two, core, draw, program, residual, slow_steps, split

import nirdeploy as nd
from nirdeploy.errors import FileError, QuantizationError, RasterError, UnsupportedError

PLAIN = nd.Convention(if_gain="r", reset="subtract", crossing="inclusive", v_min="-threshold")


def events_of(shape, n, rng):
    """Times that never decrease, and addresses."""
    return np.sort(rng.integers(0, 20_000, n)), *(rng.integers(0, size, n) for size in shape)


def stream_of(whole, found, options=None, step_us=1000, n_steps=20):
    packed = pack(whole)
    return packed, make_stream(
        packed, arrivals(whole, *found), options or EventOptions(), start_us=0, step_us=step_us, n_steps=n_steps
    )


def assert_is(result, slow):
    """Spikes, last v and counters of every core are those of the definition."""
    for k, one in enumerate(result):
        assert np.array_equal(one.spikes.sum((0, 1)), slow.spikes[k])
        assert np.array_equal(one.v_mem[-1, 0], slow.v[k])
        assert one.counters == slow.counters[k]


MAKERS = {
    "chain": chain_of_two,
    "residual": residual,
    "split": lambda rng, **fields: split(chain_of_two(rng, **fields)),
}


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    maker=st.sampled_from(list(MAKERS)),
    subtract=st.booleans(),
    threshold=st.sampled_from([1, 40, 150]),
    v_min=st.sampled_from([-1, -70, -32768]),
    sweep=st.sampled_from(["yxc", "cyx"]),
    piece=st.sampled_from([1, 7, event._SLICE]),
)
def test_event_mode_is_the_definition(seed, maker, subtract, threshold, v_min, sweep, piece):
    rng = np.random.default_rng(seed)
    whole = MAKERS[maker](rng, subtract=subtract, threshold=threshold, v_min=v_min)
    found = events_of(whole.input_map, 60, rng)
    packed, stream = stream_of(whole, found)
    slow = SlowChip(whole, sweep)
    for address in zip(*(axis.tolist() for axis in found[1:]), strict=True):
        slow.send(whole.entry, *address)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(event, "_SLICE", piece)  # it goes on where it stopped
        run = trace_events(packed, stream, sweep=sweep)
    assert_is(run.cores, slow)
    sent = np.empty((len(slow.sent), 4), int)
    for k, spikes in enumerate(run.spikes):
        sent[spikes.order] = np.stack([np.full(len(spikes.order), k), spikes.channel, spikes.y, spikes.x], axis=1)
    assert sent.tolist() == [list(one) for one in slow.sent]


@pytest.mark.parametrize(("stride", "padding", "kernel"), [(1, 0, 1), (1, 2, 3), (2, 1, 5), (4, 3, 7), (2, 0, 1)])
def test_every_geometry_reaches_the_neurons_of_its_convolution(stride, padding, kernel):
    rng = np.random.default_rng(stride)
    weight = draw(rng, 2, 2, kernel, kernel)
    whole = program(
        [core(2, "a", weight, (2, 9, 8), (stride, 1), (padding, 1 if kernel > 1 else 0))], [(0,)], (2, 9, 8)
    )
    found = events_of(whole.input_map, 300, rng)
    packed, stream = stream_of(whole, found)
    slow = SlowChip(whole)
    for address in zip(*(axis.tolist() for axis in found[1:]), strict=True):
        slow.send(whole.entry, *address)
    assert_is(run_events(packed, [stream], spikes=[0], v_mem=[0]), slow)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    maker=st.sampled_from(list(MAKERS)),
    subtract=st.booleans(),
    many=st.booleans(),
    biased=st.booleans(),
    piece=st.sampled_from([1, 100, step._SLICE]),
)
def test_step_mode_is_the_definition(seed, maker, subtract, many, biased, piece):
    rng = np.random.default_rng(seed)
    whole = MAKERS[maker](rng, subtract=subtract, many=many, threshold=int(rng.integers(1, 300)))
    if biased:
        cores = tuple(dataclasses.replace(c, bias=draw(rng, c.output_shape[0])) for c in whole.cores)
        whole = dataclasses.replace(whole, cores=cores)
    data = rng.poisson(0.4, (5, 2, *whole.input_map)).astype(np.int32)
    n = len(whole.cores)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "_SLICE", piece)  # it goes on where it stopped
        result = run_steps(pack(whole), data, spikes=range(n), v_mem=range(n))
    for sample in (0, 1):
        for t, row in enumerate(slow_steps(whole, data[:, sample])):
            for k, (spikes, v) in enumerate(row):
                assert np.array_equal(result[k].spikes[t, sample], spikes)
                assert np.array_equal(result[k].v_mem[t, sample], v)


@pytest.mark.parametrize("mode", ["step", "event"])
def test_a_layer_on_two_cores_computes_what_it_does_on_one(mode):
    rng = np.random.default_rng(5)
    whole = chain_of_two(rng)
    parts = split(whole)
    results = []
    for one in (whole, parts):
        n = len(one.cores)
        if mode == "step":
            data = np.random.default_rng(1).poisson(0.5, (8, 1, *one.input_map)).astype(np.int32)
            results.append(run_steps(pack(one), data, spikes=range(n), v_mem=range(n)))
        else:
            packed, stream = stream_of(one, events_of(one.input_map, 200, np.random.default_rng(1)))
            results.append(run_events(packed, [stream], spikes=range(n), v_mem=range(n)))
    (a, b), (a0, a1, b0) = results
    assert a.spikes.sum() > 20
    assert np.array_equal(a.spikes, np.concatenate([a0.spikes, a1.spikes], axis=2))
    assert np.array_equal(a.v_mem, np.concatenate([a0.v_mem, a1.v_mem], axis=2))
    if mode == "step":
        # in event mode the parts send in turn, so that the next layer sees another order
        assert np.array_equal(b.v_mem, b0.v_mem)
    assert b.spikes.sum() == pytest.approx(b0.spikes.sum(), rel=0.1)
    counters = _counters(parts, results[1])
    assert counters["a"]["spikes"] == a.counters["spikes"]
    assert counters["a (core 5)"]["spikes"] + counters["a (core 6)"]["spikes"] == a.counters["spikes"]


def test_a_smaller_map_is_a_corner_of_the_core_s_own():
    rng = np.random.default_rng(8)
    first = core(2, "a", draw(rng, 2, 1, 2, 2), (1, 4, 4), to=[(1, 1, 1)])
    second = core(3, "b", draw(rng, 3, 3, 3, 3), (3, 5, 4), stride=(2, 1), padding=(1, 1))
    whole = program([first, second], [(0,)], (1, 4, 4))
    found = events_of(whole.input_map, 120, rng)
    packed, stream = stream_of(whole, found)
    slow = SlowChip(whole)
    for address in zip(*(axis.tolist() for axis in found[1:]), strict=True):
        slow.send(whole.entry, *address)
    result = run_events(packed, [stream], spikes=[0, 1], v_mem=[0, 1])
    assert result[1].counters["input_events"] > 0
    assert_is(result, slow)
    data = rng.poisson(0.5, (6, 1, 1, 4, 4)).astype(np.int32)
    steps = run_steps(packed, data, spikes=[0, 1], v_mem=[0, 1])
    for t, row in enumerate(slow_steps(whole, data[:, 0])):
        assert all(np.array_equal(steps[k].v_mem[t, 0], v) for k, (_, v) in enumerate(row))


# ---------------------------------------------------------------- the chip's arithmetic, by hand


def one_neuron(weight, events, **fields):
    whole = program([core(2, "a", [[[[weight]]]], (1, 1, 1), **fields)], [(0,)], (1, 1, 1))
    zeros = np.zeros(events, int)
    packed, stream = stream_of(whole, (np.arange(events) * 1000, zeros, zeros, zeros), n_steps=events)
    (found,) = run_events(packed, [stream], spikes=[0], v_mem=[0])
    return found.spikes.reshape(-1).tolist(), found.v_mem.reshape(-1).tolist(), found.counters


def test_one_spike_an_event_and_the_rest_waits():
    spikes, v, _ = one_neuron(127, 4, threshold=50)
    assert spikes == [1, 1, 1, 1]
    assert v == [77, 154, 231, 308]


def test_at_the_threshold_it_fires():
    # the vendor's own hardware test: weight and threshold 127, one spike (sinabs test_single_neuron_hardware.py)
    assert one_neuron(127, 1, threshold=127)[:2] == ([1], [0])
    assert one_neuron(127, 1, threshold=128)[:2] == ([0], [127])


def test_reset_to_zero_forgets_the_rest():
    assert one_neuron(127, 3, threshold=100, subtract=False)[:2] == ([1, 1, 1], [0, 0, 0])


def test_sixteen_bits_saturate_and_are_counted():
    spikes, v, counters = one_neuron(127, 400, threshold=1)
    assert sum(spikes) == 400
    assert v[-1] == 32766
    # 126 an event until 32767 is passed, from then on each event saturates
    assert counters["saturations"] == 400 - 32767 // 126
    assert v[259] == 32760


def test_the_lower_bound_holds_at_every_event():
    _, v, counters = one_neuron(-60, 3, v_min=-100)
    assert v == [-60, -100, -100]
    assert counters["clamps"] == 2


# ---------------------------------------------------------------- slow clock


def biased(rng, **fields):
    whole = chain_of_two(rng, **fields)
    first = dataclasses.replace(whole.cores[0], bias=np.array([30, -20, 7]))
    return dataclasses.replace(whole, cores=(first, whole.cores[1]))


@pytest.mark.parametrize("fires", [True, False])
def test_the_slow_clock_adds_biases_once_a_cycle(fires):
    rng = np.random.default_rng(2)
    whole = biased(rng)
    found = events_of(whole.input_map, 40, rng)
    packed, stream = stream_of(whole, found, EventOptions(leak_clock_hz=700))
    slow = SlowChip(whole)
    done = 0
    for when, *address in zip(*(axis.tolist() for axis in found), strict=True):
        while (done + 1) * 1_000_000 <= when * 700:
            done += 1
            slow.cycle(fires)
        slow.send(whole.entry, *address)
    while (done + 1) * 1_000_000 < 20_000 * 700:
        done += 1
        slow.cycle(fires)
    # 20 ms at 700 Hz; the 14th cycle ends when the run does
    assert done == 13
    result = run_events(packed, [stream], spikes=[0, 1], v_mem=[0, 1], leak_fires=fires)
    assert_is(result, slow)
    assert result[0].counters["spikes"] > 0


def biased_deployment():
    graph = chain((1, 2, 2), conv=conv_node([[[[0.5]]]], (2, 2), bias=[0.25]), n=if_node((1, 2, 2)))
    return nd.deploy(graph, "speck2f", convention=PLAIN, calibration=raster((1, 2, 2)))


def test_a_bias_is_never_ignored_without_a_word():
    deployment = biased_deployment()
    silence = np.zeros((10, 1, 2, 2), int)
    with pytest.raises(UnsupportedError, match=r"'n': has a bias, .* Pass leak_clock_hz="):
        deployment.run(silence, mode="event")
    without = deployment.run(silence, mode="event", leak_clock_hz=0)
    assert without["n", "v_mem"].data.any() == 0
    with pytest.raises(UnsupportedError, match="leak_clock_hz needs to know how long a step is.*Pass step_us="):
        deployment.run(silence, mode="event", leak_clock_hz=1000)
    clocked = deployment.run(silence, mode="event", leak_clock_hz=1000, step_us=2000)
    bias = int(deployment.quantized["conv"].bias[0])
    # cycle k ends at k ms and belongs to the step that begins then: one in the first step of 2 ms, two in the next
    assert clocked["n", "v_mem"].data[:2, 0, 0, 0].tolist() == [bias, 3 * bias]
    assert "leak clock 1000 Hz" in clocked.producer


# ---------------------------------------------------------------- through nd.deploy


def deployed(**options):
    return nd.deploy(conv_net(), "speck2f", convention=PLAIN, quantizer="max", **options)


def test_a_raster_is_sent_in_the_order_of_sinabs():
    deployment, data = deployed(), raster((1, 6, 6), 12, 2, rate=0.8, binary=False)
    whole = deployment.run(data, mode="event")
    for sample in (0, 1):
        events = nd.raster_to_events(data[:, sample], step_us=500, order="sinabs")
        alone = deployment.run(events, mode="event", step_us=500)
        for name in ("if1", "if2", "if3"):
            for variable in ("spikes", "v_mem"):
                found = alone[name, variable].data
                assert np.array_equal(whole[name, variable].data[:, sample], found)
        assert whole["if3", "spikes"].data[:, sample].sum() > 0
    other = deployment.run(data, mode="event", order="row_major")
    assert any(not np.array_equal(other[key].data, whole[key].data) for key in whole)


def test_records_of_event_mode_are_those_of_step_mode():
    deployment, data = deployed(), raster((1, 6, 6))
    event, step = deployment.run(data, mode="event"), deployment.run(data)
    assert list(event) == list(step)
    for key in step:
        a, b = event[key], step[key]
        assert (a.shape, a.scale, a.units, a.threshold, a.batched) == (
            b.shape,
            b.scale,
            b.units,
            b.threshold,
            b.batched,
        )
    assert event.outputs.shape == (12, 3, 4)
    assert set(event.counters["if1"]) == set(step.counters["if1"])
    assert event.counters["if1"]["input_events"] == data.sum()
    flat = chain((4,), fc=linear_node(np.eye(4)), n=if_node((4,)))
    deployment = nd.deploy(flat, "speck2f", convention=PLAIN, quantizer="max")
    assert deployment.run(raster((4,)), mode="event")["n", "spikes"].data.shape == (12, 3, 4)


def test_events_of_a_vector_are_addresses_in_the_input():
    graph = chain((2, 2, 2), f=flatten_node((2, 2, 2)), fc=linear_node(np.eye(8)), n=if_node((8,)))
    deployment = nd.deploy(graph, "speck2f", convention=PLAIN, quantizer="max")
    found = deployment.run(nd.Events([5, 2500], [1, 0], [0, 1], [1, 1]), mode="event")
    assert np.argwhere(found["n", "spikes"].data).tolist() == [[0, 5], [2, 3]]


def test_steps_of_events_begin_where_they_are_told_to():
    deployment = deployed()
    events = nd.Events([10_000, 11_500], [0, 0], [1, 2], [1, 2], stop_us=13_000)
    assert deployment.run(events, mode="event")["if1", "spikes"].shape == (13, 3, 6, 6)
    assert deployment.run(events, mode="event", origin="first")["if1", "spikes"].shape == (3, 3, 6, 6)
    assert deployment.run(events, mode="event", origin=9_000, step_us=500)["if1", "spikes"].shape == (8, 3, 6, 6)
    with pytest.raises(RasterError, match="first event is at 10000 us, before the origin at 10500 us"):
        deployment.run(events, mode="event", origin=10_500)
    with pytest.raises(RasterError, match="would take .* bytes, at most .*longer step_us, record less"):
        deployment.run(nd.Events([10**12], [0], [0], [0]), mode="event", step_us=1)
    with pytest.raises(UnsupportedError, match="origin is 'start', expected 'zero', 'first' or a whole number"):
        deployment.run(events, mode="event", origin="start")
    late = nd.Events([10**14], [0], [0], [0])
    with pytest.raises(RasterError, match="at 1000000 Hz are more than 62 bits count"):
        deployment.run(late, mode="event", step_us=10**12, leak_clock_hz=10**6, nodes=[])
    with pytest.raises(RasterError, match=r"shape \(1, 9, 9\), the Input has \(1, 6, 6\)"):
        deployment.run(nd.Events([1], [0], [8], [0], shape=(1, 9, 9)), mode="event")
    with pytest.raises(RasterError, match="holds 8 at event 0"):
        deployment.run(nd.Events([1], [0], [8], [0]), mode="event")
    with pytest.raises(UnsupportedError, match="recorded events have no steps. Use mode='event'"):
        deployment.run(events)


def test_a_long_recording_runs_where_little_is_recorded():
    late = nd.Events([0, 10**8], [0, 0], [1, 2], [1, 2])
    with pytest.raises(RasterError, match="would take"):
        deployed().run(late, mode="event", step_us=10)
    found = deployed().run(late, mode="event", step_us=10_000, record=())
    assert found.outputs.shape == (10_001, 4)
    assert found.counters["if1"]["input_events"] == 2


def test_event_mode_compares_with_the_reference():
    deployment, data = deployed(), raster((1, 6, 6))
    comparison = nd.compare(nd.run(conv_net(), data, convention=PLAIN), deployment.run(data, mode="event"))
    assert {"if1", "if2", "if3"} <= set(comparison.per_node)
    assert comparison.first_divergence is not None


def test_no_events_are_a_run_of_silence():
    nothing = np.zeros(0, int)
    found = deployed().run(nd.Events(nothing, nothing, nothing, nothing, stop_us=2000), mode="event")
    assert found["if1", "spikes"].data.shape == (2, 3, 6, 6)
    assert not found["if1", "spikes"].data.any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"order": "random"}, "order is 'random', expected 'sinabs' or 'row_major'"),
        ({"sweep": "xyc"}, "sweep is 'xyc', expected 'yxc' or 'cyx'"),
        ({"step_us": 0}, "step_us is 0, expected a whole number from 1 on"),
        ({"leak_clock_hz": 0.5}, "leak_clock_hz is 0.5, expected a whole number"),
        ({"leak_clock_hz": 10**12}, "leak_clock_hz is 1000000000000, at most 1000000. Usual are 10 to 10000"),
        ({"leak_fires": 1}, "leak_fires is 1, expected True or False"),
        ({"order": np.array([1, 2])}, "order is array.*, expected 'sinabs' or 'row_major'"),
        ({"origin": np.array([1, 2])}, "origin is array"),
        ({"core_model": "two_lanes", "slower_lane": np.array([1, 2])}, "slower_lane is array.*, expected 0 or 1"),
        ({"leak_fires": "yes"}, "leak_fires is 'yes', expected True or False"),
        ({"core_model": "lanes"}, "core_model is 'lanes', expected 'in_order' or 'two_lanes'"),
        ({"slower_lane": 1}, "slower_lane=1 belongs to core_model='two_lanes'"),
        ({"core_model": "two_lanes"}, "slower_lane is None, expected 0 or 1: no rule for it is known"),
        ({"core_model": "two_lanes", "slower_lane": 2}, "slower_lane is 2, expected 0 or 1"),
        ({"core_model": "two_lanes", "slower_lane": 0, "lane_ratio": 0.5}, "lane_ratio is 0.5, expected .* from 1 on"),
        ({"core_model": "two_lanes", "slower_lane": 0, "lane_fifo": 0}, "lane_fifo is 0"),
        ({"core_model": "two_lanes", "slower_lane": 0}, "none of them is in use .'if1' on core "),
    ],
)
def test_options_of_event_mode_without_meaning_are_refused(options, words):
    with pytest.raises(UnsupportedError, match=words):
        deployed().run(raster((1, 6, 6)), mode="event", **options)
    with pytest.raises(UnsupportedError, match="is an option of mode 'event', this is mode 'step'"):
        deployed().run(raster((1, 6, 6)), **options)


def test_recordings_that_end_before_the_origin_and_several_at_once_are_refused():
    nothing = np.zeros(0, int)
    short = nd.Events(nothing, nothing, nothing, nothing, stop_us=5)
    with pytest.raises(RasterError, match="the recording ends at 5 us, before the origin at 5000 us"):
        deployed().run(short, mode="event", origin=5000)
    with pytest.raises(RasterError, match="several recordings. Run one sample's Events at a time"):
        deployed().run([short, short], mode="event")
    with pytest.raises(UnsupportedError, match="mode '' is unknown"):
        deployed().run(raster((1, 6, 6)), mode="")


def test_integers_of_one_chip_are_not_those_of_another(tmp_path):
    deployed().save(tmp_path)
    with h5py.File(tmp_path / "deployment.h5", "r+") as file:
        file.attrs["target"] = "loihi2"
    (tmp_path / "chip.json").unlink()
    with pytest.raises(FileError, match="its integers are those of speck2f, its target is loihi2"):
        nd.load_deployment(tmp_path)


# ---------------------------------------------------------------- programs that cannot be


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"threshold": 0}, "'a': threshold is 0, the chip holds 1 to 32767"),
        ({"v_min": 0}, "'a': v_min is 0, the chip holds -32768 to -1"),
        ({"weight": np.full((3, 2, 3, 3), 128)}, "'a': the largest weight is 128, the chip holds -128 to 127"),
        ({"bias": np.full(3, 40000)}, "'a': the least bias is 40000"),
        ({"weight": np.ones((3, 1, 3, 3))}, r"'a': weights \[out, in, y, x\] \(3, 1, 3, 3\) do not fit"),
        ({"stride": (2, 2)}, r"'a': a kernel 3x3 with stride \(2, 2\) .* does not make \(3, 6, 6\)"),
    ],
)
def test_cores_that_no_chip_has_are_refused(change, words):
    whole = chain_of_two(np.random.default_rng(0))
    broken = dataclasses.replace(whole, cores=(dataclasses.replace(whole.cores[0], **change), whole.cores[1]))
    with pytest.raises(QuantizationError, match=words):
        pack(broken)


def test_destinations_that_events_do_not_fit_are_refused():
    whole = chain_of_two(np.random.default_rng(0))
    for to, words in (
        ((0, 1, 0), "'a' sends events to position 0"),
        ((1, 1, 0), r"come as \(3, 6, 6\) from channel 0 on, the core holds \(3, 3, 3\)"),
        ((1, 2, 1), "from channel 1 on"),
        ((1, 4, 0), "which pooling by 4 does not divide. Make the map a multiple"),
    ):
        cores = (dataclasses.replace(whole.cores[0], destinations=(type(whole.entry[0])(*to),)), whole.cores[1])
        with pytest.raises(QuantizationError, match=words):
            pack(dataclasses.replace(whole, cores=cores))


def test_sums_beyond_32_bits_are_made_in_64_and_beyond_those_refused():
    weight = np.full((1, 1, 1, 1), 127)
    whole = program([core(2, "a", weight, (1, 1, 1), many=False, threshold=1)], [(0,)], (1, 1, 1))
    data = np.full((2, 1, 1, 1, 1), 2**23, np.int32)
    (found,) = run_steps(pack(whole), data, spikes=[0], v_mem=[0])
    assert found.v_mem.reshape(-1).tolist() == [127 * 2**23 - 1, 2 * (127 * 2**23 - 1)]
    with pytest.raises(QuantizationError, match="'a': v reaches .* which 32 bits do not hold"):
        run_steps(pack(whole), np.full((3, 1, 1, 1, 1), 2**24, np.int32), spikes=[], v_mem=[0])


# ---------------------------------------------------------------- silicon

IN_ORDER = {0: 166, 1: 0, 2: 164, 4: 33, 6: 121, 7: 80}
TWO_LANES = {0: 7, 1: 1, 2: 29, 4: 32, 6: 26, 7: 34}
SLOWER = {0: 1, 1: 0, 2: 0, 4: 0, 6: 0, 7: 0}


@pytest.fixture(scope="module")
def recorded():
    """The deployment of the recorded network, its events by digit, and the chip's spike counts of layer 1."""
    folder = shared("reference", "cnn")
    graph = nd.read(folder / "cnn_sinabs.nir")
    convention = nd.convention("sinabs", v_min="-threshold")
    deployment = nd.deploy(graph, "speck2f", convention=convention, quantizer="max", cores={"1": 0})
    events, counts = np.load(folder / "nmnist_test_events.npz"), np.load(folder / "speck_layer1_counts.npz")
    ids = events["sample_id"].tolist()
    found = {}
    for digit, sample, count in zip(*(counts[name] for name in ("digit", "sample_id", "counts")), strict=True):
        at = ids.index(sample)
        part = slice(events["offset"][at], events["offset"][at + 1])
        found[int(digit)] = nd.Events(*(events[name][part] for name in ("t_us", "p", "y", "x"))), count
    return deployment, found


def test_the_integers_of_the_recorded_network(recorded):
    neuron = recorded[0].quantized["1"]
    assert (neuron.threshold, neuron.v_min, neuron.reset) == (72, -72, "subtract")
    assert 1 / neuron.scale == pytest.approx(71.537, abs=1e-3)


@pytest.mark.parametrize("digit", list(IN_ORDER))
def test_events_in_order_meet_the_speck2f_as_they_are_known_to(recorded, digit):
    deployment, samples = recorded
    events, counts = samples[digit]
    found = deployment.run(events, mode="event", record=("spikes",), nodes=["1"])["1", "spikes"].data.sum(0)
    assert np.count_nonzero(found != counts) == IN_ORDER[digit]
    assert np.abs(found.astype(int) - counts).max() <= 2


@pytest.mark.parametrize("digit", list(TWO_LANES))
def test_two_lanes_meet_the_speck2f_closer(recorded, digit):
    deployment, samples = recorded
    events, counts = samples[digit]
    run = deployment.run(
        events, mode="event", record=("spikes",), nodes=["1"], core_model="two_lanes", slower_lane=SLOWER[digit]
    )
    assert np.count_nonzero(run["1", "spikes"].data.sum(0) != counts) == TWO_LANES[digit]
    assert f"core_model 'two_lanes' (slower_lane {SLOWER[digit]}, 19.2 us a position, ratio 1.014" in run.producer
    equal = deployment.run(
        events, mode="event", record=("spikes",), nodes=["1"], core_model="two_lanes", slower_lane=0, lane_ratio=1.0
    )
    assert (
        np.count_nonzero(equal["1", "spikes"].data.sum(0) != counts)
        == {
            0: 66,
            1: 1,
            2: 61,
            4: 47,
            6: 133,
            7: 47,
        }[digit]
    )


def test_two_lanes_are_named_in_the_file_of_a_trajectory(recorded, tmp_path):
    deployment, samples = recorded
    run = deployment.run(samples[1][0], mode="event", nodes=["1"], core_model="two_lanes", slower_lane=1)
    run.save(tmp_path / "run.h5")
    assert nd.load_trajectory(tmp_path / "run.h5").producer == run.producer
    assert "two_lanes" in run.producer


def test_a_deployment_runs_without_torch_which_takes_a_second_to_import(tmp_path):
    graph, whole = conv_net(), raster((1, 6, 6))
    nd.deploy(graph, "speck2f", convention=PLAIN, calibration=whole).save(tmp_path)
    np.save(tmp_path / "raster.npy", whole)
    code = (
        "import sys, numpy as np, nirdeploy as nd\n"
        "from nirdeploy.evaluation.job import Runner\n"
        f"chip, raster = nd.load_deployment({str(tmp_path)!r}), np.load({str(tmp_path / 'raster.npy')!r})\n"
        "found = [chip.run(raster, mode=mode)['if1', 'spikes'].data.sum() for mode in ('step', 'event')]\n"
        "print('torch' in sys.modules, *found)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    chip = nd.load_deployment(tmp_path)
    expected = [chip.run(whole, mode=mode)["if1", "spikes"].data.sum() for mode in ("step", "event")]
    assert done.stdout.split() == ["False", *map(str, expected)]
    assert min(expected) > 0
