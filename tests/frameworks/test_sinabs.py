"""sinabs's tests, in an interpreter that holds it."""

import pytest
from live_libraries import run_block, run_live


def test_networks_give_its_own_spikes():
    run_live("sinabs", "-m", "not long")


@pytest.mark.long
@pytest.mark.timeout(1600)
def test_many_networks_give_its_own_spikes():
    run_live("sinabs")


def test_the_guides_block_prints_what_it_says(tmp_path):
    run_block("sinabs", tmp_path)
