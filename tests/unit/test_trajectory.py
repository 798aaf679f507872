import json
import os
import resource
import signal
import subprocess
import sys
import tracemalloc
import weakref
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import nirdeploy as nd
from nirdeploy import files
from nirdeploy.bits import PackedSpikes
from nirdeploy.comparison.align import align
from nirdeploy.errors import FileError, RasterError
from nirdeploy.trajectory import Record, Trajectory, load_trajectory
from nirdeploy.trajectory_writer import TrajectoryWriter

in_tmp = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)


def bits(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 2, shape).astype(np.int8)


def load(path, lazy):
    return load_trajectory(path, lazy=lazy)


# ---------------------------------------------------------------- packed spikes


@given(st.integers(0, 9), shapes, st.sampled_from([bool, np.uint8, np.int32, np.int64]), st.data())
def test_packed_spikes_come_back(steps, shape, dtype, data):
    raster = bits(steps, *shape).astype(dtype)
    packed = PackedSpikes.pack(raster)
    assert packed.shape == raster.shape
    assert packed.nbytes == steps * -(-int(np.prod(shape)) // 8)
    assert np.array_equal(packed.unpack(), raster)
    start, stop = data.draw(st.integers(-10, 10)), data.draw(st.none() | st.integers(-10, 10))
    assert np.array_equal(packed.unpack(start, stop), raster[start:stop])
    assert np.array_equal(packed.steps(start, stop).unpack(), raster[start:stop])
    cut = data.draw(st.integers(0, steps))
    assert PackedSpikes.concatenate([packed.steps(0, cut), packed.steps(cut)]) == packed


def test_the_first_neuron_is_the_most_significant_bit():
    packed = PackedSpikes.pack(np.array([[1, 0, 0, 0, 0, 0, 0, 0, 1], [0, 1, 0, 0, 0, 0, 0, 1, 0]]))
    assert packed.bits.tolist() == [[0x80, 0x80], [0x41, 0x00]]
    assert not packed.bits.flags.writeable


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.array([[0, 1], [2, 0]]), r"2 at \(1, 0\): packed spikes are 0 or 1. Keep these counts unpacked"),
        (np.array([[[0, -1]]]), r"-1 at \(0, 0, 1\)"),
        (np.zeros((2, 2)), "float64"),
        (np.int64(1), "expected integers"),
    ],
)
def test_what_is_no_bit_is_refused(values, words):
    with pytest.raises(RasterError, match=words):
        PackedSpikes.pack(values)


def test_bits_that_do_not_fit_their_shape_are_refused():
    with pytest.raises(RasterError, match=r"take uint8 \(2, 2\), found uint8 \(2, 1\). Use PackedSpikes.pack"):
        PackedSpikes(np.zeros((2, 1), np.uint8), (2, 9))
    with pytest.raises(RasterError, match="unused bits that are set"):
        PackedSpikes(np.full((2, 2), 0xFF, np.uint8), (2, 9))
    with pytest.raises(RasterError, match="cannot join"):
        PackedSpikes.concatenate([PackedSpikes.pack(bits(1, 2)), PackedSpikes.pack(bits(1, 3))])


# ---------------------------------------------------------------- records


def test_a_packed_record_behaves_like_an_unpacked_one():
    raster = bits(5, 2, 3, 4)
    plain = Record("a", "spikes", raster, units="count")
    packed = Record("a", "spikes", data=PackedSpikes.pack(raster), units="count")
    assert np.array_equal(packed.data, raster)
    assert packed.data.dtype == packed.dtype == np.int8
    assert (packed.n_steps, packed.n_samples, packed.neuron_axes) == (5, 2, (3, 4))
    assert packed.batch_data.shape == (5, 2, 12)
    assert np.array_equal(packed.read(1, 3), raster[1:3])
    assert packed == plain
    assert packed != Record("a", "spikes", 1 - raster, units="count")
    assert plain.packed is None
    assert "PackedSpikes(shape=(5, 2, 3, 4), nbytes=15)" in repr(packed)
    with pytest.raises(ValueError, match="read-only"):
        packed.data[:] = 0


def test_replace_keeps_the_bits_and_takes_new_data():
    packed = PackedSpikes.pack(bits(5, 2, 3))
    record = Record("a", "spikes", packed, lag=1)
    assert replace(record, lag=2).packed is packed
    assert replace(record, lag=2).lag == 2
    changed = replace(record, data=np.ones((5, 2, 3), np.int32))
    assert changed.packed is None
    assert changed.data.sum() == 30


def test_records_with_nan_and_arrays_are_compared_by_value():
    data = np.array([[1.0, np.nan]])
    one, two = (Record("a", "v_mem", data.copy(), threshold=np.ones(2), batched=False) for _ in range(2))
    assert one == two
    assert one != replace(two, threshold=np.zeros(2))
    assert one != replace(two, threshold=None)
    assert (one == 3) is False


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"steps": range(0, 8, 2)}, r"steps range\(0, 8, 2\) are 4, the data has 3"),
        ({"steps": range(-1, 2)}, "expected a range that starts at 0"),
        ({"steps": range(3, 0, -1)}, "counts upwards"),
        ({"neurons": [1, 2, 3]}, r"3 neurons are named, the data has shape \(2,\)"),
        ({"neurons": [1, 1]}, "more than once"),
        ({"neurons": [-1, 1]}, "negative index -1"),
        ({"neurons": [0.5, 1]}, "expected a list of flat indices"),
    ],
)
def test_steps_and_neurons_that_do_not_fit_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        Record("a", "v_mem", np.zeros((3, 1, 2)), **fields)


# ---------------------------------------------------------------- files


@in_tmp
@given(data=st.data(), lazy=st.booleans())
def test_records_come_back_from_files(tmp_path, data, lazy):
    batch = data.draw(st.none() | st.integers(0, 3), "batch")
    shape = data.draw(shapes, "shape")
    steps = data.draw(st.integers(0, 9), "steps")
    packed = data.draw(st.booleans(), "packed")
    subset = data.draw(st.booleans(), "subset")
    neurons = np.random.default_rng(0).permutation(40)[: int(np.prod(shape))] if subset else None
    shape = neurons.shape if subset else shape
    full = (steps, *(() if batch is None else (batch,)), *shape)
    dtype = data.draw(st.sampled_from(["?", "i1", "u2", ">i4", "i8", "f2", "f4", "f8"]), "dtype")
    values = bits(*full) if packed else data.draw(arrays.arrays(np.dtype(dtype), full), "values")
    stride = data.draw(st.none() | st.tuples(st.integers(0, 5), st.integers(1, 4)), "stride")
    record = Record(
        "a/b",
        "spikes" if packed or np.dtype(dtype).kind in "iu" else "v_mem",
        PackedSpikes.pack(values) if packed else values,
        scale=0.5,
        threshold=np.arange(np.prod(shape)).reshape(shape) if data.draw(st.booleans()) else 2.0,
        batched=batch is not None,
        steps=stride and range(stride[0], stride[0] + stride[1] * steps, stride[1]),
        neurons=neurons,
    )
    Trajectory({("a/b", record.variable): record}).save(tmp_path / "t.h5")
    again = load(tmp_path / "t.h5", lazy)
    found = again["a/b", record.variable]
    assert found == record
    assert (found.packed is None) == (not packed)
    assert again.complete
    assert np.array_equal(found.read(1, 4), values[1:4], equal_nan=values.dtype.kind == "f")


def writer_of(path, **fields):
    return TrajectoryWriter(path, target="speck2f", executor="emulator", producer="test", **fields)


def declare_both(writer, shape=(2, 3), batch=2):
    writer.declare("a", "spikes", dtype=np.int32, sample_shape=shape, batch=batch, units="count", packed=True)
    writer.declare("a", "v_mem", dtype=np.float32, sample_shape=shape, batch=batch, threshold=1.0)
    writer.declare("out", "output", dtype=np.float32, sample_shape=(), batch=batch)


@in_tmp
@given(cuts=st.lists(st.integers(0, 50), max_size=6), lazy=st.booleans())
def test_what_is_appended_in_pieces_comes_back_whole(tmp_path, cuts, lazy):
    spikes, v_mem = bits(50, 2, 2, 3), np.random.default_rng(1).random((50, 2, 2, 3), np.float32)
    out = np.arange(100, dtype=np.float32).reshape(50, 2)
    with writer_of(tmp_path / "t.h5", outputs=("out",), convention=nd.Convention()) as writer:
        declare_both(writer)
        for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), 50], strict=True):
            writer.append("a", "spikes", spikes[start:stop])
            writer.append("a", "v_mem", v_mem[start:stop])
            writer.append("out", "output", out[start:stop])
        writer.counters["a"] = {"clamps": 3}
        assert writer.n_steps == 50
    found = load(tmp_path / "t.h5", lazy)
    assert np.array_equal(found["a", "spikes"].data, spikes)
    assert np.array_equal(found["a", "v_mem"].data, v_mem)
    assert np.array_equal(found.outputs, out)
    assert (found.complete, found.reason) == (True, "")
    assert found.counters == {"a": {"clamps": 3}}
    assert (found.target, found.executor, found.convention) == ("speck2f", "emulator", nd.Convention())
    assert [p.name for p in tmp_path.iterdir()] == ["t.h5"]


def test_chunks_larger_than_the_buffer_go_through(tmp_path):
    spikes, v_mem = bits(700, 1000), np.random.default_rng(0).random((700, 1000), np.float32)
    with writer_of(tmp_path / "t.h5") as writer:
        writer.declare("a", "spikes", dtype=np.int8, sample_shape=(1000,))
        writer.declare("a", "v_mem", dtype=np.float32, sample_shape=(1000,))
        for start, stop in ((0, 10), (10, 600), (600, 601), (601, 700)):
            writer.append("a", "spikes", PackedSpikes.pack(spikes[start:stop]))
            writer.append("a", "v_mem", v_mem[start:stop])
    found = load_trajectory(tmp_path / "t.h5")
    assert np.array_equal(found["a", "spikes"].data, spikes)
    assert np.array_equal(found["a", "v_mem"].data, v_mem)
    # nothing of what was reserved is left over
    assert (tmp_path / "t.h5").stat().st_size < v_mem.nbytes + (1 << 20)


def test_memory_does_not_grow_with_the_steps(tmp_path):
    block = bits(100, 64)
    v_mem = block.astype(np.float32)
    peaks = []
    for n_blocks in (100, 1000):
        tracemalloc.start()
        with writer_of(tmp_path / "t.h5") as writer:
            writer.declare("a", "spikes", dtype=np.int8, sample_shape=(64,), packed=True)
            writer.declare("a", "v_mem", dtype=np.float32, sample_shape=(64,))
            for _ in range(n_blocks):
                writer.append("a", "spikes", block)
                writer.append("a", "v_mem", v_mem)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2 << 20
    assert peaks[1] < peaks[0] + (256 << 10)
    found = load_trajectory(tmp_path / "t.h5", lazy=True)
    assert found.n_steps == 100_000
    assert np.array_equal(found["a", "v_mem"].read(99_900), v_mem)


def test_a_lazy_trajectory_holds_no_data_and_is_saved_in_blocks(tmp_path):
    v_mem = np.random.default_rng(0).random((12_000, 1000), np.float32)  # 48 MB
    Trajectory({("a", "v_mem"): Record("a", "v_mem", v_mem, batched=False)}).save(tmp_path / "t.h5")
    tracemalloc.start()
    lazy = load_trajectory(tmp_path / "t.h5", lazy=True)
    assert lazy["a", "v_mem"].n_steps == 12_000
    lazy.save(tmp_path / "u.h5")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20
    assert np.array_equal(load_trajectory(tmp_path / "u.h5")["a", "v_mem"].data, v_mem)


def test_a_lazy_record_is_limited_by_the_access(tmp_path):
    raster = bits(100, 1000)
    records = {("a", "spikes"): Record("a", "spikes", PackedSpikes.pack(raster), batched=False)}
    Trajectory(records).save(tmp_path / "t.h5")
    record = load_trajectory(tmp_path / "t.h5", lazy=True, max_bytes=20_000)["a", "spikes"]
    assert np.array_equal(record.read(30, 50), raster[30:50])
    assert record.packed == PackedSpikes.pack(raster)  # 12500 bytes
    with pytest.raises(
        FileError, match=r"reading 100 steps of .* takes 100000 bytes, more than 20000. Use record.read"
    ):
        record.data  # noqa: B018 (the access is the test)
    with pytest.raises(FileError, match="declares more than"):
        load_trajectory(tmp_path / "t.h5", max_bytes=10_000)


def test_a_lazy_record_notices_that_its_file_has_changed(tmp_path):
    path = tmp_path / "t.h5"
    run = Trajectory({("a", "v_mem"): Record("a", "v_mem", np.ones((3, 2)), batched=False)})
    run.save(path)
    record = load_trajectory(path, lazy=True)["a", "v_mem"]
    run.save(path)
    with pytest.raises(FileError, match="has changed since it was loaded as a trajectory. Load it again"):
        record.read()
    path.unlink()
    with pytest.raises(FileError, match="cannot be read: No such file"):
        record.read()


def test_a_lazy_trajectory_outlives_a_change_of_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Trajectory({("a", "v_mem"): Record("a", "v_mem", np.ones((3, 2)), batched=False)}).save("t.h5")
    found = load_trajectory("t.h5", lazy=True)
    monkeypatch.chdir("/")
    assert found["a", "v_mem"].data.sum() == 6


def test_lazy_loading_still_refuses_bombs_and_links(tmp_path):
    path = tmp_path / "t.h5"
    run = Trajectory({("a", "v_mem"): Record("a", "v_mem", np.ones((3, 2)), batched=False)})
    run.save(path)
    with h5py.File(path, "a") as file:
        file.create_dataset("bomb", shape=(1 << 25,), dtype="i4", chunks=(1 << 16,), compression="gzip")
    with pytest.raises(FileError, match="declares 134217728 bytes and stores 0"):
        load_trajectory(path, lazy=True)
    run.save(path)
    with h5py.File(path, "a") as file:
        file["nodes/x"] = h5py.ExternalLink("/etc/hostname", "/x")
    with pytest.raises(FileError, match="soft or external link"):
        load_trajectory(path, lazy=True)


def test_files_of_the_first_version_load(tmp_path):
    path = tmp_path / "t.h5"
    data = np.arange(6, dtype=np.int32).reshape(3, 2)
    with h5py.File(path, "w") as file:
        file.attrs.update(format="nirdeploy-trajectory", version=1, producer="p", target="t", executor="e")
        file.attrs.update(convention="", graph_sha256="", outputs="[]", counters="{}", order='[["a", "spikes"]]')
        dataset = file.create_dataset("nodes/a/spikes", data=data, maxshape=(None, 2), chunks=(3, 2))
        dataset.attrs.update(scale=1.0, units="count", source="a", lag=0, view="", batched=0)
    for lazy in (False, True):
        found = load(path, lazy)
        assert np.array_equal(found["a", "spikes"].data, data)
        assert found.complete


# ---------------------------------------------------------------- runs that end early


def test_an_interrupted_run_keeps_the_steps_that_all_records_have(tmp_path):
    path = tmp_path / "t.h5"

    def run():
        with writer_of(path, outputs=("out", "never")) as writer:
            declare_both(writer)
            writer.declare("b", "v_mem", dtype=np.float32, sample_shape=(2,), batch=2, steps=range(5, 1000, 10))
            writer.append("a", "spikes", bits(40, 2, 2, 3))
            writer.append("a", "v_mem", np.ones((30, 2, 2, 3), np.float32))
            writer.append("out", "output", np.ones((45, 2), np.float32))
            writer.append("b", "v_mem", np.ones((4, 2, 2), np.float32))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        run()
    assert "has the first 30 steps, marked as incomplete" in caught.value.__notes__[0]
    for lazy in (False, True):
        found = load(path, lazy)
        assert (found.complete, found.reason) == (False, "interrupted")
        assert found["a", "v_mem"].n_steps == found["out", "output"].n_steps == 30
        assert np.array_equal(found["a", "spikes"].data, bits(40, 2, 2, 3)[:30])
        assert found["b", "v_mem"].steps == range(5, 30, 10)
        assert found.output_names == ("out",)
    again = tmp_path / "again.h5"
    load_trajectory(path).save(again)
    assert not load_trajectory(again).complete


class _Released:
    """What h5py lets go of."""


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])
def test_ctrl_c_while_hdf5_writes_is_not_lost(tmp_path, monkeypatch, handler):
    written = h5py.Dataset.__setitem__

    def interrupted(dataset, where, values):
        written(dataset, where, values)
        released = _Released()
        callback = weakref.ref(released, lambda _: signal.raise_signal(signal.SIGINT))
        del (
            released
        )  # the first of Python that runs after a long write is such a callback, whose exceptions are dropped
        assert callback() is None

    monkeypatch.setattr(h5py.Dataset, "__setitem__", interrupted)
    before = signal.signal(signal.SIGINT, handler)
    try:
        with writer_of(tmp_path / "t.h5", outputs=("out",)) as writer:
            writer.declare("out", "output", dtype=np.float64, sample_shape=(1 << 15,))
            if handler is signal.SIG_IGN:
                writer.append("out", "output", np.ones((3, 1 << 15)))
            else:
                with pytest.raises(KeyboardInterrupt):
                    writer.append("out", "output", np.ones((3, 1 << 15)))
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert load(tmp_path / "t.h5", lazy=True).n_steps == 3


def test_an_error_of_the_run_is_the_reason_and_propagates(tmp_path):
    def run(appended):
        with writer_of(tmp_path / "t.h5") as writer:
            writer.declare("a", "v_mem", dtype=np.float32, sample_shape=(2,))
            writer.append("a", "v_mem", np.ones((appended, 2), np.float32))
            raise ZeroDivisionError("by zero")

    with pytest.raises(ZeroDivisionError):
        run(3)
    assert load_trajectory(tmp_path / "t.h5").reason == "ZeroDivisionError: by zero"
    with pytest.raises(ZeroDivisionError):
        run(0)
    # without a step the old file stays
    assert load_trajectory(tmp_path / "t.h5").n_steps == 3
    assert os.listdir(tmp_path) == ["t.h5"]


def test_records_that_end_at_different_steps_are_marked(tmp_path):
    with writer_of(tmp_path / "t.h5") as writer:
        declare_both(writer)
        writer.append("a", "spikes", bits(40, 2, 2, 3))
        writer.append("a", "v_mem", np.ones((30, 2, 2, 3), np.float32))
        writer.append("out", "output", np.ones((40, 2), np.float32))
    found = load_trajectory(tmp_path / "t.h5")
    assert not found.complete
    assert "a/v_mem at step 30" in found.reason
    assert found["a", "spikes"].n_steps == 30


def test_misuse_is_refused_by_name(tmp_path):
    with writer_of(tmp_path / "t.h5") as writer:
        writer.declare("a", "spikes", dtype=np.int32, sample_shape=(2,), packed=True, steps=range(0, 6, 2))
        for values, words in (
            (np.zeros((3, 3), int), r"node 'a': spikes of shape \(3, 3\), declared as \[step, 2\]"),
            (np.array([[0, 2]]), r"node 'a': spikes from row 0 on: 2 at \(0, 1\)"),
            (np.zeros((4, 2), int), r"4 steps, declared were 3: range\(0, 6, 2\)"),
        ):
            with pytest.raises(FileError, match=words):
                writer.append("a", "spikes", values)
        with pytest.raises(FileError, match="no record a/spike is declared. Did you mean 'a/spikes'"):
            writer.append("a", "spike", bits(1, 2))
        with pytest.raises(FileError, match="declared twice"):
            writer.declare("a", "spikes", dtype=np.int32, sample_shape=(2,))
        with pytest.raises(FileError, match="unknown variable"):
            writer.declare("a", "u", dtype=np.int32, sample_shape=(2,))
        with pytest.raises(FileError, match="expected numbers"):
            writer.declare("a", "v_mem", dtype=complex, sample_shape=(2,))
        with pytest.raises(FileError, match="index map has 3 entries for 2 neurons"):
            writer.declare("a", "v_mem", dtype=np.int32, sample_shape=(2,), index_map=np.arange(3))
        with pytest.raises(FileError, match="NUL"):
            writer.declare("a\0", "v_mem", dtype=np.int32, sample_shape=(2,))
        writer.declare("a", "v_mem", dtype=np.float32, sample_shape=(2,))
        with pytest.raises(FileError, match="v_mem of type float64, declared as float32. Convert it first"):
            writer.append("a", "v_mem", np.zeros((1, 2)))
        writer.append("a", "spikes", bits(3, 2))
        writer.append("a", "v_mem", np.zeros((6, 2), np.float32))
    assert load_trajectory(tmp_path / "t.h5").complete
    with pytest.raises(FileError, match="is not open"):
        writer.append("a", "spikes", bits(3, 2))
    with pytest.raises(FileError, match="was used before"):
        writer.__enter__()


def test_a_killed_process_leaves_the_old_file(tmp_path):
    path = tmp_path / "t.h5"
    Trajectory({("a", "v_mem"): Record("a", "v_mem", np.ones((3, 2)), batched=False)}).save(path)
    code = """
import sys, os, signal, numpy as np
from nirdeploy.trajectory_writer import TrajectoryWriter
with TrajectoryWriter(sys.argv[1]) as writer:
    writer.declare("a", "v_mem", dtype=np.float32, sample_shape=(1000,))
    writer.append("a", "v_mem", np.zeros((1000, 1000), np.float32))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert load_trajectory(path).n_steps == 3
    assert all(name == "t.h5" or name.endswith(".part") for name in os.listdir(tmp_path))


# ---------------------------------------------------------------- full disks

FILL = """
import json, os, sys, numpy as np
from nirdeploy.errors import FileError
from nirdeploy.trajectory_writer import TrajectoryWriter
if sys.argv[3] == "unreserved":
    os.posix_fallocate = lambda *_: None  # a file system whose promises do not hold
rng = np.random.default_rng(0)
done = 0
try:
    with TrajectoryWriter(sys.argv[1], outputs=("out",)) as writer:
        writer.declare("a", "spikes", dtype=np.int8, sample_shape=(500,), batch=2, packed=True)
        writer.declare("a", "v_mem", dtype=np.float32, sample_shape=(500,), batch=2, index_map=np.arange(500))
        writer.declare("b", "spikes", dtype=np.int32, sample_shape=(500,), batch=2)
        writer.declare("b", "v_mem", dtype=np.float32, sample_shape=(500,), batch=2, steps=range(3, 10**6, 7))
        writer.declare("out", "output", dtype=np.float32, sample_shape=(), batch=2)
        strided = 0
        for block in range(int(sys.argv[2])):
            steps = np.arange(block * 20, block * 20 + 20)
            ramp = np.broadcast_to(steps[:, None, None], (20, 2, 500))
            writer.append("b", "spikes", (ramp + rng.integers(0, 2, ramp.shape)).astype(np.int32))
            writer.append("a", "v_mem", ramp.astype(np.float32))
            writer.append("b", "v_mem", ramp[steps % 7 == 3].astype(np.float32))
            writer.append("a", "spikes", (ramp % 2).astype(np.int8))
            writer.append("out", "output", ramp[:, :, 0].astype(np.float32))
            done = block * 20 + 20
except FileError as error:
    print(json.dumps({"done": done, "error": str(error)}))
"""


def fill(path, blocks, how="reserved", limit=None):
    def limited():
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    found = subprocess.run(
        [sys.executable, "-c", FILL, str(path), str(blocks), how],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=limited,
    )
    assert found.stderr == ""
    return json.loads(found.stdout)


def check_filled(path, found, reason, least):
    assert os.listdir(path.parent) == [path.name]
    for lazy in (False, True):
        run = load(path, lazy)
        steps = run.n_steps
        assert f"{str(path)!r} at step {found['done']}" in found["error"] or least < found["done"]
        assert f"its first {steps} steps are kept, marked as incomplete" in found["error"]
        assert reason in found["error"]
        assert (run.complete, run.reason) == (False, reason)
        assert least <= steps <= found["done"] + 20
        ramp = np.broadcast_to(np.arange(steps)[:, None, None], (steps, 2, 500))
        assert np.array_equal(run["a", "v_mem"].data, ramp)
        assert np.array_equal(run["a", "spikes"].data, ramp % 2)
        assert np.isin(run["b", "spikes"].data - ramp, (0, 1)).all()
        assert np.array_equal(run.outputs, ramp[:, :, 0])
        assert run["b", "v_mem"].steps == range(3, steps, 7)
        assert np.array_equal(run["b", "v_mem"].data, ramp[3::7])
        assert np.array_equal(run["a", "v_mem"].index_map, np.arange(500))


@pytest.mark.parametrize("limit", [3 << 20, 7_654_321, (20 << 20) + 1])
def test_a_file_that_may_not_grow_is_kept_up_to_the_last_step(tmp_path, limit):
    found = fill(tmp_path / "t.h5", 1000, limit=limit)
    check_filled(tmp_path / "t.h5", found, "File too large", found["done"])
    assert (tmp_path / "t.h5").stat().st_size <= limit


def test_a_full_disk_keeps_the_steps_up_to_then(small_disk):
    found = fill(small_disk / "t.h5", 1000)
    check_filled(small_disk / "t.h5", found, "No space left on device", found["done"])


def test_a_full_disk_replaces_no_old_file_where_not_a_step_fits(small_disk):
    path = small_disk / "t.h5"
    path.write_bytes(b"old" + bytes(5 << 20))

    def run():
        with writer_of(path) as writer:
            writer.declare("a", "v_mem", dtype=np.float32, sample_shape=(500_000,))
            writer.append("a", "v_mem", np.zeros((1, 500_000), np.float32))

    with pytest.raises(FileError, match="at step 0: No space left on device; no step of it is kept. Free space"):
        run()
    assert path.read_bytes()[:3] == b"old"
    assert os.listdir(small_disk) == ["t.h5"]


def test_saving_on_a_full_disk_leaves_the_old_file(small_disk):
    path = small_disk / "t.h5"
    small = Trajectory({("a", "v_mem"): Record("a", "v_mem", np.ones((3, 2)), batched=False)})
    small.save(path)
    large = Trajectory({("a", "v_mem"): Record("a", "v_mem", np.ones((3000, 500)), batched=False)})
    with pytest.raises(FileError, match="cannot write .*t.h5': No space left on device. Free space"):
        large.save(path)
    assert load_trajectory(path).n_steps == 3
    assert os.listdir(small_disk) == ["t.h5"]


def test_a_full_disk_that_was_not_reserved_does_no_worse_than_lose_the_run(small_disk):
    found = fill(small_disk / "t.h5", 1000, "unreserved")
    assert "No space left on device" in found["error"]
    if os.listdir(small_disk):
        run = load_trajectory(small_disk / "t.h5")
        assert not run.complete
        assert np.array_equal(run["a", "v_mem"].data[:, 0, 0], np.arange(run.n_steps))


def test_without_a_call_to_reserve_zeros_are_written(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    v_mem = np.random.default_rng(0).random((3000, 100), np.float32)
    with writer_of(tmp_path / "t.h5") as writer:
        writer.declare("a", "v_mem", dtype=np.float32, sample_shape=(100,))
        writer.append("a", "v_mem", v_mem)
    assert np.array_equal(load_trajectory(tmp_path / "t.h5")["a", "v_mem"].data, v_mem)
    assert (tmp_path / "t.h5").stat().st_size < v_mem.nbytes + (512 << 10)


# ---------------------------------------------------------------- xarray


def test_all_kinds_of_records_open_in_xarray(tmp_path):
    xarray = pytest.importorskip("xarray")
    path = tmp_path / "t.h5"
    spikes, v_mem = bits(40, 2, 3, 4), np.ones((4, 2, 2), np.float32)
    with writer_of(path) as writer:
        writer.declare("a/b", "spikes", dtype=np.int8, sample_shape=(3, 4), batch=2, packed=True)
        writer.declare("a/b", "v_mem", dtype="f4", sample_shape=(2,), batch=2, steps=range(5, 45, 10), neurons=[7, 3])
        writer.declare("c", "spikes", dtype=np.int8, sample_shape=(3, 4), batch=2)
        writer.append("a/b", "spikes", spikes)
        writer.append("a/b", "v_mem", v_mem)
        writer.append("c", "spikes", spikes)
    with xarray.open_datatree(path, engine="h5netcdf") as tree:
        packed = tree["/nodes/a%2Fb/spikes"]
        assert packed.dims == ("step", "byte")
        assert (packed.attrs["packed"], packed.attrs["sample_shape"].tolist()) == (1, [2, 3, 4])
        assert np.array_equal(packed.values, PackedSpikes.pack(spikes).bits)
        some = tree["/nodes/a%2Fb/v_mem"]
        assert some.dims == ("recorded_step", "batch", "recorded")
        assert some["recorded_step"].values.tolist() == [5, 15, 25, 35]
        assert tree["/nodes/a%2Fb/v_mem.neurons"].values.tolist() == [7, 3]
        assert tree["/nodes/c/spikes"].dims == ("step", "batch", "y", "x")
        assert np.array_equal(tree["/nodes/c/spikes"].values, spikes)


def test_an_incomplete_file_opens_in_xarray(tmp_path):
    xarray = pytest.importorskip("xarray")
    fill(tmp_path / "t.h5", 1000, limit=4 << 20)
    steps = load_trajectory(tmp_path / "t.h5").n_steps
    with xarray.open_datatree(tmp_path / "t.h5", engine="h5netcdf") as tree:
        assert tree["/nodes/a/v_mem"].sizes == {"step": steps, "batch": 2, "neuron": 500}
        assert (tree.attrs["complete"], tree.attrs["n_steps"]) == (0, steps)
        assert tree["/nodes/b/v_mem"]["recorded_step"].values.tolist() == list(range(3, steps, 7))


# ---------------------------------------------------------------- damage


@pytest.fixture
def whole(tmp_path):
    packed = Record("a", "spikes", PackedSpikes.pack(bits(20, 2, 3, 3)), units="count")
    some = Record("a", "v_mem", np.ones((3, 2, 2)), steps=range(2, 8, 2), neurons=np.array([1, 5]))
    Trajectory({("a", "spikes"): packed, ("a", "v_mem"): some}).save(tmp_path / "whole.h5")
    return tmp_path / "whole.h5"


def _set(path, name, value):
    def change(file):
        item = file[path] if path else file
        if value is None:
            del item.attrs[name]
        else:
            item.attrs[name] = value

    return change


def _unused(file):
    file["nodes/a/spikes"][3, -1] = 0xFF


def _wide(file):
    del file["nodes/a/v_mem.neurons"]
    file["nodes/a/v_mem.neurons"] = np.arange(3)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(
    ("how", "words"),
    [
        (_set("nodes/a/spikes", "packed", None), "attribute 'packed' of /nodes/a/spikes is missing"),
        (_set("nodes/a/spikes", "packed", 0), "damaged trajectory|expected"),
        (_set("nodes/a/v_mem", "packed", 1), "attribute 'sample_shape' of /nodes/a/v_mem is missing"),
        (_set("nodes/a/spikes", "sample_shape", np.array([2, 30])), r"expected uint8 \[step, 8\] for \(2, 30\)"),
        (_set("nodes/a/spikes", "sample_shape", np.array([-2, -9])), r"has sample_shape \(-2, -9\)"),
        (_set("nodes/a/spikes", "sample_shape", np.array([0, 1 << 62])), "has sample_shape"),
        (_set("nodes/a/spikes", "sample_shape", "many"), "expected whole numbers"),
        (_set("nodes/a/spikes", "sample_shape", np.array([], int)), r"expected uint8 \[step, 1\]"),
        (_set("nodes/a/v_mem", "steps", np.array([2, 8])), "expected start, stop, stride"),
        (_set("nodes/a/v_mem", "steps", np.array([2, 8, 0])), "expected start, stop, stride"),
        (_set("nodes/a/v_mem", "steps", np.array([2, 4, 2])), "are 1, the data has 3"),
        (_set("nodes/a/v_mem", "steps", 0.5), "expected whole numbers"),
        (_set("", "complete", "yes"), "attribute 'complete' of / is 'yes', expected int"),
        (_set("", "reason", 3), "attribute 'reason'"),
        (_wide, r"v_mem.neurons does not fit /nodes/a/v_mem: shape \(3,\)"),
        (_unused, "unused bits that are set"),
    ],
)
def test_damaged_attributes_are_named(whole, how, words, lazy):
    with h5py.File(whole, "a") as file:
        how(file)
    if words == "damaged trajectory|expected":  # the bytes themselves, as counts
        found = load(whole, lazy)["a", "spikes"]
        assert found.packed is None
        assert found.data.dtype == np.uint8
        return
    with pytest.raises(FileError, match=words):
        load(whole, lazy)["a", "spikes"].data  # noqa: B018 (the access is the test)


@pytest.mark.parametrize("lazy", [False, True])
def test_flipped_bytes_give_a_trajectory_or_our_error(whole, tmp_path, lazy):
    good, path = whole.read_bytes(), tmp_path / "t.h5"
    refused = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        changed = bytearray(good)
        for _ in range(int(rng.integers(1, 5))):
            changed[int(rng.integers(0, len(good)))] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(changed)
        try:
            for record in load(path, lazy).records.values():
                assert record.data.shape == record.shape
        except FileError:
            refused += 1
    assert refused > 20


# ---------------------------------------------------------------- comparison


def run_of(record, **fields):
    return Trajectory({(record.node, record.variable): record}, **fields)


def test_records_of_some_neurons_are_compared_at_those(tmp_path):
    whole = np.random.default_rng(0).random((6, 2, 10))
    ours = Record("a", "v_mem", whole[:, :, [7, 2, 5]], neurons=np.array([7, 2, 5]))
    theirs = Record("a", "v_mem", whole[:, :, [5, 7, 9]], neurons=np.array([5, 7, 9]))
    alignment = align(run_of(ours), run_of(theirs))
    pair = alignment.pairs["a", "v_mem"]
    assert pair.neurons.tolist() == [5, 7]
    for _, _, a, b in pair.blocks():
        assert np.array_equal(a, b)
    assert alignment.unaligned[0].reason == "only 2 of 3 neurons are on both sides"
    full = align(run_of(Record("a", "v_mem", whole)), run_of(theirs)).pairs["a", "v_mem"]
    assert full.neurons.tolist() == [5, 7, 9]
    assert all(np.array_equal(a, b) for _, _, a, b in full.blocks())
    other = Record("a", "v_mem", whole[:, :, :1], neurons=np.array([1]))
    assert align(run_of(ours), run_of(other)).unaligned[0].reason == "no neuron in common"


def test_records_without_a_step_in_common_are_not_compared():
    ours = Record("a", "v_mem", np.ones((3, 1, 2)), steps=range(0, 30, 10))
    theirs = Record("a", "v_mem", np.ones((3, 1, 2)), steps=range(5, 35, 10))
    found = align(run_of(ours), run_of(theirs, target="x"))
    assert not found.pairs
    assert found.unaligned[0].reason == (
        "no step in common at a lag of 0: recorded at steps 0, 10, ... 20 in reference, 5, 15, ... 25 in x (reference)"
    )


def test_records_of_some_steps_are_compared_at_those_in_common():
    whole = np.arange(60.0).reshape(30, 1, 2)
    ours = Record("a", "v_mem", whole)
    tens = Record("a", "v_mem", whole[5::10], steps=range(5, 35, 10)[:3])
    found = align(run_of(ours), run_of(tens, target="x"))
    pair = found.pairs["a", "v_mem"]
    assert pair.when == range(5, 26, 10)
    for _, _, a, b in pair.blocks():
        assert np.array_equal(a, b)
        assert np.array_equal(a, whole[5::10])
    assert found.notes == ("a v_mem: x (reference) is recorded at 5, 15, ... 25 only",)
    assert not found.unaligned
    # every 4th against every 6th step, the second two steps later: 12 steps apart
    fours = Record("a", "v_mem", whole[::4], steps=range(0, 30, 4))
    sixes = Record("a", "v_mem", whole[:24:6], steps=range(2, 26, 6), lag=2)
    pair = align(run_of(fours), run_of(sixes)).pairs["a", "v_mem"]
    assert (pair.when, pair.lag) == (range(0, 24, 12), 2)
    assert all(np.array_equal(a, b) for _, _, a, b in pair.blocks())


def test_a_snapshot_at_the_end_is_compared_with_that_step():
    v = np.random.default_rng(0).random((8, 2, 3))
    spikes = bits(8, 2, 3)
    ours = Trajectory({("a", "spikes"): Record("a", "spikes", spikes), ("a", "v_mem"): Record("a", "v_mem", v)})
    shown = Record("a", "v_mem", v[-1:] + 0.5, steps=range(7, 8))
    theirs = Trajectory({("a", "spikes"): Record("a", "spikes", spikes), ("a", "v_mem"): shown}, target="x")
    found = nd.compare(ours, theirs)
    assert found.per_node["a"].v_mem_max_error == pytest.approx(0.5)
    assert found.per_node["a"].variables["v_mem"].sums.entries == 6
    assert "a v_mem: x (reference) is recorded at step 7 only" in found.notes
    assert not found.unaligned


def test_packed_and_lazy_runs_compare_like_others(tmp_path):
    raster = bits(30, 2, 3, 4)
    changed = raster.copy()
    changed[4, 1, 2, 3] ^= 1
    plain = run_of(Record("a", "spikes", raster, units="count"))
    run_of(Record("a", "spikes", PackedSpikes.pack(changed), units="count"), target="x").save(tmp_path / "t.h5")
    expected = nd.compare(plain, run_of(Record("a", "spikes", changed, units="count"), target="x"))
    for lazy in (False, True):
        found = nd.compare(plain, load(tmp_path / "t.h5", lazy))
        assert str(found.first_divergence) == str(expected.first_divergence)
        assert found.spike_agreement == expected.spike_agreement


def test_a_stamp_of_a_missing_file_is_refused(tmp_path):
    with pytest.raises(FileError, match="cannot be read"):
        files.stamp(Path(tmp_path / "none"))
