"""nirdeploy: take a trained spiking network from PyTorch to a neuromorphic chip, and compare the states."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nirdeploy.version import __version__

if TYPE_CHECKING:
    from nirdeploy.backend import targets as targets
    from nirdeploy.binning import bin_events as bin_events
    from nirdeploy.binning import events_to_raster as events_to_raster
    from nirdeploy.binning import raster_to_events as raster_to_events
    from nirdeploy.binning import stack_events as stack_events
    from nirdeploy.comparison import Comparison as Comparison
    from nirdeploy.comparison import compare as compare
    from nirdeploy.comparison.ladder import Ladder as Ladder
    from nirdeploy.comparison.ladder import ladder as ladder
    from nirdeploy.convert.build import nir_to_torch as nir_to_torch
    from nirdeploy.convert.stated import convention_of as convention_of
    from nirdeploy.convert.trace import torch_to_nir as torch_to_nir
    from nirdeploy.energy import Estimate as Estimate
    from nirdeploy.energy import estimate as estimate
    from nirdeploy.errors import NirdeployError as NirdeployError
    from nirdeploy.evaluation.engine import evaluate as evaluate
    from nirdeploy.evaluation.result import Evaluation as Evaluation
    from nirdeploy.evaluation.result import load_evaluation as load_evaluation
    from nirdeploy.evaluation.sweep_table import Sweep as Sweep
    from nirdeploy.evaluation.sweeping import sweep as sweep
    from nirdeploy.event_files import load_events as load_events
    from nirdeploy.event_files import save_events as save_events
    from nirdeploy.events import Events as Events
    from nirdeploy.graph import feedback_edges as feedback_edges
    from nirdeploy.io import read as read
    from nirdeploy.io import write as write
    from nirdeploy.pipeline import Deployment as Deployment
    from nirdeploy.pipeline import check as check
    from nirdeploy.pipeline import deploy as deploy
    from nirdeploy.pipeline import place as place
    from nirdeploy.pipeline import quantize as quantize
    from nirdeploy.placement import Placement as Placement
    from nirdeploy.quantization import Quantized as Quantized
    from nirdeploy.reference.convention import Convention as Convention
    from nirdeploy.reference.executor import run as run
    from nirdeploy.reference.presets import convention as convention
    from nirdeploy.reference.surrogates import Surrogate as Surrogate
    from nirdeploy.rules import Finding as Finding
    from nirdeploy.rules import Report as Report
    from nirdeploy.storage import load_deployment as load_deployment
    from nirdeploy.target import Target as Target
    from nirdeploy.training import QuantizationAware as QuantizationAware
    from nirdeploy.training import quantization_aware as quantization_aware
    from nirdeploy.trajectory import Record as Record
    from nirdeploy.trajectory import Trajectory as Trajectory
    from nirdeploy.trajectory import load_trajectory as load_trajectory

# public name -> module; resolved on first use, so that `import nirdeploy` stays light
_PUBLIC = {
    "Comparison": "nirdeploy.comparison",
    "Convention": "nirdeploy.reference.convention",
    "Deployment": "nirdeploy.pipeline",
    "Estimate": "nirdeploy.energy",
    "Evaluation": "nirdeploy.evaluation.result",
    "Events": "nirdeploy.events",
    "Finding": "nirdeploy.rules",
    "Ladder": "nirdeploy.comparison.ladder",
    "NirdeployError": "nirdeploy.errors",
    "Placement": "nirdeploy.placement",
    "QuantizationAware": "nirdeploy.training",
    "Quantized": "nirdeploy.quantization",
    "Record": "nirdeploy.trajectory",
    "Report": "nirdeploy.rules",
    "Surrogate": "nirdeploy.reference.surrogates",
    "Sweep": "nirdeploy.evaluation.sweep_table",
    "Target": "nirdeploy.target",
    "Trajectory": "nirdeploy.trajectory",
    "bin_events": "nirdeploy.binning",
    "check": "nirdeploy.pipeline",
    "compare": "nirdeploy.comparison",
    "convention": "nirdeploy.reference.presets",
    "convention_of": "nirdeploy.convert.stated",
    "deploy": "nirdeploy.pipeline",
    "estimate": "nirdeploy.energy",
    "evaluate": "nirdeploy.evaluation.engine",
    "events_to_raster": "nirdeploy.binning",
    "feedback_edges": "nirdeploy.graph",
    "ladder": "nirdeploy.comparison.ladder",
    "load_deployment": "nirdeploy.storage",
    "load_evaluation": "nirdeploy.evaluation.result",
    "load_events": "nirdeploy.event_files",
    "load_trajectory": "nirdeploy.trajectory",
    "nir_to_torch": "nirdeploy.convert.build",
    "place": "nirdeploy.pipeline",
    "quantization_aware": "nirdeploy.training",
    "quantize": "nirdeploy.pipeline",
    "raster_to_events": "nirdeploy.binning",
    "read": "nirdeploy.io",
    "run": "nirdeploy.reference.executor",
    "save_events": "nirdeploy.event_files",
    "stack_events": "nirdeploy.binning",
    "sweep": "nirdeploy.evaluation.sweeping",
    "targets": "nirdeploy.backend",
    "torch_to_nir": "nirdeploy.convert.trace",
    "write": "nirdeploy.io",
}

__all__ = ["__version__", *sorted(_PUBLIC)]  # noqa: PLE0604 (all are strings)


if not TYPE_CHECKING:  # to a type checker it would make every misspelt name an Any

    def __getattr__(name: str) -> Any:
        if name not in _PUBLIC:
            raise AttributeError(f"module 'nirdeploy' has no attribute {name!r}")
        value = getattr(import_module(_PUBLIC[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
