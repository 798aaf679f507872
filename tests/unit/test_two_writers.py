"""Two processes that write to one place: what is there in the end is one's or the other's, whole; or one refuses."""

import json
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
from nets import chain, if_node, linear_node, raster
from processes import ENVIRONMENT

import nirdeploy as nd
from nirdeploy.errors import FileError
from nirdeploy.evaluation.file import Identity, Store, read_table
from nirdeploy.evaluation.job import Rows
from nirdeploy.graph import sha256 as graph_sha256

CONVENTION = nd.Convention(if_gain="r")
# both begin when both have imported what they need, and write for a while
PRELUDE = """
import pathlib, sys
import numpy as np
import nirdeploy as nd
out, own = pathlib.Path(sys.argv[1]), int(sys.argv[2])
sys.path.insert(0, sys.argv[3])
from nets import chain, if_node, linear_node
def ready():
    sys.stdout.write("ready\\n"); sys.stdout.flush(); sys.stdin.readline()
"""
TRAJECTORY = """
run = nd.Trajectory({("n", "v_mem"): nd.Record("n", "v_mem", np.full((50, 2000), float(own)), batched=False)})
ready()
for _ in range(40):
    run.save(out / "t.h5")
"""
STREAM = """
from nirdeploy.trajectory_writer import TrajectoryWriter
ready()
for _ in range(15):
    with TrajectoryWriter(out / "t.h5") as writer:
        writer.declare("n", "v_mem", dtype=np.float64, sample_shape=(2000,))
        for _ in range(10):
            writer.append("n", "v_mem", np.full((5, 2000), float(own)))
"""
REPORT = """
from nirdeploy.comparison.report import Section, write_report
spikes = np.zeros((400, 40), int); spikes[::3, ::own] = 1
side = nd.Trajectory({("n", "spikes"): nd.Record("n", "spikes", spikes, batched=False)})
sections = [Section("s", nd.compare(side, side), side, side)]
ready()
for _ in range(10):
    write_report(out / "r.html", sections, title=f"title {own}")
"""
NETWORK = """
graph = chain((300,), fc=linear_node(np.full((300, 300), own)), n=if_node((300,)))
ready()
for _ in range(20):
    nd.write(out / "n.nir", graph)
"""
EVALUATION = """
graph = chain((3,), fc=linear_node(np.eye(3)), n=if_node((3,)))
data = np.load(out / "data.npy"), np.arange(60) % 3
ready()
done = lambda done, total: print(done, flush=True)
nd.evaluate(graph, data, convention=nd.Convention(if_gain="r"), batch=1, output=out / "e.h5", progress=done)
"""


def both(folder, code):
    """Two processes at once; exit code and last line of the complaints of each."""
    command = [sys.executable, "-c", PRELUDE + code, folder]
    tests = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    two = [subprocess.Popen([*command, str(n), tests], text=True, env=ENVIRONMENT, **pipes) for n in (1, 2)]
    for one in two:
        assert one.stdout.readline() == "ready\n", one.stderr.read()
    for one in two:
        one.stdin.write("\n")
        one.stdin.flush()
    said = [one.communicate(timeout=120) for one in two]
    return [(one.returncode, (err.strip().splitlines() or [""])[-1]) for one, (_, err) in zip(two, said, strict=True)]


FINE = [(0, ""), (0, "")]


@pytest.mark.parametrize("code", [TRAJECTORY, STREAM], ids=["saved", "streamed"])
def test_two_writers_of_one_trajectory_leave_one_that_is_whole(tmp_path, code):
    assert both(tmp_path, code) == FINE
    found = nd.load_trajectory(tmp_path / "t.h5")["n", "v_mem"].data
    assert found.shape == (50, 2000)
    assert found.min() == found.max()
    assert found.max() in (1, 2)
    assert os.listdir(tmp_path) == ["t.h5"]


def test_two_writers_of_one_report_or_network_leave_one_that_is_whole(tmp_path):
    assert both(tmp_path, REPORT) == FINE
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert ("title 1" in page) != ("title 2" in page)
    assert page.rstrip().endswith("</html>")
    assert both(tmp_path, NETWORK) == FINE
    weight = nd.read(tmp_path / "n.nir").nodes["fc"].weight
    assert weight.min() == weight.max()
    assert sorted(os.listdir(tmp_path)) == ["n.nir", "r.html"]


def test_of_two_evaluations_into_one_file_one_refuses_and_the_other_is_whole(tmp_path):
    counts = raster((3,), steps=8, batch=60)
    np.save(tmp_path / "data.npy", counts)
    fine, refused = sorted(both(tmp_path, EVALUATION))
    assert fine == (0, "")
    assert refused[0] == 1
    assert "e.h5' is there already" in refused[1] or "made by another process meanwhile" in refused[1]
    graph = chain((3,), fc=linear_node(np.eye(3)), n=if_node((3,)))
    expected = nd.evaluate(graph, (counts, np.arange(60) % 3), convention=CONVENTION, batch=1)
    np.testing.assert_array_equal(nd.load_evaluation(tmp_path / "e.h5").outputs, expected.outputs)
    assert sorted(os.listdir(tmp_path)) == ["data.npy", "e.h5"]


def test_a_file_that_another_process_writes_is_neither_read_nor_resumed(tmp_path):
    graph = chain((3,), fc=linear_node(np.eye(3)), n=if_node((3,)))
    data, path = (raster((3,), steps=8, batch=8), np.arange(8) % 3), tmp_path / "e.h5"
    nd.evaluate(graph, data, convention=CONVENTION, output=path)
    code = "import h5py, sys; file = h5py.File(sys.argv[1], 'r+'); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(FileError, match="e.h5' is being written by another process"):
            nd.load_evaluation(path)
        with pytest.raises(FileError, match="e.h5' is being written by another process"):
            nd.evaluate(graph, data, convention=CONVENTION, output=path, resume=True)
        other.stdin.close()
    assert nd.load_evaluation(path).n == 8


# ---------------------------------------------------------------- a disk that is full


def test_a_full_disk_takes_no_results_and_leaves_no_file(small_disk):
    identity = Identity("g", "d", "{}", "{}", "x", 200_000, 16)
    rows = Rows(np.ones((16, 10)), np.ones((16, 3), int), np.ones(16, int), ("a", "b", "c"), "emulator", "speck2f")
    with (
        Store(identity, small_disk / "e.h5", resume=False) as store,
        pytest.raises(FileError, match="cannot write .*e.h5': No space left on device. Free space"),
    ):
        store.add(0, [0] * 16, rows)
    assert os.listdir(small_disk) == []


def test_results_that_were_begun_have_their_place_on_a_disk_that_fills_up(small_disk):
    graph = chain((3,), fc=linear_node(np.eye(3)), n=if_node((3,)))
    data, path = (raster((3,), steps=8, batch=5000), np.arange(5000) % 3), small_disk / "e.h5"

    def fill(done, total):
        if done <= 100:
            with open(small_disk / "other", "ab", buffering=0) as file:
                try:
                    while file.write(bytes(4096)):
                        pass
                except OSError as error:
                    full.append(error.strerror)

    full = []
    found = nd.evaluate(graph, data, convention=CONVENTION, batch=100, output=path, progress=fill)
    assert full == ["No space left on device"]
    np.testing.assert_array_equal(nd.load_evaluation(path).outputs, found.outputs)
    with h5py.File(path, "r+") as file:
        file["done"][2000:2100] = 0
    again = nd.evaluate(graph, data, convention=CONVENTION, output=path, resume=True)
    np.testing.assert_array_equal(again.outputs, found.outputs)
    assert read_table(path).done.all()


@pytest.mark.long
def test_two_demos_in_one_folder_leave_it_as_one_would(tmp_path):
    command = [sys.executable, "-m", "nirdeploy", "demo", "--epochs", "1", "--json", "--output"]
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    two = [subprocess.Popen([*command, tmp_path / "demo"], text=True, env=ENVIRONMENT, **pipes) for _ in range(2)]
    said = [one.communicate(timeout=280) for one in two]
    assert [one.returncode for one in two] == [0, 0], said
    alone = subprocess.run([*command, tmp_path / "alone"], check=True, text=True, env=ENVIRONMENT, timeout=280, **pipes)
    names = sorted(path.relative_to(tmp_path / "alone") for path in (tmp_path / "alone").rglob("*"))
    assert sorted(path.relative_to(tmp_path / "demo") for path in (tmp_path / "demo").rglob("*")) == names
    for name in names:
        if name.suffix == ".nir":
            graph, other = (nd.read(tmp_path / folder / name) for folder in ("demo", "alone"))
            assert graph_sha256(graph) == graph_sha256(other)
        if name.name == "deployment.h5":
            first, second = (nd.load_deployment((tmp_path / folder / name).parent) for folder in ("demo", "alone"))
            assert first.placement.to_dict() == second.placement.to_dict()
    found, wanted = (json.loads((tmp_path / folder / "summary.json").read_text()) for folder in ("demo", "alone"))
    assert without_seconds(found) == without_seconds(wanted) == without_seconds(json.loads(alone.stdout))


def without_seconds(said):
    """A summary but for what differs between runs."""
    if isinstance(said, dict):
        return {k: without_seconds(v) for k, v in said.items() if "second" not in k}
    return [without_seconds(v) for v in said] if isinstance(said, list) else said
