"""Record what sinabs 3.1.3 makes of three small networks: quantised integers, spikes, voltages, core configuration.

    .venv-sinabs/bin/python tests/golden/record_sinabs.py FOLDER

Runs in an environment with torch and sinabs, without samna: the samna of PyPI is an installer that must not be
imported, so the stand-in of `sinabs_worker.py` takes its place. Writes FOLDER/sinabs_<name>.npz:
`raster` [step, channel, y, x]; per weight layer i `weight{i}`, `bias{i}` float32; per DYNAP-CNN layer k `q{k}_weight`,
`q{k}_bias`, `q{k}_threshold`, `q{k}_v_min`, `q{k}_spikes`, `q{k}_v_mem`, `q{k}_config_weights`, `q{k}_reset_to_zero`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "backends" / "nirdeploy_speck"))
import sinabs_worker

sinabs_worker.provide_samna()

# E402: only now, since sinabs imports samna, for which the stand-in has to be there
import sinabs.layers as sl  # noqa: E402
import torch  # noqa: E402
from sinabs.activation import MembraneReset, MembraneSubtract, MultiSpike, SingleSpike  # noqa: E402
from sinabs.backend.dynapcnn import DynapcnnNetwork  # noqa: E402
from torch import nn  # noqa: E402


def neurons(threshold, v_min, *, single):
    return sl.IAFSqueeze(
        batch_size=1,
        spike_threshold=threshold,
        min_v_mem=v_min,
        spike_fn=SingleSpike if single else MultiSpike,
        reset_fn=MembraneReset() if single else MembraneSubtract(),
    )


def networks():
    """name -> (network, input shape, steps)."""
    return {
        "pooled": (
            nn.Sequential(
                nn.Conv2d(2, 3, 3, padding=1, bias=False),
                neurons(1.0, -1.0, single=False),
                nn.AvgPool2d(2),
                nn.Conv2d(3, 4, 2, bias=False),
                neurons(0.7, -0.7, single=False),
                sl.SumPool2d(2),
                nn.Flatten(),
                nn.Linear(4, 5, bias=False),
                neurons(1.3, -1.3, single=False),
            ),
            (2, 6, 6),
            25,
        ),
        "reset": (
            nn.Sequential(
                nn.Conv2d(1, 3, 3, padding=1, bias=False),
                neurons(0.8, -0.5, single=True),
                nn.Flatten(),
                nn.Linear(75, 4, bias=False),
                neurons(1.0, -2.0, single=True),
            ),
            (1, 5, 5),
            25,
        ),
        "biased": (
            nn.Sequential(
                nn.Conv2d(1, 4, 3, stride=2, padding=1),
                neurons(0.9, -0.4, single=False),
                nn.Conv2d(4, 3, 3),
                neurons(1.1, -1.0, single=False),
            ),
            (1, 9, 8),
            25,
        ),
    }


def integers(tensor):
    array = tensor.detach().numpy()
    if not np.array_equal(array, np.rint(array)):
        raise SystemExit("sinabs returned a value that is no integer")
    return array.astype(np.int32)


def record(network, shape, steps, seed):
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    found = {}
    weights = [m for m in network if isinstance(m, nn.Conv2d | nn.Linear)]
    for index, module in enumerate(weights):
        fan_in = int(np.prod(module.weight.shape[1:]))
        module.weight.data = torch.tensor(generator.normal(0.1, 1.6 / fan_in**0.5, module.weight.shape)).float()
        found[f"weight{index}"] = module.weight.detach().numpy()
        if module.bias is not None:
            module.bias.data = torch.tensor(generator.normal(0, 0.1, module.bias.shape)).float()
            found[f"bias{index}"] = module.bias.detach().numpy()
    raster = generator.poisson(0.3, (steps, *shape)).astype(np.int16)
    found["raster"] = raster
    with torch.no_grad():
        chip = DynapcnnNetwork(network, input_shape=shape, discretize=True, dvs_input=False).eval()
        spikes = {}
        for key, layer in chip.dynapcnn_layers.items():
            layer.spk_layer.reset_states()  # building it has run random data through
            layer.spk_layer.record_states = True
            layer.spk_layer.register_forward_hook(lambda m, i, out, key=key: spikes.__setitem__(key, out.clone()))
        chip(torch.tensor(raster, dtype=torch.float32))
        configuration = chip.make_config(device="speck2fdevkit")
    for key, layer in chip.dynapcnn_layers.items():
        fields = configuration.cnn_layers[chip.layer2core_map[key]]
        conv = layer.conv_layer
        found[f"q{key}_weight"] = integers(conv.weight)
        found[f"q{key}_bias"] = np.zeros(0, np.int32) if conv.bias is None else integers(conv.bias)
        found[f"q{key}_threshold"] = np.array(fields.threshold_high)
        found[f"q{key}_v_min"] = np.array(fields.threshold_low)
        found[f"q{key}_reset_to_zero"] = np.array(bool(fields.return_to_zero))
        found[f"q{key}_config_weights"] = np.array(fields.weights, np.int32)
        found[f"q{key}_memory"] = np.array([int(layer.memory_summary()[k]) for k in ("kernel", "neuron", "bias")])
        found[f"q{key}_spikes"] = integers(spikes[key])
        found[f"q{key}_v_mem"] = integers(layer.spk_layer.recordings["v_mem"][0])
    return found


def main(folder):
    for seed, (name, (network, shape, steps)) in enumerate(networks().items()):
        np.savez_compressed(Path(folder) / f"sinabs_{name}.npz", **record(network, shape, steps, seed))


if __name__ == "__main__":
    main(sys.argv[1])
