# %% [markdown]
# # Your own chip's dump
#
# A laboratory writes what its board shows into a CSV; a mapping of a few lines makes it a trajectory, and `compare`
# says which spike differs first, and why. There is no board here, so this script makes the dump itself: it runs the
# emulator with one bit of one weight flipped, writes the last layer's v and spikes as text, and then forgets where
# they are from.

# %%
import dataclasses
from pathlib import Path

import numpy as np

import nirdeploy as nd

out = Path("out/examples")
out.mkdir(parents=True, exist_ok=True)
graph = nd.read("configs/digits.nir")
raster = np.load("configs/digits_calibration.npz")["raster"]  # [step, sample, channel, y, x]
deployment = nd.deploy(graph, "loihi2", calibration=raster)
image = raster[:, 49]

# %% [markdown]
# ## The dump
#
# The fault: of the weight from input 36 of the last layer to its neuron 8, the bit worth 64 is flipped.

# %%
integers = deployment.quantized["fc"]
weight = integers.weight.copy()
weight[8, 36] ^= 64
layers = {**deployment.quantized.layers, "fc": dataclasses.replace(integers, weight=weight)}
board = dataclasses.replace(deployment, quantized=dataclasses.replace(deployment.quantized, layers=layers))
shown = board.run(image)
columns = [np.arange(len(image)), *shown["if3", "v_mem"].data.T, *shown["if3", "spikes"].data.T]
names = ["step", *(f"v{i}" for i in range(10)), *(f"s{i}" for i in range(10))]
np.savetxt(out / "board.csv", np.transpose(columns), delimiter=",", fmt="%d", header=",".join(names), comments="")
print(*(out / "board.csv").read_text(encoding="utf-8").splitlines()[:6], sep="\n")

# %% [markdown]
# ## The mapping
#
# Which columns are what, what an integer of v stands for (`scale` and `threshold`, as the deployment has them), and by
# how many steps the layer is later than in the graph: on a Loihi one for each layer.

# %%
neuron = deployment.quantized["if3"]
mapping = f"""
[trajectory]
target = "loihi2"
executor = "chip"
producer = "board 7, bench of the second floor"

[[records]]
node = "if3"
variable = "v_mem"
file = "board.csv"
skip_rows = 1
columns = {list(range(1, 11))}
scale = {neuron.scale!r}
threshold = {float(neuron.threshold)}
lag = 3

[[records]]
node = "if3"
variable = "spikes"
file = "board.csv"
skip_rows = 1
columns = {list(range(11, 21))}
lag = 3
"""
(out / "board.toml").write_text(mapping, encoding="utf-8")
recorded = nd.load_trajectory(out / "board.toml")

# %% [markdown]
# ## What is wrong with the board?

# %%
emulated = deployment.run(image)
result = nd.compare(emulated, recorded)
print(result.summary())
result.to_html(out / "board.html")

# %% [markdown]
# Neuron 8 fires where it should not, and its v had left the emulator's before; no other neuron is off at all. By how
# much v is off when it first is, and which inputs had spiked in the step before, narrow it down to the weight: the bit
# worth 64, once for each spike that arrived. Input 36 of the last layer is the window of channel 2, rows 2 and 3,
# columns 0 and 1.

# %%
off = recorded["if3", "v_mem"].data.astype(int) - emulated["if3", "v_mem"].data  # [step, neuron]
step = int(np.flatnonzero(off.any(axis=1))[0])
arrived = int(emulated["if2", "spikes"].data[step - 1, 2, 2:4, 0:2].sum())
print("neurons whose v differs:", *np.flatnonzero(off.any(axis=0)))
print(f"first in step {step}, by {off[step, 8] >> 6} << 6; spikes of input 36 that arrived in it: {arrived}")
