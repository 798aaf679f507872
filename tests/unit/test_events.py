"""Events of one sample, their conversion to and from rasters, and the files they come in."""

import base64
import contextlib
import dataclasses
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from nets import shared

from nirdeploy.binning import bin_events, events_to_raster, raster_to_events, stack_events
from nirdeploy.errors import FileError, RasterError, UnavailableError
from nirdeploy.event_files import load_events, save_events
from nirdeploy.events import Events
from nirdeploy.raster import load_raster, save_raster

IMAGE = (2, 34, 34)


def image_events(n=50, seed=0, shape=IMAGE, last=100_000, **fields):
    rng = np.random.default_rng(seed)
    return Events(np.sort(rng.integers(0, last, n)), *(rng.integers(0, s, n) for s in shape), shape=shape, **fields)


# ---------------------------------------------------------------- events


def test_events_keep_their_columns_in_order():
    events = Events([5, 7, 7], [1, 0, 1], [2, 3, 4], [9, 8, 7])
    assert len(events) == 3
    assert events.duration_us == 2
    assert [list(c) for c in (events.channel, events.y, events.x)] == [[1, 0, 1], [2, 3, 4], [9, 8, 7]]
    assert repr(events) == "Events(3 events, 5 to 7 us, shape None)"
    assert Events(time_us=[5], channel=[0], y=[1], x=[2]) == Events([5], index=([0], [1], [2]))


def test_events_have_arrays_of_their_own_that_cannot_be_written():
    time = np.array([1, 2])
    events = Events(time, np.array([0, 0]))
    time[0] = 9
    assert events.time_us[0] == 1
    for array in (events.time_us, events.channel, events.between(0, 5).time_us):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        events.label = 3


def test_events_of_vectors_rows_and_any_rank():
    assert list(Events([1], [4]).address) == [4]
    row = Events([1], [2], x=[3], shape=(5, 7))
    assert (list(row.x), list(row.address)) == ([3], [17])
    with pytest.raises(RasterError, match="events with 2 indices have no 'y'"):
        _ = row.y
    flat = Events.flat([1, 2], [0, 119], (2, 3, 4, 5))
    assert [int(axis[1]) for axis in flat.index] == [1, 2, 3, 4]
    assert list(flat.address) == [0, 119]
    assert len(Events.flat([], [], (2, 3))) == 0
    assert list(Events.flat([3], [2]).channel) == [2]
    assert list(Events([3, 4], index=(), shape=()).address) == [0, 0]


def test_equality_sees_every_field():
    events = image_events()
    assert events == dataclasses.replace(events)
    assert events != dataclasses.replace(events, shape=None)
    assert events != dataclasses.replace(events, label=1)
    assert events != dataclasses.replace(events, stop_us=200_000)
    assert events != events.between(0, 50_000)
    assert events != Events(events.time_us, index=(events.y, events.channel, events.x))
    assert events != "events"


def test_integers_of_every_type_are_taken():
    for dtype in (np.uint8, np.int16, ">i4", np.float32, np.uint64):
        assert list(Events(np.array([1, 2], dtype), np.array([0, 1], dtype)).time_us) == [1, 2]
    assert list(Events(torch.tensor([1, 2]), torch.tensor([True, False])).channel) == [1, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, 2], [0]), "channel has 1 values, time_us has 2"),
        (([1.5], [0]), r"time_us holds 1\.5 at event 0: expected whole numbers"),
        (([1], [np.nan]), "channel holds nan at event 0: expected whole numbers"),
        (([2.0**60], [0]), "time_us holds .* at event 0: at most 9007199254740992 is possible"),
        (([1, -1], [0, 0]), "time_us holds -1 at event 1: expected no negative"),
        (([1, 2], [0, -3]), "channel holds -3 at event 1: expected no negative"),
        (([1], [2**40]), "channel holds 1099511627776 at event 0: at most 2147483647"),
        ((np.array([2**63], np.uint64), [0]), "time_us holds 9223372036854775808 at event 0: at most"),
        (([[1]], [0]), r"time_us has shape \(1, 1\), expected one number an event"),
        ((1, [0]), r"time_us has shape \(\), expected one number"),
        ((["a"], [0]), "time_us has dtype <U1, expected whole numbers"),
        (([True], [0]), "time_us has dtype bool"),
        (([2**70], [0]), "time_us has dtype object"),
        (([[1], [2, 3]], [0]), "time_us is no row of numbers"),
        ((np.ma.array([1, 2], mask=[0, 1]), [0, 0]), "time_us has masked values"),
        (([1],), "events need channel, y and x, or channel and x, or channel, or index; got none"),
        (([1], [1], [1]), "events need .*; got channel, y"),
        (([1, 5, 3], [0, 0, 0]), r"time_us falls from 5 to 3 at event 2.*Events\.sorted"),
    ],
)
def test_refuses_columns_that_are_no_events(arguments, message):
    with pytest.raises(RasterError, match=message):
        Events(*arguments)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shape": (2, 2)}, r"events with 3 indices do not fit the shape \(2, 2\)"),
        ({"shape": (2, 3, 9)}, r"y holds 3 at event 1: the shape \(2, 3, 9\) has 3 there"),
        ({"shape": (2, -1, 9)}, "shape is -1, expected a whole number from 0 on"),
        ({"shape": 5}, "shape is 5, expected a tuple of lengths"),
        ({"stop_us": 7}, "the last event is at 7 us, not before stop_us=7"),
        ({"stop_us": 7.5}, r"stop_us is 7\.5, expected a whole number"),
        ({"label": "a"}, "label is 'a', expected a whole number"),
        ({"index": ([0], [0])}, "index and channel, y, x are both given"),
    ],
)
def test_refuses_fields_that_contradict_the_events(fields, message):
    with pytest.raises(RasterError, match=message):
        Events([5, 7], [0, 1], [2, 3], [4, 5], **fields)


def test_sorting_is_asked_for_and_stable():
    events = Events.sorted([3, 1, 3, 1], [0, 1, 2, 3], shape=(4,), label=2)
    assert (list(events.time_us), list(events.channel), events.label) == ([1, 1, 3, 3], [1, 3, 0, 2], 2)
    with pytest.raises(RasterError, match="channel has 1 values, time_us has 2"):
        Events.sorted([3, 1], [0])


def test_flat_addresses_stay_inside_and_need_the_shape():
    with pytest.raises(RasterError, match=r"event 1 has address 6; shape \(2, 3\) has 6 cells"):
        Events.flat([1, 2], [5, 6], (2, 3))
    with pytest.raises(RasterError, match=r"flat addresses need the sample's shape.*replace"):
        _ = Events([1], [0], [0], [0]).address


def test_slices_by_time_are_half_open():
    events = Events([1, 3, 3, 8], [0, 1, 2, 3], stop_us=20, label=4)
    part = events.between(3, 8)
    assert (list(part.channel), part.stop_us, part.label) == ([1, 2], 8, 4)
    assert (list(events.between(4).channel), events.between(4).stop_us) == ([3], 20)
    assert len(events.between(9, 9)) == 0
    assert dataclasses.replace(events, stop_us=None).between(0, 5).stop_us is None
    with pytest.raises(RasterError, match="stop_us is 2, expected a whole number from 3 on"):
        events.between(3, 2)


# ---------------------------------------------------------------- raster to events and back

counts = st.one_of(st.integers(0, 2), st.integers(0, 2), st.integers(250, 300))
rasters = array_shapes(min_dims=1, max_dims=5, min_side=0, max_side=4).flatmap(
    lambda shape: arrays(np.int32, shape, elements=counts)
)


@given(rasters, st.integers(1, 10**9), st.sampled_from(["row_major", "sinabs"]))
@settings(deadline=None)
def test_every_raster_comes_back_whatever_the_step(raster, step_us, order):
    events = raster_to_events(raster, step_us=step_us, order=order)
    assert len(events) == raster.sum()
    again = events_to_raster(events, step_us=step_us)
    assert again.shape == raster.shape
    assert np.array_equal(again, raster)


@given(rasters.filter(lambda r: r.ndim > 1), st.integers(1, 5000), st.integers(0, 4))
@settings(deadline=None)
def test_coarser_steps_add_up_the_finer(raster, step_us, factor):
    factor += 1
    coarse = events_to_raster(raster_to_events(raster, step_us=step_us), step_us=step_us * factor)
    padded = np.concatenate([raster, np.zeros((-len(raster) % factor, *raster.shape[1:]), int)])
    assert np.array_equal(coarse, padded.reshape(len(padded) // factor, factor, *raster.shape[1:]).sum(1))


def test_many_sparse_steps_come_back():
    raster = np.zeros((100_000, 3), np.uint8)
    raster[[0, 99_998], [1, 2]] = 255
    for step_us in (1, 100, 333):
        events = raster_to_events(raster, step_us=step_us)
        assert np.array_equal(events_to_raster(events, step_us=step_us), raster)
    assert len(events_to_raster(events, step_us=333)) == 100_000


def test_the_steps_that_floats_lose_are_kept():
    # at dt = 1e-4 int(step * dt / dt) is 2 instead of 3
    raster = np.ones((100, 1), int)
    assert np.array_equal(events_to_raster(raster_to_events(raster, step_us=100), step_us=100), raster)


def test_rasters_of_every_kind_are_taken():
    wanted = raster_to_events(np.array([[0, 2], [1, 0]]))
    for raster in (torch.tensor([[0.0, 2.0], [1.0, 0.0]]), [[0, 2], [1, 0]], np.array([[0, 2], [1, 0]], ">u2")):
        assert raster_to_events(raster) == wanted
    assert (list(wanted.time_us), list(wanted.channel), wanted.stop_us) == ([0, 0, 1000], [1, 1, 0], 2000)
    assert raster_to_events(np.ones((1, 2), bool), label=3).label == 3


def sinabs_order(raster, dt_us):
    """What sinabs 3.1.3's ChipFactory.raster_to_events does, in plain loops."""
    found = []
    for value in range(int(raster.max(initial=0)), 0, -1):
        found += list(map(tuple, np.argwhere(raster == value))) * value
    return [(int(t) * dt_us, *map(int, rest)) for t, *rest in sorted(found, key=lambda event: event[0])]


@given(arrays(np.int64, (4, 2, 2, 3), elements=st.integers(0, 4)))
@settings(deadline=None)
def test_both_orders_within_a_step(raster):
    events = raster_to_events(raster, order="sinabs")
    assert list(zip(events.time_us, *events.index, strict=True)) == sinabs_order(raster, 1000)
    events = raster_to_events(raster)
    rows = list(zip(events.time_us, *events.index, strict=True))
    assert rows == sorted(rows)


@pytest.mark.parametrize(
    ("raster", "options", "message"),
    [
        (np.array([[0, -1]]), {}, r"the raster holds -1 at \(0, 1\): a negative count"),
        (np.array([[0], [0.5]]), {}, r"the raster holds 0\.5 at \(1, 0\): expected whole counts"),
        (np.array([[np.inf]]), {}, r"the raster holds inf at \(0, 0\): expected finite"),
        (np.array([[2**40]]), {}, "at most 268435456 events are made"),
        (np.full((2, 2), 2**27), {}, "the raster holds 536870912 spikes, at most 268435456"),
        (np.array(3), {}, "the raster is a single number"),
        (np.ones((2, 2)), {"order": "random"}, "order is 'random', expected 'row_major' or 'sinabs'"),
        (np.ones((2, 2)), {"step_us": 0}, "step_us is 0, expected a whole number from 1 on"),
        (np.ones((2, 2)), {"step_us": 1e3}, r"step_us is 1000\.0, expected a whole number"),
        (np.ones((2, 2)), {"step_us": True}, "step_us is True, expected a whole number"),
        (np.ones((2, 2)), {"step_us": 2**61 + 1}, "2 steps of .* us take"),
        (np.array([["a"]]), {}, "the raster has dtype <U1, expected counts"),
    ],
)
def test_refuses_rasters_that_are_no_counts(raster, options, message):
    with pytest.raises(RasterError, match=message):
        raster_to_events(raster, **options)


# ---------------------------------------------------------------- binning


def test_origin_and_last_step():
    events = Events([500, 1200, 2600], [0, 1, 1], shape=(2,))
    assert events_to_raster(events).tolist() == [[1, 0], [0, 1], [0, 1]]
    assert events_to_raster(events, origin="first").tolist() == [[1, 1], [0, 0], [0, 1]]
    assert events_to_raster(events, origin=-1000).tolist() == [[0, 0], [1, 0], [0, 1], [0, 1]]
    binned = bin_events(events, origin="first", incomplete="drop")
    assert binned.raster.tolist() == [[1, 1], [0, 0]]
    assert (binned.before, binned.after, binned.incomplete, binned.dropped) == (0, 0, 1, 1)
    assert len(events_to_raster(events, n_steps=7)) == 7


def test_a_known_end_tells_which_steps_are_complete():
    events = Events([500, 1999], [0, 1], shape=(2,), stop_us=2000)
    assert bin_events(events, incomplete="drop").dropped == 0
    longer = dataclasses.replace(events, stop_us=4500)
    assert len(events_to_raster(longer)) == 5
    assert len(events_to_raster(longer, incomplete="drop")) == 4
    binned = bin_events(events, origin=400, incomplete="drop", n_steps=4)
    assert (binned.raster.sum(1).tolist(), binned.incomplete) == ([1, 0, 0, 0], 1)


def test_events_outside_are_lost_only_when_asked():
    events = Events([500, 1200, 2600, 2700], [0, 1, 1, 0], shape=(2,))
    with pytest.raises(RasterError, match=r"1 event before the origin \(1000 us\) would be lost.*outside='drop'"):
        events_to_raster(events, origin=1000)
    with pytest.raises(RasterError, match="2 events after 2 steps of 1000 us would be lost"):
        events_to_raster(events, n_steps=2)
    binned = bin_events(events, n_steps=1, origin=1000, outside="drop")
    assert (binned.raster.tolist(), binned.before, binned.after) == ([[0, 1]], 1, 2)
    late = bin_events(events, origin=10_000, outside="drop")
    assert (late.raster.shape, late.before) == ((0, 2), 4)


@given(
    st.lists(st.integers(0, 10_000), max_size=30),
    st.integers(1, 3000),
    st.integers(-3000, 12_000) | st.sampled_from(["first", "zero"]),
    st.none() | st.integers(0, 12),
    st.sampled_from(["keep", "drop"]),
    st.none() | st.integers(0, 5000),
)
@settings(deadline=None)
def test_every_event_is_counted_or_named(times, step_us, origin, n_steps, incomplete, tail):
    times = sorted(times)
    stop = None if tail is None else (times[-1] if times else 0) + 1 + tail
    events = Events(times, [0] * len(times), shape=(1,), stop_us=stop)
    binned = bin_events(events, step_us=step_us, origin=origin, n_steps=n_steps, incomplete=incomplete, outside="drop")
    assert binned.raster.sum() + binned.dropped == len(times)
    start = {"zero": 0, "first": times[0] if times else 0}.get(origin, origin)
    end = len(binned.raster)
    wanted = np.zeros(end, int)
    for t in times:
        if 0 <= (t - start) // step_us < end:
            wanted[(t - start) // step_us] += 1
    if incomplete == "keep":
        assert binned.raster[:, 0].tolist() == wanted.tolist()
        assert n_steps is not None or binned.after == binned.incomplete == 0
    else:
        assert (binned.raster[:, 0] <= wanted).all()
        assert wanted.sum() - binned.raster.sum() == (binned.incomplete if n_steps is not None else 0)


def test_counts_choose_their_dtype_or_are_refused():
    def many(n):
        return Events([0] * n, [0] * n, shape=(1,))

    assert events_to_raster(many(255)).dtype == np.uint8
    assert events_to_raster(many(256)).dtype == np.int32
    assert events_to_raster(many(2), dtype=np.int64).dtype == np.int64
    with pytest.raises(
        RasterError, match=r"the raster would hold 256 at \(0, 0\); uint8 holds at most 255.*wider dtype"
    ):
        events_to_raster(many(256), dtype=np.uint8)
    with pytest.raises(RasterError, match=r"hold 128 at \(0, 0\); int8 holds at most 127"):
        events_to_raster(many(128), dtype="int8")
    with pytest.raises(RasterError, match="dtype is float32, expected an integer type"):
        events_to_raster(many(1), dtype=np.float32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": None}, r"the shape of the sample is not known.*shape=\(2, 34, 34\)"),
        ({"shape": (2, 3, 4)}, r"x holds 4 at event 0: the shape \(2, 3, 4\) has 4 there"),
        ({"shape": (2, 3)}, "events with 3 indices do not fit the shape"),
        ({"origin": "last"}, "origin is 'last', expected 'first' or 'zero'"),
        ({"origin": 0.5}, r"origin is 0\.5, expected a whole number"),
        ({"incomplete": "cut"}, "incomplete is 'cut', expected 'keep' or 'drop'"),
        ({"outside": "keep"}, "outside is 'keep', expected 'error' or 'drop'"),
        ({"n_steps": -1}, "n_steps is -1, expected a whole number from 0 on"),
        ({"max_bytes": 100}, r"shape \(6, 2, 3, 5\) would take 180 bytes, at most 100.*longer steps"),
        ({"n_steps": 10**12}, "would take 30000000000000 bytes"),
    ],
)
def test_refuses_binning_that_cannot_be(options, message):
    with pytest.raises(RasterError, match=message):
        events_to_raster(Events([5000], [1], [2], [4]), **{"shape": (2, 3, 5), **options})


def test_times_of_the_clock_are_refused_with_a_remedy():
    events = Events([1_700_000_000_000_000, 1_700_000_000_001_000], [0, 0], shape=(1,))
    with pytest.raises(RasterError, match="origin='first' where times do not begin near 0"):
        events_to_raster(events)
    assert events_to_raster(events, origin="first").tolist() == [[1], [1]]


def test_samples_are_stacked_and_padded_with_silence():
    short, long = Events([0, 10], [0, 1], shape=(2,)), Events([2500], [1], shape=(2,))
    stacked = stack_events([short, long])
    assert stacked.shape == (3, 2, 2)
    assert stacked[:, 0].tolist() == [[1, 1], [0, 0], [0, 0]]
    assert stacked[:, 1].tolist() == [[0, 0], [0, 0], [0, 1]]
    assert stack_events([short, long], n_steps=5).shape == (5, 2, 2)
    with pytest.raises(RasterError, match="sample 1: 1 event after 2 steps"):
        stack_events([short, long], n_steps=2)
    with pytest.raises(RasterError, match=r"sample 1 has shape \(3,\), sample 0 \(2,\).*Give the shape"):
        stack_events([short, Events([0], [0], shape=(3,))])
    with pytest.raises(RasterError, match="there are no samples"):
        stack_events([])
    with pytest.raises(RasterError, match=r"shape \(3, 2, 2\) would take 12 bytes, at most 8"):
        stack_events([short, long], max_bytes=8)


def nmnist():
    """The recorded test samples: (label, time, polarity, y, x) each."""
    with np.load(shared("reference", "cnn", "nmnist_test_events.npz")) as data:
        bounds = data["offset"]
        for label, a, b in zip(data["label"], bounds[:-1], bounds[1:], strict=True):
            yield int(label), *(data[name][a:b] for name in ("t_us", "p", "y", "x"))


def test_recorded_nmnist_frames_are_those_of_plain_numpy():
    samples, wanted = [], []
    for _, time, p, y, x in nmnist():
        samples.append(Events(time, p, y, x, shape=IMAGE))
        frames = np.zeros((300, *IMAGE), int)
        bins = (time.astype(int) - int(time[0])) // 1000
        whole = min(300, (int(time[-1]) - int(time[0])) // 1000)
        inside = bins < whole
        np.add.at(frames, (bins[inside], p[inside], y[inside], x[inside]), 1)
        binned = bin_events(samples[-1], origin="first", n_steps=300, incomplete="drop", outside="drop")
        assert np.array_equal(binned.raster, frames)
        assert binned.dropped == (~inside).sum()
        wanted.append(frames)
    stacked = stack_events(samples, origin="first", n_steps=300, incomplete="drop", outside="drop")
    assert stacked.shape == (300, len(samples), *IMAGE)
    assert np.array_equal(stacked, np.stack(wanted, axis=1))


# ---------------------------------------------------------------- our files


@pytest.mark.parametrize(
    "events",
    [
        image_events(label=7, stop_us=100_000),
        dataclasses.replace(image_events(), shape=None),
        Events([], [], [], []),
        Events([1, 2], [4, 5]),
        raster_to_events(np.random.default_rng(0).poisson(0.3, (9, 2, 3, 4, 5))),
        raster_to_events(np.zeros((3, 12), int)),
    ],
)
def test_npz_files_keep_everything(tmp_path, events):
    save_events(tmp_path / "e.npz", events)
    assert load_events(tmp_path / "e.npz") == events
    assert load_events(tmp_path / "e.npz", "npz") == events


def test_events_without_shape_are_written_only_where_they_come_back(tmp_path):
    with pytest.raises(FileError, match="cannot write .*flat addresses need the sample's shape"):
        save_events(tmp_path / "e.npz", Events([1], [0], x=[2]))
    assert list(tmp_path.iterdir()) == []


def npz(path, **arrays):
    np.savez(path, **{name: np.asarray(value) for name, value in arrays.items()})


def test_damaged_npz_files_are_refused(tmp_path):
    path = tmp_path / "e.npz"
    good = {"time_us": [1, 2], "channel": [0, 1], "y": [3, 4], "x": [5, 6]}
    cases = [
        ({"time_us": [1, 2]}, "has no array 'channel'"),
        ({"raster": [[1]]}, r"has no array 'time_us'. It holds a raster: load_raster"),
        ({**good, "x": [5]}, "x.* has 1 values, time_us has 2"),
        ({**good, "y": [3.5, 4]}, r"holds 3\.5 at event 0"),
        ({**good, "time_us": [2, 1]}, "time_us falls from 2 to 1 at event 1.*Pass sort=True"),
        ({**good, "shape": [2, 4, 9]}, r"holds 4 at event 1: the shape \(2, 4, 9\) has 4 there. Pass the shape"),
        ({**good, "shape": [[2]]}, "e.npz:shape' has shape .*expected a row of lengths"),
        ({**good, "label": [1]}, "e.npz:label' has shape .*expected one whole number"),
        ({**good, "stop_us": 1.5}, "e.npz:stop_us' has shape .*expected one whole number"),
        ({"time_us": [1], "address": [6], "shape": [2, 3]}, r"event 0 has address 6; shape \(2, 3\) has 6 cells"),
        ({**good, "x": np.array([{}, {}])}, "holds Python objects"),
    ]
    for arrays_, message in cases:
        np.savez(path, **{name: np.asarray(value) for name, value in arrays_.items()}, allow_pickle=True)
        with pytest.raises(FileError, match=message):
            load_events(path)
    npz(path, **{**good, "time_us": [2, 1]})
    assert list(load_events(path, sort=True).x) == [6, 5]
    npz(path, **good)
    assert load_events(path, shape=(2, 5, 7)).shape == (2, 5, 7)
    np.savez_compressed(path, **{**good, "time_us": np.zeros(2000, np.int64)})
    with pytest.raises(FileError, match="time_us' declares 16000 bytes"):
        load_events(path, max_bytes=4000)


def test_a_huge_declared_shape_costs_nothing(tmp_path):
    npz(tmp_path / "e.npz", time_us=[1], channel=[0], y=[3], x=[5], shape=[2, 2**30, 2**30])
    events = load_events(tmp_path / "e.npz")
    with pytest.raises(RasterError, match="would take"):
        events_to_raster(events)
    with pytest.raises(FileError, match="would take"):
        load_raster(tmp_path / "e.npz", step_us=1000)


# ---------------------------------------------------------------- N-MNIST


def test_nmnist_bytes_are_those_of_the_format(tmp_path):
    path = tmp_path / "e.bin"
    save_events(path, Events([5, 0x123456], [0, 1], [20, 33], [33, 7]))
    assert path.read_bytes() == bytes([33, 20, 0, 0, 5, 7, 33, 0x92, 0x34, 0x56])
    again = load_events(path)
    assert again == Events([5, 0x123456], [0, 1], [20, 33], [33, 7], shape=IMAGE)


def test_recorded_nmnist_samples_come_back(tmp_path):
    for _, time, p, y, x in nmnist():
        events = Events(time, p, y, x, shape=IMAGE)
        save_events(tmp_path / "00001.bin", events)
        assert load_events(tmp_path / "00001.bin") == events


def test_overflow_markers_advance_the_clock(tmp_path):
    path = tmp_path / "e.bin"
    path.write_bytes(bytes([1, 2, 128, 0, 9, 0, 240, 0, 0, 0, 3, 4, 0, 0, 10, 0, 240, 0, 0, 0, 5, 6, 0, 0, 1]))
    events = load_events(path)
    assert list(events.time_us) == [9, 8192 + 10, 2 * 8192 + 1]
    assert list(events.y) == [2, 4, 6]


def test_wrong_nmnist_files_are_refused(tmp_path):
    path = tmp_path / "e.bin"
    path.write_bytes(b"")
    with pytest.raises(FileError, match="is empty, expected N-MNIST events"):
        load_events(path)
    path.write_bytes(bytes(13))
    with pytest.raises(FileError, match="is truncated: event 2 has 3 of 5 bytes"):
        load_events(path)
    path.write_bytes(bytes([34, 1, 0, 0, 0]))
    with pytest.raises(FileError, match=r"holds 34 at event 0: the shape \(2, 34, 34\) has 34.*shape=\(2, height"):
        load_events(path)
    assert load_events(path, shape=(2, 180, 240)).x[0] == 34
    path.write_bytes(bytes([1, 1, 0, 0, 9, 1, 1, 0, 0, 3]))
    with pytest.raises(FileError, match="time_us falls from 9 to 3 at event 1.*sort=True"):
        load_events(path)
    assert list(load_events(path, sort=True).time_us) == [3, 9]
    with pytest.raises(FileError, match="has 10 bytes, at most 8 are read"):
        load_events(path, max_bytes=8)
    with pytest.raises(FileError, match="holds 2 events, more than 30 bytes"):
        load_events(path, max_bytes=30)


@pytest.mark.parametrize(
    ("events", "message"),
    [
        (Events([1], [0]), "has channel, y and x, the events 1 indices"),
        (Events([], [], [], []), "of no events would be empty"),
        (Events([1], [0], [0], [0], label=3), "has no label, the events 3"),
        (Events([1], [0], [0], [0], stop_us=9), "has no stop_us, the events 9"),
        (Events([2**23], [0], [0], [0]), "holds times up to 8388607 us, the last event is at 8388608"),
        (Events([1, 1], [0, 2], [0, 0], [0, 0]), "holds channel up to 1, event 1 has 2"),
        (Events([1], [0], [240], [0]), "holds y up to 239, event 0 has 240"),
        (Events([1], [0], [0], [256]), "holds x up to 255, event 0 has 256"),
    ],
)
def test_nmnist_files_refuse_what_they_cannot_hold(tmp_path, events, message):
    with pytest.raises(FileError, match=f"cannot write .*an N-MNIST file {message}. Use .npz"):
        save_events(tmp_path / "e.bin", events)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- Prophesee

HEADER = "% date 2023-03-29 16:37:46\n% evt {}\n% format EVT{};height=72;width=128\n% geometry 128x72\n% end\n"


def camera(n=400, seed=3, shape=(2, 72, 128)):
    """Events with bursts, so that vectors occur, and with gaps."""
    rng = np.random.default_rng(seed)
    time = np.sort(rng.integers(0, 100_000 * n, n // 4)).repeat(4)
    p, y = (rng.integers(0, s, n // 4).repeat(4) for s in shape[:2])
    x = (
        rng.integers(0, shape[2] - 16, n // 4)[:, None]
        + np.sort(rng.permuted(np.tile(range(16), (n // 4, 1)), axis=1)[:, :4])
    ).ravel()
    return Events(time, p, y, x, shape=shape)


def dat(events):
    head = b"% Data file containing CD events\n% Version 2\n% Width 128\n% Height 72\n" + bytes([0x0C, 8])
    words = [
        (int(t) & 0xFFFFFFFF, int(x) | int(y) << 14 | int(p) << 28)
        for t, p, y, x in zip(events.time_us, *events.index, strict=True)
    ]
    return head + np.array(words, "<u4").tobytes()


def evt2(events):
    words, high = [], None
    for t, p, y, x in zip(events.time_us.tolist(), *(a.tolist() for a in events.index), strict=True):
        if t >> 6 != high:
            high = t >> 6
            words += [0x8 << 28 | high & 0x0FFFFFFF, 0xA << 28 | 5]
        words.append(p << 28 | (t & 63) << 22 | x << 11 | y)
    return HEADER.format("2.0", 2).encode() + np.array(words, "<u4").tobytes()


def evt3(events, vectors=True):
    """Word by word; neighbours of one time, polarity and row as masks of 12, 12 and 8 pixels."""
    words, high, low, row, at = [], None, None, None, 0
    columns = list(zip(events.time_us.tolist(), *(a.tolist() for a in events.index), strict=True))
    while at < len(columns):
        t, p, y, x = columns[at]
        if t >> 12 != high:
            high, low = t >> 12, 0
            words.append(0x8000 | high & 0xFFF)
        if t & 0xFFF != low:
            low = t & 0xFFF
            words.append(0x6000 | low)
        if y != row:
            row = y
            words.append(y)
        group = [x]
        while vectors and at + len(group) < len(columns):
            other = columns[at + len(group)]
            if other[:3] != (t, p, y) or not group[-1] < other[3] < x + 32:
                break
            group.append(other[3])
        if len(group) == 1:
            words.append(0x2000 | p << 11 | x)
        else:
            mask = sum(1 << (other - x) for other in group)
            words += [0x3000 | p << 11 | x, 0x4000 | mask & 0xFFF, 0x4000 | mask >> 12 & 0xFFF, 0x5000 | mask >> 24]
        at += len(group)
    return HEADER.format("3.0", 3).encode() + np.array(words, "<u2").tobytes()


@pytest.mark.parametrize(("encode", "name"), [(dat, "e.dat"), (evt2, "e.raw"), (evt3, "e.raw")])
def test_camera_files_are_read_exactly(tmp_path, encode, name):
    events = camera()
    (tmp_path / name).write_bytes(encode(events))
    assert load_events(tmp_path / name) == events
    assert load_events(tmp_path / name).shape == (2, 72, 128)


@pytest.mark.parametrize(
    ("encode", "name", "period"), [(dat, "e.dat", 1 << 32), (evt2, "e.raw", 1 << 34), (evt3, "e.raw", 1 << 24)]
)
def test_clocks_that_begin_again_are_counted_on(tmp_path, encode, name, period):
    events = Events(
        [5, period - 7, period + 3, 2 * period - 1, 2 * period], [0, 1, 0, 1, 1], [1] * 5, [2] * 5, shape=(2, 72, 128)
    )
    (tmp_path / name).write_bytes(encode(events))
    assert list(load_events(tmp_path / name).time_us) == list(events.time_us)


@given(
    st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 1), st.integers(0, 3), st.integers(0, 60)), max_size=40)
)
@settings(deadline=None)
def test_masks_and_single_words_say_the_same(rows):
    rows = sorted(rows)
    events = Events([r[0] for r in rows], *([r[i] for r in rows] for i in (1, 2, 3)), shape=(2, 72, 128))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "e.raw"
        for vectors in (True, False):
            path.write_bytes(evt3(events, vectors))
            assert load_events(path) == events
        path.write_bytes(evt2(events))
        assert load_events(path) == events


def test_readers_agree_with_expelliarmus(tmp_path):
    expelliarmus = pytest.importorskip("expelliarmus")
    events = camera()
    for encode, name, encoding in ((dat, "e.dat", "dat"), (evt2, "e.raw", "evt2"), (evt3, "e.raw", "evt3")):
        (tmp_path / name).write_bytes(encode(events))
        theirs = expelliarmus.Wizard(encoding=encoding).read(tmp_path / name)
        # its EVT 3.0 reader takes any fall of the low 12 bits for a step of the high ones, which OpenEB's does not
        difference = theirs["t"] - events.time_us
        assert not (difference % 4096 if encoding == "evt3" else difference).any()
        for field, column in zip("pyx", events.index, strict=True):
            assert np.array_equal(theirs[field], column)


def test_wrong_camera_files_are_refused(tmp_path):
    raw, dat_file = tmp_path / "e.raw", tmp_path / "e.dat"
    events = camera(40)
    head = HEADER.format("3.0", 3).encode()
    cases = [
        (raw, evt2(events)[:-1], r"is truncated: word \d+ of the data has 3 of 4 bytes"),
        (raw, evt3(events)[:-1], r"is truncated: word \d+ of the data has 1 of 2 bytes"),
        (raw, b"\x00" * 40, "does not say its encoding. Pass format='evt2' or 'evt3'"),
        (raw, b"", "does not say its encoding"),
        (raw, b"% evt 2.1\n" + bytes(8), "is encoded as EVT21, expected EVT2 or EVT3"),
        (raw, b"% evt 3.0\n% endianness big\n" + bytes(8), "is big-endian, expected little-endian"),
        (raw, head + b"\x00\x90", "is damaged: word 0 of the data has the unknown type 0x9"),
        (raw, head + b"\x01\x20", "word 0 of the data is an event, and no time word came before it"),
        (raw, head + b"\x00\x80\x01\x20", "word 1 of the data is an event, and no y came before it"),
        (raw, head + b"\x00\x80\x00\x00\x01\x40", "word 2 of the data is an event, and no base x came before it"),
        (raw, HEADER.format("2.0", 2).encode() + b"\x00\x00\x00\x00", "is an event, and no time word"),
        (raw, HEADER.format("2.0", 2).encode() + b"\x00\x00\x00\x30", "has the unknown type 0x3"),
        (dat_file, b"", "has no DAT header"),
        (dat_file, b"\x0c\x08" + bytes(8), "has no DAT header"),
        (dat_file, b"% Version 2\n\x0e\x08", "holds events of type 14 and 8 bytes, expected type 12"),
        (dat_file, dat(events)[:-3], "is truncated: word 39 of the data has 5 of 8 bytes"),
        (dat_file, b"% Version 2\n\x0c\x08" + b"\xff" * 8, "is damaged: event 0 has polarity 15"),
    ]
    for path, data, message in cases:
        path.write_bytes(data)
        with pytest.raises(FileError, match=message):
            load_events(path)
    raw.write_bytes(evt3(events))
    with pytest.raises(FileError, match="is encoded as EVT3, not as EVT2"):
        load_events(raw, "evt2")
    with pytest.raises(FileError, match="holds 40 events, more than 700 bytes"):
        load_events(raw, max_bytes=700)
    with pytest.raises(FileError, match=r"x.* the shape \(2, 72, 4\) has 4 there"):
        load_events(raw, shape=(2, 72, 4))
    raw.write_bytes(evt3(events).split(b"% end\n")[1])
    assert load_events(raw, "evt3") == dataclasses.replace(events, shape=None)


def test_a_header_alone_is_a_recording_without_events(tmp_path):
    for version in ("2", "3"):
        (tmp_path / "e.raw").write_bytes(HEADER.format(f"{version}.0", version).encode())
        assert len(load_events(tmp_path / "e.raw")) == 0
    (tmp_path / "e.dat").write_bytes(b"% Width 64\n% Height 48\n\x0c\x08")
    assert load_events(tmp_path / "e.dat").shape == (2, 48, 64)


@pytest.mark.parametrize("suffix", [".npz", ".bin", ".dat", ".raw"])
def test_random_and_damaged_bytes_give_errors_of_ours(tmp_path, suffix):
    path, rng = tmp_path / f"e{suffix}", np.random.default_rng(7)
    good = {".dat": dat, ".raw": evt3}.get(suffix)
    if good is None:
        save_events(path, image_events())
    whole = path.read_bytes() if good is None else good(camera(40))
    for trial in range(150):
        data = bytearray(whole)
        for at in rng.integers(0, len(data), 4):
            data[at] = rng.integers(0, 256)
        pieces = (rng.bytes(int(rng.integers(0, 300))), bytes(data), whole[: int(rng.integers(0, len(whole)))])
        path.write_bytes(pieces[trial % 3])
        with contextlib.suppress(FileError):
            assert isinstance(load_events(path, sort=True), Events)


# ---------------------------------------------------------------- formats of other packages

# five events, written by dv_processing 2.0.4 without compression
AEDAT4 = (
    "c-oy)%}T>S5T5>tlq!NAJa~w!$Jzw#u_@I4U=M9UORXSCXts4R-3^;fp+136<TLpUo}8p94Qa&Uz$`mE-+bTx&Bb}6eSg(z467C6pjgfUoB}|1"
    "aMy;=if{sXD8W9?R#rm)%&q3%S%8|o&=ypBOmLH2R}4}wYG^esY^rf<PE8_w)#Xz`G}ltECefo<kDy7ou>~~Z&=77ZCABxYG|5EFT}iz_pJ;07"
    "B7vtQ<1<q45Blwz9zcJs7Lv^vx164^eTVi@KS|OPTr_cAT91+`Dt9Ct_{#NF8X;X!uDm~Jf|3^XCX%@-<z!9YQ(~^!ma@W(CPKN&4y;`p<=K="
    "`nIvtGh7YL(vA1Dq?`Y^O@ti5z9($+bwIt(;)NiV3YAIz;|0ol_oNQfvYczHpA*p=vthwvZ)YIz0abrI-7O&?u-CoqAhH%jx^dt1(1_Ac4Tk<"
    "#pjsOL88#b1S#Tm%1`Y4LCSP|sEqW;Q-EC3(Jt2mF$LH;??>kJ#WNxdL{5~2^GjNO{Y=nO6~+U&Oz@fV`C^?uemKbR!)cK"
)


def test_aedat4_files(tmp_path):
    pytest.importorskip("aedat")
    path, whole = tmp_path / "e.aedat4", zlib.decompress(base64.b85decode(AEDAT4))
    path.write_bytes(whole)
    events = load_events(path)
    assert events == Events([100, 100, 250, 1000, 5000], [1, 0, 1, 0, 1], [0, 2, 4, 6, 8], range(5), shape=IMAGE)
    with pytest.raises(FileError, match="cannot be read by aedat: .*more than 60 bytes|has 1046 bytes"):
        load_events(path, max_bytes=60)
    for data in (b"", b"\x01" * 40, whole[:900], whole[:40]):
        path.write_bytes(data)
        with pytest.raises(FileError, match="cannot be read by aedat: .*[a-z]"):
            load_events(path)


def test_event_stream_files(tmp_path):
    event_stream = pytest.importorskip("event_stream")
    path, events = tmp_path / "e.es", image_events()
    block = np.zeros(len(events), event_stream.dvs_dtype)
    block["t"], block["on"], block["y"], block["x"] = events.time_us, *events.index
    with event_stream.Encoder(path, "dvs", 34, 34) as encoder:
        encoder.write(block)
    assert load_events(path) == events
    path.write_bytes(b"no events")
    with pytest.raises(FileError, match="cannot be read by event-stream: .*signature"):
        load_events(path)
    with event_stream.Encoder(path, "generic", 0, 0) as encoder:
        encoder.write(np.array([(1, b"a")], event_stream.generic_dtype))
    with pytest.raises(FileError, match="it holds generic events, expected dvs"):
        load_events(path)


@pytest.mark.parametrize(("package", "suffix"), [("aedat", ".aedat4"), ("event_stream", ".es")])
def test_missing_packages_are_named_with_the_extra(tmp_path, monkeypatch, package, suffix):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / f"e{suffix}").write_bytes(b"x")
    with pytest.raises(UnavailableError, match=r"needs the package .*pip install 'nirdeploy\[events\]'"):
        load_events(tmp_path / f"e{suffix}")


# ---------------------------------------------------------------- the doors


def test_the_door_names_what_it_knows(tmp_path):
    with pytest.raises(FileError, match=r"has no suffix of events: \.aedat, \.aedat4, \.bin, .*Pass format="):
        load_events(tmp_path / "e.txt")
    with pytest.raises(FileError, match="'nmist' is no format of events. Did you mean 'nmnist'"):
        load_events(tmp_path / "e.bin", "nmist")
    with pytest.raises(FileError, match=r"does not exist, expected N-MNIST events \(\.bin\)"):
        load_events(tmp_path / "e.bin")
    (tmp_path / "d.bin").mkdir()
    with pytest.raises(FileError, match="is a folder, expected N-MNIST events"):
        load_events(tmp_path / "d.bin")
    with pytest.raises(FileError, match="cannot write .*it is a folder"):
        save_events(tmp_path / "d.bin", image_events())
    with pytest.raises(FileError, match=r"Prophesee DAT events cannot be written. Use \.npz"):
        save_events(tmp_path / "e.dat", image_events())
    save_events(tmp_path / "00001", image_events(), "nmnist")
    assert load_events(tmp_path / "00001", "nmnist") == image_events()


def test_load_raster_counts_events_when_told_the_step(tmp_path):
    events = image_events(label=4)
    save_events(tmp_path / "e.npz", events)
    save_events(tmp_path / "e.bin", dataclasses.replace(events, label=None))
    raster, labels = load_raster(tmp_path / "e.npz", step_us=500)
    assert np.array_equal(raster, events_to_raster(events, step_us=500))
    assert labels.tolist() == [4]
    first, labels = load_raster(tmp_path / "e.bin", step_us=500, origin="first")
    assert np.array_equal(first, events_to_raster(events, step_us=500, origin="first"))
    assert labels is None
    for name in ("e.npz", "e.bin"):
        with pytest.raises(FileError, match="holds events, not a raster. Pass step_us="):
            load_raster(tmp_path / name)
    save_raster(tmp_path / "r.npz", raster)
    with pytest.raises(FileError, match="holds a raster, which has its steps already. Leave step_us out"):
        load_raster(tmp_path / "r.npz", step_us=500)
    (tmp_path / "broken.bin").write_bytes(bytes(7))
    with pytest.raises(FileError, match="truncated: event 1 has 2 of 5 bytes"):
        load_raster(tmp_path / "broken.bin", step_us=500)
    with pytest.raises(FileError, match=r"e.npz'.* step_us is 0.*load_events and events_to_raster"):
        load_raster(tmp_path / "e.npz", step_us=0)


def test_importing_the_readers_imports_no_optional_package():
    optional = {"aedat", "event_stream", "expelliarmus", "torch"}
    code = f"import sys, nirdeploy.event_files; print({optional} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
