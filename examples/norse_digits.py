# %% [markdown]
# # Norse: digits from PyTorch to two chips
#
# A network of Norse's own layers, `LIFCell` by default, is trained the way Norse's users do it; then converted as it
# is, checked against Norse spike for spike, put on a Loihi 2 and a Speck, and compared with what it did in Norse.
#
# Needs `pip install norse 'nirdeploy[demo]'`; half a minute on two cores.

# %%
import warnings

import numpy as np
import torch
from torch import nn

import nirdeploy as nd
from nirdeploy.demonstration import digits
from nirdeploy.reference.threads import one_thread

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # Norse uses torch.jit.script
    import norse.torch as norse

# %% [markdown]
# ## Train in Norse
#
# `SequentialState` hands the state of each layer on; the loop over steps stays outside of the network, so that the
# network is one step, as a chip is. `LIFCell` has a synapse and a membrane: v follows a current that decays.

# %%
data = digits()
STEPS, CLASSES = data.train.shape[0], 10


def network(first: nn.Module, second: nn.Module) -> nn.Module:
    """64 pixels, 48 hidden neurons, 10 classes."""
    return norse.SequentialState(
        nn.Flatten(), nn.Linear(64, 48, bias=False), first, nn.Linear(48, 10, bias=False), second
    )


def steps_of(net: nn.Module, raster: torch.Tensor) -> torch.Tensor:
    """The spikes of all steps, [step, image, class]."""
    state, spikes = None, []
    for frame in raster:
        z, state = net(frame, state)
        spikes.append(z)
    return torch.stack(spikes)


def train(net: nn.Module, epochs: int) -> nn.Module:
    """Cross-entropy of spike counts, Adam, Norse's SuperSpike gradient."""
    raster, labels = torch.tensor(data.train[:, :, 0], dtype=torch.float32), torch.tensor(data.train_labels)
    optimiser = torch.optim.Adam(net.parameters(), lr=5e-3)
    for _ in range(epochs):
        for chosen in torch.randperm(len(labels)).split(64):
            loss = nn.functional.cross_entropy(steps_of(net, raster[:, chosen]).sum(0), labels[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return net.eval()


torch.manual_seed(0)
lif = network(norse.LIFCell(), norse.LIFCell())
with one_thread():
    train(lif, epochs=6)
    test = torch.tensor(data.test[:, :, 0], dtype=torch.float32)
    with torch.no_grad():
        in_norse = steps_of(lif, test).numpy()


def accuracy(spikes: np.ndarray) -> float:
    """How often the class that fires most is the digit; spikes [step, image, class]."""
    return float(np.mean(np.asarray(spikes).sum(0).argmax(-1) == data.test_labels))


print(f"Norse: {accuracy(in_norse):.3f} of 360 digits, {in_norse.sum():.0f} output spikes")

# %% [markdown]
# ## Convert
#
# The layers' parameters and what NIR does not say (`dt`, reset, how the synapse takes its input) come from the network;
# nothing is given by hand. The reference then gives Norse's own spikes, all of them.

# %%
graph = nd.torch_to_nir(lif, sample_input=test[0])
convention = nd.convention_of(lif)
reference = nd.run(graph, test.numpy(), convention=convention)
differing = int((np.asarray(reference.outputs) != in_norse).sum())
print(f"reference: {differing} of {in_norse.size} output bits differ from Norse; dt {convention.dt} s")

# %% [markdown]
# ## Loihi 2
#
# Loihi has the same neuron, so the network goes there as it is, with integer weights that are calibrated on training
# images. Its emulator is exact, so that every spike that differs from Norse's is due to the integers.

# %%
loihi = nd.deploy(graph, "loihi2", calibration=data.train[:, :96, 0])
on_loihi = loihi.run(test.numpy().astype(np.int64), on="emulator")
found = nd.compare(reference, on_loihi)
print(f"loihi2: {accuracy(on_loihi.outputs):.3f}, {found.spike_agreement:.1%} of spikes as in Norse")
print(f"  first: {found.first_divergence}")

# %% [markdown]
# ## Speck
#
# Speck has no synaptic current; `check` says so before anything is deployed, node by node.

# %%
report = nd.check(graph, "speck2f")
for finding in report.findings:
    print(f"speck2f refuses: {finding}")

# %% [markdown]
# So for Speck the same network is trained with `IAFCell`, Norse's neuron that neither leaks nor has a synapse. It goes
# to both chips.

# %%
torch.manual_seed(0)
iaf = network(norse.IAFCell(), norse.IAFCell())
with one_thread():
    train(iaf, epochs=6)
    with torch.no_grad():
        in_norse = steps_of(iaf, test).numpy()
graph = nd.torch_to_nir(iaf, sample_input=test[0])
reference = nd.run(graph, test.numpy())
differing = int((np.asarray(reference.outputs) != in_norse).sum())
print(f"IAF in Norse: {accuracy(in_norse):.3f}; reference: {differing} of {in_norse.size} output bits differ")
for target in ("speck2f", "loihi2"):
    deployed = nd.deploy(graph, target, calibration=data.train[:, :96, 0])
    on_chip = deployed.run(test.numpy().astype(np.int64), on="emulator")
    found = nd.compare(reference, on_chip)
    print(f"{target}: {accuracy(on_chip.outputs):.3f}, {found.spike_agreement:.1%} of spikes as in Norse")
