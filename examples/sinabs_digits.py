# %% [markdown]
# # From sinabs to a Speck
#
# A convolutional network is trained with sinabs on handwritten digits, converted as it is, run on the reference, put
# on a Speck 2f, and the chip's integers are run in sinabs again. Loihi 2 wants other neurons, which sinabs has, too.
#
# Run it where sinabs is: `pip install sinabs` pins nir 1.0.4, which nirdeploy takes.

# %%
from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path

import nir
import numpy as np
import sinabs
import sinabs.layers as sl
import torch
from sinabs.activation import MembraneReset, SingleSpike
from torch import nn

import nirdeploy as nd
from nirdeploy.demonstration import digits

started = time.perf_counter()
torch.manual_seed(0)
torch.set_num_threads(1)
data = digits()  # spike counts [step, image, 1, 8, 8]

# %% [markdown]
# ## Train, the way of sinabs
#
# Squeezed layers take [batch * step, ...], so that convolutions need nothing around them. The threshold of 1 and the
# lower bound of -1 are what Speck's neurons have; a neuron may spike several times a step. Afterwards the weights are
# rounded to multiples of 1/1024: float32 adds those without rounding, so no spike depends on the order of a sum.

# %%
N_STEPS = data.train.shape[0]
Neurons = Callable[[], nn.Module]


def build(neurons: Neurons, pool: Neurons = lambda: nn.AvgPool2d(2)) -> nn.Sequential:
    """Two convolutions and a matrix, each followed by neurons."""
    first = nn.Conv2d(1, 8, 3, padding=1, bias=False), neurons(), pool()
    second = nn.Conv2d(8, 16, 3, padding=1, bias=False), neurons(), pool()
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(64, 10, bias=False), neurons())


def squeezed(raster: np.ndarray) -> torch.Tensor:
    """[step, batch, ...] as [batch * step, ...]."""
    return torch.tensor(raster, dtype=torch.float32).transpose(0, 1).flatten(0, 1)


def spikes(module: nn.Module, raster: np.ndarray) -> torch.Tensor:
    """Spikes of each output from rest, [step, batch, class]."""
    sinabs.reset_states(module)
    return module(squeezed(raster)).unflatten(0, (raster.shape[1], N_STEPS)).transpose(0, 1)


def train(module: nn.Module, epochs: int) -> None:
    """Cross-entropy of the output counts, Adam; afterwards rounded, and at rest, as v of the last batch is no part."""
    labels = torch.tensor(data.train_labels)
    optimiser = torch.optim.Adam(module.parameters(), lr=5e-3)
    for _ in range(epochs):
        for chosen in torch.randperm(len(labels)).split(48):
            logits = 0.5 * spikes(module, data.train[:, chosen.numpy()]).sum(0)
            loss = nn.functional.cross_entropy(logits, labels[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_((1024 * weight).round() / 1024)
    module.eval()
    sinabs.reset_states(module)


def run_in_sinabs(module: nn.Module, raster: np.ndarray) -> np.ndarray:
    """Output spikes [step, batch, class]; the module is at rest again afterwards."""
    with torch.no_grad():
        found = spikes(module, raster).numpy()
    sinabs.reset_states(module)
    return found


def right(outputs: np.ndarray) -> float:
    """Share of the held-out images whose class fires most."""
    return float(np.mean(outputs.sum(0).argmax(1) == data.test_labels))


network = build(lambda: sl.IAFSqueeze(num_timesteps=N_STEPS, spike_threshold=1.0, min_v_mem=-1.0))
with torch.no_grad():
    network[0].weight.mul_(2.0)  # so that single pixels make neurons fire from the start
    network[3].weight.mul_(2.0)
train(network, epochs=4)
own = run_in_sinabs(network, data.test)
print(f"sinabs: accuracy {right(own):.3f}")

# %% [markdown]
# ## Convert
#
# Nothing is said about reset, lower bound or spikes per step: the layers say it, and the graph carries it.

# %%
graph = nd.torch_to_nir(network, input_shape=(1, 8, 8))
said = nd.convention_of(network)
print(f"convention: reset {said.reset}, v_min {said.v_min}, {said.spikes_per_step} spikes a step, {said.crossing}")
reference = nd.run(graph, data.test)
print(f"reference: {int((reference.outputs != own).sum())} of {own.size} output counts differ from sinabs's")

# %% [markdown]
# A file for sinabs is read by sinabs's own importer. It knows no average pool, so that becomes a convolution there.

# %%
out = Path("out/examples")
out.mkdir(parents=True, exist_ok=True)
nd.write(out / "sinabs_digits.nir", graph, for_library="sinabs")
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # sinabs's importer uses a function that nirtorch gives up
    again = sinabs.from_nir(nir.read(out / "sinabs_digits.nir"), num_timesteps=N_STEPS)
with torch.no_grad():
    counts, _ = again(squeezed(data.test))
returned = counts.unflatten(0, (-1, N_STEPS)).transpose(0, 1).numpy()
print(f"through a file and sinabs's importer: {int((returned != own).sum())} differ")

# %% [markdown]
# ## Speck 2f
#
# The chip holds 8-bit weights and 16-bit states. In step mode the emulator computes what sinabs computes with these
# integers: they are put into sinabs layers here, and run there. (A chip adds up what a pool takes in; the factor of
# the average is in the weights behind it.)

# %%
for finding in nd.check(graph, "speck2f").findings:
    print(f"speck2f, {finding.severity}: {finding.problem}")
speck = nd.deploy(graph, "speck2f", calibration=data.train[:, :96])
print("cores:", {name: list(cores) for name, cores in speck.placement.cores.items()})
on_speck = speck.run(data.test, on="emulator", mode="step")
print(f"speck2f: accuracy {right(on_speck.outputs):.3f}, reference {right(reference.outputs):.3f}")

parameters = iter(speck.quantized[name] for name in ("1", "4", "8"))


def chip_neurons() -> sl.IAFSqueeze:
    """Neurons with the integers of the next layer."""
    found = next(parameters)
    return sl.IAFSqueeze(num_timesteps=N_STEPS, spike_threshold=float(found.threshold), min_v_mem=float(found.v_min))


integers = build(chip_neurons, pool=lambda: sl.SumPool2d(2)).eval()
with torch.no_grad():
    for index in (0, 3, 7):
        integers[index].weight.copy_(torch.tensor(speck.quantized[str(index)].weight))
in_sinabs = run_in_sinabs(integers, data.test)
chip_spikes = on_speck["8", "spikes"].data
print(f"the chip's integers in sinabs: {int((in_sinabs != chip_spikes).sum())} of {in_sinabs.size} counts differ")
print(nd.compare(reference, on_speck).summary())

# %% [markdown]
# ## Loihi 2
#
# Its neurons fire once a step, are set to a value afterwards and have no lower bound, so the same network is refused,
# with the reasons. sinabs has layers of that kind, too: the network goes on training with those for a few seconds.

# %%
report = nd.check(graph, "loihi2")
for finding in report.findings:
    if finding.node == "1":
        print(f"loihi2, {finding.severity}: {finding.problem}")
plain = build(lambda: sl.IAFSqueeze(num_timesteps=N_STEPS, spike_fn=SingleSpike, reset_fn=MembraneReset()))
with torch.no_grad():
    for index in (0, 3, 7):
        plain[index].weight.copy_(network[index].weight)
train(plain, epochs=2)
own = run_in_sinabs(plain, data.test)
graph = nd.torch_to_nir(plain, input_shape=(1, 8, 8))
reference = nd.run(graph, data.test)
print(f"sinabs: accuracy {right(own):.3f}; {int((reference.outputs != own).sum())} counts of the reference differ")
loihi = nd.deploy(graph, "loihi2", calibration=data.train[:, :96])
on_loihi = loihi.run(data.test, on="emulator")
print(f"loihi2: accuracy {right(on_loihi.outputs):.3f}")
print(nd.compare(reference, on_loihi).summary())
print(f"{time.perf_counter() - started:.0f} s")
