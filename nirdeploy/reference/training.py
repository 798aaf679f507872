"""Training over whole rasters: populations as native scans with a backward pass of their own, sparse layers.

Gradients are those of the step loop through autograd; sums over time and batch are taken in another order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nirdeploy.reference import sparse_kernels
from nirdeploy.reference import training_kernels as kernels
from nirdeploy.reference.dynamics import reset_value, resets_late
from nirdeploy.reference.lanes import WIDTH
from nirdeploy.reference.memory import NUMPY, lend
from nirdeploy.reference.neurons import Membrane, Neuron
from nirdeploy.reference.sparse import Rows, in_blocks
from nirdeploy.reference.threads import split

__all__ = ["foldable", "scan", "sparse_linear"]

Array = NDArray[Any]
_LEAST = 1 << 17  # neuron-steps that are worth a thread


def foldable(module: Membrane, dtype: torch.dtype) -> bool:
    """Whether a population has a native backward pass: all but late resets and the closed form."""
    convention = module.convention
    return dtype in (torch.float32, torch.float64) and convention.integrator != "exact" and not resets_late(convention)


def scan(module: Membrane, x: Tensor, state: Any, own: bool) -> tuple[Tensor, Any]:
    """A population over [step, batch, ...], as calling the module step after step: what it emits and its state.

    `own`: whether nobody else reads the memory of `x`, so that v before the resets may take its place.
    """
    v, i = module.split(state, x[0])
    synapse = module.synapse()
    if synapse is not None and i is not None:
        x, i = _integrated(x, i, synapse.decay, synapse.gain, 0.0)
        own = False  # its own backward pass reads it
    decay, gain, leak = module.membrane()
    if not isinstance(module, Neuron):
        out, v = _integrated(x, v, decay, gain, leak)
        return out, module.join(v, i)
    convention = module.convention
    bound = 0 if convention.v_min is None else 2 if convention.v_min == "-threshold" else 1
    options = {
        "inclusive": convention.crossing == "inclusive",
        "subtract": convention.reset == "subtract",
        "many": convention.spikes_per_step == "many",
        "own": own,
        "bound": bound,
        "v_min": convention.v_min if bound == 1 else None,
        "code": module.surrogate.code,
        "factor": module.surrogate.factor,
    }
    v_reset = reset_value(module.v_reset, convention)
    spikes, v = _Population.apply(  # type: ignore[no-untyped-call]
        x, v, *(_full(p, x) for p in (decay, leak, gain, module.v_threshold, v_reset)), options
    )
    return spikes, module.join(v, i)


def _full(value: Tensor | float, x: Tensor) -> Tensor:
    """A parameter as one number a neuron."""
    return torch.as_tensor(value, dtype=x.dtype).expand(x.shape[2:])


def _integrated(
    x: Tensor, v: Tensor, decay: Tensor | float, gain: Tensor | float, leak: Tensor | float
) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = _Linear.apply(x, v, *(_full(p, x) for p in (decay, leak, gain)))  # type: ignore[no-untyped-call]
    return found


def _buffer(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor of undefined content in memory that an earlier step has touched: fresh memory costs more than a scan."""
    return torch.from_numpy(lend(shape, NUMPY[dtype]))


def _flat(tensor: Tensor, batched: bool = True) -> Array:
    """A tensor as [step, batch, neuron], or [batch, neuron] where there is no step."""
    lead = 2 if batched else 1
    return tensor.detach().contiguous().reshape(*tensor.shape[:lead], -1).numpy()


def _rows(parameters: tuple[Tensor, ...], count: int) -> Array:
    p = np.zeros((count, parameters[0].numel()), parameters[0].detach().numpy().dtype)
    for n, parameter in enumerate(parameters):
        p[n] = parameter.detach().reshape(-1).numpy()
    return p


def _least(x: Array) -> int:
    return max(1, _LEAST // max(1, int(x.shape[0]) * int(x.shape[2])))


def _gradients(ctx: Any, gp: list[Array], order: tuple[int, ...], like: Tensor, first: int) -> list[Tensor | None]:
    """Sums of the threads' gradients of parameters, in the shape of one neuron each; None where not wanted."""
    total = sum(gp[1:], start=gp[0])
    return [
        torch.from_numpy(total[row].copy()).to(like.dtype).reshape(like.shape[2:])
        if ctx.needs_input_grad[first + n]
        else None
        for n, row in enumerate(order)
    ]


class _Linear(torch.autograd.Function):
    """v = (decay v + leak) + gain x over time: every v, and the last."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, v: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        p = _rows(parameters, 6)
        given, state = _flat(x), _flat(v, False).copy()
        out = _buffer(tuple(x.shape), x.dtype)
        target = out.reshape(given.shape).numpy()
        split(lambda a, b: kernels.linear_forward(given, state, p, target, a, b), x.shape[1], _least(given))
        ctx.save_for_backward(x, v, out)
        ctx.p = p
        return out, torch.from_numpy(state).reshape(v.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, v, out = ctx.saved_tensors
        wanted = any(ctx.needs_input_grad[2:])
        g, carried = _flat(gradients[0]), _flat(gradients[1], False).copy()
        gx = _buffer(tuple(x.shape), x.dtype)
        given, start, emitted = _flat(x), _flat(v, False), _flat(out)
        target = gx.reshape(given.shape).numpy()

        def work(a: int, b: int) -> Array:
            gp = np.zeros(ctx.p.shape, np.float64)
            kernels.linear_backward(g, given, start, emitted, ctx.p, target, carried, gp, wanted, a, b)
            return gp

        gp = split(work, x.shape[1], _least(given))
        own = _gradients(ctx, gp, (kernels.DECAY, kernels.LEAK, kernels.GAIN), x, 2)
        return gx, torch.from_numpy(carried).reshape(v.shape), *own


class _Population(torch.autograd.Function):
    """A spiking population over time: spikes, and the last v."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        *parameters, options = rest
        p = _rows(tuple(parameters), 6)
        low = {0: -np.inf, 1: options["v_min"], 2: None}[options["bound"]]
        p[kernels.V_MIN] = -p[kernels.THRESHOLD] if low is None else low
        given, state = _flat(x), _flat(v, False).copy()
        wanted, many = any(ctx.needs_input_grad[2:7]), options["many"]
        u = given if options["own"] and not (wanted or many) else lend(given.shape, given.dtype)
        spikes = _buffer(tuple(x.shape), x.dtype)
        target = spikes.reshape(given.shape).numpy()
        forward, flags = kernels.forward_many if many else kernels.forward, (options["inclusive"], options["subtract"])
        split(lambda a, b: forward(given, state, p, *flags, u, target, a, b), x.shape[1], _least(given))
        ctx.save_for_backward(x if wanted else None, v, spikes)
        ctx.u, ctx.p, ctx.options = u, p, options
        return spikes, torch.from_numpy(state).reshape(v.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, v, spikes = ctx.saved_tensors
        wanted, options = any(ctx.needs_input_grad[2:7]), ctx.options
        g, carried = _flat(gradients[0]), _flat(gradients[1], False).copy()
        emitted, start = _flat(spikes), _flat(v, False)
        given = emitted if x is None else _flat(x)
        gx = _buffer(tuple(spikes.shape), spikes.dtype)
        target = gx.reshape(emitted.shape).numpy()
        factor = emitted.dtype.type(options["factor"])

        def work(a: int, b: int) -> Array:
            gp = np.zeros(ctx.p.shape, np.float64)
            kernels.backward(
                g, given, start, ctx.u, emitted, ctx.p, options["inclusive"], options["subtract"], options["many"],
                options["bound"], options["code"], factor, target, carried, gp, wanted, a, b,
            )  # fmt: skip
            return gp

        gp = split(work, spikes.shape[1], _least(emitted))
        order = (kernels.DECAY, kernels.LEAK, kernels.GAIN, kernels.THRESHOLD, kernels.V_RESET)
        own = _gradients(ctx, gp, order, spikes, 2)
        return gx, torch.from_numpy(carried).reshape(v.shape), *own, None


# ---------------------------------------------------------------- sparse layers


def sparse_linear(module: nn.Linear, x: Tensor, rows: Rows) -> Tensor:
    """A Linear over [step, batch, source] whose input is mostly zero; the weight's gradient reads its events alone."""
    found: Tensor = _SparseLinear.apply(x, module.weight, module.bias, rows)  # type: ignore[no-untyped-call]
    return found


class _SparseLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rows: Rows) -> Tensor:
        packed = in_blocks(weight.detach().numpy(), sparse_kernels.BLOCK)
        out = _buffer((*x.shape[:2], weight.shape[0]), x.dtype)
        target, plain = out.numpy(), bool((rows.value == 1).all())
        add = np.zeros(weight.shape[0], packed.dtype) if bias is None else bias.detach().contiguous().numpy()

        def work(a: int, b: int) -> None:
            sparse_kernels.spread(
                rows.pointer, rows.index, rows.value, plain, rows.steps, a, b, packed, weight.shape[1], add, target
            )

        split(work, rows.batch, max(1, rows.batch // 64))
        ctx.save_for_backward(weight)
        ctx.rows, ctx.plain = rows, plain
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        g, rows, plain = gradients[0].contiguous(), ctx.rows, ctx.plain
        neurons, sources = weight.shape
        flat = g.reshape(-1, neurons)
        gx = gw = None
        if ctx.needs_input_grad[0]:
            gx = _buffer((*g.shape[:2], sources), g.dtype)
            torch.mm(flat, weight, out=gx.reshape(-1, sources))
        if not ctx.needs_input_grad[1]:
            return gx, None, flat.sum(0) if ctx.needs_input_grad[2] else None, None
        padded = -(-neurons // WIDTH) * WIDTH
        total, sums = _buffer((sources, padded), g.dtype).zero_(), torch.zeros(padded, dtype=g.dtype)
        source, into, of_bias = flat.numpy(), total.numpy(), sums.numpy()
        events = sparse_kernels.by_address(rows.pointer, rows.index, rows.value, rows.steps, rows.batch, sources)

        def work(a: int, b: int) -> None:
            sparse_kernels.weight_gradient(*events, plain, source, into, of_bias, a, b)

        split(work, -(-neurons // sparse_kernels.BLOCK), 1)
        gw = total[:, :neurons].T
        return gx, gw, sums[:neurons] if ctx.needs_input_grad[2] else None, None
