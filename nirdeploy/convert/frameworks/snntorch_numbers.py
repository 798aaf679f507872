"""Numbers of snnTorch's layers as NIR holds them: full arrays, and time constants that give back the decay exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nirdeploy.convert.arrays import one_a_neuron
from nirdeploy.errors import ConversionError
from nirdeploy.reference.convention import Convention
from nirdeploy.reference.dynamics import coefficients

__all__ = ["broadcast", "time_constant"]

_NEIGHBOURS = 8
_NO_LEAK = 2.0**54  # steps; 1 - 1 / this is 1 in double precision


def broadcast(value: Tensor, shape: tuple[int, ...], name: str, path: str) -> np.ndarray:
    """A parameter as one number a neuron, of a sample of this shape.

    Raises:
        ConversionError: a shape that does not fit, NaN or infinity.
    """
    tensor = torch.as_tensor(value).detach().cpu()
    double = tensor.dtype == torch.float64 and tensor.ndim > 0
    array = tensor.to(torch.float64 if double else torch.float32).numpy()
    if not np.isfinite(array).all():
        raise ConversionError(f"{name} holds NaN or infinity", node=path, remedy="Train or load it again.")
    spread = one_a_neuron(array, shape)
    if spread is None:
        raise ConversionError(
            f"{name} of shape {tuple(tensor.shape)} does not fit neurons of shape {shape}",
            node=path,
            remedy="Give it one value, or one a neuron.",
        )
    return spread


def time_constant(decay: np.ndarray, dt: float, decays: Callable[[np.ndarray], np.ndarray] | None = None) -> np.ndarray:
    """tau whose Euler decay 1 - dt / tau comes nearest to these decays in their own precision: tau = dt / (1 - decay).

    Rounding tau moves the decay; among the numbers next to tau there mostly is one that gives it back bit for bit
    (all from 0.75 on). Below 0.5 decays are finer than 1 - x can be, and differ by at most 2**-24 in float32. `decays`
    is how whoever reads tau computes them; None: as the reference does.
    """
    wanted, where = np.unique(decay, return_inverse=True)
    leaks = wanted < 1
    start = (dt / np.where(leaks, 1 - wanted.astype(np.float64), 1 / _NO_LEAK)).astype(decay.dtype)
    tried, up, down = [start], start, start
    for _ in range(_NEIGHBOURS):
        up, down = np.nextafter(up, np.inf, dtype=up.dtype), np.nextafter(down, 0, dtype=down.dtype)
        tried += [up, down]
    tau = np.stack(tried)
    found = _reference_decays(tau, dt) if decays is None else decays(tau)
    error = np.abs(found.astype(np.float64) - wanted)
    best = np.take_along_axis(tau, error.argmin(0)[None], 0)[0]
    result: np.ndarray = best[where.reshape(decay.shape)]
    return result


def _reference_decays(tau: np.ndarray, dt: float) -> np.ndarray:
    tensor = torch.from_numpy(tau)
    found: Any = coefficients("LIF", Convention(dt=dt), r=torch.ones_like(tensor), tau=tensor).decay
    result: np.ndarray = found.numpy()
    return result
