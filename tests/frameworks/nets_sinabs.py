"""Networks of sinabs layers for the tests on the library itself: drawn at random, run, and held against ours.

Weights are multiples of 2**-6 and counts are small, so that what goes into a population is exact in any order of
summation. Where a layer then rounds (leaks, lower bounds), a network with a v within `NEAR` of a multiple of its
threshold is not drawn: every other one must agree in every spike.
"""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import sinabs.layers as sl
import torch
from hypothesis import assume
from hypothesis import strategies as st
from sinabs.activation import MaxSpike, MembraneReset, MembraneSubtract, MultiSpike, SingleSpike
from sinabs.layers.functional import lif as stepping
from torch import nn

import nirdeploy as nd
from nirdeploy.reference.graph_convention import stored_convention

GRID = 2.0**-6
NEAR = 2e-5  # of the threshold
MOST = 32.0  # likewise, of v before it is reset: what is subtracted from costs v its last digits
BOUND = 1e-5  # of v, likewise
METHODS = ("dense", "event", "loop")
STATEFUL = (sl.LIF,)  # the base of all of them


class Drawn:
    """A network, what goes into it as sinabs takes it, and [step, batch, ...] of the same."""

    def __init__(self, network, given, raster):
        self.network, self.given, self.raster = network, given, raster

    def __repr__(self):
        return f"{self.network}, raster of shape {tuple(self.raster.shape)}"


def on_grid(rng, shape, low=-0.4, high=0.8):
    return torch.tensor(rng.integers(round(low / GRID), round(high / GRID) + 1, shape) * GRID).float()


def fill(module, rng):
    """Weights and biases of all layers inside on the grid; the module itself."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            reach = max(2.0 / layer.weight[0].numel() ** 0.5, 2 * GRID)
            layer.weight.data = on_grid(rng, layer.weight.shape, -0.5 * reach, reach)
            if layer.bias is not None:
                layer.bias.data = on_grid(rng, layer.bias.shape, -0.1, 0.2)
    return module


# ---------------------------------------------------------------- layers


def steps(rng, shape, how):
    """Time constants in steps: one number, one tensor of one, or one a neuron."""
    if how == "one":
        return float(rng.uniform(1.5, 30))
    return torch.tensor(rng.uniform(1.5, 30, shape if how == "each" else ()), dtype=torch.float32)


@st.composite
def options(draw, rng, shape, family):
    """Arguments of a layer's constructor."""
    found = {}
    if family != "ExpLeak":
        many = st.sampled_from(["scalar", "tensor", "each"])
        threshold = {
            "scalar": 1.0,
            "tensor": torch.tensor(float(rng.uniform(0.5, 2))),
            "each": torch.tensor(rng.uniform(0.5, 2, shape), dtype=torch.float32),
        }[draw(many)]
        found["spike_threshold"] = threshold
        found["spike_fn"] = draw(st.sampled_from([MultiSpike, SingleSpike, MaxSpike(None), MaxSpike(1)]))
        same = MembraneSubtract(threshold) if isinstance(threshold, float) else MembraneSubtract()
        found["reset_fn"] = draw(st.sampled_from([MembraneSubtract(), MembraneReset(), same]))
        lower = draw(st.sampled_from(["none", "value", "threshold"]))
        if lower != "none":
            found["min_v_mem"] = -0.5 if lower == "value" else -torch.as_tensor(threshold)
        if draw(st.booleans()):
            found["tau_syn"] = steps(rng, shape, draw(st.sampled_from(["one", "tensor", "each"])))
    if family != "IAF":
        found["tau_mem"] = steps(rng, shape, draw(st.sampled_from(["one", "tensor", "each"])))
        found["norm_input"] = draw(st.booleans())
        found["train_alphas"] = draw(st.booleans())
    # what is left out is sinabs's own default; a lower bound and its threshold go together
    kept = {name: value for name, value in found.items() if draw(st.integers(0, 3)) or name == "tau_mem"}
    return kept | ({"spike_threshold": found["spike_threshold"]} if "min_v_mem" in kept else {})


def connection(rng, shape, how):
    """A recurrent connection that keeps the shape."""
    if len(shape) == 3:
        plain = nn.Conv2d(shape[0], shape[0], 3, padding=1, bias=how != "bare")
    else:
        plain = nn.Linear(shape[0], shape[0], bias=how != "bare")
    found = fill(nn.Sequential(plain, nn.Identity()) if how == "sequence" else plain, rng)
    with torch.no_grad():
        plain.weight.mul_(0.5)
    return found


@st.composite
def layers(draw, rng, shape, family, squeezed=None, recurrent=False):
    """A layer; `squeezed` holds its batch_size or num_timesteps."""
    given = draw(options(rng, shape, family))
    if recurrent:
        how = draw(st.sampled_from(["plain", "bare", "sequence"]))
        return getattr(sl, f"{family}Recurrent")(rec_connect=connection(rng, shape, how), **given)
    return getattr(sl, family + ("Squeeze" if squeezed else ""))(**given, **(squeezed or {}))


# ---------------------------------------------------------------- networks


def families(last):
    return st.sampled_from(["IAF", "LIF", "ExpLeak"] if last else ["IAF", "IAF", "LIF", "LIF", "ExpLeak"])


@st.composite
def networks(draw, family=None, *, recurrent=None, kind=None, deepest=3):
    """A network of Linear layers, of convolutions in Repeat, or squeezed ones, with a layer of sinabs after each."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = kind or draw(st.sampled_from(["dense", "dense squeezed", "repeated", "squeezed"]))
    batch, n_steps = draw(st.integers(1, 4)), draw(st.integers(6, 16))
    squeezed = None
    if "squeezed" in kind:
        squeezed = draw(st.sampled_from([{"batch_size": batch}, {"num_timesteps": n_steps}]))
    shape = (draw(st.integers(1, 6)),) if "dense" in kind else (draw(st.integers(1, 2)), 6, 6)
    first, parts = shape, []
    depth = draw(st.integers(1, deepest))
    for level in range(depth):
        shape = _weights(draw, rng, kind, shape, parts)
        own = family or draw(families(level == depth - 1))
        back = draw(st.booleans()) if recurrent is None else recurrent
        back = back and squeezed is None and own != "ExpLeak"
        made = draw(layers(rng, shape, own, squeezed, back))
        if own == "ExpLeak" and level < depth - 1:
            made.norm_input = True  # numbers that grow would leave nothing of the precision of a v behind them
        calm(made, parts[-2:])
        parts.append(made)
    counts = rng.choice(3, (n_steps, batch, *first), p=(0.6, 0.3, 0.1))
    raster = torch.tensor(counts, dtype=torch.float32)
    given = raster.transpose(0, 1)
    given = given.flatten(0, 1) if squeezed else given.contiguous()
    return Drawn(nn.Sequential(*parts).eval(), given, raster)


def calm(layer, before):
    """Smaller weights, still on a grid, where a synapse sums up many steps: few spikes a step leave v its digits."""
    alpha = layer.alpha_syn_calculated
    if alpha is None:
        return
    factor = 2.0 ** -round(float(torch.log2(alpha / (1 - alpha)).detach().max()))
    for part in (*before, getattr(layer, "rec_connect", nn.Identity())):
        for inner in part.modules():
            if isinstance(inner, nn.Linear | nn.Conv2d):
                for parameter in inner.parameters():
                    parameter.data *= factor


def _weights(draw, rng, kind, shape, parts):
    """What stands before a layer; the shape it makes."""
    if "dense" in kind:
        out = draw(st.integers(1, 6))
        parts.append(fill(nn.Linear(shape[0], out, bias=draw(st.booleans())), rng))
        return (out,)
    out, groups = draw(st.integers(1, 3)), 1
    conv = fill(nn.Conv2d(shape[0], out, 3, padding=1, groups=groups, bias=draw(st.booleans())), rng)
    found = [conv]
    size = shape[1]
    if size > 2 and draw(st.booleans()):
        pool = draw(st.sampled_from([sl.SumPool2d(2), sl.SumPool2d((2, 2), stride=2), nn.AvgPool2d(2)]))
        found.append(pool)
        size //= 2
    parts.extend(sl.Repeat(part) if kind == "repeated" else part for part in found)
    return (out, size, size)


# ---------------------------------------------------------------- runs


@contextmanager
def watched():
    """While it runs, the least distance of v from where a spike more is made, and the largest v; in thresholds."""
    seen, plain = {"least": 1.0, "most": 0.0}, stepping.lif_forward_single

    def single(**values):
        syn, mem, before = values["alpha_syn"], values["alpha_mem"], values["state"]
        x = values["input_data"] if syn is None else syn * (before["i_syn"] + values["input_data"])
        v = mem * before["v_mem"] + ((1 - mem) * x if values["norm_input"] else x)
        if values["spike_fn"]:
            ratio = (v / values["spike_threshold"]).detach()
            at = torch.ones_like(ratio) if values["spike_fn"] is SingleSpike else ratio.round().clamp(min=1)
            seen["least"] = min(seen["least"], float((ratio - at).abs().min()))
            seen["most"] = max(seen["most"], float(ratio.abs().max()))
        return plain(**values)

    stepping.lif_forward_single = single
    try:
        yield seen
    finally:
        stepping.lif_forward_single = plain


def is_exact(network):
    """Whether ours and sinabs's arithmetic is the same, bit for bit, on weights and counts that sum up exactly.

    It is not behind a synapse, at a lower bound, relu(v - low) + low, off the grid, for decays of less than two steps,
    and where the numbers of an integrator are summed up.
    """
    layers = list(stateful(network).values())
    for layer in layers:
        alpha = layer.alpha_mem_calculated.detach().min()
        plain = layer.spike_threshold is None or bool((layer.spike_threshold == 1).all())
        leaks = float(alpha) < 1
        bounded = layer.min_v_mem is not None and (leaks or not plain)
        if bounded or alpha < 0.607 or layer.alpha_syn_calculated is not None:
            return False
    return all(layer.spike_fn for layer in layers[:-1])


def reset(network):
    """All layers at rest; sinabs.reset_states passes recurrent ones by."""
    for layer in network.modules():
        if isinstance(layer, STATEFUL):
            layer.reset_states()


def stateful(network):
    return {path: layer for path, layer in network.named_modules() if isinstance(layer, STATEFUL)}


def step_first(values, raster):
    """[batch, step, ...] or [batch * step, ...] as [step, batch, ...]."""
    n_steps, batch = raster.shape[:2]
    if values.shape[0] == batch * n_steps and values.shape[:2] != (batch, n_steps):
        values = values.unflatten(0, (batch, n_steps))
    return values.transpose(0, 1).detach().numpy()


def own_run(drawn):
    """What sinabs makes of it: outputs, spikes of each layer, v of each layer after every step."""
    network, seen = drawn.network, {}
    hooks = [
        layer.register_forward_hook(lambda module, given, out, path=path: seen.__setitem__(path, out.clone()))
        for path, layer in stateful(network).items()
    ]
    for layer in stateful(network).values():
        layer.record_states = True
    reset(network)
    with torch.no_grad():
        out = network(drawn.given)
    for hook in hooks:
        hook.remove()
    v = {path: layer.recordings["v_mem"] for path, layer in stateful(network).items()}
    for path, layer in stateful(network).items():
        layer.record_states = False
        if hasattr(layer, "rec_connect"):
            v[path] = _stepwise(drawn, layer)
    reset(network)
    spikes = {path: step_first(values, drawn.raster) for path, values in seen.items()}
    return step_first(out, drawn.raster), spikes, {p: x.transpose(0, 1).detach().numpy() for p, x in v.items()}


def _stepwise(drawn, layer):
    """v after each step of a recurrent layer, whose own recordings are overwritten by the step after."""
    found = []
    for stop in range(1, drawn.given.shape[1] + 1):
        reset(drawn.network)
        with torch.no_grad():
            drawn.network(drawn.given[:, :stop])
        found.append(layer.v_mem.clone())
    return torch.stack(found, 1)


def check_drawn(drawn, methods=METHODS):
    """`check` of a network that hypothesis has drawn: another one is, where rounding decides a spike."""
    return check(drawn, methods, demand=assume)


def insist(holds):
    assert holds, "rounding decides a spike: choose other weights"


def check(drawn, methods=METHODS, dt=None, demand=insist):
    """Hold the converted network against sinabs's own run; every spike and every v. The graph."""
    with watched() as seen:
        out, spikes, v = own_run(drawn)
    demand(seen["most"] < MOST and (seen["least"] > NEAR or is_exact(drawn.network)))
    graph = nd.torch_to_nir(drawn.network, sample_input=drawn.given, dt=dt)
    convention = nd.convention_of(drawn.network, dt=dt)
    assert stored_convention(graph) == convention
    assert spikes
    for method in methods:
        found = nd.run(graph, drawn.raster, convention=convention, method=method)
        compared(np.asarray(found.outputs), out, (method, "output"), None)
        for path, layer in stateful(drawn.network).items():
            node = path if (path, "v_mem") in found.records else f"{path}.neuron"
            threshold = None if layer.spike_threshold is None else float(layer.spike_threshold.min())
            if (node, "spikes") in found.records:
                assert np.array_equal(found[node, "spikes"].data, spikes[path]), (method, path)
            compared(found[node, "v_mem"].data, v[path], (method, path), threshold)
    return graph


def compared(ours, theirs, where, threshold):
    """Equal within `BOUND` of the threshold; of an integrator, of the largest value."""
    assert ours.shape == theirs.shape, where
    error = np.abs(ours - theirs).max(initial=0.0)
    assert error <= BOUND * (threshold or max(1.0, float(np.abs(theirs).max(initial=0.0)))), (*where, error)
