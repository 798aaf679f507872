"""The ladder: from the reference to the chip one change at a time, and what each of them costs.

Every rung is a run that differs from the one before in one thing. A backend says what its rungs are (`Step`); the
first is always the reference in the convention the network was trained in.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import nir
import numpy as np

from nirdeploy.comparison.measure import compare
from nirdeploy.comparison.metrics import accuracy
from nirdeploy.comparison.result import Comparison
from nirdeploy.comparison.text import number, percent, shown, table
from nirdeploy.errors import (
    ComparisonError,
    ConventionError,
    RasterError,
    UnavailableError,
    UnsupportedError,
    VendorError,
)
from nirdeploy.placement import Placement
from nirdeploy.quantization import Quantized
from nirdeploy.reference.convention import Convention
from nirdeploy.trajectory import Trajectory

if TYPE_CHECKING:
    from nirdeploy.pipeline import Deployment

__all__ = ["Ladder", "LadderBackend", "Rung", "Step", "in_reference", "ladder"]


@dataclass(frozen=True)
class Step:
    """One run that a backend offers.

    Attributes:
        name: of the rung, e.g. 'integer states'.
        change: what is different from the rung before, one phrase.
        run: the run; UnavailableError, UnsupportedError and VendorError leave the rung out, with their
            reason.
    """

    name: str
    change: str
    run: Callable[[Any], Trajectory]


@runtime_checkable
class LadderBackend(Protocol):
    """What a backend provides for the ladder; one without it has the reference and the emulator."""

    def ladder_steps(self, quantized: Quantized, placement: Placement) -> Sequence[Step]:
        """The rungs behind the reference in the training's convention, in order."""
        ...


@dataclass(frozen=True, eq=False)
class Rung:
    """One run of the ladder.

    Attributes:
        name: e.g. 'chip convention'.
        change: what is different from the last rung that ran.
        trajectory: its run, or None where it did not.
        reason: why it did not run; '' where it did.
        cost: it against the last rung that ran; None for the first.
        total: it against the first rung; None for the first.
        accuracy: share of samples whose Output with most spikes is the label; None without labels.
    """

    name: str
    change: str
    trajectory: Trajectory | None = field(repr=False)
    reason: str = ""
    cost: Comparison | None = field(default=None, repr=False)
    total: Comparison | None = field(default=None, repr=False)
    accuracy: float | None = None

    @property
    def differing(self) -> int:
        """Spikes more or fewer than on the rung before, over all populations."""
        sums = self.cost.spikes if self.cost else None
        return sums.differing if sums else 0

    @property
    def output_error(self) -> float:
        """Root mean square change of what an Output shows since the rung before, the largest of all Outputs."""
        nodes = self.cost.per_node.values() if self.cost else ()
        found = [node.variables["output"].rmse for node in nodes if "output" in node.variables]
        return max((math.inf if math.isnan(value) else value for value in found), default=0.0)


@dataclass(frozen=True, eq=False)
class Ladder:
    """All rungs, those that did not run included.

    Attributes:
        target: the chip.
        rungs: from the reference to the chip.
    """

    target: str
    rungs: tuple[Rung, ...]

    @property
    def dominating(self) -> Rung | None:
        """The rung at which most spikes change; where none does, that at which an Output changes most; or None.

        What populations that only integrate, and Outputs wired wrongly, show is no spike.
        """
        by_spikes = max(self.rungs, key=lambda rung: rung.differing)
        if by_spikes.differing:
            return by_spikes
        by_output = max(self.rungs, key=lambda rung: rung.output_error)
        return by_output if by_output.output_error else None

    def verdict(self) -> str:
        """The dominating rung in a sentence."""
        worst = self.dominating
        if worst is None or worst.cost is None:
            return f"{self.target}: no spike changes on any rung, and no Output."
        if not worst.differing:
            node, variable = worst.cost.first_departure or ("", "")
            return (
                f"{self.target}: no spike changes on any rung; an Output changes most with '{worst.name}' "
                f"({worst.change}): {number(worst.output_error)} (RMS); the first node with other values is "
                f"{shown(node)} ({variable})."
            )
        share = worst.differing / max(1, sum(rung.differing for rung in self.rungs))
        first = worst.cost.first_divergence
        at = f"; the first is {first}" if first else ""
        return (
            f"{self.target}: {percent(share, 0)} of what changes comes with '{worst.name}' ({worst.change}): "
            f"{number(worst.differing)} spikes{at}."
        )

    def summary(self) -> str:
        """Plain text: a table of the rungs, the verdict, what did not run."""
        labelled = any(rung.accuracy is not None for rung in self.rungs)
        valued = any(rung.output_error and not rung.differing for rung in self.rungs)
        head = ["rung", "spikes changed", "agreement", "v_mem RMS", *(["output RMS"] if valued else []), "to the first"]
        rows = [_row(rung, labelled, valued) for rung in self.rungs if rung.trajectory is not None]
        lines = table([*head, *(["accuracy"] if labelled else []), "change"], rows)
        lines += ["", self.verdict()]
        worst = self.dominating
        lines += [f"hint: {hint}" for hint in (worst.cost.hints if worst and worst.cost else ())]
        lines += [f"not run: {rung.name}: {rung.reason}" for rung in self.rungs if rung.trajectory is None]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        worst = self.dominating
        return {
            "target": self.target,
            "dominating": worst.name if worst else None,
            "verdict": self.verdict(),
            "rungs": [_plain(rung) for rung in self.rungs],
        }

    def to_json(self) -> str:
        """JSON text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def to_html(self, path: Any) -> None:
        """Write the report page: a section for each rung against the one before.

        Args:
            path: the file.

        Raises:
            FileError: the folder cannot be written.
            ComparisonError: nothing but the reference ran.
        """
        from nirdeploy.comparison.report import Section, write_report

        first = self.rungs[0].accuracy
        sections = [
            Section(
                f"{i}. {rung.name}",
                rung.cost,
                rung.cost.reference,
                rung.cost.chip,
                accuracy=rung.accuracy,
                reference_accuracy=first,
                notes=(f"What is different from the rung before: {rung.change}.",),
            )
            for i, rung in enumerate(self.rungs)
            if rung.cost is not None
        ]
        if not sections:
            raise ComparisonError("no rung but the reference ran, there is nothing to show")
        missing = {f"not run: {rung.name}": rung.reason for rung in self.rungs if rung.trajectory is None}
        title = f"{self.target}: what each step from the reference to the chip costs"
        write_report(path, sections, title=title, lead=self.verdict(), facts=missing, ladder=self)


def in_reference(graph: nir.NIRGraph, convention: Convention) -> Callable[[Any], Trajectory]:
    """A rung's run: the reference executor on a graph in a convention."""
    from nirdeploy.reference.executor import run

    return lambda raster: run(graph, raster, convention=convention)


def ladder(
    deployment: Deployment,
    raster: Any,
    labels: Any = None,
    *,
    convention: Convention | None = None,
    progress: Callable[[str], None] | None = None,
) -> Ladder:
    """How much each step from the reference to the chip costs.

    Args:
        deployment: the network on its chip.
        raster: counts, [step, batch, ...] or [step, ...].
        labels: class of every sample, the index of the Output's neuron that should spike most; None: no accuracy.
        convention: what the network was trained in; None: the deployment's.
        progress: called with the name of every rung before it runs.

    Returns:
        The rungs; vendors' software and devices are among them where they are there, else with the reason.

    Raises:
        RasterError: a raster or labels of the wrong shape.
        ComparisonError: no rung but the reference can run.
    """
    if convention is not None and not isinstance(convention, Convention):
        raise ConventionError(f"convention is {convention!r}, expected a Convention")
    if not isinstance(getattr(deployment, "quantized", None), Quantized):
        raise ComparisonError(
            f"ladder takes a deployment, got {type(deployment).__name__}",
            remedy="Pass what nirdeploy.deploy(graph, target) returns.",
        )
    used = convention or deployment.convention
    steps = [Step("reference", "", in_reference(deployment.graph, used)), *_steps(deployment)]
    rungs: list[Rung] = []
    before: Trajectory | None = None
    first: Trajectory | None = None
    for step in steps:
        if progress is not None:
            progress(step.name)
        try:
            found = step.run(raster)
            if found.executor != "reference":
                found = deployment.located(found, raster)
        except (UnavailableError, UnsupportedError, VendorError) as error:
            if first is None:
                raise
            rungs.append(Rung(step.name, step.change, None, str(error)))
            continue
        rungs.append(
            Rung(
                step.name,
                step.change,
                found,
                cost=compare(before, found) if before is not None else None,
                total=compare(first, found) if first is not None else None,
                accuracy=_accuracy(found, labels),
            )
        )
        before, first = found, first or found
    if not any(rung.cost for rung in rungs):
        reasons = "; ".join(f"{rung.name}: {rung.reason}" for rung in rungs if rung.reason)
        raise ComparisonError(f"no rung but the reference can run: {reasons}")
    return Ladder(deployment.target.name, tuple(rungs))


def _steps(deployment: Deployment) -> Iterable[Step]:
    from nirdeploy.backend import backend_of

    backend = backend_of(deployment.target.backend)
    if isinstance(backend, LadderBackend):
        return backend.ladder_steps(deployment.quantized, deployment.placement)
    return [Step("emulator", "the chip's integers", deployment.run)]


def _accuracy(trajectory: Trajectory, labels: Any) -> float | None:
    if labels is None:
        return None
    outputs = trajectory.outputs
    if isinstance(outputs, dict):
        raise RasterError(f"labels need one Output, the graph has {sorted(outputs)}")
    wanted = np.asarray(labels).reshape(-1)
    batched = next(iter(trajectory.records.values())).batched
    classes = np.asarray(outputs).reshape(len(outputs), outputs.shape[1] if batched else 1, -1)
    samples = classes.shape[1]
    if wanted.dtype.kind not in "iu" or len(wanted) != samples:
        raise RasterError(f"labels are {wanted.dtype} of shape {wanted.shape}, expected {samples} whole numbers")
    return accuracy(classes, wanted)


def _row(rung: Rung, labelled: bool, valued: bool) -> list[str]:
    cost, total = rung.cost, rung.total
    return [
        shown(rung.name),
        number(rung.differing) if cost else "-",
        percent(cost.spike_agreement) if cost else "-",
        number(cost.v_mem_error) if cost else "-",
        *([number(rung.output_error) if cost else "-"] if valued else []),
        percent(total.spike_agreement) if total else "-",
        *([percent(rung.accuracy, 1)] if labelled else []),
        rung.change or "as trained",
    ]


def _plain(rung: Rung) -> dict[str, Any]:
    first = rung.cost.first_divergence if rung.cost else None
    values = {
        "name": rung.name,
        "change": rung.change,
        "ran": rung.trajectory is not None,
        "reason": rung.reason,
        "spikes_changed": rung.differing if rung.cost else None,
        "agreement": rung.cost.spike_agreement if rung.cost else None,
        "v_mem_error": rung.cost.v_mem_error if rung.cost else None,
        "output_error": rung.output_error if rung.cost else None,
        "agreement_with_first": rung.total.spike_agreement if rung.total else None,
        "first_divergence": str(first) if first else None,
        "hints": list(rung.cost.hints) if rung.cost else [],
        "accuracy": rung.accuracy,
    }
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
