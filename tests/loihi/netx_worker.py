"""Run a network file in lava-dl's own netx, in Lava's interpreter and without torch.

    .venv-lava/bin/python netx_worker.py WHEEL NET RASTER OUT

WHEEL is lava-dl's wheel unpacked. netx needs torch for the parameters of resonators alone, so what would import it is
replaced by empty modules. RASTER is [step, neuron] or [step, channel, y, x]; OUT gets L<k>_u, _v, _s of the k-th layer
with neurons, [step, neuron], images flat as channel, y, x.
"""

import sys
import types
import warnings
from pathlib import Path

import numpy as np


def network_type(wheel):
    """netx's Network."""
    sys.path.append(str(wheel))
    slayer = "lava.lib.dl.slayer"
    netx = "lava.lib.dl.netx"
    for name in (slayer, f"{slayer}.neuron", f"{slayer}.neuron.rf", netx, f"{netx}.sequential_modules"):
        module = types.ModuleType(name)
        module.__path__ = [str(wheel / name.replace(".", "/"))] if name == netx else []
        module.__file__ = str(wheel / f"{name.replace('.', '/')}.py")  # Lava asks every module for it
        module.neuron_params = None
        sys.modules[name] = module
    from lava.lib.dl.netx.hdf5 import Network

    return Network


def flat(values):
    """[step, ...] as [step, neuron], Lava's x, y, channel as channel, y, x."""
    values = np.asarray(values).astype(np.int32)
    return (values.transpose(0, 3, 2, 1) if values.ndim == 4 else values).reshape(len(values), -1)


def main():
    """Run and store."""
    warnings.filterwarnings("ignore")
    wheel, net, raster, out = map(Path, sys.argv[1:])
    network = network_type(wheel)(net_config=str(net))
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg
    from lava.proc.io.source import RingBuffer
    from lava.proc.monitor.process import Monitor

    spikes = np.load(raster)
    if len(network.inp.shape) == 1:
        spikes = spikes.reshape(len(spikes), -1)
    given = spikes.transpose(0, 3, 2, 1) if spikes.ndim == 4 else spikes
    source = RingBuffer(data=np.moveaxis(given, 0, -1).astype(np.int32))
    source.s_out.connect(network.inp)
    monitors = {}
    for k, layer in enumerate(network.layers):
        for name in ("u", "v", "s_out"):
            monitors[f"L{k}_{name[0]}"] = monitor = Monitor()
            monitor.probe(getattr(layer.neuron, name), len(spikes))
    source.run(condition=RunSteps(num_steps=len(spikes)), run_cfg=Loihi2SimCfg(select_tag="fixed_pt"))
    data = {name: next(iter(next(iter(m.get_data().values())).values())) for name, m in monitors.items()}
    np.savez_compressed(out, **{name: flat(values) for name, values in data.items()})
    source.stop()


if __name__ == "__main__":
    main()
