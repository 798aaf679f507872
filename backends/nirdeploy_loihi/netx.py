"""lava-dl's HDF5 networks (`.net`), read as Lava 0.10 netx runs them.

A file holds a sequence of layers under `layer/0`, `layer/1`, ...; here `input`, `dense`, `conv` and `flatten`.
The file's images are [channel, height, width] and its kernels [out, in, height, width] for correlation, which
are NIR's own (netx reverses both for Lava's x, y, channel ports); Lava's traces are [step, x, y, channel].
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from nirdeploy import files
from nirdeploy.errors import FileError, TargetError
from nirdeploy.pipeline import Deployment
from nirdeploy.target import Target

__all__ = ["read"]


def read(path: str | Path, *, target: str | Target = "loihi2") -> Deployment:
    """A lava-dl network as a deployment with the file's own integers.

    Nodes are '<group>.synapse', '<group>.neuron' and '<group>.flatten', `<group>` being the layer's group
    name, with 'input' and 'output'. The graph's Euler equations with dt = 1 ms are the register equations, one
    weight integer being one model unit of v: tau = 4096 dt / decay, and a decay of 0 is written as
    tau = 2**40 dt, whose loss is below any integer. decay_u = 4096 gives LIF, with decay_v = 0 IF, else
    CubaLIF.

    Args:
        path: the `.net` file.
        target: 'loihi1' or 'loihi2'.

    Raises:
        FileError: not HDF5, damaged, or shapes that disagree; naming the layer.
        UnsupportedError: a layer or neuron type, or an option, outside this version; naming the layer.
        QuantizationError: integers that no register holds or that Lava would change; naming layer, value and
            limit.
        PlacementError: a layer that fits no cores.
    """
    from nirdeploy.rules import Report
    from nirdeploy_loihi import BACKEND
    from nirdeploy_loihi.netx_layers import network_of

    known = BACKEND.targets()
    chip = target if isinstance(target, Target) else known.get(target)
    if chip is None:
        raise TargetError(f"unknown target {target!r}", remedy=f"Known: {', '.join(known)}.")
    # everything is read before anything is judged: errors of ours must not look like damage of the file
    with files.open_hdf5(path, "a lava-dl network") as file:
        if not isinstance(file.get("layer"), h5py.Group):
            raise FileError(f"{str(path)!r} is HDF5 but has no group 'layer', expected a lava-dl network")
        layers = {name: _plain(item) for name, item in file["layer"].items()}
    names = sorted(layers, key=lambda name: (len(name), name))
    if names != [str(i) for i in range(len(names))] or not names:
        raise FileError(f"{str(path)!r} has layer groups {names}, expected '0', '1', ... without gaps")
    for name in names:
        if not isinstance(layers[name], Mapping):
            raise FileError(f"{str(path)!r}: layer/{name} is a dataset, expected a group")
    quantized, found = network_of([layers[name] for name in names], chip)
    return Deployment(Report(chip.name, tuple(found)), quantized, BACKEND.place(quantized))


def _plain(item: Any) -> Any:
    if isinstance(item, h5py.Group):
        return {name: _plain(child) for name, child in item.items()}
    value = item[()]
    if isinstance(value, bytes | str):
        return files.text_of(value)
    array = np.asarray(value)
    if array.dtype.kind in "SO" and array.size == 1:
        return files.text_of(array.reshape(-1)[0])
    return array
