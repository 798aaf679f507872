"""What the linear stages of a connection compute: in float64, in integers, and as a sparse pattern."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import nir
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from nirdeploy import exact
from nirdeploy.errors import UnsupportedError
from nirdeploy_loihi.network import Connection, Stage

__all__ = ["MATRIX_LIMIT", "bias_of", "float_stage", "float_weight", "image", "image_kernel", "integer_apply"]

Floats = NDArray[np.float64]
MATRIX_LIMIT = 1 << 24  # entries of a composed matrix: 128 MB in float64
_CHUNK = 1 << 22  # values of an identity pushed through a chain at once


def bias_of(node: nir.NIRNode) -> Floats | None:
    """Bias of a weight node, one number an output; None where the type has none."""
    if (bias := getattr(node, "bias", None)) is None:
        return None
    return np.array(np.broadcast_to(np.asarray(bias, dtype=np.float64), (len(node.weight),)))


def float_stage(stage: Stage, node: nir.NIRNode, x: Floats, *, bias: bool) -> Floats:
    """One stage on [n, ...] in float64, with or without its bias.

    Zero padding counts towards the average of AvgPool2d, as in torch's default.
    """
    values = _tensor(x)
    options: Mapping[str, Any] = stage.options or {}
    if stage.kind == "reshape":
        out = values.reshape(len(x), *stage.shape)
    elif stage.kind == "scale":
        out = values * _tensor(np.broadcast_to(np.asarray(node.scale), stage.shape))
    elif stage.kind == "pool":
        out = _sum_pool(stage, values) * stage.factor
    else:
        weight = _tensor(node.weight)
        offset = bias_of(node) if bias else None
        added = None if offset is None else torch.from_numpy(offset)
        if stage.kind == "conv":
            out = functional.conv2d(values.reshape(len(x), *image(stage.given)), image_kernel(weight), added, **options)
            out = out.reshape(len(x), *stage.shape)
        else:
            out = functional.linear(values, weight, added)
    result: Floats = out.numpy()
    return result


def image(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A Conv1d's map (channel, x) as an image of height 1; an image as it is."""
    return (shape[0], 1, shape[1]) if len(shape) == 2 else shape


def image_kernel(weight: Any) -> Any:
    """A Conv1d's kernel [out, in, x] as one of height 1; a Conv2d's as it is."""
    return weight[:, :, None, :] if weight.ndim == 3 else weight


def _tensor(values: Any) -> torch.Tensor:
    # of another byte order, reversed or read-only arrays torch makes no tensor
    return torch.from_numpy(np.require(values, np.float64, ["C", "W"]))


def _sum_pool(stage: Stage, x: torch.Tensor) -> torch.Tensor:
    ones = torch.ones((stage.given[0], 1, *stage.kernel), dtype=x.dtype)
    options: Mapping[str, Any] = stage.options or {}
    return functional.conv2d(x, ones, groups=stage.given[0], **options)


def float_weight(graph: nir.NIRGraph, connection: Connection) -> Floats:
    """Weights of a connection, float64, before the neuron's input gain.

    Returns:
        The kernel in its node's own shape times the factors of the pools and scales around it (of a pool alone:
        [channel, 1, y, x]), or the composed matrix [target neurons, source neurons], built by pushing an identity
        through the chain.

    Raises:
        UnsupportedError: the composed matrix would have more than `MATRIX_LIMIT` entries.
    """
    if connection.kernel is not None:
        return _kept(graph, connection, connection.kernel)
    if connection.matrix_size > MATRIX_LIMIT:
        raise UnsupportedError(
            f"composing the path from {connection.source!r} takes {connection.matrix_size} weights, "
            f"more than {MATRIX_LIMIT}",
            node=connection.target,
            remedy="Put a population between the layers, or pool without overlap before the weights.",
        )
    size, out = int(np.prod(connection.source_shape)), int(np.prod(connection.target_shape))
    matrix = np.empty((out, size))
    # maps between the stages may be larger than both ends
    step = max(1, _CHUNK // max(size, out, *(int(np.prod(stage.shape)) for stage in connection.stages)))
    for first in range(0, size, step):
        last = min(first + step, size)
        unit = np.zeros((last - first, size))
        unit[np.arange(last - first), np.arange(first, last)] = 1.0
        x: Floats = unit.reshape(-1, *connection.source_shape)
        for stage in connection.stages:
            x = float_stage(stage, graph.nodes[stage.node], x, bias=False)
        matrix[:, first:last] = x.reshape(last - first, out).T
    return matrix


def _kept(graph: nir.NIRGraph, connection: Connection, kernel: Stage) -> Floats:
    if kernel.kind == "pool":
        weight = np.ones((kernel.given[0], 1, *kernel.kernel))
    else:
        weight = np.asarray(graph.nodes[kernel.node].weight, dtype=np.float64)
    weight = weight * connection.factor
    for stage in connection.stages:
        if stage.kind != "scale":
            continue
        values = np.asarray(graph.nodes[stage.node].scale, dtype=np.float64)
        # one number for all, or one an output: lowering keeps the kernel only then
        single = bool((values == values.flat[0]).all())
        rows = values.reshape(-1)[:1] if single else values.reshape(len(weight), -1)[:, 0]
        weight = weight * rows.reshape(-1, *[1] * (weight.ndim - 1))
    return weight


def integer_apply(connection: Connection, weight: NDArray[np.int64], x: NDArray[Any]) -> NDArray[np.int64]:
    """What a connection adds for spikes x [n, *source shape]: [n, *target shape], exact integers."""
    if connection.kernel is None:
        return exact.linear(x.reshape(len(x), -1), weight).reshape(len(x), *connection.target_shape)
    for stage in connection.stages:
        options: Mapping[str, Any] = stage.options or {}
        if stage is connection.kernel and stage.kind != "dense":
            groups = {"groups": stage.given[0]} if stage.kind == "pool" else {}
            x = exact.conv2d(x.reshape(len(x), *image(stage.given)), image_kernel(weight), **options, **groups)
            x = x.reshape(len(x), *stage.shape)
        elif stage.kind == "pool":
            x = exact.sum_pool2d(x, stage.kernel, **options)
        elif stage.kind == "dense":
            x = exact.linear(x.reshape(-1, stage.given[-1]), weight).reshape(len(x), *stage.shape)
        else:  # scales are inside the weights
            x = x.reshape(len(x), *stage.shape)
    return x.reshape(len(x), *connection.target_shape).astype(np.int64, copy=False)
