"""The run on a chip, with a strict stand-in of lava-loihi (tests/lava_loihi); what is missing and what goes wrong."""

import dataclasses
from pathlib import Path

import nirdeploy_loihi
import numpy as np
import pytest
import slow_lava
from lava_programs import programs, raster, read_net, run_elsewhere
from nets import vendor_python
from nirdeploy_loihi.lava_runner import require_chip, run

from nirdeploy.errors import RasterError, UnavailableError, UnsupportedError, VendorError

STAND_IN = Path(__file__).resolve().parents[1] / "lava_loihi" / "run.py"
BOARD = {"partition": "oheogulch", "generation": "N3C1", "probes": 2}
STEPS = 24


@pytest.fixture
def log(monkeypatch, tmp_path):
    """An interpreter with the stand-in; what it probes is in this file."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nshift\nexec "{vendor_python(".venv-lava")}" -I "{STAND_IN}" "$@"\n')
    python.chmod(0o755)
    for name in ("SLURM", "NOSLURM", "PARTITION", "BOARD", "NXSDKHOST", "HOST_BINARY", "LOIHI_GEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NIRDEPLOY_PYTHON_LOIHI", str(python))
    monkeypatch.setenv("STANDIN_LOG", str(tmp_path / "probes.txt"))
    return tmp_path / "probes.txt"


@pytest.fixture(params=["dense", "conv"])
def deployed(request, golden):
    """A deployment, its program, and an input [step, batch, ...]."""
    path = golden / f"lava_{request.param}.net"
    data = np.load(golden / f"lava_{request.param}.npz")["input"].astype(np.int32)
    batch = np.stack([data[:STEPS], data[STEPS : 2 * STEPS]], axis=1)
    return nirdeploy_loihi.netx.read(path, target="loihi2"), read_net(path), batch


def on_chip(deployment, program, data, record=("spikes",), nodes=None, mode=None, **options):
    return run_elsewhere(run, deployment, program, data, record, nodes, mode, {**BOARD, **options})


def test_a_run_on_the_chip_is_the_emulators_whatever_the_adapters_take(log, deployed):
    deployment, program, data = deployed
    names = tuple(population.name for population in program.populations)
    found = on_chip(deployment, program, data, record=("spikes", "v_mem", "i_syn"), nodes=names)
    own = deployment.run(data, record=("spikes", "v_mem", "i_syn"))
    assert found.executor == "chip"
    assert found.records.keys() == own.records.keys()
    for key, record in own.records.items():
        shown = record.data
        if key[1] == "v_mem":  # the register reads 128 where the neuron has just fired
            shown = np.where(own[key[0], "spikes"].data > 0, 128, shown)
        assert np.array_equal(found[key].data, shown), key
        assert found[key].view == ("refractory_128" if key[1] == "v_mem" else None)
    assert sum(int(own[name, "spikes"].data.sum()) for name in names) > 20
    # a probe to measure with; then, of 2 samples, 4 states in 2 runs
    lines = log.read_text().splitlines()
    assert lines[0] == "u (2,)"
    assert [line.split()[0] for line in lines[1:]] == ["v", "u"] * 4


def test_biases_currents_and_first_voltages_wait_for_the_input(log, golden):
    deployment = nirdeploy_loihi.netx.read(golden / "lava_dense.net", target="loihi2")
    made = programs()["always-on axons"]
    populations = (dataclasses.replace(made.populations[0], v_start=np.array([9000]), bias_mantissa=np.array([77])),)
    names = ("1.neuron", "2.neuron")
    changed = dict(zip(("a", "b"), names, strict=True))
    program = dataclasses.replace(
        made,
        populations=tuple(dataclasses.replace(p, name=changed[p.name]) for p in (*populations, *made.populations[1:])),
        synapses=tuple(
            dataclasses.replace(s, source=changed.get(s.source, s.source), target=changed[s.target])
            for s in made.synapses
        ),
        outputs=(dataclasses.replace(made.outputs[0], name="output", source="2.neuron"),),
    )
    data = raster("chip", program.input_shape, steps=STEPS)
    found = on_chip(deployment, program, data, record=("spikes", "i_syn", "v_mem"), nodes=names)
    own = slow_lava.execute(program, data)
    for key, values in own.items():
        shown = np.where(own[key[0], "spikes"] > 0, 128, values) if key[1] == "v_mem" else values
        assert np.array_equal(found[key].data, shown), key


def test_spikes_alone_take_no_probes(log, deployed):
    deployment, program, data = deployed
    found = on_chip(deployment, program, data[:, 0])
    assert np.array_equal(found.outputs, deployment.run(data[:, 0]).outputs)
    assert log.read_text() == "u (2,)\n"


def test_more_probes_than_a_run_has_are_told_with_the_vendors_words(log, deployed):
    deployment, program, data = deployed
    names = tuple(population.name for population in program.populations)
    with pytest.raises(VendorError, match="the Loihi worker failed.*(?s:.)*more than 2 probes in one run"):
        on_chip(deployment, program, data, record=("v_mem", "i_syn"), nodes=names, probes=3)


def test_without_lava_loihi_what_is_missing_is_named(monkeypatch):
    monkeypatch.setenv("NIRDEPLOY_PYTHON_LOIHI", str(vendor_python(".venv-lava")))
    with pytest.raises(
        UnavailableError, match=r"needs lava-loihi, of which lava\.utils\.loihi2_profiler, .*install it"
    ):
        require_chip({"SLURM": "1"})


def test_without_a_board_the_ways_to_name_one_are_told(log):
    with pytest.raises(UnavailableError, match="neither .SLURM nor .NXSDKHOST is set. Pass partition="):
        require_chip({})
    assert require_chip({"NXSDKHOST": "10.0.0.2"}) == {"LOIHI_GEN": "N3B3", "NXSDKHOST": "10.0.0.2", "NOSLURM": "1"}
    assert require_chip({"BOARD": "b1"}) == {"LOIHI_GEN": "N3B3", "BOARD": "b1", "SLURM": "1"}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"mode": "event"}, UnsupportedError, "the chip has no mode 'event'"),
        ({"speed": 1}, UnsupportedError, r"no option 'speed' \(given 1\). Possible: probes, timeout, generation"),
        ({"probes": 0}, UnsupportedError, "probes is 0, expected a whole number from 1 on"),
        ({"generation": "N1"}, UnsupportedError, "generation is 'N1', expected one of"),
        ({"board": 3}, UnsupportedError, "board is 3, expected text"),
        ({"timeout": -1}, UnsupportedError, "timeout is -1, expected seconds"),
        ({"record": ("v_mem",)}, UnsupportedError, "v_mem of all populations take more probes.*nodes="),
        ({"nodes": ("z",)}, RasterError, "no population 'z'"),
    ],
)
def test_what_the_chip_does_not_have_is_refused(golden, change, error, words):
    path = golden / "lava_dense.net"
    deployment = nirdeploy_loihi.netx.read(path, target="loihi2")
    with pytest.raises(error, match=words):
        on_chip(deployment, read_net(path), np.zeros((3, 6), int), **change)


def test_loihi_1_is_not_what_lava_loihi_runs(golden):
    path = golden / "lava_dense.net"
    deployment = nirdeploy_loihi.netx.read(path, target="loihi1")
    with pytest.raises(UnsupportedError, match="lava-loihi runs loihi2, not loihi1"):
        on_chip(deployment, read_net(path), np.zeros((3, 6), int))
