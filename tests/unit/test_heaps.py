"""Text of variable length in hostile files: HDF5 alone would walk it for ever, or fill the memory with it."""

import struct
import subprocess
import sys

import h5py
import numpy as np
import pytest
from nets import chain, if_node, linear_node

import nirdeploy as nd
from nirdeploy import heaps
from nirdeploy.errors import FileError

READ = """
import sys, time
import nirdeploy as nd
try:
    nd.read(sys.argv[1])
except nd.NirdeployError as error:
    print(error)
# not ru_maxrss, which a process inherits from the one that started it
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.fixture
def whole(tmp_path):
    nd.write(tmp_path / "n.nir", chain((3,), fc=linear_node(np.eye(3)), n=if_node((3,))))
    return tmp_path / "n.nir"


def patched(path, *places):
    data = bytearray(path.read_bytes())
    for at, code, value in places:
        struct.pack_into(code, data, at, value)
    path.write_bytes(bytes(data))


def read_elsewhere(path):
    """What reading says, and the process's peak memory in KiB; a reader that hangs fails the test."""
    done = subprocess.run([sys.executable, "-c", READ, path], capture_output=True, text=True, check=True, timeout=60)
    *said, peak = done.stdout.splitlines()
    return "\n".join(said), int(peak)


def first_object(path):
    data = path.read_bytes()
    heap = data.index(b"GCOL")
    assert data[heap + 4] == 1
    return heap + 16


@pytest.mark.parametrize("size", [2**64 - 16, 2**64 - 23])
def test_a_text_whose_size_wraps_around_is_refused(whole, size):
    patched(whole, (first_object(whole) + 8, "<Q", size))
    said, _ = read_elsewhere(whole)
    assert f"the text of variable length at byte {first_object(whole)} has no end" in said


def test_free_space_of_no_size_is_refused(whole):
    at = first_object(whole)
    patched(whole, (at, "<H", 0), (at + 8, "<Q", 0))
    assert "has no end" in read_elsewhere(whole)[0]


def test_an_attribute_in_a_damaged_heap_is_refused(tmp_path, whole):
    nd.run(nd.read(whole), np.ones((2, 3), int), convention=nd.Convention(dt=1e-3)).save(tmp_path / "t.h5")
    with h5py.File(tmp_path / "t.h5", "a") as file:
        file.attrs["format"] = file.attrs["format"].decode() if isinstance(file.attrs["format"], bytes) else "x"
    data = (tmp_path / "t.h5").read_bytes()
    at = data.rindex(b"GCOL\x01") + 16
    patched(tmp_path / "t.h5", (at + 8, "<Q", 2**64 - 16))
    code = READ.replace("nd.read", "nd.load_trajectory")
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "t.h5"], capture_output=True, text=True, check=True, timeout=60
    )
    assert "has no end" in done.stdout


def test_many_entries_that_share_one_large_text_are_refused_in_little_memory(whole):
    rows = 4000
    with h5py.File(whole, "a") as file:
        del file["node/edges"]
        edges = file.create_dataset("node/edges", (rows, 2), dtype=h5py.string_dtype())
        edges[0, 0] = "a" * (1 << 22)
        at = edges.id.get_offset()
    data = bytearray(whole.read_bytes())
    data[at : at + 32 * rows] = data[at : at + 16] * (2 * rows)
    whole.write_bytes(bytes(data))
    assert len(data) < 5 << 20  # and would be 33 GB of text
    said, peak = read_elsewhere(whole)
    assert "the text of /node/edges and before is more than" in said
    assert peak < 1 << 20


def test_text_that_may_be_large_but_is_not_is_read(whole, monkeypatch):
    before = nd.read(whole)
    monkeypatch.setattr(heaps, "_BLOCK_BYTES", 16)
    with h5py.File(whole, "a") as file:
        file["node/metadata/note"] = "x" * 100_000
    found = nd.read(whole, max_bytes=400_000)
    assert found.edges == before.edges
    assert found.metadata["note"] == "x" * 100_000
    with h5py.File(whole, "a") as file:
        for number in range(4):
            file[f"node/metadata/note{number}"] = "x" * 100_000
    with pytest.raises(FileError, match="the text of .* and before is more than 399"):
        nd.read(whole, max_bytes=400_000)


def test_a_row_that_may_hold_too_much_is_refused(whole):
    with h5py.File(whole, "a") as file:
        file["node/metadata/note"] = "x" * 100_000
        file["node/metadata/many"] = np.array([["a"] * 50], dtype=object)
    with pytest.raises(FileError, match="one row of /node/metadata/many may hold 5000000 bytes"):
        nd.read(whole, max_bytes=400_000)


def test_whole_heaps_pass_and_a_signature_among_numbers_is_no_heap(whole):
    weight = np.frombuffer(b"GCOL\x01\x00\x00\x00" + bytes(8), np.float32).reshape(2, 2)
    nd.write(whole, chain((2,), fc=linear_node(weight), n=if_node((2,))))
    assert whole.read_bytes().count(b"GCOL") == 2
    assert np.array_equal(nd.read(whole).nodes["fc"].weight, weight)
    with h5py.File(whole) as file:
        # all but headers and texts of a heap of 4096 bytes is free
        assert len("NIRGraph") < heaps.check_heaps(file, "x") < 4096


def test_too_many_texts_are_refused(whole, monkeypatch):
    monkeypatch.setattr(heaps, "_MAX_OBJECTS", 3)
    with pytest.raises(FileError, match="more than 3 pieces of text"):
        nd.read(whole)
