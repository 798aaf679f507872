# %% [markdown]
# # From snnTorch to two chips
#
# A small network is trained with snnTorch on handwritten digits, converted, and put on a Speck 2f and a Loihi 2. At
# every stage the same 360 held-out images run, and each stage is compared with the one before: the library's own
# forward, the float reference, the chips' integers.
#
# It needs `pip install snntorch 'nirdeploy[demo]'`.

# %%
import dataclasses
from pathlib import Path

import numpy as np
import snntorch as snn
import torch
from snntorch import surrogate, utils
from torch import nn

import nirdeploy as nd
from nirdeploy.demonstration import digits

torch.manual_seed(0)
torch.set_num_threads(1)
out = Path("out/examples")
out.mkdir(parents=True, exist_ok=True)
data = digits()  # spike rasters [step, image, 1, 8, 8] and labels

# %% [markdown]
# ## Train
#
# The layers keep their states (`init_hidden=True`), as in snnTorch's tutorials. Two options are chosen for the chips,
# which reset v to zero in the step of the spike: `reset_mechanism="zero"` and `reset_delay=False`. `beta=1` is a neuron
# that does not leak, which is what a Speck has.


# %%
def lif(beta: float = 1.0, **options: bool) -> snn.Leaky:
    """A layer as the chips have it."""
    grad = surrogate.fast_sigmoid(slope=5)
    return snn.Leaky(beta, spike_grad=grad, init_hidden=True, reset_mechanism="zero", reset_delay=False, **options)


network = nn.Sequential(
    nn.Conv2d(1, 8, 3, padding=1, bias=False),
    lif(),
    nn.Conv2d(8, 16, 3, padding=1, bias=False),
    lif(),
    nn.AvgPool2d(2),
    nn.Flatten(),
    nn.Linear(256, 10, bias=False),
    lif(output=True),
)
with torch.no_grad():
    network[0].weight.mul_(1.5)  # so that a single pixel can make a neuron fire from the start


def spikes_of(network: nn.Module, raster: torch.Tensor) -> torch.Tensor:
    """Output spikes [step, image, class] of snnTorch's own forward, from rest."""
    utils.reset(network)
    return torch.stack([network(frame)[0] for frame in raster])


raster, labels = torch.tensor(data.train, dtype=torch.float32), torch.tensor(data.train_labels)
optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=8 * 30)
for _ in range(8):
    for chosen in torch.randperm(len(labels)).tensor_split(30):
        loss = nn.functional.cross_entropy(0.6 * spikes_of(network, raster[:, chosen]).sum(0), labels[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


def right(spikes: np.ndarray) -> float:
    """Share of held-out images whose class spikes most."""
    return float(np.mean(spikes.sum(0).argmax(1) == data.test_labels))


test = torch.tensor(data.test, dtype=torch.float32)
with torch.no_grad():
    own = spikes_of(network, test).numpy()
print(f"snnTorch: {right(own):.1%} right")

# %% [markdown]
# ## Convert, and run the reference
#
# What a NIR file cannot say (how v is reset, and when) is in the convention, read off the layers. Every spike of the
# reference is one of snnTorch's own.

# %%
utils.reset(network)  # what is left of the last run would be where the next one starts
graph = nd.torch_to_nir(network.eval(), sample_input=test[0], dt=1e-3)
convention = nd.convention_of(network, dt=1e-3)
print(f"convention: reset {convention.reset}, {convention.reset_time}, dt {convention.dt}")
reference = nd.run(graph, data.test)
print(f"reference: {np.sum(reference.outputs != own)} of {own.size} output entries differ from snnTorch's")

# %% [markdown]
# ## Two chips
#
# Weights become integers, calibrated on training images; the emulators compute with the chips' own numbers.

# %%
for target in ("speck2f", "loihi2"):
    deployment = nd.deploy(graph, target, calibration=data.train[:, :96])
    emulated = deployment.run(data.test)
    result = nd.compare(reference, emulated)
    print(f"{target}: {right(emulated.outputs):.1%} right, {result.spike_agreement:.2%} of spikes agree")
    print(f"  first difference: {result.first_divergence}")
    result.to_html(out / f"snntorch_{target}.html")

# %% [markdown]
# ## What the defaults would have cost
#
# snnTorch's layers reset a step late and by subtraction unless told otherwise. `check` says what stands in the way,
# before any chip; a network trained so can still be deployed with the chip's reset, and `compare` tells what it costs.

# %%
default = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), snn.Leaky(beta=0.9, init_hidden=True, output=True))
graph = nd.torch_to_nir(default, sample_input=test[0], dt=1e-3)
for finding in nd.check(graph, "loihi2").findings:
    if finding.severity == "error":
        print(f"loihi2, node {finding.node}: {finding.problem}. {finding.remedy}")
as_it_is = nd.convention_of(default, dt=1e-3)
as_the_chip = dataclasses.replace(as_it_is, reset="zero", reset_time="same_step")
cost = nd.compare(nd.run(graph, data.test), nd.run(graph, data.test, convention=as_the_chip))
print(f"with the chip's reset {cost.spike_agreement:.1%} of the untrained default's spikes would agree")
