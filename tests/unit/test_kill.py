"""Writers killed at any moment: the old file or the new one, whole; what is left over goes with a later write."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from nets import chain, if_node, linear_node, raster

import nirdeploy as nd
from nirdeploy import files
from nirdeploy.evaluation.file import read_table
from nirdeploy.graph import sha256

PRELUDE = """
import sys, pathlib
import numpy as np
import nirdeploy as nd
out = pathlib.Path(sys.argv[1])
def ready():
    sys.stdout.write("ready\\n"); sys.stdout.flush()
"""
# each writes version 1 and 2 in turn, for ever; both are large enough that a kill falls into the writing
WRITERS = {
    "nir": """
sys.path.insert(0, sys.argv[2])
from nets import chain, if_node, linear_node
graphs = [chain((300,), fc=linear_node(np.full((300, 300), k)), n=if_node((300,))) for k in (1, 2)]
for k in range(10**9):
    nd.write(out / "f.nir", graphs[k % 2])
    k or ready()
""",
    "trajectory": """
def run(k):
    return nd.Trajectory({("n", "v_mem"): nd.Record("n", "v_mem", np.full((50, 2000), float(k)), batched=False)})
for k in range(10**9):
    run(k % 2 + 1).save(out / "f.h5")
    k or ready()
""",
    "writer": """
from nirdeploy.trajectory_writer import TrajectoryWriter
for k in range(10**9):
    with TrajectoryWriter(out / "f.h5") as writer:
        writer.declare("n", "v_mem", dtype=np.float64, sample_shape=(2000,))
        for _ in range(10):
            writer.append("n", "v_mem", np.full((5, 2000), float(k % 2 + 1)))
    k or ready()
""",
    "deployment": """
found = [nd.load_deployment(out / name) for name in ("one", "two")]
for k in range(10**9):
    found[k % 2].save(out / "d")
    k or ready()
""",
    "report": """
from nirdeploy.comparison.report import Section, write_report
def sides(k):
    spikes = np.zeros((400, 40), int); spikes[::3, ::k] = 1
    return nd.Trajectory({("n", "spikes"): nd.Record("n", "spikes", spikes, batched=False)})
sections = [Section("s", nd.compare(sides(1), sides(2)), sides(1), sides(2))]
for k in range(10**9):
    write_report(out / "f.html", sections, title=f"title {k % 2 + 1}")
    k or ready()
""",
    "evaluation": """
sys.path.insert(0, sys.argv[2])
from nets import chain, if_node, linear_node
graph = chain((3,), fc=linear_node(np.eye(3)), n=if_node((3,)))
data = np.load(out / "data.npy"), np.arange(60) % 3
for k in range(10**9):
    (out / "f.h5").unlink(missing_ok=True)
    k == 1 and ready()
    nd.evaluate(graph, data, convention=nd.Convention(if_gain="r"), batch=1, output=out / "f.h5")
""",
    "text": """
from nirdeploy import files
from nirdeploy.evaluation.file import read_table
for k in range(10**9):
    files.write_text(out / "f.txt", str(k % 2 + 1) * 1_000_000)
    k or ready()
""",
}


def deployed(weight):
    graph = chain((3,), fc=linear_node(np.eye(3) * weight + 0.2), n=if_node((3,)))
    return nd.deploy(
        graph,
        "loihi2",
        convention=nd.Convention(dt=1e-3, if_gain="r", reset="zero"),
        calibration=raster((3,), steps=4),
    )


def check_nir(folder):
    weight = nd.read(folder / "f.nir").nodes["fc"].weight
    assert weight.min() == weight.max()
    assert weight.max() in (1, 2)


def check_trajectory(folder):
    found = nd.load_trajectory(folder / "f.h5")
    values = found["n", "v_mem"].data
    assert found.complete
    assert values.shape == (50, 2000)
    assert values.min() == values.max()
    assert values.max() in (1, 2)


def check_deployment(folder):
    found = nd.load_deployment(folder / "d")
    expected = {sha256(nd.load_deployment(folder / name).quantized.graph) for name in ("one", "two")}
    assert sha256(found.quantized.graph) in expected
    assert found.run(raster((3,), steps=3, batch=1)).outputs.shape == (3, 1, 3)


def check_report(folder):
    text = (folder / "f.html").read_text(encoding="utf-8")
    assert ("title 1" in text) != ("title 2" in text)
    assert text.rstrip().endswith("</html>")


def check_evaluation(folder):
    """What is done is right, and the rest can be computed; where there is no file, none was begun."""
    graph = chain((3,), fc=linear_node(np.eye(3)), n=if_node((3,)))
    data, path = (np.load(folder / "data.npy"), np.arange(60) % 3), folder / "f.h5"
    expected = nd.evaluate(graph, data, convention=nd.Convention(if_gain="r"), batch=1)
    done = read_table(path).done if path.exists() else np.zeros(60, bool)
    assert done.all() or not done[np.argmin(done) :].any()
    if path.exists():
        np.testing.assert_array_equal(read_table(path).columns["outputs"][done], expected.outputs[done])
    found = nd.evaluate(graph, data, convention=nd.Convention(if_gain="r"), batch=1, output=path, resume=True)
    np.testing.assert_array_equal(found.outputs, expected.outputs)


def check_text(folder):
    assert (folder / "f.txt").read_text() in ("1" * 1_000_000, "2" * 1_000_000)


CHECKS = {
    "nir": check_nir,
    "trajectory": check_trajectory,
    "writer": check_trajectory,
    "deployment": check_deployment,
    "report": check_report,
    "evaluation": check_evaluation,
    "text": check_text,
}


def kill_one(kind, folder, after):
    """Start a writer, kill it a while after its first file is whole."""
    tests = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
    command = [sys.executable, "-c", PRELUDE + WRITERS[kind], folder, tests]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        try:
            said = running.stdout.readline()
            time.sleep(after)
        finally:
            running.send_signal(signal.SIGKILL)
        assert said == b"ready\n", running.stderr.read().decode()
        assert running.wait(30) == -signal.SIGKILL


def hammer(kind, folder, kills):
    if kind == "deployment":
        for name, weight in (("one", 0.7), ("two", 0.3)):
            deployed(weight).save(folder / name)
    np.save(folder / "data.npy", raster((3,), steps=8, batch=60))
    rng = np.random.default_rng(0)
    for _ in range(kills):
        kill_one(kind, folder, float(rng.uniform(0, 0.2)))
        CHECKS[kind](folder)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_killed_writer_leaves_the_old_file_or_the_new_one(tmp_path, kind):
    hammer(kind, tmp_path, 3)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", WRITERS)
def test_a_writer_killed_many_times_leaves_the_old_file_or_the_new_one(tmp_path, kind):
    hammer(kind, tmp_path, 25)
    if kind in ("nir", "trajectory", "writer"):  # the others make their text in memory, and write it in an instant
        assert list(tmp_path.rglob("*.part")), "no kill fell into the writing"


# ---------------------------------------------------------------- what is left over


def leave(folder, name, age):
    path = folder / name
    path.write_text("half")
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_old_leftovers_of_a_name_go_with_its_next_write(tmp_path):
    gone = leave(tmp_path, ".f.txt.abc_1234.part", 90_000)
    kept = [
        leave(tmp_path, ".f.txt.abcd1234.part", 80_000),  # of this day
        leave(tmp_path, ".g.txt.abcd1234.part", 90_000),  # of another name
        leave(tmp_path, ".f.txt.mine.part", 90_000),  # no temporary name of ours
        leave(tmp_path, "f.txt.abcd1234.part", 90_000),
    ]
    files.write_text(tmp_path / "f.txt", "whole")
    assert not gone.exists()
    assert all(path.exists() for path in kept)
    assert (tmp_path / "f.txt").read_text() == "whole"


def test_a_temporary_file_that_is_being_written_stays_however_old(tmp_path):
    path = tmp_path / ".f.h5.abcd1234.part"
    code = (
        "import h5py, sys; file = h5py.File(sys.argv[1], 'w'); file['a'] = 1; file.flush(); "
        "sys.stdout.write('x'); sys.stdout.flush(); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.read(1) == b"x"
        os.utime(path, (time.time() - 90_000,) * 2)
        files.write_text(tmp_path / "f.h5", "")
        assert path.exists()
        other.stdin.close()
        other.wait(30)
    os.utime(path, (time.time() - 90_000,) * 2)
    files.write_text(tmp_path / "f.h5", "")
    assert not path.exists()


def test_links_and_folders_named_like_leftovers_stay(tmp_path):
    target = leave(tmp_path, "precious", 90_000)
    (tmp_path / ".f.txt.abcd1234.part").symlink_to(target)
    (tmp_path / ".f.txt.abcd1235.part").mkdir()
    files.write_text(tmp_path / "f.txt", "whole")
    assert target.exists()
    assert len(list(tmp_path.glob(".f.txt.*.part"))) == 2
