"""Layers of snnTorch on the way through files: into its importer, and out of its exporter.

    python tests/frameworks/snntorch_trips.py

writes tests/golden/trips_snntorch.json, the table of what survives, in an interpreter that holds snnTorch.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
import warnings
from pathlib import Path

import nir
import numpy as np
import snntorch as snn
import torch
from snntorch.export_nir import export_to_nir
from snntorch.import_nir import import_from_nir
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT), str(ROOT / "backends")]

from frameworks.live_common import fill_weights, off_grid  # noqa: E402
from frameworks.snntorch_networks import Hidden, own  # noqa: E402

import nirdeploy as nd  # noqa: E402
from nirdeploy.errors import NirdeployError  # noqa: E402

GOLDEN = ROOT / "tests" / "golden" / "trips_snntorch.json"
WIDTH = 5


def exported(network, sample, path, *, checked=True):
    """A file of snnTorch's exporter; not `checked`, as its versions before 1.0 wrote it, without nir's inference."""
    options = {"ignore_dims": [0]} if checked else {}
    infer = nir.NIRGraph.infer_types
    if not checked:
        nir.NIRGraph.infer_types = lambda graph: None
    try:
        # nirtorch's function is deprecated, and 1 / (1 - beta) divides by 0 where beta is 1
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
            graph = export_to_nir(network, sample, **options)
    finally:
        nir.NIRGraph.infer_types = infer
    nir.write(path, graph, compression=None)


def imported_output(path, raster):
    """What snnTorch's importer makes of a file, run over a raster."""
    with contextlib.redirect_stdout(io.StringIO()):
        network = import_from_nir(nir.read(path))
    state, found = None, []
    with torch.no_grad():
        for x in raster:
            out, state = network(x, state)
            found.append(out[0] if isinstance(out, tuple) else out)
    return torch.stack(found).numpy()


def _each(value):
    return torch.full((WIDTH,), value)


def _populations():
    """Layers between two matrices, by class and option; what the exporter needs given for each neuron."""
    threshold = torch.full((WIDTH,), float(off_grid(np.random.default_rng(0))))
    common = {"init_hidden": True, "threshold": threshold}
    same = {"reset_mechanism": "zero", "reset_delay": False}
    leaky, synaptic = {"beta": _each(0.9), **common}, {"alpha": _each(0.7), "beta": _each(0.9), **common}
    recurrent = {**common, "linear_features": WIDTH}
    one = {**common, "all_to_all": False, "V": _each(0.25)}
    yield "Leaky", "as it is by default", snn.Leaky(**leaky)
    yield "Leaky", "reset_mechanism='zero'", snn.Leaky(**{**leaky, "reset_mechanism": "zero"})
    yield "Leaky", "reset_mechanism='zero', reset_delay=False", snn.Leaky(**leaky, **same)
    yield "Leaky", "reset_delay=False", snn.Leaky(**leaky, reset_delay=False)
    yield "Leaky", "reset_mechanism='none'", snn.Leaky(**leaky, reset_mechanism="none")
    yield "Leaky", "one beta for all, 'zero', reset_delay=False", snn.Leaky(**{**leaky, "beta": 0.9}, **same)
    yield "Leaky", "beta=1, 'zero', reset_delay=False", snn.Leaky(**{**leaky, "beta": _each(1.0)}, **same)
    grown = {**leaky, "threshold": threshold * torch.linspace(1, 2, WIDTH)}
    yield "Leaky", "a threshold a neuron, 'zero', reset_delay=False", snn.Leaky(**grown, **same)
    yield "Leaky", "graded_spikes_factor=2", snn.Leaky(**leaky, graded_spikes_factor=2.0)
    yield "Lapicque", "as it is by default", snn.Lapicque(R=1, C=4, **common)
    yield "Synaptic", "as it is by default", snn.Synaptic(**synaptic)
    yield "Synaptic", "reset_mechanism='zero', reset_delay=False", snn.Synaptic(**synaptic, **same)
    yield "RLeaky", "as it is by default", snn.RLeaky(beta=_each(0.9), **recurrent)
    yield "RLeaky", "reset_mechanism='zero', reset_delay=False", snn.RLeaky(beta=_each(0.9), **recurrent, **same)
    yield "RLeaky", "all_to_all=False", snn.RLeaky(beta=_each(0.9), **one)
    yield "RSynaptic", "as it is by default", snn.RSynaptic(alpha=_each(0.7), beta=_each(0.9), **recurrent)


def _images():
    def leaky(*shape):
        threshold = torch.full(shape, float(off_grid(np.random.default_rng(0))))
        options = {"threshold": threshold, "reset_mechanism": "zero", "reset_delay": False}
        return snn.Leaky(torch.full(shape, 0.9), init_hidden=True, **options)

    yield "Conv2d", "3x3, padding 1", (nn.Conv2d(2, 3, 3, padding=1), leaky(3, 6, 6))
    yield "Conv2d", "groups", (nn.Conv2d(2, 4, 3, groups=2), leaky(4, 4, 4))
    yield "Conv2d", "3x1", (nn.Conv2d(2, 3, (3, 1)), leaky(3, 4, 6))
    yield "AvgPool2d", "2", (nn.Conv2d(2, 3, 3, padding=1), leaky(3, 6, 6), nn.AvgPool2d(2))
    yield "AvgPool2d", "3, padding 1", (nn.Conv2d(2, 3, 3, padding=1), leaky(3, 6, 6), nn.AvgPool2d(3, 2, padding=1))
    yield "Flatten", "", (nn.Conv2d(2, 3, 3), leaky(3, 4, 4), nn.Flatten(), nn.Linear(48, 4), leaky(4))


def networks():
    """(layer, option, network, raster) of all trips."""
    rng = np.random.default_rng(5)
    for layer, option, population in _populations():
        network = Hidden(nn.Linear(6, WIDTH), population, nn.Linear(WIDTH, 3))
        raster = torch.tensor(rng.integers(0, 3, (30, 4, 6)), dtype=torch.float32)
        yield layer, option, fill_weights(network, rng), raster
    for layer, option, layers in _images():
        raster = torch.tensor(rng.integers(0, 3, (20, 4, 2, 6, 6)), dtype=torch.float32)
        yield layer, option, fill_weights(Hidden(*layers), rng), raster


def to_the_library(network, raster, folder):
    """What becomes of a network that goes through nirdeploy into snnTorch's importer."""
    output, _ = own(network, raster)
    try:
        nd.write(folder / "to.nir", nd.torch_to_nir(network, sample_input=raster[0]), for_library="snntorch")
    except NirdeployError as error:
        return f"refused: {str(error).partition(': ')[2].partition('. ')[0]}"
    return "same" if np.array_equal(imported_output(folder / "to.nir", raster), output) else "DIFFERS"


def from_the_library(network, raster, folder):
    """What becomes of a network that goes through snnTorch's exporter into nirdeploy."""
    output, _ = own(network, raster)
    try:
        exported(network, raster[0, :1], folder / "from.nir")
    except (ValueError, AssertionError, AttributeError, IndexError, TypeError) as error:
        return f"its exporter fails: {type(error).__name__}"
    graph = nd.read(folder / "from.nir", exported_by="snntorch")
    found = np.asarray(nd.run(graph, raster, convention=_preset(network)).outputs)
    return "same" if np.array_equal(found, output) else "the file has lost it"


def _preset(network):
    """The preset with what the layers of a network state, which files of the exporter do not hold."""
    stated = nd.convention_of(network)
    names = ("reset", "reset_time", "late_reset")
    return nd.convention("snntorch", dt=1e-4, **{name: getattr(stated, name) for name in names})


def survives():
    """Layer, option, and what becomes of it on the way to snnTorch and back."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for layer, option, network, raster in networks():
            there = to_the_library(network, raster, Path(folder))
            found.append((layer, option, there, from_the_library(network, raster, Path(folder))))
    return found


if __name__ == "__main__":
    rows = [dict(zip(("layer", "option", "to", "back"), row, strict=True)) for row in survives()]
    GOLDEN.write_text(json.dumps(rows, indent=1) + "\n")
