"""Norse run live: what NIR cannot hold is refused by name, with the remedy."""

from __future__ import annotations

import pytest
import torch
from norse_nets import norse
from torch import nn

import nirdeploy as nd
from nirdeploy.errors import ConventionError, ConversionError


class Doubled(norse.LIFCell):
    def forward(self, x, state=None):
        return super().forward(2 * x, state)


class Started(norse.LIFCell):
    def initial_state(self, x):
        state = super().initial_state(x)
        return state._replace(v=state.v + 1)


class Looping(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = norse.LIFCell()

    def forward(self, x):
        state, spikes = None, []
        for step in range(x.shape[0]):
            z, state = self.cell(x[step], state)
            spikes.append(z)
        return torch.stack(spikes)


def hooked():
    net = norse.SequentialState(nn.Linear(6, 3), norse.LIFCell())
    net.register_forward_state_hooks(lambda *_: None)
    return net


def lif(**values):
    return norse.LIFCell(
        norse.LIFParameters(**{k: v if isinstance(v, str) else torch.tensor(v) for k, v in values.items()})
    )


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            norse.LIFRefracCell,
            "LIFRefracCell holds v for rho_reset=5 steps.*no refractory neuron.*set rho_reset",
        ),
        (lambda: norse.LIFRefracRecurrentCell(6, 6), "LIFRefracRecurrentCell holds v for rho_reset=5 steps"),
        (norse.LSNNCell, "LSNNCell of Norse is not supported: its threshold adapts"),
        (norse.LIFExCell, "LIFExCell of Norse is not supported: its membrane grows exponentially"),
        (norse.LIFAdExCell, "LIFAdExCell of Norse is not supported: its membrane has an adaptation current"),
        (lambda: norse.CobaLIFCell(6, 6), "CobaLIFCell of Norse is not supported: its synapses are conductances"),
        (lambda: norse.LIFMCRecurrentCell(6, 6), "LIFMCRecurrentCell of Norse is not supported: currents flow between"),
        (lambda: norse.PoissonEncoder(5), "PoissonEncoder of Norse is not supported: it makes spikes from numbers"),
        (Doubled, r"Doubled has a forward of its own.*module_map=\{Doubled"),
        (Started, "Started starts from a state of its own .*initial_state"),
        (lambda: lif(tau_mem_inv=0.0), "tau_mem_inv is 0.0, and NIR has no time constant for it"),
        (lambda: lif(tau_syn_inv=-5.0), "tau_syn_inv is -5.0"),
        (lambda: lif(v_th=float("nan")), "v_threshold is nan, expected a finite number"),
        (lambda: lif(v_th=[1.0, 1.0]), r"v_threshold of shape \(2,\) does not fit neurons of shape \(6,\)"),
        (lambda: lif(method="adjoint"), "lif_feed_forward_adjoint_step, which Norse itself cannot run"),
        (lambda: norse.LIFBoxCell(norse.LIFBoxParameters(reset_method=torch.add)), "reset_method .*add is not known"),
        (lambda: norse.LIFRecurrentCell(4, 3), r"takes 4 inputs a sample, here \(6,\)"),
    ],
)
def test_what_nir_cannot_hold_is_refused_by_name(build, message):
    with pytest.raises(ConversionError, match=f"node '1'.*{message}"):
        nd.torch_to_nir(norse.SequentialState(nn.Linear(6, 6), build()), sample_input=torch.zeros(2, 6))


@pytest.mark.parametrize(
    ("build", "shape", "message"),
    [
        (hooked, (2, 6), "node '1'.*LIFCell has forward hooks"),
        (Looping, (9, 2, 6), "forward of Looping loops over an axis of its input.*a forward of one step"),
        (
            lambda: norse.SequentialState(nn.Linear(6, 3), nn.Dropout(0.5), norse.LIFCell()),
            (2, 6),
            r"node '1'.*Dropout is in training mode.*Call eval\(\)",
        ),
        (
            lambda: norse.SequentialState(nn.Linear(6, 3), norse.LIF(), nn.Linear(3, 3), norse.LIFCell()),
            (9, 2, 6),
            "'3' takes one step at a time, '1' all steps at once",
        ),
        (
            lambda: norse.SequentialState(nn.Linear(6, 3), norse.LIFCell(dt=0.01), norse.LIFCell()),
            (2, 6),
            "has dt=0.001, that of '1' 0.01",
        ),
        (
            lambda: norse.SequentialState(norse.Lift(nn.Conv2d(2, 3, 3)), norse.LIF(), nn.Flatten(), nn.Linear(12, 3)),
            (9, 1, 2, 4, 4),
            r"node '2'.*Flatten\(start_dim=1\) merges the batch. Use start_dim=2",
        ),
        (
            lambda: nn.Sequential(norse.LIF(), norse.Lift(norse.LIFCell())),
            (9, 2, 6),
            r"Lift\(LIFCell\) comes right after a layer that returns its state",
        ),
        (
            lambda: norse.RecurrentSequential(norse.LIFCell(), nn.Linear(6, 6), output_modules=0),
            (2, 6),
            "output_modules=0: only what the last module puts out can come back",
        ),
        (
            lambda: norse.RecurrentSequential(nn.Linear(6, 1), norse.LIFCell()),
            (2, 6),
            r"its output \(1,\) is added to its input \(6,\), which broadcasts",
        ),
        (
            lambda: norse.RecurrentSequential(nn.Linear(6, 6), norse.LIF()),
            (9, 2, 6),
            "RecurrentSequential of layers that take all steps at once feeds nothing back",
        ),
        (
            lambda: norse.SequentialState(nn.Linear(6, 2), nn.BatchNorm1d(2), norse.LIF()).eval(),
            (9, 2, 6),
            r"would take the batch of \[step, batch, channel\] for its channels",
        ),
    ],
)
def test_networks_that_are_no_step_of_a_graph_are_refused(build, shape, message):
    with pytest.raises(ConversionError, match=message):
        nd.torch_to_nir(build(), sample_input=torch.zeros(*shape))


def test_a_sample_without_a_batch_is_told_apart():
    net = norse.SequentialState(nn.Linear(6, 3), norse.LIF())
    with pytest.raises(ConversionError, match=r"sample_input has shape \(9, 6\).*step, batch.*input_shape=\(6,\)"):
        nd.torch_to_nir(net, sample_input=torch.zeros(9, 6))
    assert "1" in nd.torch_to_nir(net, input_shape=(6,)).nodes


def test_another_dt_than_the_layers_is_refused():
    net = norse.SequentialState(nn.Linear(6, 3), norse.LIFCell())
    for function in (nd.convention_of, lambda m, dt: nd.torch_to_nir(m, sample_input=torch.zeros(2, 6), dt=dt)):
        with pytest.raises(ConventionError, match="LIFCell has dt=0.001, 0.0001 is asked for"):
            function(net, dt=1e-4)


class Forgetful(nn.Module):
    """Its second cell starts at rest in each step."""

    def __init__(self):
        super().__init__()
        self.a, self.b = norse.LIFCell(), norse.LIFCell()

    def forward(self, x, state=None):
        z, state = self.a(x, state)
        y, _ = self.b(z)
        return y, state


class Unpassed(nn.Module):
    """Its states are made and dropped in each step."""

    def __init__(self):
        super().__init__()
        self.net = norse.SequentialState(nn.Linear(6, 6), norse.LIFCell())

    def forward(self, x):
        return self.net(x)[0]


@pytest.mark.parametrize(
    ("build", "path"),
    [
        (Forgetful, "b"),
        (Unpassed, "net.1"),
        (lambda: nn.Sequential(nn.Linear(6, 6), norse.LIFCell()), "1"),
        (lambda: nn.Sequential(nn.Linear(6, 6), norse.LIFRecurrentCell(6, 6)), "1"),
    ],
)
def test_a_cell_that_gets_no_state_remembers_nothing(build, path):
    message = rf"node '{path}': forward passes LIF\w*Cell no state, so that it starts each step at rest.*return it"
    with pytest.raises(ConversionError, match=message):
        nd.torch_to_nir(build(), sample_input=torch.zeros(2, 6))
