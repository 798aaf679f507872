"""Numbers of torch modules as the arrays that nodes hold."""

from __future__ import annotations

import numpy as np
import torch

__all__ = ["array_of", "one_a_neuron"]


def array_of(tensor: torch.Tensor) -> np.ndarray:
    """A copy as an array, in the tensor's own type; half precision, which numpy and files lack, in float32."""
    detached = tensor.detach().cpu()
    half = detached.dtype in (torch.bfloat16, torch.float16)
    return np.array((detached.float() if half else detached).numpy(), copy=True)


def one_a_neuron(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """A copy with a number for each neuron of a sample, without a batch's leading axes of 1; None: it does not fit."""
    while array.ndim > len(shape) and array.shape[0] == 1:
        array = array[0]
    try:
        return np.array(np.broadcast_to(array, shape), copy=True)
    except ValueError:
        return None
