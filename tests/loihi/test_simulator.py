"""Lava run live: every state of every program, against plain loops; what can go wrong with it."""

import numpy as np
import pytest
import slow_lava
from lava_programs import programs, raster
from nets import vendor_python
from nirdeploy_loihi.simulator import Job, simulate

VARIABLES = ("spikes", "v_mem", "i_syn")
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
    assert traces["v clips at both ends"]["a", "v_mem"].min() >= 0
    assert traces["v clips at both ends"]["b", "v_mem"].min() == 1 - (1 << 23)
    assert traces["states that do not start at 0"]["a", "spikes"][0].tolist() == [[1, 0, 0, 0]] * 2
    quiet = [(n, k) for n, found in traces.items() for k, v in found.items() if k[1] == "spikes" and not v.any()]
    assert quiet == []
