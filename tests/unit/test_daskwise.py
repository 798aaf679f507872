"""Evaluation on dask's workers, other processes elsewhere: the same rows, and a clear word about what is lost."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import h5py
import numpy as np
import pytest
from evaluations import same
from nets import conv_net, raster
from processes import ENVIRONMENT, Dask, gone, listening, session, until

import nirdeploy as nd
from nirdeploy.errors import ConfigurationError, RasterError, UnavailableError, UnsupportedError, VendorError
from nirdeploy.evaluation import daskwise
from nirdeploy.evaluation.file import read_table

distributed = pytest.importorskip("distributed", reason="dask's distributed is not installed")
CONVENTION = nd.convention("sinabs", dt=1e-3, v_min="-threshold")
SAMPLES, BATCH = 40, 2


@pytest.fixture(scope="module")
def data():
    return raster((1, 6, 6), steps=10, batch=SAMPLES, rate=0.5), np.arange(SAMPLES) % 4


@pytest.fixture(scope="module")
def deployment(data):
    return nd.deploy(conv_net(), "speck2f", convention=CONVENTION, calibration=data[0])


@pytest.fixture(scope="module")
def expected(deployment, data):
    return evaluate(deployment, data)


@pytest.fixture(scope="module")
def dask(tmp_path_factory):
    cluster = Dask(tmp_path_factory.mktemp("dask"))
    yield cluster
    cluster.end()


def evaluate(deployment, data, **rest):
    return nd.evaluate(deployment, data, batch=BATCH, mode="event", **rest)


class At:
    """A callback of progress that acts once, when so many chunks are done."""

    def __init__(self, chunks, act):
        self.chunks, self.act, self.acted = chunks, act, False

    def __call__(self, done, total):
        if done >= self.chunks * BATCH and not self.acted:
            self.acted = True
            self.act()


# ---------------------------------------------------------------- rows


def test_workers_elsewhere_give_the_rows_of_one_process(deployment, data, expected, dask, tmp_path):
    dask.need(2)
    found = evaluate(deployment, data, scheduler=dask.address, output=tmp_path / "out.h5")
    same(found, expected)
    same(nd.load_evaluation(tmp_path / "out.h5"), expected)


def test_a_killed_worker_loses_nothing_and_changes_nothing(deployment, data, expected, dask):
    victim = dask.need(2)[0]
    kill = At(2, victim.kill)
    same(evaluate(deployment, data, scheduler=dask.address, progress=kill), expected)
    assert victim.wait(30) == -signal.SIGKILL


def test_without_workers_it_waits_for_new_ones(deployment, data, expected, dask):
    for worker in dask.need(1):
        worker.kill()
        worker.wait()
    later = threading.Timer(1.0, dask.need, [1])
    later.start()
    same(evaluate(deployment, data, scheduler=dask.address), expected)
    later.join()


def test_when_all_workers_are_killed_the_error_says_what_is_kept(deployment, data, expected, dask, tmp_path):
    output = tmp_path / "out.h5"

    def kill():
        for worker in dask.workers:
            worker.kill()

    dask.need(1)
    words = rf"dask at '{dask.address}' has no worker for 1.5 s. .*samples are kept in .*out.h5'; resume=True goes on"
    with pytest.raises(VendorError, match=words):
        evaluate(deployment, data, scheduler=dask.address, patience=1.5, output=output, progress=At(3, kill))
    assert 6 <= read_table(output).done.sum() < SAMPLES
    same(evaluate(deployment, data, output=output, resume=True), expected)


# ---------------------------------------------------------------- workers that cannot


def change(name):
    """In a worker's process: make it one of another version, or without nirdeploy. Returns what undoes it."""
    import sys

    if name is None:
        kept = {key: module for key, module in sys.modules.items() if key.split(".")[0] == "nirdeploy"}
        sys.nirdeploy_kept = kept
        for key in kept:
            sys.modules[key] = None
        return
    from nirdeploy.evaluation import job

    job._RUNNERS.clear()
    job.SOFTWARE[name] = "9"


def undo(name):
    import sys

    if name is None:
        sys.modules.update(sys.nirdeploy_kept)
        return
    from nirdeploy.evaluation import job

    job.SOFTWARE.update(nirdeploy=job.__version__, Python=".".join(map(str, sys.version_info[:2])))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nirdeploy", "cannot run the network: UnsupportedError: this worker has nirdeploy 9, the client 0"),
        ("Python", "cannot run the network: UnsupportedError: this worker has Python 9, the client 3"),
        (None, "cannot import nirdeploy: .*Install nirdeploy .* where the workers run"),
    ],
)
def test_a_worker_with_other_software_is_refused_by_name(deployment, data, dask, name, words):
    import cloudpickle

    dask.need(1)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with distributed.Client(dask.address, set_as_default=False) as client:
        client.wait_for_workers(1, timeout=60)
        evaluate(deployment, data, scheduler=dask.address)
        client.run(change, name)
        try:
            with pytest.raises(VendorError, match=f"a worker of dask at '{dask.address}' {words}"):
                evaluate(deployment, data, scheduler=dask.address)
        finally:
            client.run(undo, name)


# ---------------------------------------------------------------- schedulers


def test_a_killed_scheduler_is_named_with_what_is_kept(deployment, data, expected, tmp_path):
    own, output = Dask(tmp_path), tmp_path / "out.h5"
    try:
        own.need(1)
        words = rf"dask at '{own.address}' is lost. .*samples are kept in .*out.h5'; resume=True goes on"
        began = time.monotonic()
        with pytest.raises(VendorError, match=words):
            evaluate(deployment, data, scheduler=own.address, output=output, progress=At(3, own.scheduler.kill))
        assert time.monotonic() - began < 60
    finally:
        own.end()
    assert 6 <= read_table(output).done.sum() < SAMPLES
    same(evaluate(deployment, data, output=output, resume=True, workers=2), expected)


@pytest.fixture
def server():
    """Servers that are no dask schedulers, by what they say to everyone."""
    listening, held = [], []

    def serve(said):
        listening.append(socket.create_server(("127.0.0.1", 0)))

        def run(own):
            try:
                while True:
                    held.append(own.accept()[0])
                    if said is not None:
                        held[-1].sendall(said)
                        held[-1].close()
            except OSError:
                pass

        threading.Thread(target=run, args=(listening[-1],), daemon=True).start()
        return f"tcp://127.0.0.1:{listening[-1].getsockname()[1]}"

    yield serve
    for one in (*listening, *held):
        one.close()


def test_what_is_no_scheduler_is_unavailable_soon(deployment, data, server, monkeypatch, capfd):
    monkeypatch.setattr(daskwise, "_CONNECT_SECONDS", 0.5)
    cases = {
        server(None): "no answer in 0.5 s",
        server(b""): "",
        server(b"\xff" * 4096): "",
        server(b"HTTP/1.1 400 Bad Request\r\n\r\n"): "",
        "tcp://127.0.0.1:1": "nobody listens there",
        "tcp://nowhere.invalid:1": "",
        "tcp://127.0.0.1:99999": "",
        "127.0.0.1": "missing port",
        "nonsense://": "unknown address scheme",
        "": "missing port",
    }
    for address, words in cases.items():
        began = time.monotonic()
        with pytest.raises(UnavailableError, match=f"no dask scheduler at '{address}': .*{words}"):
            evaluate(deployment, data, scheduler=address)
        assert time.monotonic() - began < 15
    assert capfd.readouterr().err == ""


def test_arguments_of_schedulers_are_checked(deployment, data):
    with pytest.raises(ConfigurationError, match="workers and scheduler are both given"):
        evaluate(deployment, data, scheduler="tcp://x:1", workers=2)
    for patience in (0, -1, float("nan"), "long"):
        with pytest.raises(UnsupportedError, match="patience is .*, expected seconds"):
            evaluate(deployment, data, patience=patience)


def test_without_dask_a_scheduler_is_unavailable(deployment, data, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UnavailableError, match=r"needs dask's distributed. pip install 'nirdeploy\[distributed\]'"):
        evaluate(deployment, data, scheduler="tcp://127.0.0.1:1")


# ---------------------------------------------------------------- a cluster of this machine


def done(path):
    """Samples in a file that another process writes."""
    with h5py.File(path, "r", locking=False) as file:
        return int(file["done"][()].sum())


def command(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "nirdeploy", "evaluate", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_cluster_of_this_machine_comes_and_goes_without_a_word(deployment, data, expected, monkeypatch, capfd):
    seen = {}

    def look():
        seen["session"] = session("cluster.py")
        seen["listening"] = listening(seen["session"])

    same(evaluate(deployment, data, scheduler="local", workers=2, progress=At(1, look)), expected)
    assert len(seen["session"]) >= 3
    assert seen["listening"] == {"0100007F"}  # 127.0.0.1
    until(lambda: all(map(gone, seen["session"])))
    assert capfd.readouterr() == ("", "")


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("how", ["error", "interrupt", "worker", "cluster"])
def test_whatever_happens_a_cluster_of_this_machine_leaves_nothing(deployment, data, expected, tmp_path, how):
    output, seen = tmp_path / "out.h5", []

    def act():
        seen.extend(sorted(session("cluster.py")))
        (first,) = (pid for pid in seen if os.getsid(pid) == pid)
        if how == "interrupt":
            raise KeyboardInterrupt
        if how == "worker":
            os.kill(next(p for p in seen if p != first and listening([p])), signal.SIGKILL)
        if how == "cluster":
            os.kill(first, signal.SIGKILL)

    bad = data[0].astype(float)
    bad[:, 30] = 0.5
    errors = {
        "error": (RasterError, "sample 30"),
        "interrupt": (KeyboardInterrupt, None),
        "cluster": (VendorError, "lost"),
    }
    given = {"scheduler": "local", "workers": 2, "progress": At(2, act), "output": output}
    if how == "worker":
        same(evaluate(deployment, data, **given), expected)
    else:
        with pytest.raises(errors[how][0], match=errors[how][1]):
            evaluate(deployment, (bad, data[1]) if how == "error" else data, **given)
        assert read_table(output).done.any()
    assert len(seen) >= 3
    until(lambda: all(map(gone, seen)))


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_client_leaves_no_cluster_and_no_sample_is_lost(deployment, data, expected, tmp_path, how):
    deployment.save(tmp_path / "build")
    copies = 40
    np.savez(tmp_path / "data.npz", raster=np.tile(data[0], (1, copies, 1, 1, 1)), labels=np.tile(data[1], copies))
    output = tmp_path / "out.h5"
    given = [tmp_path / "build", tmp_path / "data.npz", "--mode", "event", "--batch", 2, "--output", output, "--resume"]
    with command(*given, "--scheduler", "local", "--workers", 2) as client:
        until(lambda: output.exists() and done(output) > 10, 120)
        seen = session("cluster.py")
        client.send_signal(how)
        complaints = client.stderr.read()
        assert client.wait() == (130 if how == signal.SIGINT else -how)
    assert "Traceback" not in complaints
    assert len(seen) >= 3
    until(lambda: all(map(gone, seen)))
    finished = int(read_table(output).done.sum())
    assert 10 < finished < SAMPLES * copies
    with command(*given, "--json") as client:
        assert client.communicate(timeout=120)[1] == ""
    np.testing.assert_array_equal(nd.load_evaluation(output).outputs, np.tile(expected.outputs, (copies, 1)))


@pytest.mark.long
def test_a_worker_that_is_stopped_is_given_up_by_its_scheduler(deployment, data, expected, tmp_path):
    own = Dask(tmp_path, DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL="5s")
    try:
        victim = own.need(2)[0]
        stop = At(2, lambda: victim.send_signal(signal.SIGSTOP))
        same(evaluate(deployment, data, scheduler=own.address, progress=stop), expected)
    finally:
        own.end()
