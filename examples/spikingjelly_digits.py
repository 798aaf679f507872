# %% [markdown]
# # SpikingJelly: digits from PyTorch to two chips
#
# A convolutional network of SpikingJelly's own layers, in its multi-step mode, is trained the way its users do it; then
# converted as it is, checked against SpikingJelly spike for spike, put on a Speck and a Loihi 2, and compared with what
# it did in SpikingJelly.
#
# Needs `pip install spikingjelly==2.0.0 'nirdeploy[demo]'`; half a minute on two cores.

# %%
import numpy as np
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

import nirdeploy as nd
from nirdeploy.demonstration import digits
from nirdeploy.reference.threads import one_thread

# %% [markdown]
# ## Train in SpikingJelly
#
# `set_step_mode(net, "m")` makes every layer take [step, image, ...] at once, `reset_net` puts the memories back
# between batches. `IFNode` with `v_reset=None` subtracts its threshold when it fires, which Speck can do, too.

# %%
data = digits()


def network(make_neuron) -> nn.Module:
    """8x8 pixels, 8 channels with batch normalisation, pooling, 10 classes."""
    net = nn.Sequential(
        layer.Conv2d(1, 8, 3, padding=1, bias=False),
        layer.BatchNorm2d(8),
        make_neuron(),
        layer.AvgPool2d(2),
        layer.Flatten(),
        layer.Linear(8 * 16, 10, bias=False),
        make_neuron(),
    )
    functional.set_step_mode(net, "m")
    return net


def train(net: nn.Module, epochs: int) -> nn.Module:
    """Cross-entropy of firing rates, Adam, SpikingJelly's ATan gradient."""
    raster, labels = torch.tensor(data.train, dtype=torch.float32), torch.tensor(data.train_labels)
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(epochs):
        for chosen in torch.randperm(len(labels)).split(64):
            loss = nn.functional.cross_entropy(net(raster[:, chosen]).sum(0), labels[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            functional.reset_net(net)
    return net.eval()


def spikes_of(net: nn.Module) -> np.ndarray:
    """The output spikes of the held-out images, [step, image, class]; memories are put back after it."""
    with torch.no_grad():
        found = net(torch.tensor(data.test, dtype=torch.float32)).numpy()
    functional.reset_net(net)
    return found


def accuracy(spikes) -> float:
    """How often the class that fires most is the digit."""
    return float(np.mean(np.asarray(spikes).sum(0).argmax(-1) == data.test_labels))


torch.manual_seed(0)
with one_thread():
    integrators = train(network(lambda: neuron.IFNode(v_reset=None, surrogate_function=surrogate.ATan())), epochs=6)
    in_jelly = spikes_of(integrators)
print(f"SpikingJelly: {accuracy(in_jelly):.3f} of 360 digits, {in_jelly.sum():.0f} output spikes")

# %% [markdown]
# ## Convert
#
# The sample input has the two axes that a multi-step network takes. Batch normalisation is folded into the weights
# before it. What NIR does not say (`v >= threshold` fires, the threshold is subtracted) comes from the layers.

# %%
sample = torch.tensor(data.test[:, :1], dtype=torch.float32)
graph = nd.torch_to_nir(integrators, sample_input=sample)
convention = nd.convention_of(integrators)
reference = nd.run(graph, data.test, convention=convention)
differing = int((np.asarray(reference.outputs) != in_jelly).sum())
print(f"reference: {differing} of {in_jelly.size} output bits differ from SpikingJelly")
print(f"  reset {convention.reset}, crossing {convention.crossing}")

# %% [markdown]
# A network that has run keeps its memories; `torch_to_nir` says so, instead of converting what would start elsewhere.

# %%
integrators(sample)
try:
    nd.torch_to_nir(integrators, sample_input=sample)
except nd.NirdeployError as error:
    print(f"after a run: {error}")
functional.reset_net(integrators)

# %% [markdown]
# ## Speck and Loihi 2
#
# Both take integrators. Loihi resets to a value and cannot subtract; `check` says so before anything is deployed.

# %%
for target in ("speck2f", "loihi2"):
    report = nd.check(graph, target)
    if not report.ok:
        for finding in report.findings:
            print(f"{target}: {finding}")
        continue
    deployed = nd.deploy(graph, target, calibration=data.train[:, :96])
    on_chip = deployed.run(data.test, on="emulator")
    found = nd.compare(reference, on_chip)
    print(f"{target}: {accuracy(on_chip.outputs):.3f}, {found.spike_agreement:.1%} of spikes as in SpikingJelly")

# %% [markdown]
# So for Loihi the same network is trained with `LIFNode`, whose default reset is to 0, and whose membrane leaks.

# %%
torch.manual_seed(0)
with one_thread():
    leaky = train(network(lambda: neuron.LIFNode(tau=4.0, surrogate_function=surrogate.ATan())), epochs=6)
    in_jelly = spikes_of(leaky)
graph = nd.torch_to_nir(leaky, sample_input=sample)
reference = nd.run(graph, data.test)
differing = int((np.asarray(reference.outputs) != in_jelly).sum())
print(f"LIF in SpikingJelly: {accuracy(in_jelly):.3f}; reference: {differing} of {in_jelly.size} output bits differ")
deployed = nd.deploy(graph, "loihi2", calibration=data.train[:, :96])
on_chip = deployed.run(data.test, on="emulator")
found = nd.compare(reference, on_chip)
print(f"loihi2: {accuracy(on_chip.outputs):.3f}, {found.spike_agreement:.1%} of spikes as in SpikingJelly")
print(f"  first: {found.first_divergence}")
