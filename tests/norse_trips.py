"""What survives a trip from Norse into a file and back: `python tests/norse_trips.py FILE` writes the table."""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import nir
import numpy as np
import torch
from norse_nets import WEIGHTED, Drawn, forward, norse
from torch import nn

import nirdeploy as nd
from nirdeploy.errors import NirdeployError

DT = 1e-3
SAME, OTHER = "same", "other output"


def exported(net, sample, path):
    """A file of Norse's own exporter."""
    with quiet():
        # nir 1.0.8 cannot compress the one number that Norse writes for all neurons
        nir.write(path, norse.to_nir(net, sample), compression=None)
    return path


def imported(path, dt=DT):
    """Norse's own network of a file."""
    with quiet():
        return norse.from_nir(nir.read(path), dt=dt)


def quiet():
    """Without the warnings of nirtorch, which calls its own functions old, and Norse's on r."""
    logging.disable(logging.WARNING)
    caught = warnings.catch_warnings()
    caught.__enter__()
    warnings.simplefilter("ignore")

    class Quiet:
        def __enter__(self):
            return self

        def __exit__(self, *args):
            logging.disable(logging.NOTSET)
            return caught.__exit__(*args)

    return Quiet()


def run_imported(net, raster):
    """Its output, step after step."""
    with torch.no_grad(), quiet():
        state, found = None, []
        for x in raster:
            out, state = net(x, state)
            found.append(out)
        return torch.stack(found).numpy()


# ---------------------------------------------------------------- the table


def chain(name, *parameters):
    """Two layers of cells with these parameters."""
    torch.manual_seed(4)
    kind = getattr(norse, name)
    given = [] if not parameters else list(parameters)
    if name in WEIGHTED:
        layers = [kind(6, 6, *given), nn.Linear(6, 6), kind(6, 6, *given)]
    else:
        layers = [nn.Linear(6, 6), kind(*given), nn.Linear(6, 6), kind(*given)]
    with torch.no_grad():
        for part in layers:
            for parameter in part.parameters():
                parameter.copy_((parameter.abs() * (8.0 if "Box" in name else 2.0) * 64).round() / 64)
    return norse.SequentialState(*layers)


def image(*layers):
    """Layers behind a convolution."""
    torch.manual_seed(4)
    net = norse.SequentialState(nn.Conv2d(2, 4, 3), norse.LIFBoxCell(), *layers)
    with torch.no_grad():
        net[0].weight.copy_((net[0].weight.abs() * 8 * 64).round() / 64)
    return net


def box(**values):
    tensors = {key: torch.tensor(value) if isinstance(value, float) else value for key, value in values.items()}
    return norse.LIFBoxParameters(**tensors)


CASES: tuple[tuple[str, str, Callable[[], nn.Module]], ...] = (
    ("LIFCell", "default", lambda: chain("LIFCell")),
    ("LIFCell", "v_leak=0.1", lambda: chain("LIFCell", norse.LIFParameters(v_leak=torch.tensor(0.1)))),
    ("LIFCell", "v_reset=-0.5", lambda: chain("LIFCell", norse.LIFParameters(v_reset=torch.tensor(-0.5)))),
    ("LIFRecurrentCell", "default", lambda: chain("LIFRecurrentCell")),
    ("LICell", "default", lambda: chain("LICell")),
    ("LIFBoxCell", "default", lambda: chain("LIFBoxCell")),
    ("LIFBoxCell", "v_leak=0.1", lambda: chain("LIFBoxCell", box(v_leak=0.1))),
    ("LIFBoxCell", "v_reset=-0.5", lambda: chain("LIFBoxCell", box(v_reset=-0.5))),
    ("LIFBoxCell", "reset_subtract", lambda: chain("LIFBoxCell", box(reset_method=norse.reset_subtract))),
    ("LIBoxCell", "default", lambda: chain("LIBoxCell")),
    ("IAFCell", "default", lambda: chain("IAFCell")),
    ("IAFCell", "v_reset=0.25", lambda: chain("IAFCell", norse.IAFParameters(v_reset=torch.tensor(0.25)))),
    ("Conv2d", "bias", image),
    ("Flatten", "default", lambda: image(nn.Flatten(), nn.Linear(64, 3))),
    ("AvgPool2d", "default", lambda: image(nn.AvgPool2d(2))),
)


def survives():
    """(layer, option, what becomes of it on the way to Norse, and on the way from Norse) of every case."""
    found = []
    for layer, option, build in CASES:
        net = build()
        shape = (2, 6, 6) if isinstance(net[0], nn.Conv2d) else (6,)
        raster = torch.tensor(np.random.default_rng(1).poisson(0.7, (40, 2, *shape)), dtype=torch.float32)
        drawn = Drawn(net, raster, False)
        with tempfile.TemporaryDirectory() as folder:
            found.append((layer, option, to_norse(drawn, Path(folder)), from_norse(drawn, Path(folder))))
    return found


def to_norse(drawn, folder):
    """The converted network written for Norse's importer."""
    graph = nd.torch_to_nir(drawn.net, sample_input=drawn.sample)
    try:
        nd.write(folder / "to.nir", graph, for_library="norse")
    except NirdeployError as error:
        return f"refused: {error}"
    return verdict(run_imported(imported(folder / "to.nir"), drawn.raster), drawn)


def from_norse(drawn, folder):
    """The file of Norse's exporter, read with its repairs."""
    try:
        exported(drawn.net, drawn.sample, folder / "from.nir")
    except (AttributeError, TypeError, ValueError) as error:
        return f"Norse writes no file: {type(error).__name__}"
    graph = nd.read(folder / "from.nir", exported_by="norse")
    return verdict(nd.run(graph, drawn.raster.numpy(), convention=nd.convention("norse", dt=DT)).outputs, drawn)


def verdict(found, drawn):
    theirs = forward(drawn).numpy()
    assert np.abs(theirs).max() > 0.1, "a network that does nothing shows nothing"
    same = found.shape == theirs.shape and np.allclose(
        found, theirs, rtol=0, atol=1e-5 * max(1.0, np.abs(theirs).max())
    )
    return SAME if same else OTHER


if __name__ == "__main__":
    rows = [dict(zip(("layer", "option", "to", "back"), row, strict=True)) for row in survives()]
    Path(sys.argv[1]).write_text(json.dumps(rows, indent=2) + "\n")
