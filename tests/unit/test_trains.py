"""Matches in a window and spike-train distances, against numbers counted by hand and a slow second definition."""

import importlib.util

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nirdeploy as nd
from nirdeploy.errors import ComparisonError, UnavailableError


def compared(reference, chip):
    """[step, neuron] counts of node 'n' on both sides."""
    runs = []
    for executor, counts in (("reference", reference), ("emulator", chip)):
        record = nd.Record("n", "spikes", np.asarray(counts), units="count", batched=False)
        runs.append(nd.Trajectory({("n", "spikes"): record}, target=executor, executor=executor))
    return nd.compare(*runs)


def train(steps, length=20):
    counts = np.zeros((length, 1), int)
    for step in steps:
        counts[step, 0] += 1
    return counts


@pytest.mark.parametrize(("window", "matched"), [(0, 1), (1, 2), (2, 2), (5, 3)])
def test_spikes_find_partners_within_the_window(window, matched):
    found = compared(train([1, 5, 9]), train([2, 5, 14])).window_match(window)["n"]
    assert (found.matched, found.reference, found.chip) == (matched, 3, 3)
    assert found.precision == found.recall == matched / 3


def test_each_spike_has_one_partner_and_counts_count():
    found = compared(train([4, 4, 4]), train([5])).window_match(3)["n"]
    assert (found.matched, found.precision, found.recall) == (1, 1.0, 1 / 3)


def most_pairs(a, b, window):
    """The most pairs there can be, by trying every choice."""
    if not a or not b:
        return 0
    best = most_pairs(a[1:], b, window)
    for i, other in enumerate(b):
        if abs(a[0] - other) <= window:
            best = max(best, 1 + most_pairs(a[1:], b[:i] + b[i + 1 :], window))
    return best


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 12), max_size=5), st.lists(st.integers(0, 12), max_size=5), st.integers(0, 4))
def test_there_are_as_many_pairs_as_there_can_be(a, b, window):
    found = compared(train([0, *a], 13), train([0, *b], 13)).window_match(window)["n"]
    assert found.matched == most_pairs(sorted([0, *a]), sorted([0, *b]), window)


def test_distances_are_those_of_their_definitions():
    found = compared(train([1, 5, 9]), train([2, 5])).distances(cost=0.5, tau=2.0)["n"]
    # 1 is moved by a step for 0.5, 9 removed for 1
    assert found.victor_purpura.tolist() == [[pytest.approx(1.5, abs=1e-12)]]
    a, b = np.array([1, 5, 9.0]), np.array([2, 5.0])

    def overlap(x, y):
        return np.exp(-np.abs(x[:, None] - y[None, :]) / 2.0).sum()

    expected = np.sqrt(overlap(a, a) + overlap(b, b) - 2 * overlap(a, b))
    assert found.van_rossum[0, 0] == pytest.approx(expected, rel=1e-9)


def test_equal_trains_are_at_distance_zero():
    found = compared(train([3, 7]), train([3, 7])).distances(cost=1.0, tau=1.0)["n"]
    assert found.victor_purpura.tolist() == found.van_rossum.tolist() == [[0.0]]


def test_bad_windows_costs_and_nodes_are_refused():
    both = compared(train([3]), train([4]))
    with pytest.raises(ComparisonError, match="window is -1, expected a whole number of steps from 0 on"):
        both.window_match(-1)
    with pytest.raises(ComparisonError, match=r"tau is 0\.0, expected a number above 0"):
        both.distances(cost=1.0, tau=0.0)
    with pytest.raises(ComparisonError, match="node 'm': its spikes are not compared"):
        both.distances(cost=1.0, tau=1.0, nodes=["m"])


def test_without_elephant_the_extra_is_named(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "elephant" else find(n, *a))
    with pytest.raises(UnavailableError, match=r"pip install 'nirdeploy\[metrics\]'"):
        compared(train([3]), train([4])).distances(cost=1.0, tau=1.0)


def test_matches_of_all_nodes_add_up():
    from nirdeploy.comparison.trains import WindowMatch

    assert WindowMatch(1, 3, 4, 5) + WindowMatch(1, 1, 1, 5) == WindowMatch(1, 4, 5, 10)
    with pytest.raises(ValueError, match="windows of 1 and 2 steps"):
        WindowMatch(1, 0, 0, 0) + WindowMatch(2, 0, 0, 0)
