"""Record what a spiking library makes of small NIR graphs: one layer of three neurons, 100 steps.

    python tests/golden/record_libraries.py LIBRARY FOLDER

Runs in an environment that holds nir, numpy and one of the libraries snntorch, norse, sinabs, spikingjelly, rockpool,
spyx, nengo, lava, and writes FOLDER/library_<LIBRARY>.npz. Every case is the graph Input -> Affine -> neurons ->
Output, some with a second Affine from the neurons back to themselves. Fields: `library_version`, `cases`, and for each
case `<case>_kind`, `_how` (the library's NIR import, or its own layer where that cannot take the case), `_dt`,
`_raster` [step, 3], `_weight`, `_bias`, the parameters of the node (`_tau`, `_r`, `_v_threshold`, ...), `_spikes`
[step, 3], `_v` [step, 3] as the library shows it after the step, and `_rec_weight`, `_rec_bias` where the graph is
recurrent.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import nir
import numpy as np

STEPS = 100
TAU = (2e-3, 5e-3, 1e-2)
TAU_SYN = (5e-3, 2e-3, 4e-3)
THRESHOLD = (0.4, 1.0, 1.6)
IMPORT = "NIR import"


@dataclass
class Case:
    """One graph, its input, and how strongly the input drives it (mean of W x + b, one a neuron)."""

    name: str
    kind: str
    drive: np.ndarray
    parameters: dict
    dt: float = 1e-3
    with_bias: bool = True
    recurrent: bool = False
    rec_with_bias: bool = True

    def __post_init__(self):
        generator = np.random.default_rng(sum(map(ord, self.name + self.kind)))
        raster = generator.poisson(0.8, (STEPS, 3))
        raster[generator.choice(STEPS, 8, replace=False)] += 4  # so that some steps are worth many spikes
        self.raster = raster.astype(np.float32)
        weight = generator.uniform(0.5, 1.5, (3, 3)) * np.where(np.eye(3) > 0, -0.7, 1.0)
        bias = generator.uniform(0.1, 0.3, 3) * self.with_bias
        scale = self.drive / (weight @ self.raster.mean(0) + bias)
        self.weight = (weight * scale[:, None]).astype(np.float32)
        self.bias = (bias * scale).astype(np.float32)
        if self.recurrent:
            rec = generator.uniform(0.2, 0.8, (3, 3)) * generator.choice([-1, 1], (3, 3))
            self.rec_weight = (rec * self.drive[:, None]).astype(np.float32)
            self.rec_bias = (generator.uniform(0.1, 0.3, 3) * self.drive * self.rec_with_bias).astype(np.float32)

    def node(self):
        """The NIR node; v_reset is left out where nir is too old to know it."""
        kind = getattr(nir, self.kind)
        known = {field.name for field in dataclasses.fields(kind)}
        return kind(**{name: np.array(value) for name, value in self.parameters.items() if name in known})

    def graph(self):
        neuron, back, shape = "neuron", "back", np.array([3])
        nodes = {
            "input": nir.Input({"input": shape}),
            "affine": nir.Affine(weight=self.weight, bias=self.bias),
            neuron: self.node(),
            "output": nir.Output({"output": shape}),
        }
        edges = [("input", "affine"), ("affine", neuron)]
        if self.recurrent:
            nodes[back] = nir.Affine(weight=self.rec_weight, bias=self.rec_bias)
            edges += [(neuron, back), (back, neuron)]
        # the edge to the output last: nirtorch's executor returns the node that it reaches last
        return nir.NIRGraph(nodes=nodes, edges=[*edges, (neuron, "output")])

    def current(self):
        """What the Affine makes of the raster."""
        return self.raster @ self.weight.T + self.bias

    def fields(self):
        names = ["raster", "weight", "bias", *(["rec_weight", "rec_bias"] if self.recurrent else [])]
        return {"kind": self.kind, "dt": self.dt, **{n: getattr(self, n) for n in names}, **self.parameters}


def row(*values):
    return np.array(values if len(values) > 1 else values * 3, np.float32)


def lif(name, drive, *, tau=TAU, r=(1.0,), threshold=THRESHOLD, **options):
    values = {"tau": row(*tau), "r": row(*r), "v_leak": row(0.0), "v_threshold": row(*threshold), "v_reset": row(0.0)}
    return Case(name, "LIF", drive * values["v_threshold"] / values["r"], values, **options)


def integrate(name, drive, *, r=(1.0,), threshold=THRESHOLD, v_reset=0.0, **options):
    values = {"r": row(*r), "v_threshold": row(*threshold), "v_reset": row(v_reset)}
    return Case(name, "IF", drive * values["v_threshold"], values, **options)


def cuba(name, drive, *, tau_syn=TAU_SYN, tau=TAU, r=(1.0,), w_in=(1.0,), threshold=THRESHOLD, **options):
    values = {
        "tau_syn": row(*tau_syn),
        "tau_mem": row(*tau),
        "r": row(*r),
        "v_leak": row(0.0),
        "v_threshold": row(*threshold),
        "v_reset": row(0.0),
        "w_in": row(*w_in),
    }
    return Case(name, "CubaLIF", drive * values["v_threshold"] / (values["r"] * values["w_in"]), values, **options)


def stack(values):
    return np.stack([np.asarray(value, np.float32).reshape(3) for value in values])


# One function a library: a list of (case, how, spikes, v). The library is imported inside.


def record_snntorch():
    """The import fixes dt = 1e-4 and one threshold a layer, and divides the threshold by the input gain."""
    import snntorch as snn
    import torch
    from snntorch.import_nir import import_from_nir

    dt = 1e-4

    def of(tau, share=1.0):
        return tuple(share * value / dt for value in tau)

    def imported(case):
        network = import_from_nir(case.graph())
        state, spikes, v = None, [], []
        (layer,) = (m for m in network.modules() if isinstance(m, snn.Leaky | snn.Synaptic))
        for x in torch.tensor(case.raster):
            out, state = network(x[None], state)
            spikes.append((out[0] if isinstance(out, tuple) else out).detach())
            v.append(layer.mem.detach())
        return stack(spikes), stack(v)

    def native(case, layer):
        spikes, v, state = [], [], ()
        with torch.no_grad():
            for x in torch.tensor(case.current()):
                out = layer(x[None], *state)
                # a recurrent layer wants its own spikes back as the first part of its state
                state = out if case.recurrent else out[1:]
                spikes.append(out[0])
                v.append(out[-1])
        return stack(spikes), stack(v)

    one = {"threshold": (1.0,), "dt": dt}
    runs = [
        (lif("LIF", 4.0, r=of(TAU, 0.5), **one), None, None),
        (lif("LIF_r1", 4.0, tau=(5e-3,), **one), None, None),
        (lif("LIF_gains", 4.0, **one), None, "; gains differ, all thresholds are divided by the smallest gain"),
        (cuba("CubaLIF", 4.0, r=of(TAU), w_in=of(TAU_SYN), **one), None, None),
        (cuba("CubaLIF_w", 4.0, tau_syn=(2e-3,), r=of(TAU), w_in=of((2e-3,), 0.25), **one), None, None),
        (integrate("IF", 0.6137, **one), None, ": Leaky(beta=0.9, reset_mechanism='subtract', reset_delay=False)"),
    ]
    for zero in ("zero", "subtract"):
        for delay in (True, False):
            how = f"Leaky(beta=[0.95, 0.98, 0.99], threshold=1, reset_mechanism='{zero}', reset_delay={delay})"
            case = lif(f"leaky_{zero}_{'next' if delay else 'same'}", 4.0, r=of(TAU, 1.0), **one)
            beta = torch.tensor(1 - dt / row(*TAU), dtype=torch.float32)
            runs.append((case, snn.Leaky(beta=beta, threshold=1.0, reset_mechanism=zero, reset_delay=delay), how))
    case = lif("rleaky", 4.0, r=of(TAU), recurrent=True, **one)
    layer = snn.RLeaky(beta=beta, linear_features=3, threshold=1.0, reset_mechanism="zero", reset_delay=False)
    layer.recurrent.weight.data, layer.recurrent.bias.data = torch.tensor(case.rec_weight), torch.tensor(case.rec_bias)
    how = "RLeaky(beta=[0.95, 0.98, 0.99], reset_mechanism='zero', reset_delay=False); the import sends x through W_rec"
    runs.append((case, layer, how))
    case = integrate("IF_leaky", 0.6137, **one)
    layer = snn.Leaky(beta=1.0, threshold=1.0, reset_mechanism="zero", reset_delay=False)
    runs.append((case, layer, "Leaky(beta=1, threshold=1, reset_mechanism='zero', reset_delay=False)"))
    found = []
    for case, layer, how in runs:
        if layer is None:
            found.append((case, IMPORT + (how or ""), *imported(case)))
        else:
            found.append((case, how, *native(case, layer)))
    return found


def record_norse():
    import norse.torch as norse
    import torch

    def imported(case):
        network = norse.from_nir(case.graph(), dt=case.dt, ignore_warnings=True)
        state, spikes, v = None, [], []
        with torch.no_grad():
            for x in torch.tensor(case.raster):
                z, state = network(x[None], state)
                spikes.append(z)
                (own,) = state.state["neuron"]
                v.append((own[1] if case.kind == "CubaLIF" else own).v.detach())
        return stack(spikes), stack(v)

    cases = [
        lif("LIF", 4.0),
        lif("LIF_r", 4.0, r=(0.5, 2.0, 3.0)),
        integrate("IF", 0.6137),
        integrate("IF_r", 0.6137, r=(0.5, 2.0, 3.0)),
        cuba("CubaLIF", 4.0),
        cuba("CubaLIF_r", 4.0, r=(0.5, 2.0, 3.0), w_in=(2.0, 0.5, 1.5)),
        lif("LIF_recurrent", 4.0, recurrent=True),
        cuba("CubaLIF_recurrent", 4.0, recurrent=True),
    ]
    return [(case, IMPORT, *imported(case)) for case in cases]


def record_sinabs():
    """Time constants are read as steps, so dt = 1."""
    import sinabs.layers as sl
    import torch
    from sinabs.nir import from_nir

    steps = tuple(value / 1e-3 for value in TAU)
    steps_syn = tuple(value / 1e-3 for value in TAU_SYN)

    def layer_of(network):
        (layer,) = (m for m in network.modules() if isinstance(m, sl.StatefulLayer))
        layer.record_states = True
        return layer

    def imported(case):
        network = from_nir(case.graph(), batch_size=1)
        layer = layer_of(network)
        with torch.no_grad():
            out = network(torch.tensor(case.raster))
        return stack(out[0] if isinstance(out, tuple) else out), stack(layer.recordings["v_mem"][0].detach())

    def stepped(case):
        network, state, spikes, v = from_nir(case.graph(), batch_size=1), None, [], []
        layer = layer_of(network)
        with torch.no_grad():
            for x in torch.tensor(case.raster):
                out, state = network(x[None], state)
                spikes.append(out)
                v.append(layer.v_mem.clone())
        return stack(spikes), stack(v)

    def native(case, layer):
        layer.record_states = True
        with torch.no_grad():
            out = layer(torch.tensor(case.current())[None])
        return stack(out[0]), stack(layer.recordings["v_mem"][0].detach())

    found = [
        (case, IMPORT, *imported(case))
        for case in (
            lif("LIF", 0.7137, tau=steps, dt=1.0),
            lif("LIF_r", 0.7137, tau=steps, r=(0.5, 2.0, 3.0), dt=1.0),
            integrate("IF", 0.7137, dt=1.0),
            integrate("IF_r", 0.7137, r=(0.5, 2.0, 3.0), dt=1.0),
        )
    ]
    case = lif("LIF_recurrent", 0.7137, tau=steps, dt=1.0, recurrent=True)
    found.append((case, IMPORT + ", one step a call", *stepped(case)))
    case = lif("LIF_norm", 4.0, tau=steps, dt=1.0)
    layer = sl.LIF(tau_mem=torch.tensor(steps), spike_threshold=torch.tensor(row(*THRESHOLD)))
    found.append((case, "LIF(tau_mem, spike_threshold), defaults (norm_input=True)", *native(case, layer)))
    case = cuba("CubaLIF", 0.2, tau=steps, tau_syn=steps_syn, dt=1.0)
    layer = sl.LIF(
        tau_mem=torch.tensor(steps),
        tau_syn=torch.tensor(steps_syn),
        spike_threshold=torch.tensor(row(*THRESHOLD)),
        norm_input=False,
    )
    found.append(
        (case, "LIF(tau_mem, tau_syn, spike_threshold, norm_input=False); its import drops it", *native(case, layer))
    )
    return found


def record_spikingjelly():
    """The import takes one value of every parameter a layer, and r, w_in of one or two sizes only."""
    import torch
    from spikingjelly.activation_based.nir_exchange import import_from_nir

    def imported(case):
        network = import_from_nir(case.graph(), dt=case.dt)
        state, spikes, v = None, [], []
        with torch.no_grad():
            for x in torch.tensor(case.raster):
                z, state = network(x[None], state)
                spikes.append(z)
                v.append(state["neuron"][0])
        return stack(spikes), stack(v)

    dt = 1e-3
    cases = [
        lif("LIF", 4.0, tau=(5e-3,), threshold=(1.0,)),
        lif("LIF_r", 4.0, tau=(5e-3,), r=(5e-3 / dt,), threshold=(1.6,)),
        integrate("IF", 0.6137, r=(1 / dt,), threshold=(1.0,)),
        integrate("IF_reset", 0.6137, r=(1 / dt,), threshold=(1.0,), v_reset=-0.25),
        cuba("CubaLIF", 4.0, tau=(5e-3,), tau_syn=(2e-3,), r=(5e-3 / dt,), w_in=(2e-3 / dt,), threshold=(1.0,)),
        lif("LIF_recurrent", 4.0, tau=(5e-3,), threshold=(1.0,), recurrent=True),
        cuba(
            "CubaLIF_recurrent",
            4.0,
            tau=(5e-3,),
            tau_syn=(2e-3,),
            r=(5e-3 / dt,),
            w_in=(2e-3 / dt,),
            threshold=(1.0,),
            recurrent=True,
        ),
    ]
    return [(case, IMPORT, *imported(case)) for case in cases]


def record_rockpool():
    """The import takes CubaLIF, with dt = min(tau_mem / (1 + r)); it fails on LIF and refuses IF."""
    import torch
    from rockpool.nn.modules import LIFNeuronTorch
    from rockpool.nn.modules.torch.nir import from_nir

    def imported(case):
        network, spikes, v = from_nir(case.graph()), [], []
        layer = network.get_submodule("neuron")
        with torch.no_grad():
            for x in torch.tensor(case.raster):
                spikes.append(network(x[None, None])[0])
                v.append(layer.vmem.clone())
        return stack(spikes), stack(v)

    def native(case, layer):
        with torch.no_grad():
            out, _, states = layer(torch.tensor(case.current())[None], record=True)
        return stack(out[0]), stack(states["vmem"][0])

    r = tuple(value / 1e-3 - 1 for value in TAU)
    tau, threshold = torch.tensor(row(*TAU)), torch.tensor(row(*THRESHOLD))
    case, two = lif("LIF", 0.7137), cuba("CubaLIF", 0.2 * np.array(r), r=r)
    layer = LIFNeuronTorch(shape=(3,), tau_mem=tau, threshold=threshold, bias=torch.zeros(3), dt=1e-3)
    how = "LIFNeuronTorch(tau_mem, threshold, bias=0, dt); its import fails"
    return [(case, how, *native(case, layer)), (two, IMPORT, *imported(two))]


def record_spyx():
    import jax.numpy as jnp
    from spyx.nir import from_nir

    def imported(case):
        _, (out, states) = from_nir(case.graph(), jnp.array(case.raster)[:, None], dt=case.dt, return_all_states=True)
        (state,) = (np.asarray(s) for s in states if s is not None and np.size(s))
        return stack(np.asarray(out)), stack(state[:, 0, :3])

    cases = [
        lif("LIF", 0.7137),
        lif("LIF_r", 0.7137, r=(0.5, 2.0, 3.0)),
        integrate("IF", 0.6137),
        cuba("CubaLIF", 0.2),
        lif("LIF_recurrent", 0.7137, recurrent=True, rec_with_bias=False),
    ]
    return [(case, IMPORT, *imported(case)) for case in cases]


def record_nengo():
    """Nengo has no import: its neurons with the mapping of the NIR paper (gain 1 / threshold, tau_ref 0)."""
    import nengo

    class ResetIF(nengo.SpikingRectifiedLinear):
        """Integrates and is set to zero above 1."""

        def step(self, dt, J, output, voltage):  # noqa: N803 (nengo's name)
            voltage += J * dt
            output[:] = np.where(voltage > 1, self.amplitude / dt, 0)
            voltage[output > 0] = 0

    def native(case):
        dt, values = case.dt, case.parameters
        start = {"voltage": nengo.dists.Choice([0])}
        threshold = values["v_threshold"].astype(float)
        synapse = None
        if case.kind == "IF":
            neurons, gain = ResetIF(initial_state=start, amplitude=dt), 1 / threshold / dt
        elif case.kind == "LIF":
            neurons = nengo.LIF(tau_rc=float(values["tau"][0]), tau_ref=0, amplitude=dt, initial_state=start)
            gain = 1 / threshold
        else:
            neurons = nengo.LIF(tau_rc=float(values["tau_mem"][0]), tau_ref=0, amplitude=dt, initial_state=start)
            gain = values["w_in"].astype(float) * values["r"] / threshold
            synapse = nengo.synapses.Lowpass(-dt / np.log(1 - dt / float(values["tau_syn"][0])))
        with nengo.Network() as model:
            source = nengo.Node(nengo.processes.PresentInput(case.raster, dt))
            affine = nengo.Node(lambda t, x: case.weight @ x + case.bias, size_in=3, size_out=3)
            layer = nengo.Ensemble(3, 1, neuron_type=neurons, gain=gain, bias=np.zeros(3))
            nengo.Connection(source, affine, synapse=None)
            nengo.Connection(affine, layer.neurons, synapse=synapse)
            out = nengo.Probe(layer.neurons, "output")
            v = nengo.Probe(layer.neurons, "voltage")
        with nengo.Simulator(model, dt=dt, progress_bar=False, optimize=False) as simulator:
            simulator.run_steps(STEPS)
        return stack(simulator.data[out]), stack(simulator.data[v])

    how = "own layer, the mapping of the NIR paper; v is divided by the threshold"
    cases = [
        lif("LIF", 4.0, tau=(5e-3,)),
        integrate("IF", 0.6137),
        cuba("CubaLIF", 4.0, tau=(5e-3,), tau_syn=(2e-3,), threshold=(1.0,)),
    ]
    return [(case, how, *native(case)) for case in cases]


def record_lava():
    """Lava has no import: floating-point Dense and LIF with the mapping of the NIR paper, r dt / tau in the weights."""
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg
    from lava.proc.dense.process import Dense
    from lava.proc.io.source import RingBuffer
    from lava.proc.lif.process import LIF
    from lava.proc.monitor.process import Monitor

    def native(case):
        values, dt = case.parameters, case.dt
        tau = values.get("tau", values.get("tau_mem"))
        decay = 0.0 if tau is None else dt / float(tau[0])
        gain = values["r"] if tau is None else values["r"] * decay
        current_decay = 1.0
        if case.kind == "CubaLIF":
            current_decay = dt / float(values["tau_syn"][0])
            gain = gain * values["w_in"] * current_decay
        source = RingBuffer(data=case.raster.T.astype(float))
        dense = Dense(weights=(case.weight * gain[:, None]).astype(float), num_message_bits=16)
        layer = LIF(shape=(3,), du=current_decay, dv=decay, vth=float(values["v_threshold"][0]))
        source.s_out.connect(dense.s_in)
        dense.a_out.connect(layer.a_in)
        monitors = {"spikes": Monitor(), "v": Monitor()}
        monitors["spikes"].probe(layer.s_out, STEPS)
        monitors["v"].probe(layer.v, STEPS)
        layer.run(condition=RunSteps(num_steps=STEPS), run_cfg=Loihi2SimCfg(select_tag="floating_pt"))
        data = {key: next(iter(next(iter(m.get_data().values())).values())) for key, m in monitors.items()}
        layer.stop()
        return stack(data["spikes"]), stack(data["v"])

    how = "floating-point Dense and LIF, the mapping of the NIR paper"
    one = {"threshold": (1.0,), "with_bias": False}
    cases = [
        lif("LIF", 4.0, tau=(5e-3,), **one),
        integrate("IF", 0.6137, **one),
        cuba("CubaLIF", 4.0, tau=(5e-3,), tau_syn=(2e-3,), **one),
    ]
    return [(case, how, *native(case)) for case in cases]


LIBRARIES = {
    "snntorch": (record_snntorch, "snntorch"),
    "norse": (record_norse, "norse"),
    "sinabs": (record_sinabs, "sinabs"),
    "spikingjelly": (record_spikingjelly, "spikingjelly"),
    "rockpool": (record_rockpool, "rockpool"),
    "spyx": (record_spyx, "spyx"),
    "nengo": (record_nengo, "nengo"),
    "lava": (record_lava, "lava-nc"),
}


def main():
    """Record one library into the folder given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("folder", type=Path, help="where the golden goes")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    record, package = LIBRARIES[given.library]
    found = {"library_version": importlib.metadata.version(package)}
    names = []
    for case, how, spikes, v in record():
        names.append(case.name)
        values = {**case.fields(), "how": how, "spikes": spikes.astype(np.uint8), "v": v}
        found.update({f"{case.name}_{key}": np.asarray(value) for key, value in values.items()})
        print(f"{case.name}: {spikes.sum(0)} spikes, at most {spikes.max():.0f} a step, v from {v.min():.3g}: {how}")
    found["cases"] = np.array(names)
    given.folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(given.folder / f"library_{given.library}.npz", **found)


if __name__ == "__main__":
    main()
