"""What the tests of quantisation-aware training share, whatever the target."""

import numpy as np
import pytest
import torch

from nirdeploy.errors import NirdeployError


def train(aware, data, steps=5, rate=0.03, seed=0):
    """A few steps towards random output counts."""
    torch.manual_seed(seed)
    optimiser = torch.optim.Adam([p for p in aware.parameters() if p.requires_grad], lr=rate)
    x = torch.tensor(data, dtype=torch.float32)
    wanted = None
    for _ in range(steps):
        counts = aware.sequence(x)[0].sum(0)
        wanted = torch.rand_like(counts) * len(data) if wanted is None else wanted
        optimiser.zero_grad()
        ((counts - wanted) ** 2).mean().backward()
        optimiser.step()


def parameters_of(aware):
    """Floats behind the integers, by node and field."""
    return {
        (node, field): getattr(aware.network.get((node,)), field).detach().numpy().astype(np.float64)
        for node, own in aware.grid.trained.items()
        for field in own
    }


def nearest(value, grid):
    """NumPy's rounding of floats to a grid's integers: halves to even, clipped."""
    counts = np.rint(value / grid.step / grid.every)
    return np.clip(counts, grid.lowest // grid.every, grid.highest // grid.every) * grid.every


def refused(call, error, words, node=None):
    """Assert that a call is refused, by class, words and node."""
    with pytest.raises(error, match=words) as caught:
        call()
    assert isinstance(caught.value, NirdeployError)
    assert node is None or caught.value.node == node
