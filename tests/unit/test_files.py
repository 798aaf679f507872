import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import nir
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import chain, conv_net, if_node, linear_node, raster

import nirdeploy as nd
from nirdeploy import files
from nirdeploy.errors import FileError, GraphError, RasterError
from nirdeploy.graph import metadata, sha256
from nirdeploy.names import escape, suggest, unescape
from nirdeploy.raster import check_raster, load_raster, save_raster

PLAIN = nd.Convention(if_gain="r", reset="zero")


# ---------------------------------------------------------------- names


@given(st.text(), st.sampled_from(["/", "./", "/."]))
def test_escaped_names_come_back(name, reserved):
    escaped = escape(name, reserved)
    assert unescape(escaped) == name
    assert escaped
    assert not set(escaped) & set(reserved)


def test_suggestions_name_the_nearest_or_all():
    assert suggest("spec2f", ["speck2f", "loihi2"]) == "Did you mean 'speck2f'?"
    assert suggest("zzz", ["b", "a"]) == "Known: a, b."


# ---------------------------------------------------------------- .nir


def test_nir_files_come_back_exactly(tmp_path):
    graph = conv_net()
    nd.write(tmp_path / "net.nir", graph, convention=PLAIN)
    again = nd.read(tmp_path / "net.nir")
    assert sha256(again) == sha256(graph)
    assert nd.Convention.from_dict(metadata(again)["convention"]) == PLAIN
    assert metadata(graph) == {}


def test_files_of_nirs_own_writer_and_reader_are_the_same(tmp_path):
    graph = conv_net()
    nir.write(str(tmp_path / "theirs.nir"), graph)
    assert sha256(nd.read(tmp_path / "theirs.nir")) == sha256(graph)
    nd.write(tmp_path / "ours.nir", graph, convention=PLAIN)
    assert sha256(nir.read(str(tmp_path / "ours.nir"))) == sha256(graph)


@pytest.mark.parametrize("name", ["a/b", "50%", "%2F", "a%2Fb", "ü\n", ".", "..", "x" * 2000])
def test_every_node_name_survives_a_file(tmp_path, name):
    nd.write(tmp_path / "n.nir", chain((1,), **{name: if_node((1,))}))
    assert set(nd.read(tmp_path / "n.nir").nodes) == {"input", name, "output"}


def test_stored_convention_is_used_by_the_run(tmp_path):
    nd.write(tmp_path / "net.nir", conv_net(), convention=PLAIN)
    found = nd.run(nd.read(tmp_path / "net.nir"), raster((1, 6, 6)))
    assert found.convention == PLAIN


def test_rename_repairs_wrong_edges(tmp_path):
    nd.write(tmp_path / "n.nir", chain((1,), lif1=if_node((1,))))
    with h5py.File(tmp_path / "n.nir", "a") as file:
        table = [[b"lif" if n == b"lif1" else n for n in row] for row in file["node/edges"][()]]
        del file["node/edges"]
        file["node/edges"] = np.array(table, dtype=object)
    with pytest.raises(GraphError, match="names node 'lif', which does not exist"):
        nd.read(tmp_path / "n.nir")
    assert ("input", "lif1") in nd.read(tmp_path / "n.nir", rename={"lif": "lif1"}).edges


def damage(path, how):
    if how == "text":
        path.write_text("not a graph")
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        with h5py.File(path, "a") as file:
            how(file)


def no_group(file):
    del file["node"]


def single(file):
    del file["node/type"]
    file["node/type"] = "LIF"


def unknown_type(file):
    del file["node/nodes/conv1/type"]
    file["node/nodes/conv1/type"] = "Conv2"


def no_weight(file):
    del file["node/nodes/conv1/weight"]


def nan_weight(file):
    file["node/nodes/conv1/weight"][0] = np.nan


def text_weight(file):
    del file["node/nodes/fc/weight"]
    file["node/nodes/fc/weight"] = "many"


def no_edges(file):
    del file["node/edges"]


def huge(file):
    del file["node/nodes/conv1/weight"]
    file["node/nodes"].create_dataset("conv1/weight", shape=(1 << 40,), dtype="f4", chunks=(1 << 16,))


def external_link(file):
    file["node/nodes/evil"] = h5py.ExternalLink("/etc/hostname", "/x")


def soft_link(file):
    file["node/nodes/evil"] = h5py.SoftLink("/node")


def external_data(file):
    file["node"].create_dataset("x", shape=(4,), dtype="u1", external=[("/etc/hostname", 0, 4)])


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("text", "is not an HDF5 file or is damaged, expected a NIR graph"),
        ("empty", "expected a NIR graph"),
        ("truncated", "is truncated, expected a NIR graph"),
        (no_group, "no group 'node'"),
        (single, "holds a single node"),
        (unknown_type, "'conv1': unknown NIR type 'Conv2'. Did you mean 'Conv2d'"),
        (no_weight, "'conv1': Conv2d without 'weight'"),
        (nan_weight, "'conv1': Conv2d.weight holds NaN"),
        (text_weight, "'fc': Linear"),
        (no_edges, "without 'edges'"),
        (huge, "declares more than"),
        (external_link, "soft or external link"),
        (soft_link, "soft or external link"),
        (external_data, "keeps its data in another file"),
    ],
)
def test_damaged_and_hostile_files_are_refused_by_name(tmp_path, how, words):
    path = tmp_path / "net.nir"
    nd.write(path, conv_net())
    damage(path, how)
    with pytest.raises(FileError, match=words):
        nd.read(path)


def test_missing_file_and_folder_are_refused(tmp_path):
    with pytest.raises(FileError, match="does not exist"):
        nd.read(tmp_path / "no.nir")
    with pytest.raises(FileError, match="is a folder"):
        nd.read(tmp_path)


def test_parameters_of_different_shapes_are_refused(tmp_path):
    nd.write(tmp_path / "n.nir", chain((2,), n=if_node((2,))))
    with h5py.File(tmp_path / "n.nir", "a") as file:
        del file["node/nodes/n/r"]
        file["node/nodes/n/r"] = np.ones(3, np.float32)
    with pytest.raises(FileError, match="'n': IF with inconsistent parameters"):
        nd.read(tmp_path / "n.nir")


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.txt"
    files.write_text(path, "old")

    def fail():
        with files.atomic(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.txt"]


def test_unwritable_folder_is_refused(tmp_path):
    with pytest.raises(FileError, match="cannot write"):
        nd.write(tmp_path / "no" / "net.nir", conv_net())


# ---------------------------------------------------------------- trajectories


@pytest.fixture
def trajectory():
    return nd.run(conv_net(), raster((1, 6, 6)), convention=PLAIN)


def test_trajectories_come_back_exactly(tmp_path, trajectory):
    trajectory.save(tmp_path / "t.h5")
    again = nd.load_trajectory(tmp_path / "t.h5")
    assert list(again) == list(trajectory)
    for key, record in trajectory.records.items():
        other = again[key]
        assert np.array_equal(other.data, record.data)
        assert other.data.dtype == record.data.dtype
        assert (other.scale, other.units, other.lag, other.view, other.threshold, other.batched) == (
            record.scale,
            record.units,
            record.lag,
            record.view,
            record.threshold,
            record.batched,
        )
    assert again.convention == PLAIN
    assert again.graph_sha256 == trajectory.graph_sha256
    assert again.output_names == ("output",)


def test_records_with_index_maps_and_thresholds_come_back(tmp_path):
    record = nd.Record(
        "a/b",
        "v_mem",
        np.arange(12, dtype=np.int16).reshape(3, 4),
        scale=0.5,
        source="a",
        index_map=np.array([3, 1, 0, 2]),
        lag=2,
        view="refractory",
        threshold=np.array([1, 2, 3, 4]),
        batched=False,
    )
    nd.Trajectory({("a/b", "v_mem"): record}, counters={"a/b": {"clamps": 3}}).save(tmp_path / "t.h5")
    again = nd.load_trajectory(tmp_path / "t.h5")
    other = again["a/b", "v_mem"]
    assert np.array_equal(other.index_map, record.index_map)
    assert np.array_equal(other.threshold, record.threshold)
    assert (other.source, other.lag, other.view) == ("a", 2, "refractory")
    assert again.counters == {"a/b": {"clamps": 3}}
    assert np.array_equal(other.values, record.data * 0.5)


def test_trajectory_opens_in_xarray(tmp_path, trajectory):
    xarray = pytest.importorskip("xarray")
    trajectory.save(tmp_path / "t.h5")
    with xarray.open_datatree(tmp_path / "t.h5", engine="h5netcdf") as tree:
        spikes = tree["/nodes/if1/spikes"]
        assert spikes.dims == ("step", "batch", "channel", "y", "x")
        assert spikes.attrs["units"] == "count"
        assert np.array_equal(spikes.values, trajectory["if1", "spikes"].data)
        assert tree["/nodes/if3/v_mem"].dims == ("step", "batch", "neuron")


def test_missing_record_suggests_the_nearest(trajectory):
    with pytest.raises(KeyError, match="Did you mean 'if1/v_mem'"):
        trajectory["if1", "vmem"]


def test_records_are_read_only(trajectory):
    with pytest.raises(ValueError, match="read-only"):
        trajectory["if1", "spikes"].data[:] = 0


def test_other_hdf5_is_no_trajectory(tmp_path):
    nd.write(tmp_path / "net.nir", conv_net())
    with pytest.raises(FileError, match="is HDF5 but not a trajectory"):
        nd.load_trajectory(tmp_path / "net.nir")


def test_newer_and_damaged_trajectories_are_refused(tmp_path, trajectory):
    path = tmp_path / "t.h5"
    trajectory.save(path)
    with h5py.File(path, "a") as file:
        file.attrs["version"] = 99
    with pytest.raises(FileError, match="trajectory format 99"):
        nd.load_trajectory(path)
    trajectory.save(path)
    with h5py.File(path, "a") as file:
        del file["nodes/if1/spikes"]
    with pytest.raises(FileError, match="damaged trajectory"):
        nd.load_trajectory(path)


# ---------------------------------------------------------------- rasters


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros((3, 2, 5)), r"shape \(3, 2, 5\), expected \[step, 4\] or \[step, batch, 4\]"),
        (np.zeros(4), r"shape \(4,\)"),
        (np.zeros((0, 4)), "is empty"),
        (np.array([[0, 1, -1, 0]]), r"-1 at \(0, 0, 2\): a negative count|-1 at \(0, 2\): a negative count"),
        (np.array([[0, np.nan, 0, 0]]), r"nan at \(0, 1\)"),
        (np.array([[0, np.inf, 0, 0]]), r"inf at \(0, 1\)"),
        (np.array([[0, 0.5, 0, 0]]), r"0.5 at \(0, 1\): expected whole counts"),
        (np.array([[0, 9, 0, 0]]), "9 at .* at most 3"),
        (np.array([["a", "b", "c", "d"]]), "dtype <U1"),
    ],
)
def test_bad_rasters_are_refused(values, words):
    with pytest.raises(RasterError, match=words):
        check_raster(values, (4,), integer=True, maximum=3)


def test_boolean_rasters_are_counts():
    data, batched = check_raster(np.ones((2, 4), bool), (4,), integer=True)
    assert (data.shape, data.dtype.kind, batched) == ((2, 1, 4), "i", False)


def test_raster_files_come_back(tmp_path):
    counts, labels = np.arange(6).reshape(2, 3), np.array([1, 2])
    save_raster(tmp_path / "r.npz", counts, labels)
    again, found = load_raster(tmp_path / "r.npz")
    assert np.array_equal(again, counts)
    assert np.array_equal(found, labels)
    np.save(tmp_path / "r.npy", np.asfortranarray(counts))
    assert np.array_equal(load_raster(tmp_path / "r.npy")[0], counts)


def test_bad_raster_files_are_refused(tmp_path):
    (tmp_path / "t.npz").write_text("no")
    with pytest.raises(FileError, match=r"is no .npz or .npy raster"):
        load_raster(tmp_path / "t.npz")
    np.savez(tmp_path / "o.npz", spikes=np.zeros(2))
    with pytest.raises(FileError, match="no array 'raster'"):
        load_raster(tmp_path / "o.npz")
    np.save(tmp_path / "p.npy", np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(FileError, match="Python objects"):
        load_raster(tmp_path / "p.npy")
    whole = (tmp_path / "big.npy").open("wb")
    np.lib.format.write_array_header_1_0(whole, {"descr": "<i8", "fortran_order": False, "shape": (1 << 40,)})
    whole.close()
    with pytest.raises(FileError, match="declares 8796093022208 bytes"):
        load_raster(tmp_path / "big.npy")
    np.save(tmp_path / "cut.npy", np.zeros(100))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-8])
    with pytest.raises(FileError, match="truncated"):
        load_raster(tmp_path / "cut.npy")
    with pytest.raises(FileError, match="does not exist"):
        load_raster(tmp_path / "none.npz")


# ---------------------------------------------------------------- the package


def test_import_is_light():
    code = (
        "import sys, json, nirdeploy; import nirdeploy.pipeline; "
        "heavy = ('numba', 'matplotlib', 'pydantic', 'jinja2', 'typer', 'sklearn'); "
        "print(json.dumps([m for m in heavy if m in sys.modules]))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == []


def test_public_names_are_all_there():
    for name in nd.__all__:
        assert getattr(nd, name) is not None
    assert set(nd.__all__) <= set(dir(nd))
    with pytest.raises(AttributeError, match="has no attribute 'chek'"):
        nd.chek  # noqa: B018 (the access is the test)


# ---------------------------------------------------------------- full disks

FULL = """
import resource, signal, sys, warnings
from pathlib import Path

import numpy as np
import nirdeploy as nd
from nirdeploy.errors import FileError
from nirdeploy.evaluation.file import Identity, Store
from nirdeploy.evaluation.job import Rows
from nirdeploy_loihi.lower_program import program_of
from nirdeploy_loihi.netx_write import write_program

warnings.simplefilter("ignore")
folder, limit = Path(sys.argv[2]), int(sys.argv[3])
graph = nd.read(sys.argv[1])
deployment = nd.deploy(graph, "speck2f", quantizer="max")
program = program_of(nd.deploy(nd.read(sys.argv[4]), "loihi2", quantizer="max").quantized)
rows = Rows(np.zeros((1, 10)), np.zeros((1, 2), int), np.ones(1, int), ("a", "b"), "emulator", "speck2f")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
for write in (
    lambda: nd.write(folder / "net.nir", graph),
    lambda: deployment.save(folder / "build"),
    lambda: write_program(program, folder / "net.net"),
    lambda: Store(Identity("g", "d", "{}", "{}", "x", 1000, 1), folder / "out.h5", resume=False).add(0, [0], rows),
):
    try:
        write()
    except FileError as error:
        print(error)
"""


@pytest.mark.parametrize("limit", [100, 20_000])
def test_files_begun_on_a_full_disk_are_an_error_and_the_process_goes_on(tmp_path, limit):
    pytest.importorskip("resource")
    network, dense = Path(__file__).resolve().parents[2] / "configs" / "digits.nir", tmp_path / "dense.nir"
    matrix = np.random.default_rng(0).normal(size=(80, 80))
    nd.write(dense, chain((80,), fc=linear_node(matrix), n=if_node((80,))), convention=nd.convention("nir", dt=1e-3))
    found = subprocess.run(
        [sys.executable, "-c", FULL, str(network), str(tmp_path), str(limit), str(dense)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, "HDF5 may crash while the interpreter leaves"
    assert found.stderr == ""
    names = ("net.nir", "build/deployment.h5", "net.net", "out.h5")
    assert found.stdout.splitlines() == [f"cannot write {str(tmp_path / name)!r}: File too large" for name in names]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["build", "dense.nir"]
