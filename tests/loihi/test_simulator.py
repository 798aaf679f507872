"""Lava run live: every state of every program, against plain loops; what can go wrong with it."""

import contextlib
import dataclasses
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import h5py
import nirdeploy_loihi
import numpy as np
import pytest
import slow_lava
from lava_programs import population, program, programs, raster, read_mesh, read_net, run_elsewhere, synapses, window
from nets import replace_values, stand_in, vendor_python
from nirdeploy_loihi.lava_job import write
from nirdeploy_loihi.simulator import Job, free_shared_memory, run, simulate

from nirdeploy.errors import RasterError, UnavailableError, UnsupportedError, VendorError

VARIABLES = ("spikes", "v_mem", "i_syn")
WORKER = Path(nirdeploy_loihi.__file__).parent / "lava_worker.py"
PROGRAMS = programs()


def expected(program, spikes):
    """All traces of a program."""
    return slow_lava.execute(program, spikes)


def everything(name, program, **options):
    keep = {population.name: VARIABLES for population in program.populations}
    return Job(program, raster(name, program.input_shape, **options), keep)


@pytest.fixture
def lava(monkeypatch):
    """Lava's environment; the tests that need it are skipped, or failed where it is required."""
    python = vendor_python(".venv-lava")
    monkeypatch.setenv("NIRDEPLOY_PYTHON_LOIHI", str(python))
    return python


@pytest.fixture(scope="module")
def all_runs():
    """Every program in one worker."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NIRDEPLOY_PYTHON_LOIHI", str(vendor_python(".venv-lava")))
        jobs = [everything(name, program) for name, program in PROGRAMS.items()]
        return dict(zip(PROGRAMS, zip(jobs, simulate(jobs, timeout=240), strict=True), strict=True))


@pytest.mark.parametrize("name", PROGRAMS)
def test_lava_computes_what_the_equations_say(all_runs, name):
    job, found = all_runs[name]
    own = expected(job.program, job.raster)
    assert found.traces.keys() == own.keys()
    for key, values in own.items():
        assert np.array_equal(found.traces[key], values), key
    assert found.version.startswith("0.10")


def test_the_programs_reach_what_they_are_about(all_runs):
    traces = {name: run.traces for name, (_, run) in all_runs.items()}
    assert traces["u wraps"]["a", "i_syn"].min() < 0
    assert traces["v clips at the lower end"]["b", "v_mem"].min() == 1 - (1 << 23)
    assert traces["states that do not start at 0"]["a", "spikes"][0].tolist() == [[1, 0, 0, 0]] * 2
    quiet = [(n, *k) for n, found in traces.items() for k, v in found.items() if k[1] == "spikes" and not v.any()]
    assert quiet == []


# ---------------------------------------------------------------- recorded networks


def ours(array):
    """Lava's [step, x, y, channel] as [step, batch of 1, channel, y, x]."""
    return (array.transpose(0, 3, 2, 1) if array.ndim == 4 else array)[:, None]


def test_recorded_netx_cases_come_out_again(lava, cases):
    jobs, recorded = [], []
    for name in ("dense", "conv", "delay_rec"):
        stored = np.load(cases / f"{name}.npz")
        program = read_net(cases / f"{name}.net")
        keep = {population.name: VARIABLES for population in program.populations}
        jobs.append(Job(program, ours(stored["input"]), keep))
        recorded.append(stored)
    for job, stored, found in zip(jobs, recorded, simulate(jobs, timeout=120), strict=True):
        for number, own in enumerate(job.program.populations):
            for variable, key in zip(VARIABLES, "svu", strict=True):
                values = found.traces[own.name, variable]
                assert np.array_equal(values, ours(stored[f"L{number}_{key}"])), (own.name, variable)


@pytest.mark.parametrize("name", ["loops", "skips"])
def test_goldens_that_lavas_monitors_recorded_are_what_the_equations_say(golden, name):
    stored = np.load(golden / f"lava_{name}.npz")
    found = expected(read_mesh(stored), stored["input"][:, None])
    for (number, variable), values in found.items():
        recorded = stored[f"L{number}_{dict(zip(VARIABLES, 'svu', strict=True))[variable]}"]
        assert np.array_equal(values[:, 0], recorded), (number, variable)
        assert variable != "spikes" or 0 < recorded.mean() < 0.9


# ---------------------------------------------------------------- trajectories


@pytest.fixture(params=["dense", "conv"])
def deployed(request, golden):
    """A deployment, its program, and an input."""
    path = golden / f"lava_{request.param}.net"
    data = np.load(golden / f"lava_{request.param}.npz")["input"].astype(np.int32)
    return nirdeploy_loihi.netx.read(path, target="loihi1"), read_net(path), data


def run_on_lava(deployment, program, data, record=VARIABLES, nodes=None, mode=None, **options):
    found = run_elsewhere(run, deployment, program, data, record, nodes, mode, options)
    return deployment.located(found, data)  # as `Deployment.run` does


def test_a_run_in_lava_is_the_emulators_trajectory(lava, deployed):
    deployment, program, data = deployed
    batch = np.stack([data, data[::-1], np.zeros_like(data)], axis=1)
    own, found = deployment.run(batch, record=VARIABLES), run_on_lava(deployment, program, batch)
    assert found.records == own.records
    assert found.output_names == own.output_names
    assert (found.executor, found.target) == ("simulator", "loihi1")
    assert "lava-nc 0.10.0" in found.producer


def test_only_what_is_asked_for_is_recorded(lava, deployed):
    deployment, program, data = deployed
    found = run_on_lava(deployment, program, data, record=("v_mem",), nodes=("1.neuron",))
    own = deployment.run(data, record=("v_mem",), nodes=("1.neuron",))
    assert list(found.records) == [("1.neuron", "v_mem"), ("output", "output")]
    assert found.records == own.records


def test_an_output_may_show_voltages(lava, deployed):
    deployment, program, data = deployed
    shown = dataclasses.replace(program.outputs[0], variable="v_mem")
    found = run_on_lava(deployment, dataclasses.replace(program, outputs=(shown,)), data, record=())
    own = deployment.run(data, record=("v_mem",))
    assert np.array_equal(found["output", "output"].data, own[shown.source, "v_mem"].data)
    assert found["output", "output"].scale == own[shown.source, "v_mem"].scale


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"mode": "event"}, UnsupportedError, "Lava has no mode 'event'. Use mode=None"),
        ({"speed": 1}, UnsupportedError, r"no option 'speed' \(given 1\). Possible: timeout"),
        ({"timeout": 0}, UnsupportedError, "timeout is 0, expected seconds"),
        ({"timeout": True}, UnsupportedError, "timeout is True"),
        ({"nodes": ("9.neuron",)}, RasterError, "no population '9.neuron' to record"),
    ],
)
def test_what_lava_does_not_have_is_refused(golden, change, error, words):
    path = golden / "lava_dense.net"
    data = np.load(golden / "lava_dense.npz")["input"]
    with pytest.raises(error, match=words):
        run_on_lava(nirdeploy_loihi.netx.read(path), read_net(path), data, **change)


def test_counts_beyond_one_are_refused(golden):
    path = golden / "lava_dense.net"
    with pytest.raises(RasterError, match="at most 1 a step"):
        run_on_lava(nirdeploy_loihi.netx.read(path), read_net(path), np.full((3, 6), 2))


def test_without_its_environment_lava_names_what_builds_it(monkeypatch, tmp_path):
    monkeypatch.setenv("NIRDEPLOY_HOME", str(tmp_path))
    monkeypatch.delenv("NIRDEPLOY_PYTHON_LOIHI", raising=False)
    with pytest.raises(UnavailableError, match=r"needs the environment 'loihi'.*`nirdeploy env create loihi`"):
        simulate([everything("dense", PROGRAMS["dense"])])


def one(weight=((2,),), delay=0, sent=None, shape=(1,), **registers):
    """A program of one population."""
    weight = np.asarray(weight)
    own = sent.target_shape if sent else (len(weight),)
    return program(shape, [population("a", *own, **registers)], [synapses("w", "in", "a", weight, delay, sent)])


WIDE = window((1, 80, 80), (3, 3), 1, padding=(1, 1))


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (one(refractory=2), "'a': is refractory for 2 steps; Lava's fixed-point LIF knows 1. Run it on='emulator'"),
        (one(exponent=8), "bias_exponent is 8, Lava has 0 to 7"),
        (one(decay_u=4097), "'a': decay_u is 4097, Lava has 0 to 4096"),
        (one(decay_v=-1), "decay_v is -1, Lava has 0 to 4096"),
        (one(vth=131072), "threshold is 8388608, Lava has 0 to 8388544"),
        (one(vth=0.25), "threshold is 16, Lava has multiples of 64"),
        (one(bias=5000), "bias_mantissa is 5000, Lava has -4096 to 4095"),
        (one(v=1 << 23), "v_start is 8388608, Lava has -8388607 to 8388607"),
        (one([[1], [-129]]), "synapses 'w' have odd weights from -129 to 1; Lava keeps -128 to 127 of them"),
        (one([[2], [-258]]), "weights from -258 to 2; Lava keeps -256 to 254"),
        (one([[256]]), "weights from 256 to 256; Lava keeps 0 to 255"),
        (one([[-256], [0]]), "weights from -256 to 0; Lava keeps -255 to 0"),
        (one(delay=63), "delays of 63 to 63 steps, possible are 0 to 62"),
        (one(np.ones((1, 1029)) * 255, shape=(1029,)), "can add up to 262395 in one step, more than 262144"),
        (one(np.ones((600, 600)), 62, shape=(600,)), "600 x 600 x 63 delays = 22680000 values.*more than 16777216"),
        (one(np.ones((1, 1, 3, 3)), 1, WIDE, (1, 80, 80)), "the convolution 'w' with delays is 6400 x 6400 x 2 delays"),
    ],
)
def test_integers_that_lava_would_change_are_refused_before_it_starts(monkeypatch, found, words):
    monkeypatch.setattr("nirdeploy_loihi.simulator.call", None)  # never reached
    with pytest.raises(UnsupportedError, match=words):
        simulate([everything("refused", found, steps=1)])


# ---------------------------------------------------------------- what may go wrong


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("echo broken; exit 3", "the Lava worker failed with exit code 3; it said last:\nbroken"),
        ("exit 0", "left no result that can be read: .*trajectory.h5"),
        ('echo nonsense > "$3/trajectory.h5"', "left no result that can be read: .*not an HDF5 file"),
        (r"printf '\377\000garbage'; kill -9 $$", "the Lava worker was ended by signal 9; it said last:\n.*garbage"),
    ],
)
def test_a_worker_that_fails_is_told_with_its_last_lines(monkeypatch, tmp_path, body, words):
    monkeypatch.setenv("NIRDEPLOY_PYTHON_LOIHI", str(stand_in(tmp_path, body)))
    with pytest.raises(VendorError, match=words):
        simulate([everything("dense", PROGRAMS["dense"])])


def test_a_worker_that_hangs_is_stopped(monkeypatch, tmp_path):
    monkeypatch.setenv("NIRDEPLOY_PYTHON_LOIHI", str(stand_in(tmp_path, "echo begun; sleep 60")))
    with pytest.raises(VendorError, match="the Lava worker was stopped after 1.5 s; it said last:\nbegun"):
        simulate([everything("dense", PROGRAMS["dense"])], timeout=1.5)


def test_an_interpreter_without_lava_says_so(monkeypatch):
    monkeypatch.setenv("NIRDEPLOY_PYTHON_LOIHI", sys.executable)
    with pytest.raises(VendorError, match="the Lava worker failed with exit code 1; (.|\n)*No module named 'lava'"):
        simulate([everything("dense", PROGRAMS["dense"])])


def other(out, change, variable="spikes"):
    replace_values(out, f"networks/0/populations/0/{variable}", change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda out: out.attrs.update(format=2), "answered in format 2, expected 1"),
        (lambda out: out.attrs.pop("lava"), "lava"),
        (lambda out: out.pop("networks/0/populations/1"), "/networks/0/populations/1/spikes is missing"),
        (lambda out: other(out, lambda v: v[1:]), r"'a': Lava answered spikes as int32 \(79, 2, 5\)"),
        (lambda out: other(out, lambda v: v * 1.0), "populations/0/spikes holds float64"),
        (lambda out: other(out, lambda v: v.astype(np.int16)), "'a': Lava answered spikes as int16"),
        (lambda out: other(out, lambda v: v * 2), "'a': Lava answered spikes 2, possible are 0 to 1"),
        (lambda out: other(out, lambda v: v - (1 << 24), "v_mem"), "Lava answered v_mem -.*, possible are -8388607"),
        (lambda out: other(out, lambda v: v + (1 << 24), "i_syn"), "Lava answered i_syn .*, possible are -8388607"),
    ],
)
def test_an_answer_other_than_agreed_is_refused(monkeypatch, tmp_path, change, words):
    job = everything("dense", PROGRAMS["dense"])
    answer, own = tmp_path / "answer.h5", expected(job.program, job.raster)
    with h5py.File(answer, "w") as out:
        out.attrs.update({"format": 1, "lava": "0.10.0"})
        for k, found in enumerate(job.program.populations):
            for variable in VARIABLES:
                out[f"networks/0/populations/{k}/{variable}"] = own[found.name, variable]
    monkeypatch.setenv("NIRDEPLOY_PYTHON_LOIHI", str(stand_in(tmp_path, f'cp "{answer}" "$3/trajectory.h5"')))
    assert np.array_equal(simulate([job])[0].traces["a", "v_mem"], own["a", "v_mem"])
    with h5py.File(answer, "a") as out:
        change(out)
    with pytest.raises(VendorError, match=words):
        simulate([job])


def test_the_worker_refuses_a_job_of_another_format(lava, tmp_path):
    (tmp_path / "job.json").write_text(json.dumps({"format": 7, "networks": []}))
    command = [str(lava), "-I", str(WORKER), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "job.json has format 7, this worker knows 1" in done.stderr


# ---------------------------------------------------------------- processes that die


def broken_worker(folder, statement):
    """A copy of the worker in which the populations' processes do something at their sixth step."""
    for path in WORKER.parent.glob("lava_*.py"):
        shutil.copy(path, folder)
    models = folder / "lava_models.py"
    line = "        base.run_spk(self)\n        for name"
    text = models.read_text()
    assert text.count(line) == 1
    group = f"open({str(folder / 'group')!r}, 'w').write(str(os.getpgrp()))"
    models.write_text(text.replace(line, f"        if self.time_step == 6:\n            {group}; {statement}\n{line}"))
    return folder / WORKER.name


def living(group):
    """Processes of a group that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, of = stat.read_text().rpartition(")")[2].split()[:3]
            if int(of) == group and state != "Z":
                found.append(int(stat.parent.name))
    return found


def has_gone(group):
    """Whether the processes of a group, which have been killed, end."""
    for _ in range(200):
        if not living(group):
            return True
        time.sleep(0.05)
    return False


def segments(folder):
    return [Path("/dev/shm", name) for name in (folder / "shared_memory.txt").read_text().split()]  # noqa: S108


@pytest.mark.parametrize(
    ("statement", "timeout", "words"),
    [
        ("raise ValueError('a broken neuron')", 120, "exit code 4; .*(?s:.)*ValueError: a broken neuron"),
        ("os.kill(os.getpid(), 9)", 120, "exit code 4; .*(?s:.)*processes of Lava ended early, with exit code -9"),
        ("import time; time.sleep(600)", 5, "the Lava worker was stopped after 5 s"),
        ("print('last words', flush=True); os.kill(os.getppid(), 9)", 120, "signal 9; .*(?s:.)*last words"),
    ],
)
def test_of_a_worker_that_fails_nothing_is_left(lava, monkeypatch, tmp_path, statement, timeout, words):
    monkeypatch.setattr("nirdeploy_loihi.simulator._WORKER", broken_worker(tmp_path, statement))
    allocated = []

    def free(folder):
        allocated.extend(segments(folder))
        free_shared_memory(folder)

    monkeypatch.setattr("nirdeploy_loihi.simulator.free_shared_memory", free)
    with pytest.raises(VendorError, match=words):
        simulate([everything("dense", PROGRAMS["dense"])], timeout=timeout)
    assert has_gone(int((tmp_path / "group").read_text()))
    assert len(allocated) > 10
    assert [path for path in allocated if path.exists()] == []


def test_a_worker_whose_starter_is_gone_ends_with_all_it_started(lava, tmp_path):
    job = everything("dense", PROGRAMS["dense"])
    folder = tmp_path / "job"
    folder.mkdir()
    write(folder, [job])
    worker = broken_worker(tmp_path, "import time; time.sleep(600)")
    command = [str(lava), "-I", str(worker), str(folder), "--watched"]
    started = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    while not (tmp_path / "group").exists() or not (tmp_path / "group").read_text():
        assert started.poll() is None
        time.sleep(0.05)
    assert len(living(started.pid)) > 5
    started.stdin.close()
    assert started.wait(30) == -9
    assert has_gone(started.pid)
    assert [path for path in segments(folder) if path.exists()] == []
