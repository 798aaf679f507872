"""lava-dl's HDF5 networks (`.net`), read as Lava 0.10 netx runs them, and written for it.

A file holds a sequence of layers under `layer/0`, `layer/1`, ...; here `input`, `dense`, `dense_rec`, `conv` and
`flatten`.
The file's images are [channel, height, width] and its kernels [out, in, height, width] for correlation, which
are NIR's own (netx reverses both for Lava's x, y, channel ports); Lava's traces are [step, x, y, channel].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from nirdeploy import files
from nirdeploy.errors import FileError, TargetError, UnsupportedError
from nirdeploy.pipeline import Deployment
from nirdeploy.placement import Placement
from nirdeploy.quantization import Quantized
from nirdeploy.rules import Finding
from nirdeploy.target import Target

__all__ = ["derived_files", "read", "read_quantized", "write"]


def read(
    path: str | Path, *, target: str | Target = "loihi2", num_layers: int | None = None, skip_layers: int = 0
) -> Deployment:
    """A lava-dl network as a deployment with the file's own integers.

    Nodes are '<group>.synapse', '<group>.neuron' and '<group>.flatten', `<group>` being the layer's group
    name, with 'input' and 'output'; '<group>.delay' before the synapse where delays belong to its inputs, else
    behind it; '<group>.recurrent' from the neurons back to them. The graph's Euler equations with dt = 1 ms are the
    register equations, one weight integer being one model unit of v: tau = 4096 dt / decay, and a decay of 0 is
    written as tau = 2**40 dt, whose loss is below any integer. decay_u = 4096 gives LIF, with decay_v = 0 IF, else
    CubaLIF. A delay of d steps is d dt.

    Args:
        path: the `.net` file.
        target: 'loihi1' or 'loihi2'.
        num_layers: reads groups '0' to num_layers - 1 alone, as netx's option; None: all.
        skip_layers: groups at the front that are left out, as netx's option: the Input is what they would send.

    Raises:
        FileError: not HDF5, damaged, or shapes that disagree; naming the layer.
        UnsupportedError: a layer or neuron type or an option that has no counterpart on the chip or in NIR, or that
            netx gets wrong; naming the layer.
        QuantizationError: integers that no register holds or that Lava would change; naming layer, value and
            limit.
        PlacementError: a layer that fits no cores.
    """
    from nirdeploy.rules import Report
    from nirdeploy_loihi import BACKEND

    quantized, found = read_quantized(path, target=target, num_layers=num_layers, skip_layers=skip_layers)
    return Deployment(Report(quantized.target.name, tuple(found)), quantized, BACKEND.place(quantized))


def read_quantized(
    path: str | Path, *, target: str | Target = "loihi2", num_layers: int | None = None, skip_layers: int = 0
) -> tuple[Quantized, list[Finding]]:
    """As `read`, without placing the network: its integers, and what is worth a warning.

    Raises:
        FileError, UnsupportedError, QuantizationError: as `read`.
        PlacementError: a layer has more neurons than the chip.
    """
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
    last = _last_layer(len(names), num_layers, skip_layers)
    return network_of([layers[name] for name in names[:last]], chip, skip_layers)


def write(deployment: Deployment, path: str | Path) -> None:
    """Write a deployment on Loihi as a lava-dl network that netx runs spike by spike as the chip would.

    Layers are numbered in the order of the network; of the Input and the Output a shape of three axes is kept, any
    other is written flat.

    Args:
        deployment: on a Loihi target.
        path: the `.net` file.

    Raises:
        TargetError: a deployment on another chip.
        UnsupportedError: what the format cannot hold or netx would change, naming node, value and remedy.
        FileError: the file cannot be written.
    """
    from nirdeploy_loihi.lower_program import program_of
    from nirdeploy_loihi.netx_write import write_program

    if deployment.target.backend != "loihi":
        raise TargetError(f"a deployment on {deployment.target.name}, lava-dl's files are for Loihi")
    write_program(program_of(deployment.quantized, deployment.placement), path)


def derived_files(quantized: Quantized, placement: Placement) -> dict[str, Callable[[Path], None]]:
    """What a deployment folder holds beside `deployment.h5` and `chip.json`: 'net.net' and its writer.

    See `nirdeploy.backend.derived_files`.
    """

    def put(path: Path) -> None:
        from nirdeploy_loihi.lower_program import program_of
        from nirdeploy_loihi.netx_write import layers_of, store

        store(layers_of(program_of(quantized, placement)), path)

    return {"net.net": put}


def _last_layer(count: int, num_layers: int | None, skip_layers: int) -> int:
    last = count if num_layers is None else num_layers
    for name, value in (("num_layers", last), ("skip_layers", skip_layers)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise UnsupportedError(f"{name} is {value!r}, expected a whole number")
    if not 0 <= skip_layers < last <= count:
        raise UnsupportedError(
            f"num_layers is {last} and skip_layers {skip_layers}; the file has {count} layers",
            remedy="Leave at least one layer.",
        )
    return last


def _plain(item: Any) -> Any:
    if isinstance(item, h5py.Group):
        return {name: _plain(child) for name, child in item.items()}
    value = item[()]
    if isinstance(value, h5py.Empty):
        return None  # what reads a field then says that it has no numbers or no text
    if isinstance(value, bytes | str):
        return files.text_of(value)
    array = np.asarray(value)
    if array.dtype.kind in "SO" and array.size == 1:
        return files.text_of(array.reshape(-1)[0])
    return array
