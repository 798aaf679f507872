"""Thousands of damaged files: an error of ours or a right result; no crash, hang, traceback, or GiB of memory."""

import json
import subprocess
import sys

import h5py
import numpy as np
import pytest
from fuzzing import KINDS
from nets import ROOT, chain, conv_net, if_node, input_node, lif_node, linear_node, output_node, raster

import nirdeploy as nd
from nirdeploy.graph import make_graph
from nirdeploy.raster import save_raster

LOIHI = nd.Convention(dt=1e-3, if_gain="r", reset="zero")
SHORT, LONG = 40, 770  # inputs of each kind: 600, and 11,550
REFUSED = 0.1  # of damaged files at the least: a mutation that nothing notices tests nothing


def small():
    return chain((3,), fc=linear_node(np.eye(3) * 0.7 + 0.2), n=if_node((3,)))


def make_nested(folder):
    inner = chain((3,), w=linear_node(np.eye(3)), m=lif_node((3,)))
    nodes = {"input": input_node(3), "sub": inner, "output": output_node(3)}
    graph = make_graph(nodes, [("input", "sub"), ("sub", "output")])
    nd.write(folder / "n.nir", graph, convention=LOIHI)


def make_deployment(folder):
    found = nd.deploy(small(), "loihi2", convention=LOIHI, calibration=raster((3,), steps=4))
    found.save(folder / "d")
    for name in ("deployment.h5", "net.net"):
        (folder / name).write_bytes((folder / "d" / name).read_bytes())
    save_raster(folder / "r.npz", raster((3,), steps=3, batch=1))


def make_trajectory(folder):
    run = nd.run(small(), raster((3,)), convention=LOIHI)
    extra = nd.Record("m", "v_mem", np.zeros((4, 3)), index_map=np.arange(3), threshold=np.ones(3), batched=False)
    nd.Trajectory({**run.records, ("m", "v_mem"): extra}, ("output",), convention=LOIHI).save(folder / "t.h5")


def make_mapping(folder):
    np.savetxt(folder / "trace.csv", np.arange(10).reshape(5, 2), delimiter=",")
    (folder / "m.toml").write_text(
        '[trajectory]\ntarget = "loihi2"\nexecutor = "chip"\n\n[[records]]\nnode = "lif"\nvariable = "v_mem"\n'
        'file = "trace.csv"\ncolumns = [1]\nskip_rows = 1\nscale = 0.015625\nthreshold = 1600.0\nlag = 1\n'
    )


def make_configuration(folder):
    nd.write(folder / "whole.nir", small())
    (folder / "c.toml").write_text(
        'graph = "whole.nir"\ntarget = "speck2f"\noutput = "out"\n\n[convention]\npreset = "sinabs"\ndt = 1e-3\n'
        'fields = { v_min = -4.0 }\n\n[quantization]\nquantizer = "max"\n\n[placement]\navoid_cores = [1]\n'
    )


def make_events(folder):
    rng = np.random.default_rng(0)
    count = 200
    time = np.sort(rng.integers(0, 1 << 20, count))
    index = [rng.integers(0, 2, count), rng.integers(0, 34, count), rng.integers(0, 34, count)]
    events = nd.Events(time, index=index, shape=(2, 34, 34))
    nd.save_events(folder / "e.npz", events)
    nd.save_events(folder / "e.bin", events)
    words = (time.astype(np.uint64)) | ((index[0] << 28 | index[1] << 14 | index[2]).astype(np.uint64) << np.uint64(32))
    head = b"% Data file\n% Version 2\n% Height 34\n% Width 34\n"
    (folder / "e.dat").write_bytes(head + b"\x0c\x08" + words.astype("<u8").tobytes())
    high = (8 << 28) | (time >> 6)
    spikes = (index[0] << 28) | ((time & 63) << 22) | (index[2] << 11) | index[1]
    evt = np.stack([high, spikes], axis=1).reshape(-1).astype("<u4")
    (folder / "e.raw").write_bytes(b"% format EVT2;height=34;width=34\n% end\n" + evt.tobytes())


def make_raster(folder):
    nd.write(folder / "whole.nir", conv_net(), convention=LOIHI)
    save_raster(folder / "r.npz", raster((1, 6, 6)).astype(np.uint8), np.zeros(3, int))


def make_evaluation(folder):
    make_raster(folder)
    path = folder / "v.h5"
    nd.evaluate(nd.read(folder / "whole.nir"), folder / "r.npz", batch=1, output=path)


def make_unfinished(folder):
    make_evaluation(folder)
    (folder / "expected.h5").write_bytes((folder / "v.h5").read_bytes())
    with h5py.File(folder / "v.h5", "r+") as file:
        file["done"][1] = 0


MAKERS = {
    "nir": lambda folder: nd.write(folder / "n.nir", conv_net(), convention=LOIHI),
    "nested": make_nested,
    "netx": make_deployment,
    "trajectory": make_trajectory,
    "lazy": make_trajectory,
    "deployment": make_deployment,
    "mapping": make_mapping,
    "configuration": make_configuration,
    **dict.fromkeys(("npz", "nmnist", "dat", "raw"), make_events),
    "evaluation": make_evaluation,
    "resumed": make_unfinished,
    "raster": make_raster,
}


def fuzz(kind, folder, first, count):
    """Outcomes of seeds; the test fails, naming the seed, where the reading process does not come to its end."""
    MAKERS[kind](folder)
    name = KINDS[kind][0]
    (folder / f"whole_{name}").write_bytes((folder / name).read_bytes())
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "fuzzing.py", kind, folder, str(first), str(count)],
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"seed"')]
    assert done.returncode == 0, f"{kind}: {lines[-1:]}, exit code {done.returncode}\n{done.stderr[-3000:]}"
    return [line["found"] for line in lines if "found" in line]


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_read_right_or_refused(tmp_path, kind):
    found = fuzz(kind, tmp_path, 0, SHORT)
    assert len(found) == SHORT
    assert found.count("refused") >= REFUSED * SHORT


@pytest.mark.long
@pytest.mark.timeout(1300)
@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_damaged_files_are_read_right_or_refused(tmp_path, kind):
    found = fuzz(kind, tmp_path, SHORT, LONG)
    assert len(found) == LONG
    assert found.count("refused") >= REFUSED * LONG


def test_a_hang_and_a_crash_of_the_reader_would_be_named(tmp_path):
    make_mapping(tmp_path)
    (tmp_path / "whole_m.toml").write_bytes((tmp_path / "m.toml").read_bytes())
    for what, words in (("while True: pass", "-14"), ("os.abort()", "-6"), ("raise ValueError('ours')", "ours")):
        code = (
            "import os, sys; sys.path.insert(0, sys.argv[1]); import fuzzing; os.chdir(sys.argv[2])\n"
            "fuzzing.SECONDS, calls = 1, []\n"
            f"def read(path):\n    calls.append(1)\n    if len(calls) > 3:\n        {what}\n"
            "fuzzing.KINDS['mapping'] = ('m.toml', True, read, None)\n"
            "fuzzing.main('mapping', sys.argv[2], 0, 9)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, ROOT / "tests", tmp_path], capture_output=True, text=True, check=False
        )
        assert json.loads(done.stdout.splitlines()[-1]) == {"seed": 2}
        assert words in f"{done.returncode} {done.stderr}"
