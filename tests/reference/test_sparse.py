"""Layers trained from their events, and the events of a raster: held against torch and numpy."""

import numpy as np
import pytest
import torch
from torch import nn

from nirdeploy.reference.memory import lend
from nirdeploy.reference.sparse import from_raster
from nirdeploy.reference.sparse_kernels import BLOCK, CHUNK
from nirdeploy.reference.training import sparse_linear

# steps, batch, sources, neurons: where vectors, blocks and chunks of rows begin and end
SHAPES = (
    (1, 1, 1, 1),
    (1, 2, 3, 15),
    (3, 1, 5, 16),
    (2, 3, 17, 17),
    (5, 2, 9, BLOCK - 1),
    (4, 4, 33, BLOCK),
    (4, 4, 33, BLOCK + 1),
    (3, 2, 7, 2 * BLOCK + 20),
    (CHUNK, 1, 6, 10),
    (CHUNK // 2, 2, 6, BLOCK + 16),
    (CHUNK + 1, 1, 6, 33),
    (90, 7, 40, 70),
)


def spikes(rng, shape, most):
    return torch.from_numpy(((rng.random(shape) < 0.2) * rng.integers(1, most + 1, shape)).astype(np.float64))


@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_layer_trained_from_events_is_that_of_torch(shape, dtype, most):
    steps, batch, sources, neurons = shape
    rng = np.random.default_rng(neurons)
    x = spikes(rng, (steps, batch, sources), most).to(dtype)
    x[0, 0, 0], x[-1, -1, -1] = most, most
    upstream = torch.from_numpy(rng.standard_normal((steps, batch, neurons))).to(dtype)
    for bias in (True, False):
        layer = nn.Linear(sources, neurons, bias=bias, dtype=dtype)
        rows = from_raster(x.numpy(), np.empty(0, x.numpy().dtype))
        found = []
        for run in (lambda x, layer=layer, rows=rows: sparse_linear(layer, x, rows), layer):
            layer.zero_grad()
            own = x.clone().requires_grad_()
            out = run(own)
            (out * upstream).sum().backward()
            found.append([out.detach(), own.grad, *(p.grad.clone() for p in layer.parameters())])
        bound = 1e-12 if dtype == torch.float64 else 3e-6
        for a, b in zip(*found, strict=True):
            assert a.shape == b.shape
            assert float((a - b).abs().max()) <= bound * max(1.0, float(b.abs().max()))


def test_a_layer_without_a_single_event_emits_its_bias():
    layer, x = nn.Linear(4, 20), torch.zeros(3, 2, 4)
    rows = from_raster(x.numpy(), np.empty(0, np.float32))
    out = sparse_linear(layer, x, rows)
    assert torch.equal(out, layer.bias.expand(3, 2, 20))
    out.sum().backward()
    assert not layer.weight.grad.any()
    assert torch.equal(layer.bias.grad, torch.full((20,), 6.0))


def test_gradients_that_are_not_frozen_are_gradients_of_what_was_asked():
    """Only some of input, weight and bias."""
    x = spikes(np.random.default_rng(0), (6, 3, 9), 1).float()
    rows = from_raster(x.numpy(), np.empty(0, np.float32))
    for wanted in ((True, False, False), (False, True, False), (False, False, True), (True, False, True)):
        found = []
        for sparse in (True, False):
            torch.manual_seed(0)
            layer, own = nn.Linear(9, 5), x.clone().requires_grad_(wanted[0])
            layer.weight.requires_grad_(wanted[1])
            layer.bias.requires_grad_(wanted[2])
            out = sparse_linear(layer, own, rows) if sparse else layer(own)
            (out**2).sum().backward()
            found.append([own.grad, layer.weight.grad, layer.bias.grad])
        for a, b, asked in zip(*found, wanted, strict=True):
            assert (a is None) == (b is None) == (not asked)
            assert not asked or torch.allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 63, 64, 65, 130, 1000])
def test_events_of_a_raster_are_what_numpy_finds(size, kind):
    rng = np.random.default_rng(size)
    for density in (0.0, 0.05, 0.5, 1.0):
        raster = np.where(rng.random((5, 4, size)) < density, rng.random((5, 4, size)) + 1, 0).astype(kind)
        raster[0, 0, 0], raster[-1, -1, -1], raster[2, 1, size // 2] = -0.0, np.nan, -1.5
        rows = from_raster(raster, np.empty(0, kind))
        by_sample = raster.transpose(1, 0, 2).reshape(-1, size)
        row, address = np.nonzero(by_sample)
        np.testing.assert_array_equal(rows.index, address)
        np.testing.assert_array_equal(rows.value, by_sample[row, address])
        np.testing.assert_array_equal(np.diff(rows.pointer), np.bincount(row, minlength=20))
        assert rows.pointer[0] == 0


def test_a_raster_of_too_many_events_is_given_up():
    raster = np.zeros((10, 3, 20), np.float32)
    raster.reshape(-1)[::4] = 1  # a quarter
    like = np.empty(0, np.float32)
    assert from_raster(raster, like, 0.25).density == 0.25
    assert from_raster(raster, like, 0.2499) is None
    raster[0, 0, 1] = 1
    assert from_raster(raster, like, 0.25) is None
    assert from_raster(raster.astype(np.int32), like, 0.25) is None


def test_lent_memory_comes_back_when_the_last_view_is_gone():
    shape = (1 << 19,)
    first = lend(shape, np.float32)
    first[:] = 7
    view = torch.from_numpy(first)[3:]
    place = first.__array_interface__["data"][0]
    del first
    other = lend(shape, np.float32)
    assert other.__array_interface__["data"][0] != place
    assert float(view[0]) == 7.0
    del view
    assert lend(shape, np.float32).__array_interface__["data"][0] == place
