"""What a notebook shows of a result: one line that says what it is, never its arrays."""

from pathlib import Path

import numpy as np
import pytest
import torch

import nirdeploy as nd
from nirdeploy.reference.neurons import IF, LIF

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture(scope="module")
def results():
    graph = nd.read(CONFIGS / "digits.nir")
    raster = np.load(CONFIGS / "digits_calibration.npz")["raster"][:, :4]
    deployment = nd.deploy(graph, "loihi2", calibration=raster)
    return graph, raster, deployment, nd.run(graph, raster), deployment.run(raster)


def test_results_are_one_line(results):
    graph, raster, deployment, reference, chip = results
    comparison = nd.compare(reference, chip)
    swept = nd.sweep(graph, (raster, None), targets=("loihi2",), calibration=raster)
    parts = (deployment.quantized, deployment.quantized["conv2"], deployment.placement, deployment.report)
    runs = (reference, chip, chip["if1", "v_mem"], comparison, nd.estimate(chip), swept)
    for found in (deployment, *parts, *runs):
        assert "\n" not in repr(found)
        assert len(repr(found)) < 300
        assert repr(found).startswith(type(found).__name__ + "(")


def test_a_deployment_shows_target_quantiser_and_cores(results):
    _, _, deployment, _, _ = results
    assert repr(deployment) == "Deployment(loihi2, calibrated: if1 on core 0; if2 on cores 0, 1; if3 on core 0)"
    assert repr(deployment.placement) == "Placement({'if1': (0,), 'if2': (0, 1), 'if3': (0,)})"
    assert repr(deployment.quantized) == "Quantized(loihi2, calibrated: conv1, if1, conv2, if2, fc, if3)"


def test_a_run_shows_what_is_recorded(results):
    _, _, _, _, chip = results
    part = nd.Trajectory({("if3", "spikes"): chip["if3", "spikes"]}, target="loihi2", executor="emulator")
    assert repr(part) == "Trajectory('loihi2', 'emulator', n_steps=20, records=[('if3', 'spikes')])"
    assert repr(chip["if3", "spikes"]) == "Record('if3', 'spikes', int32 (20, 4, 10), units='count', lag=3)"


def test_a_run_that_was_cut_off_shows_it(results):
    _, _, _, reference, _ = results
    cut = nd.Trajectory(reference.records, complete=False, reason="No space left on device")
    assert "complete=False, reason='No space left on device'" in repr(cut)


def test_a_record_in_a_file_is_not_read_to_be_shown(results, tmp_path):
    _, _, _, reference, _ = results
    reference.save(tmp_path / "run.h5")
    lazy = nd.load_trajectory(tmp_path / "run.h5", lazy=True)["if3", "v_mem"]
    (tmp_path / "run.h5").unlink()
    assert repr(lazy) == repr(reference["if3", "v_mem"])


def test_a_comparison_shows_its_verdict_and_place(results):
    _, _, _, reference, chip = results
    found = nd.compare(reference, chip)
    assert repr(found).startswith("Comparison(loihi2 (emulator) against reference: ")
    assert f"first difference at {found.first_divergence.node}, step {found.first_divergence.step}" in repr(found)
    assert "first difference" not in repr(nd.compare(reference, reference))


def test_a_report_prints_a_line_a_finding(results):
    graph, _, deployment, _, _ = results
    report = nd.check(graph, "speck2f")
    lines = str(report).splitlines()
    assert lines[0] == f"speck2f: 0 errors, {len(report.warnings)} warnings"
    assert lines[1:] == [f"warning: {found}" for found in report.findings]
    assert str(deployment.report) == "loihi2: no findings"


def test_neurons_show_numbers_that_all_share_and_else_the_shape():
    assert repr(IF(r=2.0)) == "IF(r=2, v_threshold=1, v_reset=0)"
    per_neuron = LIF(tau=0.01, r=10.0, v_threshold=torch.tensor([1.0, 2.0]), convention=nd.Convention(dt=1e-3))
    assert "tau=0.01" in repr(per_neuron)
    assert "v_threshold=(2,)" in repr(per_neuron)
