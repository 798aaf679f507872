"""Networks of dense layers in real Lava, timed: started by `loihi.py` in Lava's own interpreter.

Reads a job (.npz): `raster` [step, input neuron] and, for each layer k, `weight<k>`, `delay<k>` (empty: none),
`decay_u<k>`, `decay_v<k>` and `threshold<k>`. Runs it on the CPU's fixed-point models. Writes an .npz: `first`, the
seconds of building and the first step, `seconds`, those of all other steps, and `spikes` of the last layer [step,
neuron]; with `--record` also `u<k>`, `v<k>` and `s<k>` of every layer.
"""

import argparse
import time
import warnings

import numpy as np


def build(job):
    """Lava processes: port of the input, and the populations."""
    from lava.proc.dense.process import DelayDense, Dense
    from lava.proc.lif.process import LIF

    port, populations = None, []
    for k in range(sum(name.startswith("weight") for name in job.files)):
        weight, delay = job[f"weight{k}"], job[f"delay{k}"]
        # even weights of mixed sign, up to 8 bits: Dense keeps them as they are
        options = {"weights": weight, "num_weight_bits": 8, "weight_exp": 0, "num_message_bits": 0}
        synapse = DelayDense(delays=delay, max_delay=62, **options) if delay.size else Dense(**options)
        du, dv, vth = (int(job[f"{name}{k}"]) for name in ("decay_u", "decay_v", "threshold"))
        population = LIF(shape=(len(weight),), du=du - 1, dv=dv, vth=vth, bias_mant=0, bias_exp=0)
        synapse.a_out.connect(population.a_in)
        if populations:
            populations[-1].s_out.connect(synapse.s_in)
        else:
            port = synapse.s_in
        populations.append(population)
    return port, populations


def probes(populations, steps):
    """A monitor of each state."""
    from lava.proc.monitor.process import Monitor

    found = {}
    for k, population in enumerate(populations):
        for name, variable in (("u", population.u), ("v", population.v), ("s", population.s_out)):
            found[f"{name}{k}"] = monitor = Monitor()
            monitor.probe(variable, steps)
    return found


def run(job, record):
    """Run a job; what is to be written."""
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg
    from lava.proc.io.sink import RingBuffer as Sink
    from lava.proc.io.source import RingBuffer as Source

    raster = job["raster"]
    port, populations = build(job)
    source = Source(data=raster.T.astype(np.int32))
    sink = Sink(shape=populations[-1].s_out.shape, buffer=len(raster))
    source.s_out.connect(port)
    populations[-1].s_out.connect(sink.a_in)
    monitors = probes(populations, len(raster)) if record else {}
    configuration = Loihi2SimCfg(select_tag="fixed_pt")
    times = [time.perf_counter()]
    for steps in (1, len(raster) - 1):
        source.run(condition=RunSteps(num_steps=steps), run_cfg=configuration)
        times.append(time.perf_counter())
    found = {"first": times[1] - times[0], "seconds": times[2] - times[1], "spikes": sink.data.get().T}
    for name, monitor in monitors.items():
        found[name] = np.asarray(next(iter(next(iter(monitor.get_data().values())).values())))
    source.stop()
    return found


def main():
    """Run the job named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job")
    parser.add_argument("out")
    parser.add_argument("--record", action="store_true", help="u, v and spikes of every population")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    with np.load(arguments.job) as job:
        np.savez(arguments.out, **run(job, arguments.record))


if __name__ == "__main__":
    main()
