"""Layers of Norse that no NIR graph computes, each with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nir

from nirdeploy.convert.frameworks.framework import LayerRow
from nirdeploy.convert.frameworks.norse_steps import axes_if_any
from nirdeploy.convert.primitives import TraceContext
from nirdeploy.errors import ConversionError

__all__ = ["REFUSED"]

_REASONS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "its threshold adapts to its spikes",
        "Train with LIF or LIFRecurrent",
        ("lsnn.LSNN", "lsnn.LSNNCell", "lsnn.LSNNRecurrent", "lsnn.LSNNRecurrentCell"),
    ),
    (
        "its membrane grows exponentially near the threshold",
        "Train with LIF or LIFRecurrent",
        ("lif_ex.LIFEx", "lif_ex.LIFExCell", "lif_ex.LIFExRecurrent", "lif_ex.LIFExRecurrentCell"),
    ),
    (
        "its membrane has an adaptation current and an exponential term",
        "Train with LIF or LIFRecurrent",
        (
            "lif_adex.LIFAdEx",
            "lif_adex.LIFAdExCell",
            "lif_adex.LIFAdExRecurrent",
            "lif_adex.LIFAdExRecurrentCell",
            "lif_adex_refrac.LIFAdExRefracCell",
            "lif_adex_refrac.LIFAdExRefracRecurrent",
            "lif_adex_refrac.LIFAdExRefracRecurrentCell",
        ),
    ),
    (
        "it follows Izhikevich's two equations",
        "Train with LIF or LIFRecurrent",
        (
            "izhikevich.Izhikevich",
            "izhikevich.IzhikevichCell",
            "izhikevich.IzhikevichRecurrent",
            "izhikevich.IzhikevichRecurrentCell",
        ),
    ),
    (
        "its synapses are conductances, which multiply the membrane",
        "Train with LIFRecurrentCell",
        ("coba_lif.CobaLIFCell",),
    ),
    (
        "currents flow between its compartments",
        "Train with LIFRecurrentCell",
        ("lif_mc.LIFMCRecurrentCell", "lif_mc_refrac.LIFMCRefracRecurrentCell"),
    ),
    (
        "it changes its weights while it runs",
        "Convert a LIFRecurrentCell with its weights",
        ("lif_correlation.LIFCorrelation",),
    ),
    (
        "it makes spikes from numbers, by chance or over many steps, which is no part of a network that takes spikes",
        "Encode outside the network, and pass the spikes to it",
        (
            "encode.ConstantCurrentLIFEncoder",
            "encode.PoissonEncoder",
            "encode.PoissonEncoderStep",
            "encode.PopulationEncoder",
            "encode.SignedPoissonEncoder",
            "encode.SignedPoissonEncoderStep",
            "encode.SpikeLatencyEncoder",
            "encode.SpikeLatencyLIFEncoder",
        ),
    ),
    (
        "it looks at all steps to find the times of spikes",
        "Decode outside the network, from the spikes it gives",
        ("spikes_to_times_decoder.SpikesToTimesDecoder",),
    ),
    (
        "it counts for the training loss outside the state of the network",
        "Leave it out of the network that is converted",
        ("regularization.RegularizationCell",),
    ),
    (
        "it keeps no step of its own, only a decay of which the time constant is not known",
        "Use Linear and LIBoxCell",
        ("exp_filter.ExpFilter",),
    ),
    (
        "its kernels are computed from parameters at each call",
        "Use Conv2d with those kernels as its weights",
        (
            "receptive_field.ParameterizedSpatialReceptiveField2d",
            "receptive_field.SampledSpatialReceptiveField2d",
            "receptive_field.SpatialReceptiveField2d",
            "receptive_field.TemporalReceptiveField",
        ),
    ),
    (
        "it steps by a function that its class does not fix",
        "Use LIFCell, LIFBoxCell, LICell, LIBoxCell or IAFCell, or map it with module_map",
        ("snn.SNN", "snn.SNNCell", "snn.SNNRecurrent", "snn.SNNRecurrentCell"),
    ),
)


def _refusal(why: str, remedy: str) -> Callable[[Any, TraceContext], nir.NIRNode]:
    def to_nir(module: Any, context: TraceContext) -> nir.NIRNode:
        raise ConversionError(
            f"{type(module).__name__} of Norse is not supported: {why}", node=context.path, remedy=f"{remedy}."
        )

    return to_nir


REFUSED = tuple(
    LayerRow(tuple(f"norse.torch.module.{name}" for name in names), _refusal(why, remedy), axes=axes_if_any)
    for why, remedy, names in _REASONS
)
