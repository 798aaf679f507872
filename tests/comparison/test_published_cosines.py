"""Cosines of mean rates that the NIR paper publishes of its platforms, through `Comparison.rate_cosine`."""

import itertools
import json

import numpy as np
import pytest
from nets import shared

import nirdeploy as nd
from nirdeploy.comparison.metrics import cosine

PLATFORMS = ("lava", "nengo", "norse", "s2", "snntorch")  # s2: a real SpiNNaker 2
KEY = "braille_cosine_noDelay_bias_zero"


def activity(name):
    """Published spikes of the Braille reader's recurrent layer, 256 steps of 38 neurons, one sample."""
    spikes = np.load(shared("reference", "braille", "activity_noDelay_bias_zero.npz"))[name]
    assert spikes.shape == (256, 38)
    assert spikes.sum() > 100
    record = nd.Record("lif1", "spikes", spikes, units="count", batched=False)
    return nd.Trajectory({("lif1", "spikes"): record}, target=name, executor="chip" if name == "s2" else "simulator")


@pytest.mark.parametrize(("a", "b"), list(itertools.combinations(PLATFORMS, 2)))
def test_published_cosine_of_two_platforms_is_reproduced(a, b):
    published = json.loads(shared("reference", "tables.json").read_text())[KEY]
    at = [published["names"].index(name) for name in (a, b)]
    first, second = activity(a), activity(b)
    for found in (nd.compare(first, second), nd.compare(second, first)):
        assert round(found.rate_cosine()["lif1"], 6) == published["matrix"][at[0]][at[1]]
    assert nd.compare(first, first).rate_cosine() == {"lif1": pytest.approx(1.0, abs=1e-15)}


def test_platforms_of_nearly_equal_rates_differ_in_their_spikes():
    # what the published table hides: a cosine of .9986, and 23 entries that differ
    found = nd.compare(activity("snntorch"), activity("norse"))
    assert round(found.rate_cosine()["lif1"], 4) == 0.9986
    assert found.per_node["lif1"].differing_entries == 23
    assert found.first_divergence is not None


# ---------------------------------------------------------------- the measure


def runs(*counts):
    """Trajectories of counts [step, batch, neuron] of a node n."""
    for values in counts:
        yield nd.Trajectory({("n", "spikes"): nd.Record("n", "spikes", np.asarray(values), units="count")})


def test_cosine_is_of_counts_of_each_neuron_and_sample():
    # sums over steps: [[1, 2], [0, 2]] and [[2, 0], [1, 2]]; 2 + 0 + 0 + 4 over 3 * 3
    a = [[[1, 0], [0, 1]], [[0, 2], [0, 1]]]
    b = [[[0, 0], [1, 2]], [[2, 0], [0, 0]]]
    assert nd.compare(*runs(a, b)).rate_cosine() == {"n": pytest.approx(6 / 9, rel=1e-15)}


def test_cosine_is_blind_to_time_and_scale():
    spikes = np.random.default_rng(0).integers(0, 2, (50, 2, 8))
    late, twice = np.roll(spikes, 7, axis=0), 2 * spikes
    for other in (late, twice):
        found = nd.compare(*runs(spikes, other))
        assert found.rate_cosine() == {"n": pytest.approx(1.0, abs=1e-15)}
        assert found.spike_agreement < 0.8


def test_cosine_of_silence():
    zeros, ones = np.zeros((4, 1, 3), int), np.ones((4, 1, 3), int)
    assert nd.compare(*runs(zeros, zeros)).rate_cosine() == {"n": 1.0}
    assert nd.compare(*runs(zeros, ones)).rate_cosine() == {"n": 0.0}


def test_long_records_are_summed_block_by_block():
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 3, (2, 40, 5, 3000))
    x, y = a.sum(0).ravel(), b.sum(0).ravel()
    expected = float(x @ y) / float(np.sqrt(float(x @ x) * float(y @ y)))
    assert nd.compare(*runs(a, b)).rate_cosine()["n"] == pytest.approx(expected, rel=1e-14)


def test_cosine_needs_two_arrays_of_one_shape():
    with pytest.raises(ValueError, match=r"a cosine of shapes \(2,\) and \(3,\)"):
        cosine(np.ones(2), np.ones(3))
