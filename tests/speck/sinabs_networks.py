"""What sinabs 3.1.3 makes of networks of its own: quantised integers, spikes, v_mem.

    .venv-sinabs/bin/python tests/speck/sinabs_networks.py WORKER_FOLDER FOLDER

Reads FOLDER/networks.json, a list of networks as `speck_networks.py` describes them, and FOLDER/input.npz
(`n<n>_raster`, `n<n>_weight<k>`, `n<n>_bias<k>`); writes FOLDER/output.npz (`n<n>_<k>_weight`, `_bias`, `_threshold`,
`_v_min`, `_spikes`, `_v_mem`). WORKER_FOLDER has `sinabs_worker.py`, whose stand-in for samna it uses.
"""

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, sys.argv[1])
import sinabs_worker

sinabs_worker.provide_samna()

# E402: only now, since sinabs imports samna, for which the stand-in has to be there
import sinabs.layers as sl  # noqa: E402
import torch  # noqa: E402
from sinabs.activation import MembraneReset, MembraneSubtract, MultiSpike, SingleSpike  # noqa: E402
from sinabs.backend.dynapcnn import DynapcnnNetwork  # noqa: E402
from torch import nn  # noqa: E402


def stages(network, data, n):
    """A list of modules a layer; the last of each is what the next layer reads."""
    found = []
    for k, layer in enumerate(network["layers"]):
        weight, bias = data[f"n{n}_weight{k}"], data.get(f"n{n}_bias{k}")
        if layer["kind"] == "linear":
            module = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        else:
            module = nn.Conv2d(
                weight.shape[1],
                weight.shape[0],
                layer["kernel"],
                layer["stride"],
                layer["padding"],
                bias=bias is not None,
            )
        module.weight.data = torch.tensor(weight)
        if bias is not None:
            module.bias.data = torch.tensor(bias)
        neurons = sl.IAFSqueeze(
            batch_size=1,
            spike_threshold=layer["threshold"],
            min_v_mem=layer["v_min"],
            spike_fn=MultiSpike if network["many"] else SingleSpike,
            reset_fn=MembraneSubtract() if network["subtract"] else MembraneReset(),
        )
        pools = [{"avg": nn.AvgPool2d, "sum": sl.SumPool2d}[kind](side) for kind, side in layer["pools"]]
        flat = k > 0 and network["layers"][k - 1]["kind"] == "linear"  # flattening again confuses sinabs's tracer
        before = [nn.Flatten()] if layer["kind"] == "linear" and not flat else []
        found.append([*before, module, neurons, *pools])
    return found


class Residual(nn.Module):
    """Stages in a row; stage k + 2 reads the sum of stages k and k + 1."""

    def __init__(self, parts, k):
        super().__init__()
        self.parts = nn.ModuleList(nn.Sequential(*part) for part in parts)
        self.merge, self.k = sl.Merge(), k

    def forward(self, x):
        kept = None
        for n, part in enumerate(self.parts):
            if n == self.k + 2:
                x = self.merge(x, kept)
            x = part(x)
            if n == self.k:
                kept = x
        return x


def integers(tensor):
    array = tensor.detach().numpy()
    if not np.array_equal(array, np.rint(array)):
        raise SystemExit("sinabs returned a value that is no integer")
    return array.astype(np.int64)


def record(network, data, n):
    parts, k = stages(network, data, n), network["residual"]
    module = Residual(parts, k) if k is not None else nn.Sequential(*[m for part in parts for m in part])
    chip = DynapcnnNetwork(module, input_shape=tuple(network["input"]), discretize=True, dvs_input=False).eval()
    spikes = {}
    for key, layer in chip.dynapcnn_layers.items():
        layer.spk_layer.reset_states()  # building it has run random data through
        layer.spk_layer.record_states = True
        layer.spk_layer.register_forward_hook(lambda m, i, out, key=key: spikes.__setitem__(key, out.clone()))
    chip(torch.tensor(data[f"n{n}_raster"].astype(np.float32)))
    found = {}
    for key, layer in chip.dynapcnn_layers.items():
        conv, neurons = layer.conv_layer, layer.spk_layer
        found[f"n{n}_{key}_weight"] = integers(conv.weight)
        found[f"n{n}_{key}_bias"] = np.zeros(0, np.int64) if conv.bias is None else integers(conv.bias)
        found[f"n{n}_{key}_threshold"] = integers(neurons.spike_threshold)
        low = neurons.min_v_mem
        found[f"n{n}_{key}_v_min"] = np.array(-32768) if low is None else integers(low)
        found[f"n{n}_{key}_spikes"] = integers(spikes[key])
        found[f"n{n}_{key}_v_mem"] = integers(neurons.recordings["v_mem"][0])
    return found


def main(folder):
    networks = json.loads((folder / "networks.json").read_text())
    data = dict(np.load(folder / "input.npz"))
    found = {}
    with torch.no_grad():
        for n, network in enumerate(networks):
            found.update(record(network, data, n))
    np.savez(folder / "output.npz", **found)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[2]))
