"""Training with the quantisation of a chip: every forward pass takes the integers that `deploy` will give it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import nir
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nirdeploy import graph as graphs
from nirdeploy import pipeline
from nirdeploy.backend import differing, find_target, training_grid
from nirdeploy.convert.build import GraphModule, nir_to_torch
from nirdeploy.convert.trace import torch_to_nir
from nirdeploy.errors import CheckError, QuantizationError, UnsupportedError
from nirdeploy.quantization import Grid, Quantized, TrainingGrid, own_integer
from nirdeploy.raster import check_raster
from nirdeploy.reference.convention import Convention
from nirdeploy.reference.graph_convention import resolve_convention
from nirdeploy.reference.neurons import Neuron
from nirdeploy.reference.surrogates import Surrogate, surrogate_of
from nirdeploy.target import Target

__all__ = ["QuantizationAware", "quantization_aware"]


class _Rounded(torch.autograd.Function):
    """Nearest value of a grid; its gradient is passed straight through (Bengio et al., arXiv:1308.3432).

    Beyond the ends of the grid only what leads back is passed, so that no parameter wanders off where nothing changes.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, grid: Grid) -> Tensor:
        exact = value.double() / _steps(value, grid)
        ctx.save_for_backward(exact < grid.lowest, exact > grid.highest)
        ctx.grid = grid
        rounded: Tensor = _integers(value, grid) * _unit(grid)
        return rounded.to(value.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        below, above = ctx.saved_tensors
        (gradient,) = gradients  # a step is taken against it
        if ctx.grid.unit is not None:  # the factors that are folded into the integers
            gradient = (gradient * (ctx.grid.unit / _steps(gradient, ctx.grid))).to(gradient.dtype)
        return gradient.masked_fill((below & (gradient > 0)) | (above & (gradient < 0)), 0.0), None


def _steps(like: Tensor, grid: Grid) -> Tensor | float:
    """What an integer of a parameter stands for, on the parameter's device."""
    return grid.step if isinstance(grid.step, float | int) else torch.tensor(grid.step, device=like.device)


def _unit(grid: Grid) -> float:
    """What an integer stands for in the network that is simulated."""
    return float(grid.step) if grid.unit is None else grid.unit


def _integers(value: Tensor, grid: Grid) -> Tensor:
    """Nearest integers of a grid, halves to even, as float64."""
    count = value.detach().double() / _steps(value, grid) / grid.every
    found: Tensor = torch.round(count).clamp(grid.lowest / grid.every, grid.highest / grid.every) * grid.every
    return found


def _require_precise(parameter: Tensor, node: str, field: str) -> None:
    """Refuse floats in which integers times a step, and their sums, are not exact."""
    if parameter.dtype not in (torch.float32, torch.float64):
        kind = str(parameter.dtype).removeprefix("torch.")
        raise QuantizationError(
            f"{field} is {kind}, in which sums of the chip's integers are not exact",
            node=node,
            remedy="Make the network anew, and leave it in float32 or float64.",
        )


@contextmanager
def _exact_sums(devices: Iterable[str]) -> Iterator[None]:
    """Without autocast and TF32, which round products of integers and a step."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    with ExitStack() as stack:
        for device in devices:
            stack.enter_context(torch.autocast(device, enabled=False))
        try:
            cudnn.allow_tf32 = matmul.allow_tf32 = False
            yield
        finally:
            cudnn.allow_tf32, matmul.allow_tf32 = before


class _Call(nn.Module):
    """A graph's methods behind one forward, which is what torch can call with other parameters."""

    def __init__(self, network: GraphModule) -> None:
        super().__init__()
        self.network = network

    def forward(self, called: str, /, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.network, called)(*args, **kwargs)


class QuantizationAware(nn.Module):
    """A network whose weights are rounded to a chip's integers in every forward pass; `quantization_aware` makes it.

    Its parameters are the floats behind the integers, in the units of the network that was given. Those that do not
    train (thresholds, time constants, resistances, biases of layers that had none) take no gradient. All weights do,
    whatever `requires_grad` they came with. A forward pass is in float32 or float64, without autocast and TF32.

    Attributes:
        target: the chip.
        convention: what the network is run with.
        weight_bits: bits of a weight; None: the chip's.
        grid: the values that parameters may have.
    """

    def __init__(self, network: GraphModule, target: Target, weight_bits: int | None, grid: TrainingGrid) -> None:
        super().__init__()
        self._call = _Call(network)
        self.target, self.weight_bits, self.grid = target, weight_bits, grid
        self.convention = network.convention
        network.requires_grad_(requires_grad=False)
        for node, field, _ in self._trained():
            self._parameter(node, field).requires_grad_()

    @property
    def network(self) -> GraphModule:
        """The network with the floats behind the integers; `graph()` is what is simulated."""
        return self._call.network

    def forward(self, *inputs: Any, state: Mapping[str, Any] | None = None, **named: Tensor) -> Any:
        """One step, as `GraphModule.forward`, with rounded weights.

        Args:
            *inputs: of one step, [batch, ...].
            state: of the step before; missing entries mean rest.
            **named: inputs by name, where there are several.
        """
        return self._rounded("__call__", *inputs, state=state, **named)

    def sequence(self, raster: Any, state: Mapping[str, Any] | None = None, *, method: str = "dense") -> Any:
        """Many steps at once, as `GraphModule.sequence`, with rounded weights.

        Args:
            raster: counts, [step, batch, ...].
            state: to start from; missing entries mean rest.
            method: as of `GraphModule.sequence`.
        """
        return self._rounded("sequence", raster, state, method=method)

    def _rounded(self, called: str, /, *args: Any, **kwargs: Any) -> Any:
        names = {id(parameter): name for name, parameter in self._call.named_parameters()}
        values = {}
        for node, field, grid in self._trained():
            parameter = self._parameter(node, field)
            _require_precise(parameter, node, field)
            values[names[id(parameter)]] = _Rounded.apply(parameter, grid)  # type: ignore[no-untyped-call]
        with _exact_sums({value.device.type for value in values.values()}):
            return torch.func.functional_call(self._call, values, (called, *args), kwargs)

    def _trained(self) -> list[tuple[str, str, Grid]]:
        return [(node, field, grid) for node, own in self.grid.trained.items() for field, grid in own.items()]

    def _parameter(self, node: str, field: str) -> nn.Parameter:
        found: nn.Parameter = getattr(self.network.get((node,)), field)
        return found

    def integers(self) -> dict[str, dict[str, NDArray[np.int64]]]:
        """The integers that a forward pass takes now: weight node -> 'weight' or 'bias' -> array.

        Those of a bias are of 2**exponent weights' integers, the exponent being its grid's.

        Raises:
            QuantizationError: a parameter is NaN somewhere.
        """
        found: dict[str, dict[str, NDArray[np.int64]]] = {}
        for node, field, grid in self._trained():
            array = _integers(self._parameter(node, field), grid).cpu().numpy()
            if unknown := int(np.isnan(array).sum()):
                raise QuantizationError(
                    f"{field} holds {unknown} of {array.size} values that are NaN, for which there is no integer",
                    node=node,
                    remedy="Go back to a copy from before, and train with a smaller lr.",
                )
            found.setdefault(node, {})[field] = array.astype(np.int64)
        return found

    def graph(self) -> nir.NIRGraph:
        """The network as it is simulated; `nd.deploy(graph, target, quantizer='exact')` gives it to the chip.

        Raises:
            QuantizationError: what `deploy` makes of it is not what was simulated, or fits no register; a parameter is
                NaN, or one that does not train is not what the chip has.
        """
        for node, field, _ in self._trained():
            _require_precise(self._parameter(node, field), node, field)
        graph = torch_to_nir(self.network)
        self._require_fixed(graph)
        for node, own in self.integers().items():
            for field, integers in own.items():
                values = integers * _unit(self.grid.trained[node][field])
                before = np.asarray(getattr(graph.nodes[node], field))
                setattr(graph.nodes[node], field, values.astype(before.dtype).reshape(before.shape))
        graph = graphs.with_metadata(graph, convention=self.convention.to_dict())
        self._require_same(pipeline.quantize(graph, self.target, quantizer="exact", weight_bits=self.weight_bits))
        return graph

    def _require_fixed(self, graph: nir.NIRGraph) -> None:
        """Refuse thresholds and the like that something else than training has moved."""
        for node, own in self.grid.fixed.items():
            for field, value in own.items():
                # the network was made in 32 bits, whatever it is in now
                held = np.asarray(getattr(graph.nodes[node], field), dtype=np.float32)
                wanted = _filled(held, value)
                if not np.array_equal(held, wanted):
                    first = np.unravel_index(int((held != wanted).argmax()), held.shape)
                    raise QuantizationError(
                        f"{field} is {held[first]:.6g}, while {self.target.name} has {wanted[first]:.6g}: it does not "
                        "train",
                        node=node,
                        remedy="Leave its requires_grad, and load only states of the same network, bits and "
                        "calibration.",
                    )

    def _require_same(self, quantized: Quantized) -> None:
        node = differing(quantized, self.grid, self.integers())
        if node is not None:
            raise QuantizationError(f"the integers for {self.target.name} are not those that were simulated", node=node)


def quantization_aware(
    module: nn.Module | nir.NIRGraph,
    target: str | Target,
    *,
    bits: int | None = None,
    calibration: Any = None,
    convention: Convention | None = None,
    surrogate: str | Surrogate | None = None,
    sample_input: Any = None,
    input_shape: Any = None,
) -> QuantizationAware:
    """A network that trains with exactly the quantisation that `deploy` applies.

    Weights and biases are rounded to the chip's integers in every forward pass, and gradients passed straight through
    the rounding. The step of each layer, its threshold, decays and lower bound are chosen once, here, by the backend's
    rule, and are exact in binary: what is simulated, in floats, is the integer network. On Loihi the chip also rounds u
    and v where they decay, which is not simulated; networks without decays are exact.

    Args:
        module: a trained network, anything `torch_to_nir` takes, or a graph; never changed.
        target: a target's name.
        bits: bits of a weight, sign included; None: the chip's.
        calibration: raster [step, batch, ...] to choose steps and thresholds on, as the 'calibrated' quantiser does;
            None: steps at which the largest weight fills its bits.
        convention: None: the one the graph carries.
        surrogate: gradient of the spike; None: the module's own where it is a GraphModule, else the default.
        sample_input: as in `torch_to_nir`.
        input_shape: as in `torch_to_nir`.

    Returns:
        A module `out, state = module(x, state)` with `sequence`; its `graph()` deploys with quantizer='exact'.

    Raises:
        CheckError: the target cannot hold the network; carries the report.
        UnsupportedError: a target without quantisation-aware training, or a node that the network shares.
        QuantizationError: bits the chip does not have, or factors that make the integers inexact; naming the node.
        RasterError: calibration data of the wrong shape.
    """
    chip = find_target(target)
    graph = module if isinstance(module, nir.NIRGraph) else _traced(module, sample_input, input_shape)
    report = pipeline.check(graph, chip, convention=convention)
    if not report.ok:
        raise CheckError(report)
    used = resolve_convention(graph, convention)
    own = graphs.copy_graph(graphs.dissolved(graph))
    if calibration is not None:
        calibration, _ = check_raster(calibration, graphs.shapes(own)[graphs.input_names(own)[0]].input, integer=True)
    grid = training_grid(chip, own, used, weight_bits=own_integer(bits), calibration=calibration)
    for node, fields in grid.fixed.items():
        for field, value in fields.items():
            setattr(own.nodes[node], field, _filled(np.asarray(getattr(own.nodes[node], field)), value))
    network = nir_to_torch(graphs.with_metadata(own, convention=grid.convention.to_dict()), convention=grid.convention)
    _set_surrogates(network, module, surrogate)
    return QuantizationAware(network, chip, own_integer(bits), grid)


def _filled(before: NDArray[Any], value: Any) -> NDArray[Any]:
    """One value, or one a neuron, in the shape and type of a field."""
    shape = np.broadcast_shapes(before.shape, np.shape(value))
    return np.array(np.broadcast_to(value, shape), dtype=before.dtype)


def _traced(module: Any, sample_input: Any, input_shape: Any) -> nir.NIRGraph:
    if not isinstance(module, nn.Module):
        raise UnsupportedError(
            f"a {type(module).__name__} cannot be trained", remedy="Pass a torch module or a NIRGraph."
        )
    found = torch_to_nir(module, sample_input=sample_input, input_shape=input_shape)
    if not isinstance(found, nir.NIRGraph):
        raise UnsupportedError(
            f"{type(module).__name__} is a single node, not a network",
            remedy="Put it into a network with a population.",
        )
    return found


def _set_surrogates(network: GraphModule, module: Any, surrogate: str | Surrogate | None) -> None:
    for path in network.plan.order:
        neuron = network.get(path)
        if not isinstance(neuron, Neuron):
            continue
        if surrogate is not None:
            neuron.surrogate = surrogate_of(surrogate)
        elif isinstance(module, GraphModule) and isinstance(before := module.get(path), Neuron):
            neuron.surrogate = before.surrogate
