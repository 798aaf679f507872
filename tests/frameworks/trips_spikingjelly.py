"""What survives a trip to SpikingJelly's importer and back from its exporter.

    python tests/frameworks/trips_spikingjelly.py tests/golden/trips_spikingjelly.json

Runs in an environment that holds SpikingJelly and nirdeploy, with `tests` on the path.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from frameworks.nets_spikingjelly import Drawn, on_grid, own_run, steady
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from spikingjelly.activation_based.nir_exchange import export_to_nir, import_from_nir
from torch import nn

import nirdeploy as nd
from nirdeploy.errors import NirdeployError
from nirdeploy.graph import metadata

EQUAL = "equal"


def around(*parts, size=6):
    """A population or layer between a Linear and one more population."""
    return lambda: [layer.Linear(5, size), *parts, layer.Linear(size, 3), neuron.IFNode()]


class Constant(nn.Module):
    """Adds a constant in forward, or its signal to itself."""

    def __init__(self, twice):
        super().__init__()
        self.first, self.neuron, self.twice = layer.Linear(5, 3), neuron.IFNode(), twice

    def forward(self, x):
        y = self.first(x)
        return self.neuron(y + y if self.twice else y + 0.25)


def conv(kind, *, norm=None, pool=False, shape=(2, 6, 4), **options):
    def make():
        parts = [kind(2, 4, 3, **options), *([norm(4)] if norm else []), neuron.LIFNode()]
        parts += [layer.AvgPool2d(2)] if pool else []
        parts += [layer.Flatten()]
        size = nn.Sequential(*parts).eval()(torch.zeros(1, *shape)).shape[1]
        functional.reset_net(nn.Sequential(*parts))
        return [*parts, layer.Linear(size, 3), neuron.IFNode()]

    return make


def starts_at(part, v):
    part.set_reset_value("v", v)
    part.reset()
    return part


IMAGE, LINE, FLAT = (2, 6, 4), (2, 9), (5,)
CASES = [
    ("IFNode", "v_reset=0.0", around(neuron.IFNode()), FLAT),
    ("IFNode", "v_reset=-0.25", around(neuron.IFNode(v_reset=-0.25)), FLAT),
    ("IFNode", "v_reset=None", around(neuron.IFNode(v_reset=None)), FLAT),
    ("LIFNode", "decay_input=True", around(neuron.LIFNode(tau=2.5)), FLAT),
    ("LIFNode", "decay_input=False", around(neuron.LIFNode(tau=2.5, decay_input=False)), FLAT),
    ("LIFNode", "v_reset=-0.25", around(neuron.LIFNode(v_reset=-0.25)), FLAT),
    ("LIFNode", "v_reset=None", around(neuron.LIFNode(v_reset=None)), FLAT),
    ("ParametricLIFNode", "decay_input=True", around(neuron.ParametricLIFNode(init_tau=2.5)), FLAT),
    ("ParametricLIFNode", "decay_input=False", around(neuron.ParametricLIFNode(2.5, decay_input=False)), FLAT),
    ("CUBALIFNode", "v_reset=0.0", around(neuron.CUBALIFNode()), FLAT),
    ("CUBALIFNode", "v_reset=-0.25", around(neuron.CUBALIFNode(v_reset=-0.25)), FLAT),
    ("SimpleIFNode", "v_reset=0.0", around(neuron.SimpleIFNode()), FLAT),
    ("SimpleLIFNode", "v_reset=-0.25", around(neuron.SimpleLIFNode(2.5, True, v_reset=-0.25)), FLAT),
    ("Linear", "bias=False", lambda: [layer.Linear(5, 3, bias=False), neuron.LIFNode()], FLAT),
    ("WSLinear", "", lambda: [layer.WSLinear(5, 3), neuron.LIFNode()], FLAT),
    ("Conv1d", "stride=2, padding=1", conv(layer.Conv1d, shape=LINE, stride=2, padding=1), LINE),
    ("Conv2d", "padding=1", conv(layer.Conv2d, padding=1), IMAGE),
    ("Conv2d", "padding='same', bias=False", conv(layer.Conv2d, padding="same", bias=False), IMAGE),
    ("Conv2d", "groups=2", conv(layer.Conv2d, groups=2), IMAGE),
    ("AvgPool2d", "", conv(layer.Conv2d, padding=1, pool=True), IMAGE),
    ("BatchNorm1d", "", lambda: [layer.Linear(5, 3), layer.BatchNorm1d(3), neuron.LIFNode()], FLAT),
    ("BatchNorm2d", "", conv(layer.Conv2d, norm=layer.BatchNorm2d), IMAGE),
    ("Dropout", "eval()", around(layer.Dropout(), neuron.LIFNode()), FLAT),
    ("Delay", "delay_steps=2", around(neuron.LIFNode(), layer.Delay(2)), FLAT),
    ("VotingLayer", "", around(neuron.LIFNode(), layer.VotingLayer(2), layer.Linear(3, 6)), FLAT),
    ("LinearRecurrentContainer", "LIFNode", around(layer.LinearRecurrentContainer(neuron.LIFNode(), 6, 6)), FLAT),
    (
        "ElementWiseRecurrentContainer",
        "x + y",
        around(layer.ElementWiseRecurrentContainer(neuron.LIFNode(), lambda x, y: x + y)),
        FLAT,
    ),
    ("forward", "x + 0.25", lambda: Constant(twice=False), FLAT),
    ("forward", "x + x", lambda: Constant(twice=True), FLAT),
    (
        "surrogate_function",
        "spiking=False",
        around(neuron.IFNode(surrogate_function=surrogate.ATan(spiking=False))),
        FLAT,
    ),
    ("set_reset_value", "v=0.25", around(starts_at(neuron.IFNode(), 0.25)), FLAT),
]


def drawn(make, shape, *, checked=True):
    """A case's network and raster."""

    def of(seed):
        found = make()
        module = nn.Sequential(*found) if isinstance(found, list) else found
        on_grid(module, np.random.default_rng(seed), 1.0 + seed % 3)
        raster = np.random.default_rng(seed).poisson(0.6, (25, 2, *shape))
        return Drawn(module.eval(), torch.tensor(raster, dtype=torch.float32), False)

    return steady(of) if checked else of(1)


def imported(path, raster, dt=1e-4):
    """What the network that SpikingJelly makes of a file emits."""
    module, state, found = import_from_nir(path, dt=dt), None, []
    with torch.no_grad():
        for x in raster:
            spikes, state = module(x, state)
            found.append(spikes)
    return torch.stack(found).numpy()


def there(case, folder):
    """Ours to theirs."""
    try:
        graph = nd.torch_to_nir(case.module, sample_input=case.sample)
        nd.write(folder / "to.nir", graph, for_library="spikingjelly")
    except NirdeployError as error:
        return f"refused: {str(error).split(': ', 1)[-1].split('. ')[0]}"
    found, own = imported(folder / "to.nir", case.raster), own_run(case).output
    again = np.asarray(nd.run(nd.read(folder / "to.nir"), case.raster.numpy()).outputs)
    return EQUAL if np.array_equal(found, own) and np.array_equal(again, own) else "other spikes"


def back(case, folder):
    """Theirs to ours."""
    functional.reset_net(case.module)
    try:
        export_to_nir(case.module, case.sample, folder / "back.nir")
    except Exception as error:  # what the library's own exporter raises is part of the table
        return f"refused by SpikingJelly ({type(error).__name__})"
    functional.reset_net(case.module)
    graph = nd.read(folder / "back.nir", exported_by="spikingjelly")
    own = own_run(case).output
    preset = nd.convention("spikingjelly", dt=1e-4)
    for convention in (preset, None if "convention" in metadata(graph) else preset):
        found = np.asarray(nd.run(graph, case.raster.numpy(), convention=convention).outputs)
        if not np.array_equal(found, own):
            return "lost by SpikingJelly's exporter, without a trace"
    return EQUAL


def survives():
    """(layer, option, to SpikingJelly, back) of every case."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        for kind, option, make, shape in CASES:
            odd = kind in ("surrogate_function", "set_reset_value")
            case = drawn(make, shape, checked=not odd)
            found.append((kind, option, there(case, Path(name)), back(case, Path(name))))
    return found


if __name__ == "__main__":
    rows = [dict(zip(("layer", "option", "to", "back"), row, strict=True)) for row in survives()]
    Path(sys.argv[1]).write_text(json.dumps(rows, indent=1) + "\n")
