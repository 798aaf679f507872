import os
import subprocess
import sys
from pathlib import Path

import nirdeploy_loihi
import numpy as np
import pytest

from nirdeploy.storage import load_deployment

ROOT = Path(__file__).resolve().parents[2]


def image(array):
    """Lava's [step, x, y, channel] as [step, channel, y, x]; anything else as it is."""
    return array.transpose(0, 3, 2, 1) if array.ndim == 4 else array


@pytest.mark.parametrize(("name", "populations"), [("dense", ["1", "2"]), ("conv", ["1", "3"])])
def test_recorded_netx_traces_are_reproduced_bit_for_bit(cases, name, populations):
    stored = np.load(cases / f"{name}.npz")
    deployment = nirdeploy_loihi.netx.read(cases / f"{name}.net")
    run = deployment.run(image(stored["input"]), record=("spikes", "v_mem", "i_syn"))
    for number, group in enumerate(populations):
        for variable, key in (("i_syn", "u"), ("v_mem", "v"), ("spikes", "s")):
            expected = image(stored[f"L{number}_{key}"])
            found = run[f"{group}.neuron", variable].data
            assert np.array_equal(found, expected), f"{name} {group} {key}"
    assert np.array_equal(run.outputs, stored["sink"])


def golden_differences(folder, name, populations):
    stored = np.load(folder / f"lava_{name}.npz")
    deployment = nirdeploy_loihi.netx.read(folder / f"lava_{name}.net", target="loihi1")
    run = deployment.run(stored["input"], record=("spikes", "v_mem", "i_syn"))
    return [
        f"{group} {key}"
        for group in populations
        for variable, key in (("i_syn", "u"), ("v_mem", "v"), ("spikes", "s"))
        if not np.array_equal(run[f"{group}.neuron", variable].data, stored[f"L{group}_{key}"])
    ]


@pytest.mark.parametrize(("name", "populations"), [("dense", "12"), ("conv", "13")])
def test_goldens_of_real_lava_are_reproduced_bit_for_bit(golden, name, populations):
    assert golden_differences(golden, name, populations) == []


@pytest.mark.parametrize(("name", "populations"), [("dense", "12"), ("conv", "13")])
def test_every_golden_population_spikes_and_pauses(golden, name, populations):
    stored = np.load(golden / f"lava_{name}.npz")
    for group in populations:
        assert 0 < stored[f"L{group}_s"].mean() < 0.9


def test_goldens_are_what_lava_records_today(golden, tmp_path):
    interpreter = ROOT / ".venv-lava" / "bin" / "python"
    if not interpreter.exists():
        message = "no .venv-lava; tests/golden/record_lava.py says how to make it"
        if os.environ.get("NIRDEPLOY_REQUIRE_ORACLES") == "1":
            pytest.fail(message)
        pytest.skip(message)
    command = [str(interpreter), str(golden / "record_lava.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("dense", "conv", "loops", "skips"):
        fresh, stored = (np.load(folder / f"lava_{name}.npz") for folder in (tmp_path, golden))
        assert sorted(fresh.files) == sorted(stored.files)
        for key in stored.files:
            assert np.array_equal(fresh[key], stored[key]), f"{name} {key}"


def test_a_read_network_survives_saving(golden, tmp_path):
    deployment = nirdeploy_loihi.netx.read(golden / "lava_conv.net")
    deployment.save(tmp_path / "build")
    raster = np.load(golden / "lava_conv.npz")["input"]
    again = load_deployment(tmp_path / "build")
    assert np.array_equal(again.run(raster).outputs, deployment.run(raster).outputs)
    assert again.quantized["3.neuron"].mantissa == 610


def test_importing_the_backend_loads_neither_torch_nor_numba():
    code = "import nirdeploy_loihi, sys; print([m for m in ('torch', 'numba', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
