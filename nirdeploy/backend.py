"""What a chip backend provides, and how backends and their targets are found.

A backend is an object under the entry-point group 'nirdeploy.backends'; anybody's package can add one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Protocol

import nir
import numpy as np
from numpy.typing import NDArray

from nirdeploy.errors import TargetError, UnsupportedError
from nirdeploy.names import suggest
from nirdeploy.placement import Placement
from nirdeploy.quantization import Quantized, TrainingGrid
from nirdeploy.reference.convention import Convention
from nirdeploy.rules import Finding
from nirdeploy.target import Target
from nirdeploy.trajectory import Trajectory

__all__ = [
    "Backend",
    "backend_of",
    "derived_files",
    "differing",
    "find_target",
    "known_options",
    "listed_backends",
    "targets",
    "tells_progress",
    "training_grid",
]

GROUP = "nirdeploy.backends"
_CONTRACT = ("on", "mode", "record", "nodes", "progress")  # keywords of a backend's `run`, the last where it tells


class Backend(Protocol):
    """The stages of one chip family. Every method is pure: nothing passed in is changed."""

    name: str

    def targets(self) -> Mapping[str, Target]:
        """The chips it serves, by name."""
        ...

    def check(self, graph: nir.NIRGraph, target: Target, convention: Convention) -> Iterable[Finding]:
        """Every limit the graph breaks and everything the chip computes differently; never raises for those."""
        ...

    def quantize(
        self,
        graph: nir.NIRGraph,
        target: Target,
        convention: Convention,
        *,
        quantizer: str,
        calibration: Any,
    ) -> Quantized:
        """Integers of every layer; `calibration` is a raster [step, batch, ...] or None."""
        ...

    def place(self, quantized: Quantized, **options: Any) -> Placement:
        """Cores for every layer."""
        ...

    def run(
        self,
        quantized: Quantized,
        placement: Placement,
        raster: Any,
        *,
        on: str,
        mode: str | None,
        record: tuple[str, ...],
        nodes: tuple[str, ...] | None,
        **options: Any,
    ) -> Trajectory:
        """Run a raster on 'emulator', 'simulator' or 'chip'.

        One with a keyword `progress` is given what to call with the steps done and the steps of all samples.
        """
        ...

    def chip_configuration(self, quantized: Quantized, placement: Placement) -> dict[str, Any]:
        """Every field the chip is given, as plain JSON data."""
        ...


def derived_files(backend: Backend, quantized: Quantized, placement: Placement) -> Mapping[str, Callable[[Path], None]]:
    """Further files of a deployment folder, by name, each with what writes it: the backend's optional method.

    A writer makes an HDF5 file at the path it is given; saving adds the root attribute `deployment_sha256`. It raises
    UnsupportedError or QuantizationError where its format cannot hold the network, and the file is left out.
    """
    method = getattr(backend, "derived_files", None)
    return {} if method is None else dict(method(quantized, placement))


def training_grid(
    target: Target, graph: nir.NIRGraph, convention: Convention, *, weight_bits: int | None, calibration: Any
) -> TrainingGrid:
    """The values a graph's parameters may have on a chip: the backend's optional method of the same name.

    A backend that has it also has the quantiser 'exact', which keeps such values as they are, and `differing`.

    Raises:
        UnsupportedError: the backend has no such method.
    """
    method = getattr(backend_of(target.backend), "training_grid", None)
    if method is None:
        able = sorted(name for name, one in targets().items() if hasattr(backend_of(one.backend), "training_grid"))
        raise UnsupportedError(
            f"quantisation-aware training is not there for {target.name}",
            remedy=f"Targets that have it: {', '.join(able) or 'none'}; for others use quantizer='calibrated'.",
        )
    found: TrainingGrid = method(graph, target, convention, weight_bits=weight_bits, calibration=calibration)
    return found


def differing(
    quantized: Quantized, grid: TrainingGrid, integers: Mapping[str, Mapping[str, NDArray[np.int64]]]
) -> str | None:
    """The first node whose integers are not those that training simulated, or None: the backend's method of that name.

    Every backend that has `training_grid` has it.
    """
    backend: Any = backend_of(quantized.target.backend)
    found: str | None = backend.differing(quantized, grid, integers)
    return found


@cache
def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def backend_of(name: str) -> Backend:
    """Load a backend by its entry-point name.

    Raises:
        TargetError: no such backend, or its package fails to import; the message has the reason.
    """
    points = _entry_points()
    if name not in points:
        raise TargetError(f"no backend {name!r} is installed", remedy=suggest(name, points))
    try:
        backend: Backend = points[name].load()
    except Exception as error:  # a plugin may fail in any way; the reason is passed on
        raise TargetError(f"backend {name!r} does not load: {type(error).__name__}: {error}") from error
    return backend


def listed_backends() -> dict[str, str]:
    """Installed backends with '' or the reason why one does not load."""
    found: dict[str, str] = {}
    for name in sorted(_entry_points()):
        try:
            backend_of(name)
            found[name] = ""
        except TargetError as error:
            found[name] = str(error)
    return found


def targets() -> dict[str, Target]:
    """Every target of every installed backend that loads, by name.

    Returns:
        Name -> target, in the order of the names.
    """
    found: dict[str, Target] = {}
    for name, reason in listed_backends().items():
        if not reason:
            found.update(backend_of(name).targets())
    return dict(sorted(found.items()))


def known_options(function: Callable[..., Any]) -> tuple[str, ...] | None:
    """Options that a backend's `place` or `run` takes beyond the contract; None where it takes any name."""
    given = inspect.signature(function).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in given):
        return None
    return tuple(p.name for p in given if p.kind is inspect.Parameter.KEYWORD_ONLY and p.name not in _CONTRACT)


def tells_progress(backend: Backend) -> bool:
    """Whether its `run` takes `progress`, to call with the steps done and the steps of all samples."""
    return "progress" in inspect.signature(backend.run).parameters


def find_target(name: str | Target) -> Target:
    """A target by name.

    Raises:
        TargetError: unknown, or no name; the message suggests the nearest name.
    """
    if isinstance(name, Target):
        return name
    known = targets()
    if not isinstance(name, str) or name not in known:
        raise TargetError(f"unknown target {name!r}", remedy=suggest(str(name), known))
    return known[name]
