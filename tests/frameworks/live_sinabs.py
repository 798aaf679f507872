"""sinabs's layers, converted and run, against sinabs; runs in its environment."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from frameworks.nets_sinabs import Drawn, check, fill, networks, reset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FEW = settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
MANY = settings(FEW, max_examples=50)


@FEW
@given(networks())
def test_networks_give_sinabs_own_spikes(drawn):
    check(drawn)


@pytest.mark.long
@MANY
@given(networks())
def test_many_networks_give_sinabs_own_spikes(drawn):
    check(drawn)


@pytest.mark.parametrize("family", ["IAF", "LIF", "ExpLeak"])
@FEW
@given(data=st.data())
def test_each_family_gives_sinabs_own_spikes(family, data):
    check(data.draw(networks(family, recurrent=False)))


@pytest.mark.parametrize("family", ["IAF", "LIF"])
@FEW
@given(data=st.data())
def test_each_recurrent_family_gives_sinabs_own_spikes(family, data):
    check(data.draw(networks(family, recurrent=True, kind=data.draw(st.sampled_from(["dense", "repeated"])))))
