"""lava-dl's own networks with their recordings, and lava-dl's netx on files of ours.

The wheel is downloaded once into `.venv-lava-dl`; nothing of it is copied into the repository.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import nirdeploy_loihi
import numpy as np
import pytest
from netx_files import NETS, dense, given, net, net_file, raster, recurrent, states
from nirdeploy_loihi.lower_program import program_of
from nirdeploy_loihi.netx_write import write_program
from nirdeploy_loihi.program import Program, Shown

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
WHEEL = "lava-dl==0.6.0"
PARTS = ("lava/lib/dl/netx/", "tests/lava/lib/dl/netx/")


def missing(reason):
    if os.environ.get("NIRDEPLOY_REQUIRE_ORACLES") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def download(folder):
    """netx and its recordings, unpacked."""
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    options = ["--quiet", "--no-deps", "--python-version", "3.10", "--only-binary=:all:", "--dest", str(part)]
    command = [sys.executable, "-m", "pip", "download", *options, WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    if done.returncode:
        missing(f"{WHEEL} cannot be downloaded: {done.stderr.strip().splitlines()[-1:]}")
    wheel = next(part.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(part, [name for name in archive.namelist() if name.startswith(PARTS)])
    wheel.unlink()
    part.rename(folder)


@pytest.fixture(scope="module")
def lava_dl():
    """lava-dl's wheel, unpacked."""
    folder = ROOT / ".venv-lava-dl"
    if not folder.is_dir():
        download(folder)
    return folder


@pytest.fixture(scope="module")
def recordings(lava_dl):
    """lava-dl's recorded networks."""
    return lava_dl / "tests" / "lava" / "lib" / "dl" / "netx" / "gts"


# ---------------------------------------------------------------- ntidigits


def test_every_output_spike_of_ntidigits_is_reproduced(recordings):
    folder = recordings / "ntidigits"
    quantized, findings = nirdeploy_loihi.netx.read_quantized(folder / "ntidigits.net", num_layers=5)
    spikes, expected = np.load(folder / "input.npy").T, np.load(folder / "output.npy").T.astype(int)
    found = states(program_of(quantized), spikes)["4.neuron"]["s"]
    assert (int(spikes.sum()), int(expected.sum()), int(found.sum())) == (1184, 22572, 22572)
    # the recording is one step behind, four behind a network whose three connections cost none
    assert np.array_equal(found[:-1], expected[1:])
    assert findings == []


# ---------------------------------------------------------------- PilotNet

PILOTNET = (*(f"conv-{i}" for i in range(5)), *(f"fc-{i}" for i in range(4)))
PERIOD = 17  # steps between the resets of v, which come one step later in each layer


@pytest.fixture(scope="module")
def pilotnet(recordings):
    """The network behind its input layer."""
    path = recordings / "pilotnet_lif" / "network.net"
    return program_of(nirdeploy_loihi.netx.read_quantized(path, skip_layers=1)[0])


def recorded(folder, name):
    """u, v and spikes of a layer, [step, neuron]."""

    def flat(suffix):
        values = np.load(folder / f"{name}{suffix}.npy")
        return values.transpose().reshape(values.shape[-1], -1).astype(np.int64)

    return {"u": flat("-u"), "v": flat("-v"), "s": flat("-s" if name == "fc-3" else "")}


def source_spikes(folder, number):
    if number:
        return recorded(folder, PILOTNET[number - 1])["s"]
    values = np.load(folder / "input.npy")  # input-s.npy lacks a step of the recorded run
    return values.transpose().reshape(values.shape[-1], -1).astype(np.int64)


def layer_alone(program, number, v_start):
    """One layer, whose Input is the layer before."""
    population = replace(program.populations[number], v_start=v_start)
    (synapses,) = program.into(population.name)
    shape = synapses.window.source_shape if synapses.window else (synapses.n_sources,)
    return Program(
        synapses.source, shape, (population,), (synapses,), (), (Shown("out", population.name, population.shape),)
    )


def before_zero(population):
    """v that decay and bias take to 0 in one step, so that the step after starts from a reset state."""
    bias, kept = np.broadcast_to(population.bias, population.size), 4096 - population.decay_v
    return -np.sign(bias) * -(-(np.abs(bias) * 4096) // kept)


def run_layer(program, number, spikes):
    """A layer on recorded spikes, in runs from reset to reset."""
    population = program.populations[number]
    resets = [step for step in (1 + number, 1 + number + PERIOD) if step < len(spikes)]
    rows = {"u": [], "v": [], "s": []}
    for first, last in zip([0, *resets], [*resets, len(spikes)], strict=True):
        fresh = first == 0
        alone = layer_alone(program, number, np.zeros(1, np.int64) if fresh else before_zero(population))
        # the recording holds 128 in v after a spike, as a chip does
        found = states(alone, spikes[first - (not fresh) : last], "chip")[population.name]
        assert fresh or not found["v"][0].any()
        for key, values in rows.items():
            values.append(found[key][not fresh :])
    return {key: np.concatenate(values) for key, values in rows.items()}


@pytest.mark.parametrize("number", range(8), ids=PILOTNET[:8])
def test_every_u_v_and_spike_of_a_pilotnet_layer_is_reproduced(recordings, pilotnet, number):
    folder = recordings / "pilotnet_lif"
    expected = recorded(folder, PILOTNET[number])
    found = run_layer(pilotnet, number, source_spikes(folder, number))
    assert expected["s"].any()
    for key in "uvs":
        assert np.array_equal(found[key], expected[key]), key


def test_the_last_pilotnet_layer_was_recorded_in_a_run_of_its_own(recordings, pilotnet):
    folder = recordings / "pilotnet_lif"
    expected, spikes = recorded(folder, "fc-3"), source_spikes(folder, 8)
    (synapses,) = pilotnet.into("10.neuron")
    found = (spikes @ synapses.weight.T) << 6
    assert np.array_equal(found[:7], expected["u"][1:8])
    assert expected["u"].any()
    # afterwards it holds sums that the layer before never sent in one step
    assert expected["u"][11] == -84 << 6
    assert not (found == -84 << 6).any()


# ---------------------------------------------------------------- netx itself


@pytest.fixture
def netx(lava_dl, tmp_path):
    """Runs a file in netx: u, v and spikes of each layer with neurons, [step, neuron]."""
    interpreter = ROOT / ".venv-lava" / "bin" / "python"
    if not interpreter.exists():
        missing("no .venv-lava; `make oracles` builds it")

    def run(path, spikes):
        np.save(tmp_path / "raster.npy", spikes)
        worker = Path(__file__).with_name("netx_worker.py")
        command = [interpreter, worker, lava_dl, path, tmp_path / "raster.npy", tmp_path / "out.npz"]
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        stored = np.load(tmp_path / "out.npz")
        return [{key: stored[f"L{k}_{key}"] for key in "uvs"} for k in range(len(stored.files) // 3)]

    return run


def assert_equal(program, found, spikes):
    runs = states(program, spikes)
    assert len(runs) == len(found)
    for name, layer in zip(runs, found, strict=True):
        assert layer["s"].any(), name
        for key in "uvs":
            assert np.array_equal(runs[name][key], layer[key]), f"{name} {key}"


@pytest.mark.parametrize("name", NETS)
def test_netx_runs_a_file_of_ours_as_the_program_it_is_made_of(netx, tmp_path, name):
    made = net(name)
    write_program(made, tmp_path / "net.net")
    spikes = raster(made.input_shape)
    assert_equal(made, netx(tmp_path / "net.net", spikes), spikes)


WIDE = [[10, -20], [40, 6], [62, 8]]
FILES = {
    "one delay": dense(WIDE, delay=4.0),
    "delays of outputs": dense(WIDE, delay=[62.0, 0.0, 5.0]),
    "delays of inputs": dense(WIDE, delay=[3.0, 9.0]),
    "delays of a square": dense([[30, -20], [40, 60]], delay=[3.0, 9.0]),
    "a matrix of delays": dense(WIDE, delay=[[3.0, 9.0]] * 3),
    "one bias": dense(WIDE, bias=-2.0),
    "one bias in a list": dense(WIDE, bias=[-2.0]),
    "weights of one axis": {**dense(WIDE), "weight": np.ravel(WIDE), "shape": [3]},
    "one sign forward, both back": recurrent([[60, 31], [7, 90]], [[-20, 30], [14, -60]]),
    "nothing back": recurrent([[60, 31], [7, 90]], [[0, 0], [0, 0]]),
    "negative back": recurrent([[60, 31], [7, 90]], [[-20, -30], [-14, 0]]),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_as_netx_runs_it(netx, tmp_path, name):
    path = net_file(tmp_path / "net.net", given(2, 1, 1), FILES[name])
    spikes = raster((2,))
    assert_equal(program_of(nirdeploy_loihi.netx.read_quantized(path)[0]), netx(path, spikes), spikes)
