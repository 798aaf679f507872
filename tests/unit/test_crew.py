"""Worker processes: kept between calls, never shared or left behind; what hangs or answers nonsense is replaced."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from evaluations import same
from nets import ROOT, chain, conv_net, if_node, linear_node, raster
from processes import ENVIRONMENT, gone, until

import nirdeploy as nd
from nirdeploy.errors import GraphError, RasterError, UnavailableError, UnsupportedError, VendorError
from nirdeploy.evaluation import crew, engine, handle, process, workers
from nirdeploy.evaluation.job import Job, Runner, encode_reply, encode_samples

CONVENTION = nd.convention("sinabs", dt=1e-3, v_min="-threshold")
BATCH = 4


@pytest.fixture(scope="module")
def graph():
    return conv_net()


@pytest.fixture(scope="module")
def data():
    return raster((1, 6, 6), steps=5, batch=34, rate=0.5), np.arange(34) % 4


@pytest.fixture(scope="module")
def expected(graph, data):
    return evaluate(graph, data)


def evaluate(graph, data, **rest):
    return nd.evaluate(graph, data, convention=CONVENTION, batch=BATCH, **rest)


@pytest.fixture
def elsewhere(monkeypatch):
    """This process computes nothing itself."""
    real = workers.by_processes
    monkeypatch.setattr(engine, "by_processes", lambda job, tasks, count, _runner: real(job, tasks, count))


@pytest.fixture
def started(monkeypatch):
    """Every process that is started, from none on; all are ended afterwards."""
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # what a process inherits changes with it
    crew.dismiss()
    found, popen = [], subprocess.Popen

    def remembered(*arguments, **keywords):
        found.append(popen(*arguments, **keywords))
        return found[-1]

    monkeypatch.setattr(handle.subprocess, "Popen", remembered)
    yield found  # a process may start after the call that wanted it has ended: wait for how many there are
    crew.dismiss()
    assert all(one.returncode is not None for one in found), "a process was left behind, or not waited for"


# ---------------------------------------------------------------- a process that answers what it was told to

STAND_IN = """
import os, pickle, sys, time
sys.path.insert(0, {folder!r})
import process
replies = pickle.loads(open({replies!r}, "rb").read())
process._runner = lambda message: None
process._rows = lambda runner, message: replies[message]
def once(name):  # for the first process alone
    try:
        os.mkdir(os.path.join({flags!r}, name))
        return True
    except FileExistsError:
        return False
{change}
process.main()
"""


@pytest.fixture
def stand_in(graph, data, tmp_path, monkeypatch, elsewhere, started):
    """Workers that know the reply to every chunk and import nothing, changed by some lines of Python."""
    job, *_ = engine._job(graph, CONVENTION, "emulator", None, None, "dense", None)
    runner, replies = Runner(job), {}
    for first in range(0, 34, BATCH):
        samples = [data[0][:, k] for k in range(first, min(first + BATCH, 34))]
        replies[encode_samples(samples)] = encode_reply(runner.run(samples))
    stored = tmp_path / "replies"
    stored.write_bytes(pickle.dumps(replies))
    popen = handle.subprocess.Popen

    def changed(lines):
        folder = str(Path(process.__file__).parent)
        code = STAND_IN.format(folder=folder, replies=str(stored), flags=str(tmp_path), change=lines)
        monkeypatch.setattr(
            handle.subprocess, "Popen", lambda command, **rest: popen([command[0], "-P", "-c", code], **rest)
        )

    return changed


GARBAGE = """
real = process.send
def send(stream, message):
    if message[:1] == b"+"{once}:
        {body}
    real(stream, message)
process.send = send
"""
NONSENSE = {
    "bytes": ("stream.write(b'Segmentation fault (core dumped)')", "it began with b'Segmentation fau'"),
    "damage": (
        "whole = bytearray(process._HEAD.pack(process._MARK, process.zlib.crc32(message), len(message)) + message)\n"
        "        whole[-9] ^= 1; stream.write(whole); time.sleep(60)",
        "the checksum of its [0-9]+ bytes is another",
    ),
    "terabytes": (
        "stream.write(process._HEAD.pack(process._MARK, 0, 1 << 45)); time.sleep(60)",
        "it announced 35184372088832 bytes, the most are 1073741824",
    ),
    "another kind": ("message = b'?'", "b'\\?' to samples"),
    "no rows": ("message = message[:5] + bytes(20)", "a message of 20 bytes is damaged"),
    "rows of others": ("message = message[:5] + replies[list(replies)[-1]]", "2 rows of 4 samples"),
    "rows of as many others": ("message = b'+' + process.mark_of(b'S') + message[5:]", "a reply to other samples"),
}


@pytest.mark.parametrize("what", NONSENSE)
def test_a_worker_that_answers_nonsense_is_replaced_and_its_chunk_computed_again(
    graph, data, expected, stand_in, started, what
):
    stand_in(GARBAGE.format(once=" and once('told')", body=NONSENSE[what][0]))
    same(evaluate(graph, data, workers=2), expected)
    until(lambda: len(started) == 3)


@pytest.mark.parametrize("what", NONSENSE)
def test_workers_that_always_answer_nonsense_are_given_up_by_name(graph, data, stand_in, what):
    body, words = NONSENSE[what]
    stand_in(GARBAGE.format(once="", body=body))
    with pytest.raises(VendorError, match=f"5 workers in a row answered something else than agreed: .*{words}"):
        evaluate(graph, data, workers=2)


def test_a_reply_that_comes_twice_is_not_taken_for_the_next_chunk_s(graph, data, expected, stand_in, started):
    stand_in(GARBAGE.format(once="", body="real(stream, message)"))
    same(evaluate(graph, data, workers=2), expected)
    until(lambda: len(started) > 2)


def test_a_worker_that_is_stopped_is_replaced(graph, data, expected, stand_in, started, monkeypatch):
    monkeypatch.setattr(crew, "SILENT_SECONDS", 4.0)
    stand_in("import signal" + GARBAGE.format(once=" and once('told')", body="os.kill(os.getpid(), signal.SIGSTOP)"))
    same(evaluate(graph, data, workers=2), expected)
    until(lambda: len(started) == 3)


def test_workers_that_never_give_a_sign_of_life_are_given_up_by_name(graph, data, stand_in, monkeypatch, tmp_path):
    monkeypatch.setattr(crew, "SILENT_SECONDS", 0.3)
    stand_in("time.sleep(60)")
    words = "5 workers in a row gave no sign of life for 0.3 s. No sample is finished"
    with pytest.raises(VendorError, match=words):
        evaluate(graph, data, workers=2, output=tmp_path / "out.h5")


ENDLESS = """
real = process._rows
def rows(runner, message):
    if message == list(replies)[4]{once}:
        while True: pass
    return real(runner, message)
process._rows = rows
"""


def test_a_chunk_that_never_ends_is_computed_by_another(graph, data, expected, stand_in, started, monkeypatch):
    monkeypatch.setattr(crew, "LONGEST_SECONDS", 3.0)  # signs of life come, though
    stand_in(ENDLESS.format(once=" and once('told')"))
    same(evaluate(graph, data, workers=2), expected)
    until(lambda: len(started) == 3)


def test_a_chunk_that_never_ends_anywhere_is_named_and_the_rest_is_kept(graph, data, stand_in, monkeypatch, tmp_path):
    monkeypatch.setattr(crew, "LONGEST_SECONDS", 1.0)
    stand_in(ENDLESS.format(once=""))
    words = (
        r"5 workers in a row took longer than 1 s, the slowest chunk before .* s, the last in hand being the samples "
        r"from 16 on\. 30 samples are kept in .*out.h5'; resume=True goes on from there"
    )
    with pytest.raises(VendorError, match=words):
        evaluate(graph, data, workers=2, output=tmp_path / "out.h5")


@pytest.mark.parametrize("end", ["os._exit(3)", "os.kill(os.getpid(), 9)", "return b'?'", "return b''"])
def test_a_worker_that_ends_with_a_second_chunk_in_hand_loses_neither(graph, data, expected, stand_in, started, end):
    lines = (
        "real, seen = process._rows, []\n"
        "def rows(runner, message):\n"
        "    seen.append(message)\n"
        "    time.sleep(0.02)\n"
        f"    if len(seen) == 3 and once('told'): {end}\n"
        "    return real(runner, message)\n"
        "process._rows = rows"
    )
    stand_in(lines)
    same(evaluate(graph, data, workers=2), expected)
    until(lambda: len(started) == 3)


def test_a_worker_has_its_next_chunk_before_it_needs_it_while_others_keep_enough(graph, data, stand_in, monkeypatch):
    told, real = [], crew.Handle.tell

    def tell(self, message):
        told.append((message[:1], self.owing))
        real(self, message)

    monkeypatch.setattr(crew.Handle, "tell", tell)
    stand_in("real = process._rows\ndef rows(*a):\n    time.sleep(0.05)\n    return real(*a)\nprocess._rows = rows")
    evaluate(graph, data, workers=2)
    early = [owing for kind, owing in told if kind == b"S"]
    assert len(early) == 9
    assert 1 <= sum(early) <= 5  # the first of each worker and the last ones are given when they are asked for


def test_what_a_worker_prints_is_no_reply(graph, data, expected, stand_in, started):
    noise = (
        "real = process._rows\n"
        "def rows(runner, message):\n"
        "    print('noise', flush=True); os.write(1, b'noise'); os.system('echo noise; cat')\n"
        "    return real(runner, message)\n"
        "process._rows = rows"
    )
    stand_in(noise)
    same(evaluate(graph, data, workers=2), expected)
    until(lambda: len(started) == 2)


def test_workers_that_always_die_are_given_up_with_what_they_said(graph, data, stand_in):
    stand_in("print('no licence', file=sys.stderr); raise SystemExit(7)")
    with pytest.raises(VendorError, match="5 workers in a row ended with exit code 7") as caught:
        evaluate(graph, data, workers=2)
    assert "no licence" in caught.value.log


def test_a_worker_that_cannot_compute_says_why(graph, data, stand_in):
    stand_in("def broken(runner, message): raise RuntimeError('no such kernel')\nprocess._rows = broken")
    with pytest.raises(VendorError, match="a worker cannot go on: RuntimeError: no such kernel"):
        evaluate(graph, data, workers=2)


@pytest.mark.parametrize(
    ("package", "words"),
    [
        ("nirdeploy_speck", "TargetError: unknown target 'speck2f'. Known: loihi1, loihi2"),
        ("nirdeploy", "ImportError: nirdeploy is found in '.*found/nirdeploy', the client's is in '.*nirdeploy'"),
    ],
)
def test_a_worker_has_its_modules_from_where_its_client_looks_for_them(
    graph, data, started, elsewhere, monkeypatch, tmp_path, package, words
):
    deployment = nd.deploy(graph, "speck2f", convention=CONVENTION, calibration=data[0])
    expected = nd.evaluate(deployment, data, batch=BATCH)
    same(nd.evaluate(deployment, data, batch=BATCH, workers=2), expected)
    (tmp_path / "found" / package).mkdir(parents=True)
    (tmp_path / "found" / package / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path / "found"), *sys.path])
    with pytest.raises(VendorError, match=f"a worker cannot run the network: {words}"):
        nd.evaluate(deployment, data, batch=BATCH, workers=2)


def test_an_interpreter_that_is_not_there_is_unavailable(graph, data, started, elsewhere, monkeypatch, tmp_path):
    for path in (str(tmp_path / "python"), ""):
        monkeypatch.setattr(sys, "executable", path)
        with pytest.raises(UnavailableError, match=f"a worker process cannot be started: '{path}'"):
            evaluate(graph, data, workers=2)


def test_a_worker_of_another_version_says_so(graph, started):
    job, *_ = engine._job(graph, CONVENTION, "emulator", None, None, "dense", None)
    for name, words in (("nirdeploy", "nirdeploy .*, the client 9"), ("Python", "Python 3.*, the client 9")):
        other = Job({**job.settings, "software": {**job.settings["software"], name: "9"}}, job.network, name)
        with pytest.raises(UnsupportedError, match=f"this worker has {words}. Install the same everywhere"):
            Runner(other)
    with pytest.raises(VendorError, match="a worker cannot run the network: UnsupportedError: this worker has Python"):
        list(workers.by_processes(other, [(0, [])], 1))


def test_of_two_labels_beyond_the_classes_the_first_is_named_whoever_is_done_first(graph, data, stand_in, tmp_path):
    labels = data[1].copy()
    labels[[1, 9]] = 4
    late = "once('told') and time.sleep(2)"
    stand_in(f"real = process._rows\ndef rows(*a):\n    {late}\n    return real(*a)\nprocess._rows = rows")
    with pytest.raises(RasterError, match="sample 1 has the label 4, the Output has 4 classes") as caught:
        evaluate(graph, (data[0], labels), workers=2, output=tmp_path / "out.h5")
    assert "samples are kept in" in caught.value.__notes__[0]


def test_what_ends_a_program_ends_it_from_the_chunk_that_is_computed_here(graph, data, started, monkeypatch):
    def ended(self, samples):
        raise SystemExit("enough")

    monkeypatch.setattr(Runner, "run", ended)
    with pytest.raises(SystemExit, match="enough"):
        evaluate(graph, data, workers=2)


def test_a_network_that_no_worker_can_be_sent_leaves_no_seat_behind(data, started):
    network = chain((36,), **{"a\0b": linear_node(np.eye(4, 36))}, out=if_node(4))
    flat = data[0].reshape(5, 34, 36)
    deployment = nd.deploy(network, "loihi2", convention=nd.convention("lava", dt=1e-3), calibration=flat)
    nd.evaluate(deployment, (flat, data[1]), batch=BATCH)
    for _ in range(2):
        with pytest.raises(GraphError, match="the name holds a NUL character; a file cannot hold it"):
            nd.evaluate(deployment, (flat, data[1]), batch=BATCH, workers=3)
    assert not crew._SEATS
    assert not crew._IDLE


@pytest.mark.parametrize(
    ("where", "name", "problem", "expected_error", "words"),
    [
        (
            threading.Thread,
            "start",
            RuntimeError("no new thread"),
            UnavailableError,
            "cannot be started: no new thread",
        ),
        (handle.tempfile, "TemporaryFile", OSError("no more files"), UnavailableError, "cannot be started: no more f"),
        (threading.Thread, "start", KeyboardInterrupt("now"), KeyboardInterrupt, "now"),
        (handle.tempfile, "TemporaryFile", KeyboardInterrupt("now"), KeyboardInterrupt, "now"),
    ],
)
def test_where_a_seat_cannot_be_had_no_other_is_left(
    graph, data, expected, started, where, name, problem, expected_error, words
):
    files, real, times = len(os.listdir("/proc/self/fd")), getattr(where, name), []

    def second(*arguments, **keywords):
        times.append(1)
        if len(times) == 2:
            raise problem
        return real(*arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, name, second)
        with pytest.raises(expected_error, match=words):
            list(workers.by_processes(Job({}, bytes, ""), [], 2))
    assert not crew._SEATS
    assert not crew._IDLE
    same(evaluate(graph, data, workers=3), expected)
    crew.dismiss()
    assert len(os.listdir("/proc/self/fd")) == files


# ---------------------------------------------------------------- kept from one call to the next


def test_a_second_call_has_the_processes_of_the_first_with_another_network(graph, data, expected, elsewhere, started):
    same(evaluate(graph, data, workers=2), expected)
    other = conv_net(seed=1)
    same(evaluate(other, data, workers=2), evaluate(other, data))
    same(evaluate(graph, data, workers=2), expected)
    until(lambda: len(started) == 2)
    started[0].kill()  # one dies while nobody wants it
    started[0].wait()
    same(evaluate(graph, data, workers=2), expected)
    until(lambda: len(started) == 3)


def test_another_environment_or_folder_has_processes_of_its_own(
    graph, data, expected, stand_in, started, monkeypatch, tmp_path
):
    stand_in("")
    for n, change in enumerate((lambda: monkeypatch.setenv("OTHER", "1"), lambda: monkeypatch.chdir(tmp_path)), 1):
        same(evaluate(graph, data, workers=2), expected)
        until(lambda n=n: len(started) == 2 * n)
        change()
    same(evaluate(graph, data, workers=2), expected)
    until(lambda: len(started) == 6)
    until(lambda: all(one.returncode is not None for one in started[:4]))
    assert [one.poll() for one in started[4:]] == [None, None]


def test_what_nobody_wants_ends_after_a_while_and_leaves_nothing(graph, data, stand_in, started, monkeypatch):
    files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    monkeypatch.setattr(crew, "IDLE_SECONDS", 0.2)
    stand_in("")
    evaluate(graph, data, workers=3)
    until(lambda: threading.active_count() == threads)
    assert not crew._IDLE
    assert not crew._SEATS
    assert [one.returncode for one in started] == [-signal.SIGKILL] * 3
    assert len(os.listdir("/proc/self/fd")) == files


@pytest.mark.parametrize("seconds", [0, 1.0])  # which the system takes to start it: longer than the call
def test_one_that_hangs_when_nobody_wants_it_any_more_ends_too(graph, data, expected, started, monkeypatch, seconds):
    monkeypatch.setattr(crew, "IDLE_SECONDS", 0.5 + 1.5 * seconds)
    popen = handle.subprocess.Popen
    code = "import time; time.sleep(60)"

    def hanging(command, **rest):
        time.sleep(seconds)
        return popen([command[0], "-c", code], **rest)

    monkeypatch.setattr(handle.subprocess, "Popen", hanging)
    same(evaluate(graph, data, workers=2), expected)  # computed here
    until(lambda: started and started[0].returncode is not None)
    assert not crew._IDLE


def test_many_calls_that_end_before_their_processes_have_begun_leave_no_threads(
    graph, data, expected, started, monkeypatch
):
    popen, threads = handle.subprocess.Popen, threading.active_count()
    code = "import time; time.sleep(60)"
    monkeypatch.setattr(handle.subprocess, "Popen", lambda command, **rest: popen([command[0], "-c", code], **rest))
    for _ in range(20):
        same(evaluate(graph, data, workers=2), expected)  # computed here
    until(lambda: threading.active_count() <= threads + 2)  # the seat's, and one that ends it after a minute


def test_calls_in_two_threads_have_processes_of_their_own(graph, data, expected, stand_in, started):
    stand_in("time.sleep(0.2)")
    found, in_use = {}, []

    def call(n):
        def progress(done, total):
            in_use.append(len({seat for seat in crew._SEATS if seat not in crew._IDLE}))

        found[n] = evaluate(graph, data, workers=2, progress=progress)

    both = [threading.Thread(target=call, args=(n,)) for n in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(60)
    same(found[0], expected)
    same(found[1], expected)
    assert max(in_use) == 4
    evaluate(graph, data, workers=4)
    until(lambda: len(started) == 4)


def test_threads_take_turns_as_before_once_all_calls_have_ended(graph, data, stand_in):
    stand_in("")
    before, seen = sys.getswitchinterval(), []

    def progress(done, total):
        seen.append(sys.getswitchinterval())
        if len(seen) == 1:
            evaluate(graph, data, workers=2)  # a call within a call
            seen.append(sys.getswitchinterval())

    evaluate(graph, data, workers=2, progress=progress)
    assert seen == [pytest.approx(0.0002)] * len(seen)
    assert sys.getswitchinterval() == before


@pytest.mark.parametrize("problem", [KeyboardInterrupt, RuntimeError])
def test_a_call_that_is_left_in_the_middle_ends_its_processes(graph, data, stand_in, started, problem):
    stand_in("")

    def progress(done, total):
        raise problem

    with pytest.raises(problem):
        evaluate(graph, data, workers=2, progress=progress)
    assert {one.returncode for one in started} == {-signal.SIGKILL}  # one, or two if both had begun
    assert not crew._IDLE


# ---------------------------------------------------------------- clients that end

CLIENT = """
import os, sys, time
import numpy as np
import nirdeploy as nd
from nirdeploy.evaluation import crew
sys.path.insert(0, sys.argv[2])
from nets import conv_net, raster
data = raster((1, 6, 6), steps=5, batch=34, rate=0.5), np.arange(34) % 4
for _ in range(2):
    nd.evaluate(conv_net(), data, convention=nd.convention("sinabs", dt=1e-3, v_min="-threshold"), workers=2, batch=4)
pids = crew.pids()
if sys.argv[1] == "exit":
    print(*pids, flush=True)
else:
    if (child := os.fork()) == 0:
        assert not crew._IDLE and not crew._SEATS
        time.sleep(60)
    print(*pids, child, flush=True)
    time.sleep(60)
"""


def client(how):
    return subprocess.Popen(
        [sys.executable, "-X", "dev", "-W", "error::ResourceWarning", "-c", CLIENT, how, str(ROOT / "tests")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_at_its_end_a_client_ends_what_it_kept_without_a_word():
    with client("exit") as running:
        said, complaints = running.communicate(timeout=120)
    assert running.returncode == 0, complaints
    assert complaints == ""
    (pid,) = map(int, said.split())
    assert gone(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_what_a_killed_client_kept_ends_though_a_fork_of_it_lives():
    with client("fork") as running:
        pid, child = map(int, running.stdout.readline().split())
        try:
            assert not gone(pid)
            running.kill()
            running.wait()
            until(lambda: gone(pid), 15)
            assert not gone(child)
        finally:
            os.kill(child, signal.SIGKILL)


FORK = """
import os, sys, threading, time
import numpy as np
import nirdeploy as nd
from nirdeploy.convert import build
from nirdeploy.evaluation import workers
from nirdeploy.reference import memory, precision
sys.path.insert(0, sys.argv[1])
from nets import conv_net, raster
data = raster((1, 6, 6), steps=5, batch=34, rate=0.5), np.arange(34) % 4
def evaluate(count):
    convention = nd.convention("sinabs", dt=1e-3, v_min="-threshold")
    return nd.evaluate(conv_net(), data, convention=convention, workers=count, batch=4).outputs
expected, real, interval = evaluate(1), build.nir_to_torch, sys.getswitchinterval()
building, holding, go_on = threading.Event(), threading.Event(), threading.Event()
def waits(*arguments):
    building.set()
    go_on.wait()
    return real(*arguments)
def holds():
    with workers._INTERVAL._lock, precision._PRECISION._lock, memory._Lease.lock:
        holding.set()
        go_on.wait()
build.nir_to_torch = waits
calls = [threading.Thread(target=evaluate, args=(2,)), threading.Thread(target=holds)]
calls[0].start()
building.wait()
calls[1].start()
holding.wait()
build.nir_to_torch = real
if (child := os.fork()) == 0:
    memory.lend((1 << 20,), np.float32)
    assert sys.getswitchinterval() == interval
    os._exit(0 if all((evaluate(count) == expected).all() for count in (1, 2)) else 1)
deadline = time.monotonic() + 30
while not (found := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < deadline:
    time.sleep(0.02)
if not found[0]:
    os.kill(child, 9)
go_on.set()
for call in calls:
    call.join()
print("hangs" if not found[0] else os.waitstatus_to_exitcode(found[1]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no fork")
def test_a_fork_in_the_middle_of_another_thread_s_call_can_evaluate():
    command = [sys.executable, "-c", FORK, str(ROOT / "tests")]
    ended = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=120, check=False)
    assert ended.stdout == "0\n", ended.stderr
