"""Loihi's probes show refractory steps instead of v: those entries are left out of a comparison, the rest is not."""

import numpy as np
import pytest

import nirdeploy as nd
from nirdeploy.comparison.views import hidden
from nirdeploy.errors import ComparisonError
from nirdeploy.trajectory import REFRACTORY_VIEW


def run(executor, v, spikes, lag=0, view=None, scale=1.0, threshold=1600):
    records = {
        ("n", "v_mem"): nd.Record(
            "n", "v_mem", np.array(v)[:, None], scale=scale, lag=lag, view=view, threshold=threshold, batched=False
        ),
        ("n", "spikes"): nd.Record("n", "spikes", np.array(spikes)[:, None], units="count", lag=lag, batched=False),
    }
    return nd.Trajectory(records, target="loihi2", executor=executor)


REGISTERS = run("emulator", [640, 1280, 0, 0, 0, 640], [0, 0, 1, 0, 0, 0])
CHIP = ([640, 1280, 384, 256, 128, 640], [0, 0, 1, 0, 0, 0])


def test_entries_that_count_refractory_steps_down_are_hidden():
    v, spikes = (np.array(values)[:, None] for values in CHIP)
    assert hidden(v, spikes)[:, 0].tolist() == [False, False, True, True, True, False]
    # 128 without a spike is a voltage
    assert not hidden(np.array([[128]]), np.array([[0]])).any()


def test_hidden_entries_are_left_out_and_told():
    found = nd.compare(REGISTERS, run("chip", *CHIP, view=REFRACTORY_VIEW))
    assert found.equal
    assert found.notes == ("n v_mem: 3 entries that the chip's read-out hides (refractory_128) are left out",)


def test_other_entries_are_compared_at_their_lag_and_scale():
    late = [0, *CHIP[0][:-1]], [0, *CHIP[1][:-1]]
    chip = run("chip", *late, lag=1, view=REFRACTORY_VIEW)
    assert nd.compare(REGISTERS, chip).per_node["n"].v_mem_max_error == 0
    late[0][2] += 16
    worse = nd.compare(REGISTERS, run("chip", *late, lag=1, view=REFRACTORY_VIEW))
    assert worse.per_node["n"].v_mem_max_error == 16 / 1600
    assert "16" not in worse.notes[0]


def test_either_side_may_be_the_chip():
    chip = run("chip", *CHIP, view=REFRACTORY_VIEW)
    assert nd.compare(chip, REGISTERS).per_node["n"].v_mem_max_error == 0


def test_without_spikes_nothing_tells_what_is_hidden():
    chip = run("chip", *CHIP, view=REFRACTORY_VIEW)
    alone = nd.Trajectory({("n", "v_mem"): chip["n", "v_mem"]}, target="loihi2", executor="chip")
    with pytest.raises(ComparisonError, match="hidden by the read-out view 'refractory_128'"):
        nd.compare(REGISTERS, alone)
