# %% [markdown]
# # A real Loihi 2 against emulator and reference
#
# The authors of the NIR paper (Pedersen et al., Nature Communications 15, 8122, 2024) recorded one LIF neuron on a
# Loihi 2: input, v and spikes of every step. Here their file is read as it is, through a small mapping, and held
# against
#
# - the emulator with the integers of their Lava script: nothing may differ;
# - the reference, which is the neuron in floating point: what the integers cost.
#
# The trace is `paper/01_lif/lif_lava_loihi_fixed.csv` of https://github.com/neuromorphs/NIR. Clone that repository and
# set `NIR_PAPER` to its folder.

# %%
import os
from pathlib import Path

import h5py
import nir
import numpy as np
from nirdeploy_loihi import netx

import nirdeploy as nd

trace = Path(os.environ.get("NIR_PAPER", "../NIR")) / "paper" / "01_lif" / "lif_lava_loihi_fixed.csv"
if not trace.exists():
    raise SystemExit(f"{trace} is not there: clone https://github.com/neuromorphs/NIR and set NIR_PAPER to its folder")
out = Path("out/examples")
out.mkdir(parents=True, exist_ok=True)
spikes_in = np.loadtxt(trace, delimiter=",", usecols=[0]).astype(int)[:, None]  # [step, neuron]

# %% [markdown]
# ## The chip's side: a mapping
#
# Columns of the file are input, v and spikes. v is a register; `scale` says how many model units an integer is. A
# spike of step t reaches the neuron in step t + 1: `lag`. Where the neuron has just fired, the probe of a Loihi does
# not show v but 128 times the refractory steps that are left: `view` names that, so that these entries are not
# compared.


# %%
def mapping(node: str, scale: float) -> str:
    """The records of the file as those of a node, whose model units are `scale` an integer."""
    common = f'node = "{node}"\nfile = "{trace.resolve().as_posix()}"\nlag = 1\n'
    return f"""
[trajectory]
target = "loihi2"
executor = "chip"
producer = "NIR paper, 01_lif"

[[records]]
variable = "spikes"
columns = [2]
{common}
[[records]]
variable = "v_mem"
columns = [1]
scale = {scale!r}
threshold = 1600.0
view = "refractory_128"
{common}"""


def chip(node: str, scale: float) -> nd.Trajectory:
    """The recording as a trajectory."""
    path = out / "loihi2_trace.toml"
    path.write_text(mapping(node, scale), encoding="utf-8")
    return nd.load_trajectory(path)


# %% [markdown]
# ## Against the emulator
#
# The integers of the paper's Lava script, as a lava-dl file: weight 10, threshold 25 << 6, decays 163 and 4096 of
# 4096.

# %%
with h5py.File(out / "lif.net", "w") as file:
    layer = file.create_group("layer/0")
    layer["type"], layer["shape"], layer["weight"] = b"dense", [1], [[10]]
    neuron = layer.create_group("neuron")
    neuron["type"], neuron["iDecay"], neuron["vDecay"], neuron["vThMant"] = b"CUBA", 4096, 163, 25

emulated = netx.read(out / "lif.net").run(spikes_in)
register = emulated["0.neuron", "v_mem"].scale
result = nd.compare(emulated, chip("0.neuron", register))
found = result.per_node["0.neuron"]
print(
    f"{len(spikes_in)} steps, {found.spikes_chip} spikes: {found.differing_entries} spikes and "
    f"{found.variables['v_mem'].sums.differing} voltages differ from the emulator"
)
print(*result.notes, sep="\n")

# %% [markdown]
# ## Against the reference
#
# The neuron as NIR has it: tau 2.5 ms, threshold 0.1, stepped by forward Euler with dt 0.1 ms. The threshold of 1600
# stands for 0.1, so an integer is 0.1 / 1600.

# %%
one = np.ones(1)
graph = nir.NIRGraph.from_list(
    nir.Affine(np.eye(1), np.zeros(1)),
    nir.LIF(tau=2.5e-3 * one, r=one, v_leak=0 * one, v_threshold=0.1 * one, v_reset=0 * one),
)
reference = nd.run(graph, spikes_in, convention=nd.convention("nir", dt=1e-4))
against = nd.compare(reference, chip("lif", 0.1 / 1600))
print(against.summary())
against.to_html(out / "loihi2_trace.html")

# %% [markdown]
# Every spike agrees, and v is off by half a per cent of the threshold: the decay of 163 / 4096 is not quite 1 / 25,
# and an integer as large as 1 / 1600 of the threshold is cut off in every step. Our own quantiser, which chooses the
# scale by data, comes closer:

# %%
deployment = nd.deploy(graph, "loihi2", convention=nd.convention("nir", dt=1e-4), calibration=spikes_in[:, None])
ours = nd.compare(reference, deployment.run(spikes_in))
print(f"v RMS of the paper's integers {against.v_mem_error:.5f}, of ours {ours.v_mem_error:.5f} thresholds")
