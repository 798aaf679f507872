"""Damaged copies of whole files, read in a process that may die: python fuzzing.py KIND FOLDER FIRST COUNT.

The folder holds one whole file of the kind (see KINDS). Each seed makes one damaged copy and reads it; a line of JSON a
seed says what came of it. The line is written before anything can go wrong with the next one, so that the process
that started this one knows the seed of a crash or a hang.
"""

import contextlib
import io
import json
import resource
import signal
import sys
from pathlib import Path

import numpy as np

import nirdeploy as nd
from nirdeploy.cli import main as command_line
from nirdeploy.configuration import load_configuration
from nirdeploy.errors import FileError
from nirdeploy.evaluation.file import read_table
from nirdeploy.graph import sha256
from nirdeploy.raster import load_raster

SECONDS = 20  # for one input; the slowest takes less than one
GIB = 1 << 30


# ---------------------------------------------------------------- damage


def damaged(whole, rng, text):
    """A copy of some bytes with one to eight changes."""
    data = bytearray(whole)
    # half of the copies keep their length: what counts bytes would refuse all others
    kept = ["byte", "byte", "word", "structure"]
    ways, most = (kept, 4) if rng.random() < 0.5 else ([*kept, "cut", "repeat", "swap", "end"], 9)
    for _ in range(int(rng.integers(1, most))):
        how = str(rng.choice(ways))
        at = int(rng.integers(max(1, len(data))))
        _change(data, how, at, rng, text)
    return bytes(data)


def _change(data, how, at, rng, text):
    if how == "byte":
        data[at : at + 1] = bytes([int(rng.integers(256))])
    elif how == "word":
        word = rng.choice([0, 1, 2**8 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 16, 2**64 - 1])
        width = int(rng.choice([2, 4, 8]))
        data[at : at + width] = (int(word) % 2 ** (8 * width)).to_bytes(width, "little")
    elif how == "cut":
        del data[at : at + int(rng.integers(1, 64))]
    elif how == "repeat":
        data[at:at] = data[at : at + int(rng.integers(1, 64))] * int(rng.integers(1, 5))
    elif how == "swap":
        other, width = int(rng.integers(len(data) or 1)), int(rng.integers(1, 32))
        data[at : at + width] = data[other : other + width]
    elif how == "end":
        del data[len(data) - int(rng.integers(len(data) // 4 + 1)) :]
    elif text:
        token = str(
            rng.choice(["\n[", "]]", "=", '"', "\x00", "inf", "nan", "-1", "9" * 400, "[" * 3000, "\ud7ff", "{"])
        )
        data[at:at] = token.encode()
    else:
        # where HDF5 and zip keep their structure, most of a file being numbers
        marks = [b"GCOL", b"TREE", b"SNOD", b"OHDR", b"HEAP", b"FRHP", b"BTHD", b"PK\x01\x02", b"PK\x03\x04", b"% "]
        places = [data.find(mark, at) for mark in marks]
        places = [place for place in places if place >= 0]
        if places:
            place = int(rng.choice(places)) + int(rng.integers(64))
            data[place : place + 1] = bytes([int(rng.integers(256))])


# ---------------------------------------------------------------- reading


def _nir(path):
    """Whatever is read is a network: it can be hashed, written, and read as the same."""
    found = nd.read(path)
    again = path.with_name("again.nir")
    nd.write(again, found)
    assert sha256(nd.read(again)) == sha256(found)


def _trajectory(path):
    found = nd.load_trajectory(path)
    found.save(path.with_name("again.h5"))
    again = nd.load_trajectory(path.with_name("again.h5"))
    assert list(again) == list(found)
    for key, record in found.records.items():
        assert np.array_equal(again[key].data, record.data, equal_nan=record.data.dtype.kind == "f")


def _lazy(path):
    found = nd.load_trajectory(path, lazy=True)
    for record in found.records.values():
        assert record.data.shape[0] == record.n_steps


def _deployment(path):
    """It has a hash: what is read at all is what was written."""
    counts = np.ones((3, 1, 3), int)
    kept = path.with_name("expected.npy")
    found = nd.load_deployment(path).run(counts).outputs
    if not kept.exists():
        np.save(kept, found)
    assert np.array_equal(np.load(kept), found)


def _netx(path):
    from nirdeploy_loihi.netx import read

    found = read(path)
    found.run(np.ones((2, 1, *found.quantized.graph.nodes["input"].input_type["input"]), int))


def _events(path):
    found = nd.load_events(path)
    assert (np.diff(found.time_us) >= 0).all()
    assert all((axis >= 0).all() for axis in found.index)


def _raster(path):
    counts, _ = load_raster(path)
    assert np.asarray(counts).dtype.kind in "biuf"


def _evaluation(path):
    """Whatever is read adds up."""
    found = nd.load_evaluation(path)
    json.dumps(found.to_dict())
    assert found.summary()
    assert found.n == len(found.predictions) == len(found.steps)
    assert found.confusion is None or found.confusion.sum() == found.n


def _resumed(path):
    """What a damaged file says is done is believed; what is not done is computed."""
    whole = nd.load_evaluation(path.with_name("expected.h5"))
    counts, labels = load_raster(path.with_name("r.npz"))
    with contextlib.suppress(nd.NirdeployError):
        before = read_table(path).done
        found = nd.evaluate(nd.read(path.with_name("whole.nir")), (counts, labels), output=path, resume=True)
        assert np.array_equal(found.outputs[~before], whole.outputs[~before])
        return
    raise FileError("refused by the one or the other")


# kind -> (name of the file, whether it is text, what reads it, arguments of the command line)
KINDS = {
    "nir": ("n.nir", False, _nir, ("check", "n.nir", "--target", "speck2f")),
    "nested": ("n.nir", False, _nir, ("check", "n.nir", "--target", "loihi2")),
    "netx": ("net.net", False, _netx, None),
    "trajectory": ("t.h5", False, _trajectory, ("compare", "t.h5", "t.h5")),
    "lazy": ("t.h5", False, _lazy, None),
    "deployment": ("deployment.h5", False, _deployment, ("run", "deployment.h5", "r.npz")),
    "mapping": ("m.toml", True, nd.load_trajectory, ("compare", "m.toml", "m.toml")),
    "configuration": ("c.toml", True, load_configuration, ("deploy", "--config", "c.toml")),
    "npz": ("e.npz", False, _events, None),
    "nmnist": ("e.bin", False, _events, None),
    "dat": ("e.dat", False, _events, None),
    "raw": ("e.raw", False, _events, None),
    "evaluation": ("v.h5", False, _evaluation, ("evaluate", "whole.nir", "r.npz", "--against", "v.h5")),
    "resumed": ("v.h5", False, _resumed, None),
    "raster": ("r.npz", False, _raster, ("run", "whole.nir", "r.npz")),
}


def _command(arguments):
    """Exit code and standard error of a command, run here."""
    said, sys.argv = io.StringIO(), ["nirdeploy", *arguments]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            command_line()
        except SystemExit as left:
            return left.code, said.getvalue()
    return 0, said.getvalue()


def _read(read, path):
    try:
        read(path)
    except nd.NirdeployError as error:
        return "refused" if str(error).strip() else "refused without a word"
    return "read"


def _say(**values):
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def _peak():
    """Bytes; not ru_maxrss, which a process inherits from the one that started it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) * 1024


def main(kind, folder, first, count):
    """Read `count` damaged copies; stops at what is no error of ours, with a traceback."""
    name, text, read, arguments = KINDS[kind]
    path = Path(folder) / name
    whole = (Path(folder) / f"whole_{name}").read_bytes()
    path.write_bytes(whole)
    assert _read(read, path) == "read"
    before = _peak()
    with Path("/proc/self/statm").open() as memory:
        held = int(memory.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + 3 * GIB, held + 3 * GIB))
    for seed in range(first, first + count):
        _say(seed=seed)
        path.write_bytes(damaged(whole, np.random.default_rng([seed, sum(kind.encode())]), text))
        signal.alarm(SECONDS)
        found = _read(read, path)
        if arguments and seed % 8 == 0:
            code, said = _command(arguments)
            assert code in (0, 1, 2), (code, said)
            assert "Traceback" not in said, said
            assert code != 2 or (said.startswith("nirdeploy: ") and said.count("\n") == 1), said
            assert found == "read" or code == 2, (code, said)
        signal.alarm(0)
        assert _peak() - before < GIB, f"{(_peak() - before) / GIB:.2f} GiB"
        _say(seed=seed, found=found)


if __name__ == "__main__":
    import os

    os.chdir(sys.argv[2])
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
