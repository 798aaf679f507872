"""Several trials: bands instead of single values; what lies inside them is no difference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nirdeploy as nd
from nirdeploy.comparison.bands import Band
from nirdeploy.errors import ComparisonError
from nirdeploy.trajectory import Record, Trajectory


def run(spikes: Any, v: Any = None, **fields: Any) -> Trajectory:
    records = {("a", "spikes"): Record("a", "spikes", np.asarray(spikes, dtype=np.int32)[:, None], units="count")}
    if v is not None:
        records["a", "v_mem"] = Record("a", "v_mem", np.asarray(v, dtype=np.float64)[:, None], threshold=2.0)
    return Trajectory(records, **fields)


def test_a_spike_that_comes_in_some_trials_is_no_difference():
    reference = run([[1, 0, 1], [0, 0, 1]])
    early, late = run([[1, 0, 0], [0, 0, 1]], target="x"), run([[1, 0, 1], [0, 0, 0]], target="x")
    assert nd.compare(reference, early).first_divergence is not None
    found = nd.compare(reference, [early, late])
    assert found.first_divergence is None
    assert found.equal
    assert found.spike_agreement == 1.0
    band = found.bands["a"]
    assert band.spikes_reference == Band(3, 3, 3)
    assert band.spikes_chip == Band(2, 2, 2)
    assert band.agreement == Band(0.8, 0.8, 0.8)  # 2 * 2 / (3 + 2)
    assert band.among_chip == Band(0.5, 0.5, 0.5)  # 2 * 1 / (2 + 2)
    assert band.among_reference is None
    assert "a over all trials: 80.00 % to 80.00 % agree; among the chip's 50.00 % to 50.00 %" in found.summary()
    assert "1 trial of the reference, 2 of the chip: what lies inside their bands counts as equal" in found.notes
    assert found.to_dict()["bands"]["a"]["agreement"] == {"lowest": 0.8, "mean": 0.8, "highest": 0.8}


def test_a_spike_that_no_trial_has_is_the_first_difference():
    reference = [run([[1, 0], [1, 0], [2, 1]]), run([[0, 0], [1, 0], [3, 1]])]
    chip = [run([[0, 0], [1, 1], [5, 1]], target="x"), run([[1, 0], [1, 1], [4, 0]], target="x")]
    found = nd.compare(reference, chip)
    first = found.first_divergence
    assert first is not None
    assert (first.neuron, first.step, first.expected, first.observed) == ((1,), 1, 0, 1)
    # neuron 0 of step 2: 2 or 3 against 5 or 4, nearest 3 and 4
    node = found.per_node["a"]
    assert (node.differing_entries, node.entries) == (2, 6)
    assert node.spikes is not None
    assert node.spikes.chip - node.spikes.reference == 1 + 1


def test_voltages_count_by_what_lies_outside_the_band():
    spikes = np.zeros((3, 1))
    reference = [run(spikes, [[1.0], [0.5], [0.0]]), run(spikes, [[1.2], [0.7], [0.0]])]
    chip = [run(spikes, [[1.1], [1.1], [-0.5]], target="x"), run(spikes, [[1.5], [0.9], [0.5]], target="x")]
    found = nd.compare(reference, chip).per_node["a"]
    assert found.v_mem_max_error == pytest.approx(0.2 / 2)  # 0.7 against 0.9, in thresholds
    assert found.variables["v_mem"].sums.differing == 1


def test_bands_of_trials_contain_what_random_trials_do():
    rng = np.random.default_rng(0)
    trials = [run(rng.random((50, 20)) < 0.2, target="x") for _ in range(4)]
    for k in range(4):
        assert nd.compare(trials[k], trials).equal  # it is one of them
    found = nd.compare(run(rng.random((50, 20)) < 0.2), trials)
    entries = np.stack([t["a", "spikes"].data for t in trials])
    mine = found.reference["a", "spikes"].data
    outside = (mine < entries.min(0)) | (mine > entries.max(0))
    assert found.per_node["a"].differing_entries == outside.sum() > 0


def test_trials_that_do_not_fit_are_listed_and_none_are_refused():
    a = np.zeros((4, 2))
    found = nd.compare(run(a, a), [run(a, a, target="x"), run(a, target="x")])
    assert [tuple(e) for e in found.unaligned] == [("a", "v_mem", "trial 1 is not recorded as trial 0 is")]
    with pytest.raises(ComparisonError, match="nothing can be compared: .*trial 1 is not recorded as trial 0 is"):
        nd.compare(run(a), [run(a), run(a[:2])])
    with pytest.raises(ComparisonError, match="no trial is given"):
        nd.compare(run(a), [])
    with pytest.raises(ComparisonError, match="compare takes two trajectories, got int"):
        nd.compare(run(a), [run(a), 3])  # type: ignore[list-item]
