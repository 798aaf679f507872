"""sinabs run live: our integers through its layers, its own quantisation of the same networks; what can go wrong."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
import warnings
from pathlib import Path

import h5py
import nirdeploy_speck
import numpy as np
import pytest
from nets import chain, conv_net, if_node, linear_node, raster, replace_values, stand_in, vendor_python
from nirdeploy_speck.cores import Destination, chip_program
from nirdeploy_speck.network import lowered
from nirdeploy_speck.simulator import Job, simulate
from speck_networks import PINNED, convention, counts, drawn, graph, weights

import nirdeploy as nd
from nirdeploy.errors import UnavailableError, UnsupportedError, VendorError

PLAIN = nd.Convention(if_gain="r", reset="zero", crossing="inclusive", v_min=-4.0)


@pytest.fixture
def sinabs(monkeypatch):
    """sinabs's environment; the tests that need it are skipped, or failed where it is required."""
    python = vendor_python(".venv-sinabs")
    monkeypatch.setenv("NIRDEPLOY_PYTHON_SPECK", str(python))
    return python


def deploy(network):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nd.errors.QuantizationWarning)
        return nd.deploy(graph(network), "speck2f", convention=convention(network), quantizer="max")


def job(deployment, data):
    program = chip_program(deployment.quantized, deployment.placement)
    events = lowered(deployment.quantized).events(data)
    return Job(program, events, [("spikes", "v_mem")] * len(program.cores))


def test_our_integers_run_in_sinabs_as_in_the_emulator(sinabs):
    found = [*PINNED, *drawn(24)]
    assert len(found) >= 25
    deployments = [deploy(network) for network in found]
    rasters = [np.stack([counts(network), counts({**network, "seed": 77})], axis=1) for network in found]
    results = simulate([job(*pair) for pair in zip(deployments, rasters, strict=True)], timeout=240)
    fired = 0
    for network, deployment, data, result in zip(found, deployments, rasters, results, strict=True):
        expected = deployment.run(data)
        for core, values in enumerate(result.cores):
            for variable in ("spikes", "v_mem"):
                own = expected[f"if{core}", variable].data
                assert np.array_equal(values[variable].reshape(own.shape), own), (network, core, variable)
        fired += sum(int(values["spikes"].sum() > 0) for values in result.cores)
    assert fired > len(found)


def test_sinabs_quantises_its_own_modules_as_max_does(sinabs, tmp_path):
    found = [*PINNED, *drawn(24)]
    (tmp_path / "networks.json").write_text(json.dumps(found))
    data = {}
    for n, network in enumerate(found):
        data[f"n{n}_raster"] = counts(network)
        for k, (weight, bias) in enumerate(weights(network)):
            data[f"n{n}_weight{k}"] = weight
            if bias is not None:
                data[f"n{n}_bias{k}"] = bias
    np.savez(tmp_path / "input.npz", **data)
    script = Path(__file__).parent / "sinabs_networks.py"
    folder = Path(nirdeploy_speck.__file__).parent
    done = subprocess.run(
        [str(sinabs), str(script), str(folder), str(tmp_path)], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    theirs = np.load(tmp_path / "output.npz")
    for n, network in enumerate(found):
        deployment = deploy(network)
        own = deployment.run(counts(network))
        for k in range(len(network["layers"])):
            key, weight, neuron = f"n{n}_{k}_", deployment.quantized[f"w{k}"], deployment.quantized[f"if{k}"]
            assert np.array_equal(weight.weight.ravel(), theirs[key + "weight"].ravel()), (network, k)
            bias = theirs[key + "bias"]
            assert np.array_equal(np.zeros_like(bias) if weight.bias is None else weight.bias, bias), (network, k)
            assert (neuron.threshold, neuron.v_min) == (theirs[key + "threshold"], theirs[key + "v_min"]), (network, k)
            for variable in ("spikes", "v_mem"):
                values = own[f"if{k}", variable].data
                assert np.array_equal(values, theirs[key + variable].reshape(values.shape)), (network, k, variable)


# ---------------------------------------------------------------- trajectories


def test_a_run_on_the_simulator_is_the_emulators_trajectory(sinabs):
    deployment = nd.deploy(conv_net(), "speck2f", convention=PLAIN, quantizer="max")
    data = raster((1, 6, 6))
    own, found = deployment.run(data), deployment.run(data, on="simulator")
    assert found.records == own.records
    assert (found.executor, found.target) == ("simulator", "speck2f")
    assert "sinabs 3.1.3" in found.producer
    assert "samna stand-in" in found.producer
    assert nd.compare(own, found).first_divergence is None
    single = deployment.run(data[:, 0], on="simulator", record="spikes", nodes="if2")
    assert single.records == deployment.run(data[:, 0], record="spikes", nodes="if2").records


def test_v_mem_in_input_gains_has_the_emulators_scale(sinabs):
    plain = chain((2,), fc=linear_node([[0.5, -0.25]]), n=if_node((1,), 1.0, r=2.0))
    deployment = nd.deploy(
        plain, "speck2f", convention=dataclasses.replace(PLAIN, v_min=-1.0, v_unit="gain"), quantizer="max"
    )
    data = raster((2,))
    assert deployment.run(data, on="simulator").records == deployment.run(data).records


def test_long_rasters_go_through_in_blocks_of_steps(sinabs, monkeypatch, tmp_path):
    deployment = nd.deploy(conv_net(), "speck2f", convention=PLAIN, quantizer="max")
    text = (Path(nirdeploy_speck.__file__).parent / "sinabs_worker.py").read_text()
    assert text.count("_BLOCK = 1 << 24") == 1
    (tmp_path / "worker.py").write_text(text.replace("_BLOCK = 1 << 24", "_BLOCK = 1000"))  # of 3 x 108 a step: 3 steps
    monkeypatch.setattr("nirdeploy_speck.simulator._WORKER", tmp_path / "worker.py")
    data = raster((1, 6, 6), steps=10)
    assert deployment.run(data, on="simulator").records == deployment.run(data).records


def split(program):
    """The program with its first core's channels on two cores."""
    first, *others = program.cores
    (to,) = first.destinations
    half = first.output_shape[0] // 2
    parts = []
    for channels in (slice(0, half), slice(half, None)):
        weight = first.weight[channels]
        parts.append(
            dataclasses.replace(
                first,
                first=channels.start,
                weight=weight,
                output_shape=(len(weight), *first.output_shape[1:]),
                destinations=(Destination(to.core + 1, to.pooling, channels.start),),
            )
        )
    later = [
        dataclasses.replace(
            core, destinations=tuple(dataclasses.replace(to, core=to.core + 1) for to in core.destinations)
        )
        for core in others
    ]
    entry = (*program.entry, dataclasses.replace(program.entry[0], core=1))
    return dataclasses.replace(program, cores=(*parts, *later), entry=entry)


def test_a_layer_split_over_two_cores_is_whole_again_in_sinabs(sinabs):
    deployment = nd.deploy(conv_net(), "speck2f", convention=PLAIN, quantizer="max")
    whole = job(deployment, raster((1, 6, 6)))
    program = split(whole.program)
    parts = Job(program, whole.events, [("spikes",)] * 4)
    one, two = simulate([whole, parts])
    joined = np.concatenate([two.cores[0]["spikes"], two.cores[1]["spikes"]], axis=2)
    assert np.array_equal(joined, one.cores[0]["spikes"])
    assert np.array_equal(two.cores[3]["spikes"], one.cores[2]["spikes"])
    assert one.cores[2]["spikes"].sum() > 0


def test_a_source_may_name_one_core_twice_and_be_pooled_on_the_way_in(sinabs):
    deployment = nd.deploy(
        chain((1,), a=linear_node([[1.0]]), n=if_node((1,)), b=linear_node([[1.0], [-0.5]]), m=if_node((2,))),
        "speck2f",
        convention=PLAIN,
        quantizer="max",
    )
    plain = job(deployment, np.ones((3, 1, 1), np.int64))
    first, second = plain.program.cores
    twice = dataclasses.replace(first, destinations=first.destinations * 2)
    wide = dataclasses.replace(plain.program, cores=(twice, second), entry=(Destination(0, 2, 0),))
    (found,) = simulate([Job(wide, np.full((3, 1, 1, 2, 2), 1), [("spikes",), ("v_mem",)])])
    (expected,) = simulate([dataclasses.replace(plain, events=np.full((3, 1, 1, 1, 1), 4))])
    assert np.array_equal(found.cores[0]["spikes"], expected.cores[0]["spikes"])
    weight = second.weight[:, 0, 0, 0]
    v = np.zeros(2, np.int64)
    for step in range(3):
        v = v + 2 * found.cores[0]["spikes"][step, 0, 0, 0, 0] * weight
        v = np.where(v >= second.threshold, 0, np.maximum(v, second.v_min))
        assert np.array_equal(found.cores[1]["v_mem"][step, 0, :, 0, 0], v)
    assert found.cores[0]["spikes"].sum() == 3


# ---------------------------------------------------------------- refusals


@pytest.fixture
def small():
    return nd.deploy(conv_net(), "speck2f", convention=PLAIN, quantizer="max")


def test_what_floats_cannot_hold_is_refused(sinabs, small):
    data = np.zeros((2, 1, 1, 6, 6), np.int64)
    data[1, 0, 0, 2, 2] = 1 << 20
    with pytest.raises(
        VendorError, match=r"core 0: a sum can reach \d+; sinabs's 32-bit floats are exact below 16777216"
    ):
        small.run(data, on="simulator")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"mode": "event"}, UnsupportedError, "sinabs has no mode 'event'.*mode='step'"),
        ({"speed": 1}, UnsupportedError, r"no option 'speed' \(given 1\).*timeout"),
        ({"timeout": 0}, UnsupportedError, "timeout is 0, expected seconds"),
        ({"timeout": True}, UnsupportedError, "timeout is True"),
        ({"record": "i_syn"}, UnsupportedError, "'i_syn' does not exist"),
        ({"nodes": "if9"}, UnsupportedError, "no population 'if9'"),
    ],
)
def test_what_sinabs_does_not_have_is_refused(small, options, error, words):
    with pytest.raises(error, match=words):
        small.run(raster((1, 6, 6)), on="simulator", **options)


def test_without_its_environment_the_simulator_names_what_builds_it(small, monkeypatch, tmp_path):
    monkeypatch.setenv("NIRDEPLOY_HOME", str(tmp_path))
    monkeypatch.delenv("NIRDEPLOY_PYTHON_SPECK", raising=False)
    with pytest.raises(UnavailableError, match=r"sinabs.*needs the environment 'speck'.*`nirdeploy env create speck`"):
        small.run(raster((1, 6, 6)), on="simulator")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("echo broken; exit 3", "the sinabs worker failed with exit code 3; it said last:\nbroken"),
        ("exit 0", "left no result that can be read: .*trajectory.h5"),
        ('echo nonsense > "$3/trajectory.h5"', "left no result that can be read: .*not an HDF5 file"),
        ("sleep 60", "the sinabs worker was stopped after 1.5 s"),
        (r"printf '\377\000garbage'; kill -9 $$", "the sinabs worker was ended by signal 9; it said last:\n.*garbage"),
    ],
)
def test_a_worker_that_fails_is_told_with_its_last_lines(small, monkeypatch, tmp_path, body, words):
    monkeypatch.setenv("NIRDEPLOY_PYTHON_SPECK", str(stand_in(tmp_path, body)))
    with pytest.raises(VendorError, match=words):
        small.run(raster((1, 6, 6)), on="simulator", timeout=1.5)


@pytest.mark.skipif(importlib.util.find_spec("sinabs") is not None, reason="this interpreter has sinabs")
def test_an_interpreter_without_sinabs_says_so(small, monkeypatch):
    monkeypatch.setenv("NIRDEPLOY_PYTHON_SPECK", sys.executable)
    with pytest.raises(VendorError, match="the sinabs worker failed with exit code 1; (.|\n)*No module named 'sinabs'"):
        small.run(raster((1, 6, 6)), on="simulator")


def other(out, change, variable="spikes"):
    replace_values(out, f"networks/0/cores/0/{variable}", change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda out: out.attrs.update(format=2), "answered in format 2, expected 1"),
        (lambda out: out.pop("networks/0/cores/1"), "/networks/0/cores/1/spikes is missing"),
        (lambda out: other(out, lambda v: v[1:]), "'if1': .* answered spikes as int32"),
        (lambda out: other(out, lambda v: v * 1.0), "cores/0/spikes holds float64"),
        (lambda out: other(out, lambda v: v.astype(np.int16)), "'if1': .* answered spikes as int16"),
        (lambda out: other(out, lambda v: v - 1), "'if1': .* answered spikes -1, which is less than 0"),
        (lambda out: other(out, lambda v: v - 30000, "v_mem"), "'if1': .* v_mem -30.*, which is less than"),
    ],
)
def test_an_answer_other_than_agreed_is_refused(small, monkeypatch, tmp_path, change, words):
    data = raster((1, 6, 6))
    answer = tmp_path / "answer.h5"
    with h5py.File(answer, "w") as out:
        out.attrs.update({"format": 1, "sinabs": "3.1.3", "torch": "2", "samna": "stand-in"})
        for k, core in enumerate(chip_program(small.quantized, small.placement).cores):
            for variable in ("spikes", "v_mem"):
                values = small.run(data)[core.layer, variable].data
                values = values.reshape(*data.shape[:2], *core.output_shape).astype(np.int32)
                out[f"networks/0/cores/{k}/{variable}"] = values
    monkeypatch.setenv("NIRDEPLOY_PYTHON_SPECK", str(stand_in(tmp_path, f'cp "{answer}" "$3/trajectory.h5"')))
    assert small.run(data, on="simulator").records == small.run(data).records
    with h5py.File(answer, "a") as out:
        change(out)
    with pytest.raises(VendorError, match=words):
        small.run(data, on="simulator")


def test_the_worker_refuses_a_job_of_another_format(sinabs, tmp_path):
    (tmp_path / "job.json").write_text(json.dumps({"format": 7, "networks": []}))
    script = Path(nirdeploy_speck.__file__).parent / "sinabs_worker.py"
    done = subprocess.run([str(sinabs), str(script), str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "job.json has format 7, this worker knows 1" in done.stderr


def test_the_stand_in_leaves_the_installer_alone_and_a_real_samna_in_place(sinabs, tmp_path):
    script = Path(nirdeploy_speck.__file__).parent
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]; import sinabs_worker; "
        "print(sinabs_worker.provide_samna()); import samna"
    )
    (tmp_path / "samna").mkdir()
    for text, state in (
        ("PYPI_SAMNA = 1\nraise SystemExit('pip would run now')", "stand-in"),
        ("import sys; sys.modules['samnagui'] = sys", "real"),
    ):
        (tmp_path / "samna" / "__init__.py").write_text(text)
        done = subprocess.run(
            [str(sinabs), "-c", code, str(tmp_path), str(script)], capture_output=True, text=True, check=False
        )
        assert done.stdout.strip() == state, done.stderr
        assert done.returncode == 0
