# %% [markdown]
# # One graph, three libraries
#
# NIR fixes equations in continuous time; how they are stepped, every library decides for itself. Here snnTorch, Norse
# and sinabs read one file: two layers of LIF neurons. None of them has to be installed, the presets do what their
# imports do (docs/conventions.md says what each was held against). Which differ, where first, and why?

# %%
import dataclasses
import itertools
from pathlib import Path

import nir
import numpy as np

import nirdeploy as nd

rng = np.random.default_rng(1)
dt = 1e-3


def lif(n: int, r: float) -> nir.LIF:
    """A layer with tau 10 ms and threshold 0.1."""
    one = np.ones(n)
    return nir.LIF(tau=1e-2 * one, r=r * one, v_leak=0 * one, v_threshold=0.1 * one, v_reset=0 * one)


graph = nir.NIRGraph.from_list(
    nir.Linear(rng.normal(0.3, 0.5, (12, 8))),
    lif(12, r=1.0),
    nir.Linear(rng.normal(0.3, 0.5, (6, 12))),
    lif(6, r=1.25),
)
raster = (rng.random((200, 4, 8)) < 0.3).astype(int)  # [step, sample, neuron]

# %% [markdown]
# ## Two by two
#
# snnTorch counts v in units of the input gain; `v_unit="model"` asks for the file's own unit instead, so that voltages
# can be compared.

# %%
libraries = {
    "snntorch": nd.convention("snntorch", dt=dt, v_unit="model"),
    "norse": nd.convention("norse", dt=dt),
    "sinabs": nd.convention("sinabs", dt=dt),
}
runs = {name: nd.run(graph, raster, convention=convention) for name, convention in libraries.items()}
out = Path("out/examples")
out.mkdir(parents=True, exist_ok=True)
for a, b in itertools.combinations(libraries, 2):
    found = nd.compare(runs[a], runs[b])
    print(f"{a} and {b}: {found.spike_agreement:.1%} of spikes agree, {found.spikes.differing} entries differ")
    print(f"  first: {found.first_divergence}")
    found.to_html(out / f"{a}_{b}.html")

# %% [markdown]
# ## Why
#
# The conventions are values, so their differences can be taken away one by one. What is left of the differing entries
# says which field is to blame. Norse leaves r out, which is 1 in the first layer and 1.25 in the second; sinabs
# differs in six ways.


# %%
def walk(start: str, end: str, *changes: dict[str, object]) -> None:
    """Change fields of one library's convention to the other's, and count what still differs."""
    convention = libraries[start]
    for change in ({}, *changes):
        convention = dataclasses.replace(convention, **change)
        found = nd.compare(runs[end], nd.run(graph, raster, convention=convention))
        said = ", ".join(f"{field} {value!r}" for field, value in change.items()) or f"{start} as it is"
        print(f"  {said:40s} {found.spikes.differing:5d} differ, v RMS {found.v_mem_error:.2g} thresholds")


print("from norse to snntorch")
walk("norse", "snntorch", {"overrides": {}})
print("from sinabs to snntorch")
walk(
    "sinabs",
    "snntorch",
    {"gain": "euler"},
    {"use_r": True},
    {"reset": "zero"},
    {"spikes_per_step": "one"},
    {"integrator": "euler"},
    {"crossing": "strict"},
)
