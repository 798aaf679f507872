"""`net.net` in a deployment's folder."""

import h5py
import nirdeploy_loihi
import numpy as np
import pytest
from nets import ROOT
from netx_files import dense, given, net_file
from nirdeploy_loihi import LoihiBackend

import nirdeploy as nd
from nirdeploy import files
from nirdeploy.errors import FileError


@pytest.fixture
def saved(tmp_path):
    deployment = nirdeploy_loihi.netx.read(net_file(tmp_path / "given.net", given(2), dense(bias=[1, -2, 3])))
    deployment.save(tmp_path / "build")
    return tmp_path / "build"


def test_the_folder_holds_the_network_for_netx(saved):
    found = nirdeploy_loihi.netx.read(saved / "net.net")
    loaded = nd.load_deployment(saved)
    raster = np.ones((9, 2), int)
    assert np.array_equal(found.run(raster).outputs, loaded.run(raster).outputs)
    with h5py.File(saved / "net.net") as file:
        assert files.attribute(file, "deployment_sha256", str) == files.sha256(saved / "deployment.h5")


def test_a_stale_one_is_refused(saved, tmp_path):
    other = nirdeploy_loihi.netx.read(net_file(tmp_path / "other.net", given(2), dense(bias=[1, -2, 4])))
    other.save(tmp_path / "other")
    (saved / "net.net").write_bytes((tmp_path / "other" / "net.net").read_bytes())
    with pytest.raises(FileError, match=r"net.net' was derived from another deployment.h5. Save the deployment again"):
        nd.load_deployment(saved)


@pytest.mark.parametrize("content", [b"", b"no HDF5"])
def test_a_damaged_one_is_refused(saved, content):
    (saved / "net.net").write_bytes(content)
    with pytest.raises(FileError, match=r"net.net' is damaged"):
        nd.load_deployment(saved)


def test_a_file_of_somebody_else_is_refused(saved, tmp_path):
    (saved / "net.net").write_bytes((tmp_path / "given.net").read_bytes())
    with pytest.raises(FileError, match=r"net.net' is damaged: attribute 'deployment_sha256' of /"):
        nd.load_deployment(saved)


def test_a_folder_without_it_loads(saved):
    (saved / "net.net").unlink()
    assert nd.load_deployment(saved).target.name == "loihi2"


def test_a_network_that_the_format_cannot_hold_is_saved_without_it(saved, nets):
    graph = nets.graph(
        {
            "input": nets.source(2),
            "fc": nets.linear([[1.0, 0.5], [0.25, 1.0]]),
            "a": nets.if_(2),
            "skip": nets.linear([[1.0, 0.5], [0.5, 1.0]]),
            "fc2": nets.linear([[0.5, 1.0], [1.0, 0.5]]),
            "b": nets.if_(2),
            "output": nets.output(2),
        },
        [("input", "fc"), ("fc", "a"), ("a", "fc2"), ("fc2", "b"), ("input", "skip"), ("skip", "b"), ("b", "output")],
    )
    deployment = nd.deploy(graph, "loihi2", convention=nets.plain, quantizer="max")
    deployment.save(saved)
    assert sorted(path.name for path in saved.iterdir()) == ["chip.json", "deployment.h5"]
    assert nd.load_deployment(saved).quantized["fc"].weight.shape == (2, 2)


def test_a_writer_that_breaks_leaves_a_folder_that_loads(saved, monkeypatch):
    def broken(_path):
        raise OSError(28, "No space left on device")

    deployment = nd.load_deployment(saved)
    monkeypatch.setattr(LoihiBackend, "derived_files", lambda *_: {"net.net": broken}, raising=False)
    with pytest.raises(FileError, match=r"cannot write .*net.net': No space left"):
        deployment.save(saved)
    assert [path.name for path in saved.iterdir()] == ["deployment.h5"]
    assert nd.load_deployment(saved).target.name == "loihi2"


def test_another_chips_deployment_takes_the_file_away(saved):
    graph = nd.read(ROOT / "configs" / "digits.nir")
    data = np.load(ROOT / "configs" / "digits_calibration.npz")["raster"][:, :4]
    nd.deploy(graph, "speck2f", calibration=data).save(saved)
    assert sorted(path.name for path in saved.iterdir()) == ["chip.json", "deployment.h5"]


def test_files_of_others_stay(saved):
    (saved / "notes.txt").write_text("mine")
    nd.load_deployment(saved).save(saved)
    assert (saved / "notes.txt").read_text() == "mine"
