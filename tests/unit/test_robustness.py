"""Hostile and damaged input: everything is loaded correctly or refused by an error of ours."""

import contextlib
import gzip
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import zipfile

import h5py
import nir
import numpy as np
import pytest
import torch
from nets import chain, conv_net, if_node, input_node, lif_node, linear_node, output_node, raster, shared

import nirdeploy as nd
from nirdeploy import files, io
from nirdeploy.configuration import load_configuration
from nirdeploy.errors import (
    ConfigurationError,
    ConventionError,
    FileError,
    GraphError,
    NirdeployError,
    PlacementError,
    RasterError,
    TargetError,
    UnsupportedError,
)
from nirdeploy.graph import make_graph
from nirdeploy.names import unstorable
from nirdeploy.raster import check_raster, load_raster, save_raster

SPECK = nd.Convention(if_gain="r", reset="zero", crossing="inclusive", v_min=-4.0)
LOIHI = nd.Convention(dt=1e-3, if_gain="r", reset="zero")


def small():
    return chain((3,), fc=linear_node(np.eye(3) * 0.7 + 0.2), n=if_node((3,)))


def deployed(target="speck2f"):
    convention = SPECK if target == "speck2f" else LOIHI
    return nd.deploy(small(), target, convention=convention, calibration=raster((3,), steps=4))


@pytest.fixture(scope="module")
def speck():
    return deployed()


# ---------------------------------------------------------------- special files


def test_writing_over_a_device_a_pipe_or_a_folder_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileError, match="'/dev/null': it is a device"):
        files.write_text("/dev/null", "x")
    with pytest.raises(FileError, match="it is a pipe"):
        files.write_text(tmp_path / "pipe", "x")
    with pytest.raises(FileError, match="it is a folder"):
        files.write_text(tmp_path, "x")
    assert os.path.realpath("/dev/null") == "/dev/null"


def test_writing_through_a_link_keeps_the_link(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    files.write_text(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.mkdir()])
def test_reading_what_is_no_regular_file_is_refused_at_once(tmp_path, make):
    path = tmp_path / "x.h5"
    make(path)
    for read in (nd.read, nd.load_trajectory, load_raster, load_configuration):
        with pytest.raises((FileError, ConfigurationError), match="x.h5' is a (pipe|device|folder)"):
            read(path)


def test_a_chip_json_that_is_a_pipe_does_not_hang(tmp_path, speck):
    speck.save(tmp_path / "d")
    (tmp_path / "d" / "chip.json").unlink()
    os.mkfifo(tmp_path / "d" / "chip.json")
    with pytest.raises(FileError, match="chip.json' is a pipe"):
        nd.load_deployment(tmp_path / "d")
    with pytest.raises(FileError, match="is a pipe"):
        speck.save(tmp_path / "d")


# ---------------------------------------------------------------- deployments: crashes and writers


def _die_at(folder, stage):
    """Save over a folder and be killed when `stage` is reached."""
    replace, discard = os.replace, nd.storage._discard
    done = []

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def replacing(self, target):
        if stage == f"before {os.path.basename(target)}":
            die()
        replace(self, target)
        if stage == f"after {os.path.basename(target)}":
            die()

    def discarding(path):
        discard(path)
        done.append(path)
        if stage == "discarded":
            die()

    from pathlib import Path

    Path.replace = replacing
    nd.storage._discard = discarding
    deployed("loihi2").save(folder)


@pytest.mark.parametrize("stage", ["before deployment.h5", "discarded", "after deployment.h5", "before chip.json"])
def test_a_writer_killed_at_any_stage_leaves_a_loadable_folder(tmp_path, speck, stage):
    import nirdeploy.storage

    assert nirdeploy.storage
    speck.save(tmp_path)
    writer = multiprocessing.get_context("fork").Process(target=_die_at, args=(tmp_path, stage))
    writer.start()
    writer.join(60)
    assert writer.exitcode == -signal.SIGKILL
    found = nd.load_deployment(tmp_path)
    new = stage in ("after deployment.h5", "before chip.json")
    assert found.target.name == ("loihi2" if new else "speck2f")
    speck.save(tmp_path)
    assert nd.load_deployment(tmp_path).target.name == "speck2f"


WRITER = """
import sys
import nirdeploy as nd
found = nd.load_deployment(sys.argv[1])
for _ in range(25):
    found.save(sys.argv[2])
    nd.load_deployment(sys.argv[2])
"""


def test_two_writers_at_once_leave_a_loadable_folder(tmp_path, speck):
    speck.save(tmp_path / "a")
    deployed("loihi2").save(tmp_path / "b")
    both = [subprocess.Popen([sys.executable, "-c", WRITER, tmp_path / n, tmp_path / "out"]) for n in "ab"]
    assert [writer.wait(120) for writer in both] == [0, 0]
    target = nd.load_deployment(tmp_path / "out").target.name
    names = {"speck2f": ["chip.json", "deployment.h5"], "loihi2": ["chip.json", "deployment.h5", "net.net"]}
    assert sorted(os.listdir(tmp_path / "out")) == names[target]


def test_a_folder_held_by_another_is_refused_in_the_end(tmp_path, speck, monkeypatch):
    speck.save(tmp_path)
    monkeypatch.setattr(files, "_LOCK_SECONDS", 0.1)
    with files.locked(tmp_path), pytest.raises(FileError, match="in use by another process"):
        speck.save(tmp_path)


def test_a_stale_chip_json_is_still_refused(tmp_path, speck):
    speck.save(tmp_path)
    text = json.loads((tmp_path / "chip.json").read_text())
    (tmp_path / "chip.json").write_text(json.dumps({**text, "deployment_sha256": "0"}))
    with pytest.raises(FileError, match="derived from another"):
        nd.load_deployment(tmp_path)
    (tmp_path / "chip.json").unlink()
    nd.load_deployment(tmp_path)


# ---------------------------------------------------------------- memory


def _with_shape(path, shape, dtype="i4", compression="gzip"):
    with h5py.File(path, "a") as file:
        file.create_dataset("bomb", shape=shape, dtype=dtype, chunks=(1 << 16,), compression=compression)


def test_compression_bombs_are_refused_for_every_format(tmp_path, speck):
    nd.write(tmp_path / "n.nir", small())
    nd.run(small(), raster((3,)), convention=LOIHI).save(tmp_path / "t.h5")
    speck.save(tmp_path)
    for name, load in (("n.nir", nd.read), ("t.h5", nd.load_trajectory), ("deployment.h5", nd.load_deployment)):
        _with_shape(tmp_path / name, (32 << 20,))  # 128 MiB, none of it stored
        with pytest.raises(FileError, match="declares 134217728 bytes and stores 0"):
            load(tmp_path / name)


def test_a_small_trajectory_may_not_ask_for_more_than_a_gibibyte(tmp_path):
    nd.run(small(), raster((3,)), convention=LOIHI).save(tmp_path / "t.h5")
    _with_shape(tmp_path / "t.h5", (300 << 20,))
    with pytest.raises(FileError, match="declares more than 1073741824 bytes"):
        nd.load_trajectory(tmp_path / "t.h5")


@pytest.mark.long
def test_silent_spikes_of_a_large_run_load(tmp_path):
    silent = np.zeros((1000, 360, 1024), np.int32)
    record = nd.Record("n", "spikes", silent, units="count")
    nd.Trajectory({("n", "spikes"): record}).save(tmp_path / "t.h5")
    assert nd.load_trajectory(tmp_path / "t.h5")["n", "spikes"].data.shape == silent.shape


def test_silent_spikes_load(tmp_path):
    silent = np.zeros((100, 180, 1024), np.int32)
    nd.Trajectory({("n", "spikes"): nd.Record("n", "spikes", silent, units="count")}).save(tmp_path / "t.h5")
    assert (tmp_path / "t.h5").stat().st_size * 200 < silent.nbytes
    assert nd.load_trajectory(tmp_path / "t.h5")["n", "spikes"].data.shape == silent.shape


@pytest.mark.parametrize("node", ["input", "output", "flatten"])
@pytest.mark.parametrize("shape", [[1, 20000, 20000], [-1], [0], [1.5], ["a"], [[np.nan]], [1] * 40])
def test_declared_shapes_are_held_against_limits(tmp_path, node, shape):
    nd.write(tmp_path / "n.nir", conv_net())
    with h5py.File(tmp_path / "n.nir", "a") as file:
        name = f"node/nodes/{node}/{'input_type' if node == 'flatten' else 'shape'}"
        del file[name]
        file[name] = shape
    with pytest.raises(FileError, match=f"'{node}': .*(at most 268435456|expected whole|is no shape)"):
        nd.read(tmp_path / "n.nir")


def _terabytes(file):
    file.create_dataset("bomb", shape=(1 << 20, 1 << 20), dtype="f4", chunks=(64, 64))


def _external(file):
    file["evil"] = h5py.ExternalLink("/etc/hostname", "/x")


def _soft(file):
    file["evil"] = h5py.SoftLink("/")


def _elsewhere(file):
    file.create_dataset("evil", shape=(4,), dtype="u1", external=[("/etc/hostname", 0, 4)])


def _virtual(file):
    layout = h5py.VirtualLayout(shape=(4,), dtype="u1")
    layout[:] = h5py.VirtualSource("/etc/other.h5", "x", shape=(4,))
    file.create_virtual_dataset("evil", layout)


def _circle(file):
    file["evil"] = file["/"]


def _deep(file):
    file.create_group("/".join("a" * 100))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_terabytes, "declares (more than 1073741824|4398046511104) bytes"),
        (_external, "soft or external link"),
        (_soft, "soft or external link"),
        (_elsewhere, "keeps its data in another file"),
        (_virtual, "keeps its data in another file"),
        (_circle, "is a group that another name has, too"),
        (_deep, "nests more than 64 groups"),
    ],
)
def test_every_reader_of_hdf5_refuses_what_leads_out_or_never_ends(tmp_path, change, words):
    from nirdeploy_loihi import netx

    nd.write(tmp_path / "n.nir", small())
    nd.run(small(), raster((3,)), convention=LOIHI).save(tmp_path / "t.h5")
    deployed("loihi2").save(tmp_path)
    readers = {
        "n.nir": nd.read,
        "t.h5": nd.load_trajectory,
        "deployment.h5": nd.load_deployment,
        "net.net": netx.read,
    }
    for name, read in readers.items():
        read(tmp_path / name)
        with h5py.File(tmp_path / name, "a") as file:
            change(file)
        with pytest.raises(FileError, match=words):
            read(tmp_path / name)
    with pytest.raises(FileError, match=words):
        nd.load_trajectory(tmp_path / "t.h5", lazy=True)


# ---------------------------------------------------------------- fuzz


def objects(file):
    found = []
    file.visititems(lambda name, item: found.append(name))
    return sorted(found)


def _replaced(file, name, rng):
    del file[name]
    kinds = ["group", "empty", "type", "text", "bytes", "float", "shape", "huge", "negative", "rows", "zero"]
    kind = rng.choice(kinds)
    if kind == "group":
        file.create_group(name)
    elif kind == "empty":
        file[name] = h5py.Empty("f")
    elif kind == "type":
        file[name] = np.dtype("f8")
    else:
        values = {
            "text": "Conv2d",
            "bytes": np.bytes_(b"\xff\xfe"),
            "float": np.array([0.5, np.nan]),
            "shape": np.ones((2, 3, 1), np.int64),
            "huge": np.full(3, 2**62),
            "negative": np.full((3,), -7),
            "rows": np.array([["a", "b"], ["c", "d"]], dtype=object),
            "zero": np.int64(0),
        }
        file[name] = values[str(kind)]
    return str(kind)


def _attribute(item, rng):
    names = sorted(item.attrs)
    if not names:
        return
    name = str(rng.choice(names))
    values = (None, "text", -1, 2**62, 0.5, np.nan, np.arange(3), np.bytes_(b"\xff"), h5py.Empty("f"), "[]", "{}", "5")
    value = values[rng.integers(len(values))]
    if value is None:
        del item.attrs[name]
    else:
        item.attrs[name] = value


def mutate(path, seed):
    """One change to an HDF5 file: an object, an attribute, a few bytes, or its length."""
    rng = np.random.default_rng(seed)
    how = rng.choice(["delete", "replace", "replace", "attribute", "attribute", "bytes", "bytes", "truncate"])
    if how in ("bytes", "truncate"):
        data = bytearray(path.read_bytes())
        if how == "truncate":
            del data[int(rng.integers(len(data))) :]
        else:
            for place in rng.integers(len(data), size=int(rng.integers(1, 9))):
                data[place] = int(rng.integers(256))
        path.write_bytes(bytes(data))
        return
    with h5py.File(path, "a") as file:
        name = str(rng.choice(objects(file)))
        if how == "delete":
            del file[name]
        elif how == "replace":
            _replaced(file, name, rng)
        else:
            _attribute(file if rng.random() < 0.5 else file[name], rng)


def _check(load, path, seed, after=lambda found: None):
    mutate(path, seed)
    try:
        found = load(path)
    except NirdeployError:
        return 1
    with contextlib.suppress(NirdeployError):
        after(found)
    return 0


SUB = {"w": linear_node(np.eye(3)), "m": lif_node((3,))}


def nested():
    inner = chain((3,), **SUB)
    nodes = {"input": input_node(3), "sub": inner, "output": output_node(3)}
    return make_graph(nodes, [("input", "sub"), ("sub", "output")])


@pytest.mark.parametrize("graph", [conv_net, nested])
def test_mutated_graphs_load_or_are_refused(tmp_path, graph):
    nd.write(tmp_path / "whole.nir", graph(), convention=LOIHI)
    whole, path = (tmp_path / "whole.nir").read_bytes(), tmp_path / "n.nir"
    refused = 0
    for seed in range(120):
        path.write_bytes(whole)
        refused += _check(nd.read, path, seed)
    assert refused > 40


def test_mutated_trajectories_load_or_are_refused(tmp_path):
    run = nd.run(small(), raster((3,)), convention=LOIHI)
    extra = nd.Record(
        "m", "v_mem", np.zeros((4, 3)), index_map=np.arange(3), threshold=np.ones(3), batched=False, view="before_pool"
    )
    nd.Trajectory({**run.records, ("m", "v_mem"): extra}, ("output",), convention=LOIHI).save(tmp_path / "whole.h5")
    whole, path = (tmp_path / "whole.h5").read_bytes(), tmp_path / "t.h5"
    refused = 0
    for seed in range(150):
        path.write_bytes(whole)
        refused += _check(nd.load_trajectory, path, seed, lambda found: [r.values for r in found.records.values()])
    assert refused > 40


@pytest.mark.parametrize("target", ["speck2f", "loihi2"])
def test_mutated_deployments_load_and_run_or_are_refused(tmp_path, target):
    original = deployed(target)
    original.save(tmp_path / "whole")
    whole, path = (tmp_path / "whole" / "deployment.h5").read_bytes(), tmp_path / "deployment.h5"
    counts = np.ones((3, 1, 3), int)
    expected = original.run(counts)
    refused = 0

    def same(found):
        assert np.array_equal(found.run(counts).outputs, expected.outputs)

    for seed in range(120):
        path.write_bytes(whole)
        refused += _check(nd.load_deployment, path, seed, same)
    assert refused > 40


def test_integers_are_held_against_the_graph_even_with_the_right_hash(tmp_path, speck, monkeypatch):
    monkeypatch.setattr("nirdeploy.storage._digest", lambda *_: "same")
    path = tmp_path / "deployment.h5"
    changes = {
        "weight": (np.ones((2, 2), int), np.full((3, 3), 2**40), np.ones((3, 3)), np.ones(3, int)),
        "bias": (np.ones(7, int), np.ones((3, 3), int)),
    }
    for field, values in changes.items():
        for value in values:
            speck.save(tmp_path)
            (tmp_path / "chip.json").unlink()
            with h5py.File(path, "a") as file:
                group = file["layers/fc"]
                if field in group:
                    del group[field]
                group[field] = value
            with pytest.raises(FileError, match="damaged deployment"):
                nd.load_deployment(path)
    for field, value in (
        ("threshold", 0),
        ("threshold", 0.5),
        ("many", 7),
        ("scale", np.nan),
        ("reset", "x"),
        ("z", 1),
    ):
        speck.save(tmp_path)
        (tmp_path / "chip.json").unlink()
        with h5py.File(path, "a") as file:
            file["layers/n"].attrs[field] = value
        with pytest.raises(FileError, match="damaged deployment"):
            nd.load_deployment(path)


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("name", ["a\x00b", "\udcff"])
def test_names_that_a_file_cannot_hold_are_refused_by_name(tmp_path, name):
    assert unstorable(name)
    graph = chain((3,), **{"fc": linear_node(np.eye(3)), name: if_node((3,))})
    with pytest.raises(GraphError, match="node .*a file cannot hold it. Rename"):
        nd.write(tmp_path / "n.nir", graph)
    with pytest.raises(FileError, match="node .*a file cannot hold it"):
        nd.run(graph, raster((3,)), convention=LOIHI).save(tmp_path / "t.h5")
    with pytest.raises(GraphError, match="node .*a file cannot hold it"):
        nd.deploy(graph, "speck2f", convention=SPECK, calibration=raster((3,))).save(tmp_path / "d")
    assert not list(tmp_path.glob("*.*"))


def test_metadata_that_a_file_cannot_hold_is_refused(tmp_path):
    for value in ("a\x00", object(), np.array(["x", None])):
        graph = make_graph(small().nodes, small().edges, {"note": value})
        with pytest.raises(GraphError, match="'note'"):
            nd.write(tmp_path / "n.nir", graph)
    with pytest.raises(GraphError, match="metadata that a file cannot hold"):
        nd.write(tmp_path / "n.nir", make_graph(small().nodes, small().edges, {"": 1, ".": 2}))


# ---------------------------------------------------------------- rasters


COUNTS = np.array([[0, 1, 2], [3, 0, 1]])


@pytest.mark.parametrize(
    "same",
    [
        COUNTS.astype(">i4"),
        COUNTS.astype(">f8"),
        COUNTS.astype(np.longdouble),
        COUNTS.astype(np.uint64),
        COUNTS.astype(np.float16),
        COUNTS.astype(object),
        COUNTS.tolist(),
        COUNTS[::-1].copy()[::-1],
        np.asfortranarray(COUNTS),
        torch.tensor(COUNTS).to(torch.bfloat16),
        torch.tensor(COUNTS).to_sparse(),
        torch.tensor(COUNTS.astype(np.float32), requires_grad=True),
    ],
    ids=lambda value: str(getattr(value, "dtype", "list")),
)
@pytest.mark.parametrize("integer", [True, False])
def test_rasters_of_every_kind_are_taken_where_exact(same, integer):
    found, batched = check_raster(same, (3,), integer=integer)
    assert np.array_equal(found[:, 0], COUNTS)
    assert not batched
    assert found.flags.c_contiguous
    assert np.array_equal(torch.tensor(found[:, 0]).to(torch.int64).numpy(), COUNTS)


@pytest.mark.parametrize(
    "bad",
    [
        [[1, 2, 3], [1]],
        np.array([[1, 2, {}]], dtype=object),
        np.array([[10**40, 1, 2]], dtype=object),
        np.array([[1, 2, 3]], dtype=complex),
        np.full((2, 3), 2.0**31, np.float32),
        np.full((2, 3), 2**31, np.uint32),
        np.full((2, 3), 2**63, np.uint64),
        np.full((2, 3), np.longdouble(1) + np.finfo(np.longdouble).eps),
        np.ma.masked_equal(COUNTS, 3),
        None,
        5,
        "spikes",
    ],
    ids=str,
)
def test_rasters_that_would_change_are_refused(bad):
    with pytest.raises(RasterError):
        check_raster(bad, (3,), integer=True)


def test_damaged_zip_rasters_are_refused(tmp_path):
    path = tmp_path / "r.npz"
    np.savez_compressed(path, raster=np.arange(6000).reshape(2, 3000))
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(whole)
        for place in rng.integers(len(data), size=3):
            data[place] = int(rng.integers(256))
        path.write_bytes(bytes(data))
        with contextlib.suppress(FileError):
            load_raster(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("raster", b"no array")
    with pytest.raises(FileError, match="no array 'raster'"):
        load_raster(path)
    encrypted = bytearray(whole)
    encrypted[6] |= 1
    encrypted[encrypted.rfind(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(bytes(encrypted))
    with pytest.raises(FileError, match="encrypted"):
        load_raster(path)


def test_negative_shapes_and_pickles_in_rasters_are_refused(tmp_path):
    with (tmp_path / "n.npy").open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "<i8", "fortran_order": False, "shape": (-4,)})
    with pytest.raises(FileError, match=r"shape \(-4,\)"):
        load_raster(tmp_path / "n.npy")
    (tmp_path / "g.npz").write_bytes(gzip.compress(b"x"))
    with pytest.raises(FileError, match="is no .npz or .npy"):
        load_raster(tmp_path / "g.npz")


@pytest.mark.parametrize("labels", [np.zeros(3), np.zeros((3, 1), int), np.array(["a"] * 3), np.array(1)])
def test_labels_are_one_whole_number_a_sample(tmp_path, labels):
    save_raster(tmp_path / "r.npz", raster((3,)), labels)
    with pytest.raises(FileError, match="labels' has shape .* expected one whole number a sample"):
        load_raster(tmp_path / "r.npz")


# ---------------------------------------------------------------- arguments


def test_wrong_arguments_of_the_library_are_errors_of_ours(speck):
    for target in (["speck2f"], None, 5, {}):
        with pytest.raises(TargetError, match="unknown target"):
            nd.check(small(), target, convention=SPECK)
    for stage in (nd.check, nd.deploy, nd.quantize):
        with pytest.raises(ConventionError, match=r"Pass nd.convention\('snntorch', dt=...\)"):
            stage(small(), "speck2f", convention="snntorch")
    for wrong in ({"record": 5}, {"record": None}, {"record": [1]}, {"nodes": [1]}, {"nodes": 5}):
        with pytest.raises(RasterError, match=f"{next(iter(wrong))} is .* expected names"):
            speck.run(raster((3,)), **wrong)
    for wrong in ({"on": 5}, {"mode": 5}):
        with pytest.raises(UnsupportedError, match="expected text"):
            speck.run(raster((3,)), **wrong)
    with pytest.raises(UnsupportedError, match="no option 'foo'"):
        speck.run(raster((3,)), foo=1)


def test_unknown_and_mistyped_placement_options_are_refused(speck):
    with pytest.raises((UnsupportedError, PlacementError), match="option 'foo'"):
        nd.place(speck.quantized, foo=1)
    for wrong in ({"cores": 5}, {"avoid_cores": 5}, {"cores": {"n": "a"}}):
        with pytest.raises(NirdeployError, match="cores"):
            nd.place(speck.quantized, **wrong)


class Careless:
    """A backend that checks nothing itself."""

    def place(self, quantized, **options):
        """Cores; option `cores`."""
        return self.inner(quantized, **options)

    def inner(self, quantized, *, cores=None):
        return dict(cores.items())


class Plain(Careless):
    def place(self, quantized, *, cores=None):
        return self.inner(quantized, cores=cores)


@pytest.mark.parametrize(
    ("backend", "words"), [(Careless(), "It says: Cores; option `cores`"), (Plain(), "Known: cores")]
)
def test_options_are_held_against_a_backend_that_checks_nothing(speck, monkeypatch, backend, words):
    monkeypatch.setattr("nirdeploy.pipeline.backend_of", lambda _: backend)
    with pytest.raises(UnsupportedError, match=f"placement on speck2f has no option 'foo'. {words}"):
        nd.place(speck.quantized, foo=1)
    with pytest.raises(ConfigurationError, match="placement on speck2f cannot use cores=5"):
        nd.place(speck.quantized, cores=5)
    with pytest.raises(AttributeError):
        nd.place(speck.quantized)


def test_neither_the_callers_graph_nor_integers_are_shared():
    graph = small()
    found = nd.deploy(graph, "speck2f", convention=SPECK, calibration=raster((3,)))
    before = found.run(raster((3,))).graph_sha256
    graph.nodes["fc"].weight[:] = 9
    assert found.run(raster((3,))).graph_sha256 == before
    with pytest.raises(ValueError, match="read-only"):
        found.quantized["fc"].weight[:] = 0


def test_a_record_leaves_the_callers_array_writable():
    data = np.zeros((2, 3))
    record = nd.Record("n", "v_mem", data, batched=False)
    data[:] = 1
    assert not record.data.flags.writeable


# ---------------------------------------------------------------- rename and old files


def test_a_name_inside_a_subgraph_is_renamed_by_its_path():
    path = shared("reference", "braille", "braille_noDelay_bias_zero_subgraph.nir")
    with pytest.raises(GraphError, match="in subgraph 'lif1': edge .*'lif'.*rename"):
        nd.read(path)
    found = nd.read(path, rename={"lif1/lif1": "lif1/lif"})
    assert set(found.nodes["lif1"].nodes) == {"input", "lif", "lin", "output"}
    assert "lif1" in found.nodes
    with pytest.raises(GraphError, match="not in the same graph"):
        nd.read(path, rename={"lif1/lif1": "lif"})


def test_two_nodes_may_not_be_renamed_into_one(tmp_path):
    nd.write(tmp_path / "n.nir", small())
    with pytest.raises(GraphError, match="'n': two nodes have this name"):
        nd.read(tmp_path / "n.nir", rename={"fc": "n"})
    assert ("input", "first") in nd.read(tmp_path / "n.nir", rename={"fc": "first"}).edges


def test_old_files_load():
    braille = nd.read(shared("reference", "braille", "braille_noDelay_bias_zero.nir"))
    assert "lif1.lif" in braille.nodes
    cnn = nd.read(shared("reference", "cnn", "cnn_sinabs.nir"))
    assert any(isinstance(node, nir.Conv2d) for node in cnn.nodes.values())


def test_a_graph_without_v_reset_loads(tmp_path):
    nd.write(tmp_path / "n.nir", small())
    with h5py.File(tmp_path / "n.nir", "a") as file:
        file.pop("node/nodes/n/v_reset", None)
    assert not np.any(io.parameters(nd.read(tmp_path / "n.nir").nodes["n"])["v_reset"])


# ---------------------------------------------------------------- the program


def _program(*arguments, **options):
    return [sys.executable, "-m", "nirdeploy", *arguments]


def test_closed_and_full_outputs_are_quiet():
    for line in ("targets >&-", "targets >&- 2>&-", "--version >&-"):
        found = subprocess.run(
            ["bash", "-c", f"{sys.executable} -m nirdeploy {line}"], capture_output=True, text=True, check=False
        )
        assert (found.returncode, found.stderr) == (0, "")
    found = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m nirdeploy targets --json > /dev/full"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 2
    assert found.stderr.count("\n") == 1


@pytest.mark.parametrize("after", [0.0, 0.3, 0.6, 0.9])
def test_an_interrupt_is_one_line_and_130(tmp_path, after):
    nd.write(tmp_path / "n.nir", conv_net(), convention=SPECK)
    save_raster(tmp_path / "r.npz", raster((1, 6, 6), steps=20_000, batch=8).astype(np.uint8))
    # wait until our module runs: before it, Python itself prints
    code = (
        "import sys; import nirdeploy.cli as cli; sys.stdout.write('x'); sys.stdout.flush(); "
        f"sys.argv = ['nirdeploy', 'run', {str(tmp_path / 'n.nir')!r}, {str(tmp_path / 'r.npz')!r}]; cli.main()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout.read(1) == b"x"
        time.sleep(after + 0.05)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert err == b"nirdeploy: interrupted\n"
