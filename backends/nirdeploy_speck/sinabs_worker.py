"""Runs the integers of cores through sinabs's own layers; a script of its own for an interpreter that has sinabs.

    python sinabs_worker.py FOLDER

Imports numpy, h5py, torch and sinabs, nothing of nirdeploy. FOLDER holds

- `job.json`: `{"format": 1, "networks": [{"entry": [destination], "cores": [core]}]}` with
  destination `{"core": position, "pooling": side, "feature_shift": channels}` and core `{"stride", "padding": [y, x],
  "input_shape": [channel, y, x], "threshold", "v_min": int, "subtract", "many": bool, "destinations": [destination],
  "keep": some of "spikes", "v_mem"}`; cores in an order in which events only go forward;
- `input.h5`: `networks/<n>/raster` [step, batch, channel, y, x], `networks/<n>/cores/<k>/weight` [out, in, y, x] and,
  where there is one, `bias` [out]; all integers.

Writes `trajectory.h5`, under a temporary name first: attributes `format`, `sinabs`, `torch`, `samna` ('real' or
'stand-in'), and `networks/<n>/cores/<k>/spikes` and `v_mem` [step, batch, channel, y, x], integers.

What a core computes is sinabs's DynapcnnLayer: torch's convolution, IAFSqueeze, sum pooling. Events go between cores as
in DynapcnnNetwork, by `Merge` where several sources name one core, and to the channels from `feature_shift` on, which
sinabs does not have.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import threading
import types
from pathlib import Path
from typing import Any

FORMAT = 1
_EXACT = 1 << 24  # from here on 32-bit floats skip integers
_BLOCK = 1 << 24  # neurons times steps held at once


# ---------------------------------------------------------------- samna


class Plain:
    """A bag of attributes."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


class SpeckConfiguration:
    """Nine cores and a sensor layer, as sinabs fills them; it checks nothing."""

    def __init__(self) -> None:
        self.cnn_layers = [
            Plain(dimensions=None, monitor_enable=False, destinations=self._destinations()) for _ in range(9)
        ]
        corners = {name: Plain(x=0, y=0) for name in ("mirror", "cut", "origin", "pooling")}
        self.dvs_layer = Plain(destinations=self._destinations(), **corners)

    @staticmethod
    def _destinations() -> list[Plain]:
        return [Plain(enable=False, layer=0, pooling=1) for _ in range(2)]


def provide_samna() -> str:
    """Let `import samna` work: 'real' where it is there, else 'stand-in' for the names that sinabs imports.

    The samna of PyPI is an installer that runs pip when imported (its `__init__.py` contains PYPI_SAMNA); it is not
    imported.
    """
    spec = importlib.util.find_spec("samna")
    origin = None if spec is None or spec.origin is None else Path(spec.origin)
    if origin is not None and origin.is_file() and b"PYPI_SAMNA" not in origin.read_bytes():
        return "real"
    samna = types.ModuleType("samna")
    modules: dict[str, types.ModuleType] = {"samna": samna, "samnagui": types.ModuleType("samnagui")}
    for chip in ("speck2e", "speck2f"):
        package, configuration = types.ModuleType(f"samna.{chip}"), types.ModuleType(f"samna.{chip}.configuration")
        configuration.__dict__["SpeckConfiguration"] = SpeckConfiguration
        package.__dict__.update(
            __path__=[],
            configuration=configuration,
            event=Plain(Spike=Plain, WriteNeuronValue=Plain),
            validate_configuration=lambda _configuration: (True, ""),
        )
        samna.__dict__[chip] = package
        modules.update({package.__name__: package, configuration.__name__: configuration})
    samna.__dict__.update(
        __path__=[],
        device=Plain(DeviceInfo=object, get_all_devices=list, open_device=None),
        graph=Plain(EventFilterGraph=object, sequential=None),
    )
    sys.modules.update(modules)
    return "stand-in"


# ---------------------------------------------------------------- networks


class InexactError(Exception):
    """What sinabs's 32-bit floats cannot hold."""


def build_layer(core: dict[str, Any], weight: Any, bias: Any, batch: int) -> Any:
    """A DynapcnnLayer with the integers of one core; nothing is quantised again."""
    import sinabs.layers as sl
    import torch
    from sinabs.activation import MembraneReset, MembraneSubtract, MultiSpike, SingleSpike
    from sinabs.backend.dynapcnn import DynapcnnLayer

    out, inputs, *kernel = weight.shape
    conv = torch.nn.Conv2d(inputs, out, kernel, core["stride"], core["padding"], bias=bias is not None)
    conv.weight.data = torch.tensor(weight, dtype=torch.float32)
    if conv.bias is not None:
        conv.bias.data = torch.tensor(bias, dtype=torch.float32)
    neurons = sl.IAFSqueeze(
        batch_size=batch,
        spike_threshold=torch.tensor(float(core["threshold"])),
        min_v_mem=float(core["v_min"]),
        spike_fn=MultiSpike if core["many"] else SingleSpike,
        reset_fn=MembraneSubtract() if core["subtract"] else MembraneReset(),
        record_states=True,
    )
    pools = [(to["pooling"], to["pooling"]) for to in core["destinations"]] or [(1, 1)]
    return DynapcnnLayer(conv, neurons, tuple(core["input_shape"]), pools, discretize=False)


class Network:
    """All cores of one network, stateful: every call goes on where the one before ended."""

    def __init__(self, job: dict[str, Any], arrays: Any, batch: int) -> None:
        from sinabs.backend.dynapcnn.dynapcnn_layer import sum_pool2d
        from sinabs.layers import Merge

        self.cores, self.entry, self.batch = job["cores"], job["entry"], batch
        self.merge, self.sum_pool2d = Merge(), sum_pool2d
        self.layers, self.largest = [], []
        for k, core in enumerate(self.cores):
            group = arrays[f"cores/{k}"]
            weight = group["weight"][...]
            bias = group["bias"][...] if "bias" in group else None
            self.layers.append(build_layer(core, weight, bias, batch))
            self.largest.append(0.0)

    def __call__(self, raster: Any) -> list[tuple[Any, Any]]:
        """Spikes and v_mem [batch, step, channel, y, x] of every core for steps [batch * step, channel, y, x]."""
        arriving: list[Any] = [None] * len(self.cores)
        for to in self.entry:
            side = to["pooling"]
            self._send(arriving, to, raster if side == 1 else self.sum_pool2d(raster, kernel_size=side))
        found = []
        for k, (core, layer) in enumerate(zip(self.cores, self.layers, strict=True)):
            x = arriving[k]
            if x is None:
                x = raster.new_zeros((raster.shape[0], *core["input_shape"]))
            spikes: list[Any] = []
            hook = layer.spk_layer.register_forward_hook(lambda _m, _i, out, into=spikes: into.append(out))
            sent = layer(x)
            hook.remove()
            v_mem = layer.spk_layer.recordings["v_mem"]
            self._require_exact(k, x, v_mem)
            found.append((spikes[0].reshape(v_mem.shape), v_mem))
            arriving[k] = None  # let go of it
            if core["destinations"]:
                for to, out in zip(core["destinations"], sent if isinstance(sent, tuple) else (sent,), strict=True):
                    self._send(arriving, to, out)
        return found

    def _send(self, arriving: list[Any], to: dict[str, int], events: Any) -> None:
        import torch

        target = self.cores[to["core"]]["input_shape"]
        before = to["feature_shift"]
        behind = target[0] - before - events.shape[1]
        if behind < 0 or list(events.shape[2:]) != list(target[1:]):
            raise ValueError(f"events {tuple(events.shape[1:])} shifted by {before} reach a core of {tuple(target)}")
        wide = torch.nn.functional.pad(events, (0, 0, 0, 0, before, behind)) if before or behind else events
        known = arriving[to["core"]]
        arriving[to["core"]] = wide if known is None else self.merge(known, wide)

    def _require_exact(self, k: int, x: Any, v_mem: Any) -> None:
        """Refuse what 32-bit floats may have rounded: no partial sum of a step is larger than what is told here."""
        import torch

        layer = self.layers[k]
        weight, bias = layer.conv_layer.weight.abs().double(), layer.conv_layer.bias
        offset = 0.0 if bias is None else float(bias.abs().max())
        state = max(self.largest[k], float(v_mem.abs().max()))
        self.largest[k] = float(v_mem[:, -1].abs().max())
        most = float(x.max()) * float(weight.sum((1, 2, 3)).max()) + offset + state
        if most >= _EXACT:  # too careful a guess: every input at its largest
            options = {"stride": layer.conv_layer.stride, "padding": layer.conv_layer.padding}
            most = float(torch.nn.functional.conv2d(x.double(), weight, **options).max()) + offset + state
            most = max(most, float(x.max()))
        if most >= _EXACT:
            raise InexactError(f"core {k}: a sum can reach {most:.0f}; sinabs's 32-bit floats are exact below {_EXACT}")


def integers(values: Any) -> Any:
    """A tensor as int32; refuses fractions."""
    import numpy as np

    array = values.detach().numpy()
    rounded = np.rint(array)
    if not np.array_equal(array, rounded):
        raise InexactError("sinabs returned a value that is no integer")
    return rounded.astype(np.int32)


def run_network(job: dict[str, Any], arrays: Any, out: Any) -> None:
    """Run one network over its raster, a block of steps at a time, into a group of `trajectory.h5`."""
    import numpy as np
    import torch

    raster = arrays["raster"]
    steps, batch = raster.shape[:2]
    network = Network(job, arrays, batch)
    shapes = [layer.get_neuron_shape() for layer in network.layers]
    datasets = [
        {name: out.create_dataset(f"cores/{k}/{name}", (steps, batch, *shapes[k]), np.int32) for name in core["keep"]}
        for k, core in enumerate(job["cores"])
    ]
    widest = max(int(np.prod(shape)) for shape in [*shapes, raster.shape[2:]])
    block = max(1, _BLOCK // (batch * widest))
    for first in range(0, steps, block):
        x = torch.tensor(np.swapaxes(raster[first : first + block], 0, 1).astype(np.float32))
        for found, into in zip(network(x.flatten(0, 1)), datasets, strict=True):
            for name, values in zip(("spikes", "v_mem"), found, strict=True):
                if name in into:
                    into[name][first : first + block] = np.swapaxes(integers(values), 0, 1)


def main(folder: Path) -> int:
    """Do the job of a folder; 1 with a line on standard error where it cannot be done exactly."""
    import h5py

    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    if job["format"] != FORMAT:
        sys.stderr.write(f"job.json has format {job['format']!r}, this worker knows {FORMAT}\n")
        return 1
    samna = provide_samna()
    import sinabs
    import torch

    part = folder / "trajectory.h5.part"
    with torch.no_grad(), h5py.File(folder / "input.h5", "r") as arrays, h5py.File(part, "w") as out:
        versions = {"sinabs": str(sinabs.__version__), "torch": str(torch.__version__)}
        out.attrs.update({"format": FORMAT, "samna": samna, **versions})
        for n, network in enumerate(job["networks"]):
            try:
                run_network(network, arrays[f"networks/{n}"], out.create_group(f"networks/{n}"))
            except InexactError as error:
                sys.stderr.write(f"network {n}, {error}\n")
                return 1
    part.replace(folder / "trajectory.h5")
    return 0


def end_with_parent() -> None:
    """Leave as soon as standard input closes: whoever waits for this worker is gone."""
    while os.read(0, 4096):  # not sys.stdin, whose lock the interpreter wants when it leaves
        pass
    os._exit(3)


if __name__ == "__main__":
    if sys.argv[2:] == ["--watched"]:
        threading.Thread(target=end_with_parent, daemon=True).start()
    sys.exit(main(Path(sys.argv[1])))
