"""A laboratory's own files as trajectories."""

import contextlib

import numpy as np
import pytest
from nir import data_ir

import nirdeploy as nd
from nirdeploy.errors import ConfigurationError, FileError
from nirdeploy.recordings import from_nir_data

V = np.array([0, 640, 1280, 0, 640])
SPIKES = np.array([0, 0, 0, 1, 0])


def mapping(folder, *records, head='[trajectory]\ntarget = "loihi2"\nexecutor = "chip"\n'):
    path = folder / "dump.toml"
    path.write_text(head + "".join(f"\n[[records]]\n{record}\n" for record in records))
    return path


def trace(folder):
    np.savetxt(folder / "trace.csv", np.column_stack([np.arange(5), V, SPIKES]), delimiter=",", header="t,v,s")
    return mapping(
        folder,
        'node = "lif"\nvariable = "v_mem"\nfile = "trace.csv"\ncolumns = [1]\nskip_rows = 1\nscale = 0.015625\n'
        "threshold = 1600.0\nlag = 1",
        'node = "lif"\nvariable = "spikes"\nfile = "trace.csv"\ncolumns = [2]\nskip_rows = 1\nlag = 1',
    )


def test_columns_of_a_csv_become_records(tmp_path):
    found = nd.load_trajectory(trace(tmp_path))
    assert (found.target, found.executor) == ("loihi2", "chip")
    v_mem = found["lif", "v_mem"]
    assert v_mem.values[:, 0].tolist() == [0, 10, 20, 0, 10]
    assert (v_mem.lag, v_mem.threshold, v_mem.batched) == (1, 1600.0, False)
    spikes = found["lif", "spikes"]
    assert spikes.data.dtype == np.int32
    assert spikes.data[:, 0].tolist() == SPIKES.tolist()


def test_a_recording_is_compared_like_a_run(tmp_path):
    found = nd.load_trajectory(trace(tmp_path))
    ones = nd.Record("lif", "spikes", np.array([[0], [0], [1], [0]]), batched=False)
    reference = nd.Trajectory({("lif", "spikes"): ones}, target="reference", executor="reference")
    comparison = nd.compare(reference, found)
    assert comparison.first_divergence is None
    assert comparison.per_node["lif"].spikes.shared == 1


def test_axes_are_put_in_order(tmp_path):
    values = np.arange(2 * 3 * 4 * 5 * 6).reshape(2, 3, 4, 5, 6)  # x, y, channel, step, batch: Lava's order, and more
    np.savez(tmp_path / "data.npz", v=values)
    path = mapping(
        tmp_path,
        'node = "a"\nvariable = "v_mem"\nfile = "data.npz"\nkey = "v"\naxes = ["x", "y", "channel", "step", "batch"]\n'
        "first_step = 1",
    )
    record = nd.load_trajectory(path)["a", "v_mem"]
    assert np.array_equal(record.data, values.transpose(3, 4, 2, 1, 0)[1:])
    assert record.batched


@pytest.mark.parametrize(
    ("record", "kind", "message"),
    [
        ('node = "a"\nvariable = "v"\nfile = "x.npy"', ConfigurationError, r"records\.0\.variable: Input should be"),
        ('node = "a"\nvariable = "v_mem"\nfile = "x.npy"\nscales = 2', ConfigurationError, r"scales: Extra inputs"),
        ('node = "a"\nvariable = "v_mem"\nfile = "gone.npy"', FileError, "node 'a': .*gone.npy' does not exist"),
        ('node = "a"\nvariable = "v_mem"\nfile = "x.mat"', FileError, r"x\.mat' is no \.csv, \.npz or \.npy"),
        ('node = "a"\nvariable = "v_mem"\nfile = "x.npz"\nkey = "w"', FileError, "has no array 'w'"),
        ('node = "a"\nvariable = "v_mem"\nfile = "x.npy"\naxes = ["step"]', FileError, r"shape \(2, 2\), its axes are"),
        (
            'node = "a"\nvariable = "spikes"\nfile = "half.npy"',
            FileError,
            r"node 'a': spikes hold 0\.5, expected counts",
        ),
        ('node = "a"\nvariable = "v_mem"\nfile = "nan.npy"', FileError, "holds values that are not finite"),
        ('node = "a"\nvariable = "v_mem"\nfile = "x.npy"\nfirst_step = 2', FileError, "no step is left behind step 2"),
        ('node = "a"\nvariable = "v_mem"\nfile = "x.csv"\ncolumns = [7]', FileError, "column 7 does not exist"),
        ('node = "a"\nvariable = "v_mem"\nfile = "pickled.npy"', FileError, "holds Python objects"),
        ('node = "a"\nvariable = "v_mem"\nfile = "x.npy"\nneurons = [1, 1]', FileError, "an index more than once"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, record, kind, message):
    np.save(tmp_path / "x.npy", np.zeros((2, 2)))
    np.savez(tmp_path / "x.npz", v=np.zeros(3))
    (tmp_path / "x.mat").write_bytes(b"MATLAB")
    np.save(tmp_path / "half.npy", np.full((2, 2), 0.5))
    np.save(tmp_path / "nan.npy", np.full((2, 2), np.nan))
    np.savetxt(tmp_path / "x.csv", np.zeros((2, 2)), delimiter=",")
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(kind, match=message):
        nd.load_trajectory(mapping(tmp_path, record))


def test_a_mapping_that_is_no_toml_or_names_a_record_twice_is_refused(tmp_path):
    path = tmp_path / "dump.toml"
    path.write_text("[[records]\n")
    with pytest.raises(ConfigurationError, match="is no TOML"):
        nd.load_trajectory(path)
    np.save(tmp_path / "x.npy", np.zeros((2, 2)))
    twice = 'node = "a"\nvariable = "v_mem"\nfile = "x.npy"'
    with pytest.raises(ConfigurationError, match="has a/v_mem twice"):
        nd.load_trajectory(mapping(tmp_path, twice, twice))


def observed(**values):
    return data_ir.NIRGraphData(nodes={"lif": data_ir.NIRNodeData(observables=values)})


def test_nirs_events_lose_no_spike():
    # nir's own conversion floors time / dt and gives 96 of 100 such spikes back
    dt, steps = 1e-4, np.arange(100)
    events = data_ir.EventData(idx=np.zeros((1, 100), int), time=(steps * dt)[None], n_neurons=1, t_max=100 * dt)
    found = from_nir_data(observed(spikes=events), dt=dt)["lif", "spikes"]
    assert found.data[:, 0, 0].tolist() == [1] * 100


def test_nirs_gridded_data_are_step_first_and_of_one_dt():
    values = np.random.default_rng(0).normal(size=(3, 5, 2))
    data = observed(v=data_ir.TimeGriddedData(values, 1e-3))
    assert np.array_equal(from_nir_data(data, dt=1e-3)["lif", "v_mem"].data, values.transpose(1, 0, 2))
    with pytest.raises(FileError, match=r"node 'lif': recorded with dt 0\.001, expected 0\.0001"):
        from_nir_data(data, dt=1e-4)
    with pytest.raises(FileError, match="unknown observable 'w'"):
        from_nir_data(observed(w=data_ir.TimeGriddedData(values, 1e-3)), dt=1e-3)


def test_damaged_archives_and_headers_that_ask_for_more_memory_than_there_is_are_refused(tmp_path):
    import zipfile

    (tmp_path / "m.toml").write_text(
        '[[records]]\nnode = "a"\nvariable = "v_mem"\nfile = "x.npz"\nkey = "v"\n', encoding="utf-8"
    )
    path = tmp_path / "x.npz"
    np.savez_compressed(path, v=np.arange(24.0).reshape(6, 4))
    whole = path.read_bytes()
    flags = whole.rfind(b"PK\x01\x02") + 8
    encrypted = bytearray(whole)
    encrypted[6] |= 1
    encrypted[flags] |= 1
    np.save(tmp_path / "plain.npy", np.zeros((2, 2)))
    plain = (tmp_path / "plain.npy").read_bytes()
    wrong = {
        "not a zip file": whole[: len(whole) // 2],
        "is encrypted": bytes(encrypted),
        "while decompressing": whole[:60] + b"\xff\xff" + whole[62:],
        "is not a zip": plain,
    }
    for message, data in wrong.items():
        path.write_bytes(data)
        with pytest.raises(FileError, match=f"node 'a': .*cannot be read: .*{message}"):
            nd.load_trajectory(tmp_path / "m.toml")
    rng = np.random.default_rng(0)
    for _ in range(200):
        data = bytearray(whole)
        data[rng.integers(len(data))] ^= int(rng.integers(1, 256))
        path.write_bytes(data)
        with contextlib.suppress(FileError):
            nd.load_trajectory(tmp_path / "m.toml")
    huge = plain.replace(b"(2, 2), }" + b" " * 20, b"(99999999999, 2), }" + b" " * 10)
    assert len(huge) == len(plain)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("v.npy", huge)
    with pytest.raises(FileError, match=r"node 'a': 'x\.npz:v' declares 1599999999984 bytes"):
        nd.load_trajectory(tmp_path / "m.toml")


def test_a_table_with_a_byte_order_mark_is_read_and_one_without_rows_refused_without_warnings(tmp_path):
    (tmp_path / "m.toml").write_text('[[records]]\nnode = "a"\nvariable = "v_mem"\nfile = "x.csv"\n', encoding="utf-8")
    (tmp_path / "x.csv").write_text("\ufeff1,2\n3,4\n", encoding="utf-8")
    assert nd.load_trajectory(tmp_path / "m.toml")["a", "v_mem"].data.tolist() == [[1, 2], [3, 4]]
    (tmp_path / "x.csv").write_text("", encoding="utf-8")
    with pytest.raises(FileError, match="node 'a': no step is left behind step 0"):
        nd.load_trajectory(tmp_path / "m.toml")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"t_max": float("inf")}, "node 'a': t_max is inf"),
        ({"t_max": -1.0}, "node 'a': t_max is -1"),
        ({"n_neurons": 10**12}, "node 'a': events for a raster of shape"),
        ({"n_neurons": -1}, "node 'a': events for a raster of shape"),
        ({"idx": np.array([[0.5, 1.0]])}, "node 'a': events of float64"),
        ({"idx": np.array([0, 1])}, "node 'a': events of int64"),
        ({"time": np.zeros((1, 1))}, "node 'a': events of int64"),
    ],
)
def test_events_that_no_raster_holds_are_refused(changed, message):
    from types import SimpleNamespace

    given = {"idx": np.array([[0, -1]]), "time": np.zeros((1, 2)), "t_max": 1e-2, "n_neurons": 2, **changed}
    data = SimpleNamespace(nodes={"a": SimpleNamespace(observables={"spikes": SimpleNamespace(**given)})})
    with pytest.raises(FileError, match=message):
        from_nir_data(data, dt=1e-3)
    with pytest.raises(FileError, match="dt is 0, expected seconds above 0"):
        from_nir_data(data, dt=0)
