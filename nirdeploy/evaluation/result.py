"""The result of an evaluation: accuracy, confusion, spikes a sample, agreement with another run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nirdeploy.comparison.text import percent, shown, table
from nirdeploy.errors import ComparisonError, FileError
from nirdeploy.evaluation.file import UNLABELLED, Table, read_table

__all__ = ["ClassResult", "Evaluation", "load_evaluation", "result_of"]

_MOST_SHOWN = 12  # classes of a confusion matrix in text


@dataclass(frozen=True)
class ClassResult:
    """What became of the samples of one class.

    Attributes:
        label: the class.
        n: samples.
        accuracy: share of them whose prediction is the class; None where n is 0.
        agreement: share of them that the run held against predicts alike; None without one, or where n is 0.
        spikes: population -> spikes a sample of the class; empty where n is 0.
    """

    label: int
    n: int
    accuracy: float | None
    agreement: float | None = None
    spikes: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A network over a data set. Arrays have a row a sample, in the order of the data set.

    Attributes:
        n: samples.
        labels: [sample] classes; None where the data set has none.
        predictions: [sample] the neuron of the Output that gave most over all steps; of equals the first.
        outputs: [sample, class] what each neuron of the Output gave over all steps: spikes, or the sum of values.
        spikes: [sample] spikes, by population.
        steps: [sample] steps.
        executor: 'reference', 'emulator', 'simulator' or 'chip'.
        target: the chip, or what the reference calls itself.
        graph_sha256: of the float graph.
        data: fingerprint of the data set.
        file: where the results are; None: in memory alone.
        reference: [sample] predictions of the run it was held against; None without one.
    """

    n: int
    labels: NDArray[np.int64] | None = field(repr=False)
    predictions: NDArray[np.int64] = field(repr=False)
    outputs: NDArray[np.float64] = field(repr=False)
    spikes: Mapping[str, NDArray[np.int64]] = field(repr=False)
    steps: NDArray[np.int64] = field(repr=False)
    executor: str
    target: str
    graph_sha256: str
    data: str
    file: Path | None = None
    reference: NDArray[np.int64] | None = field(default=None, repr=False)

    @property
    def classes(self) -> int:
        """Neurons of the Output."""
        return int(self.outputs.shape[1])

    @property
    def accuracy(self) -> float | None:
        """Share of samples whose prediction is the label; None without labels."""
        return None if self.labels is None else float((self.predictions == self.labels).mean())

    @property
    def agreement(self) -> float | None:
        """Share of samples that the run held against predicts alike; None without one."""
        return None if self.reference is None else float((self.predictions == self.reference).mean())

    @property
    def confusion(self) -> NDArray[np.int64] | None:
        """[label, prediction] samples; None without labels."""
        if self.labels is None:
            return None
        found = np.zeros((self.classes, self.classes), np.int64)
        np.add.at(found, (self.labels, self.predictions), 1)
        return found

    @property
    def per_class(self) -> tuple[ClassResult, ...]:
        """A row a class; none without labels."""
        if self.labels is None:
            return ()
        rows = []
        for label in range(self.classes):
            own = self.labels == label
            n = int(own.sum())
            right = float((self.predictions[own] == label).mean()) if n else None
            alike = (
                float((self.predictions[own] == self.reference[own]).mean())
                if n and self.reference is not None
                else None
            )
            spikes = {name: float(count[own].mean()) for name, count in self.spikes.items()} if n else {}
            rows.append(ClassResult(label, n, right, alike, spikes))
        return tuple(rows)

    def against(self, other: Evaluation) -> Evaluation:
        """The same, held against another run of this network over this data set.

        Args:
            other: the other run, e.g. the reference's.

        Raises:
            ComparisonError: another network or data set.
        """
        for name, what in (("graph_sha256", "network"), ("data", "data set"), ("n", "number of samples")):
            if getattr(self, name) != getattr(other, name):
                raise ComparisonError(
                    f"the run to hold against is of another {what}", remedy="Evaluate both over the same."
                )
        return replace(self, reference=other.predictions)

    def summary(self) -> str:
        """Plain text: accuracy, a row a class, what was confused, spikes a sample of every population."""
        lines = [f"{self.target} ({self.executor}), {self.n} samples"]
        if self.accuracy is not None:
            right = int((self.predictions == self.labels).sum())
            lines.append(f"accuracy {self.accuracy:.4f} ({right} of {self.n})")
        if self.agreement is not None:
            lines.append(f"agreement with the run it is held against {self.agreement:.4f}")
        if self.labels is not None:
            lines += ["", *table(*self._classes())]
        if (confusion := self.confusion) is not None and (confusion.sum() > confusion.trace()):
            lines += ["", *_confused(confusion)]
        if self.spikes:
            head = ["population", "spikes a sample", "least", "most"]
            rows = [[shown(n), f"{s.mean():.1f}", str(s.min()), str(s.max())] for n, s in self.spikes.items()]
            lines += ["", *table(head, rows)]
        return "\n".join(lines)

    def _classes(self) -> tuple[list[str], list[list[str]]]:
        with_other = self.reference is not None
        head = ["class", "samples", "accuracy", *(["agreement"] if with_other else []), "spikes a sample"]
        rows = []
        for row in self.per_class:
            spikes = f"{sum(row.spikes.values()):.1f}" if row.n and self.spikes else "-"
            agreement = [_share(row.agreement)] if with_other else []
            rows.append([str(row.label), str(row.n), _share(row.accuracy), *agreement, spikes])
        return head, rows

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        confusion = self.confusion
        return {
            "target": self.target,
            "executor": self.executor,
            "n": self.n,
            "accuracy": self.accuracy,
            "agreement": self.agreement,
            "confusion": None if confusion is None else confusion.tolist(),
            "per_class": [{**vars(row), "spikes": dict(row.spikes)} for row in self.per_class],
            "spikes": {
                name: {"mean": float(s.mean()), "min": int(s.min()), "max": int(s.max()), "total": int(s.sum())}
                for name, s in self.spikes.items()
            },
            "graph_sha256": self.graph_sha256,
            "data": self.data,
            "file": None if self.file is None else str(self.file),
        }


def _confused(confusion: NDArray[np.int64]) -> list[str]:
    """The matrix, a row a class, where it fits a screen; else the pairs confused most often."""
    classes = len(confusion)
    if classes <= _MOST_SHOWN:
        head = ["predicted", *map(str, range(classes))]
        return table(head, [[f"class {k}", *(str(n) if n else "." for n in row)] for k, row in enumerate(confusion)])
    wrong = confusion - np.diag(confusion.diagonal())
    most = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_SHOWN]
    pairs = [(label, taken) for label, taken in (divmod(int(k), classes) for k in most) if wrong[label, taken]]
    return table(["class", "taken for", "samples"], [[str(a), str(b), str(wrong[a, b])] for a, b in pairs])


def _share(value: float | None) -> str:
    return "-" if value is None else percent(value, 1)


def result_of(found: Table, file: Path | None) -> Evaluation:
    """The evaluation of a table that is full."""
    columns = found.columns
    labelled = bool((columns["label"] != UNLABELLED).all())
    return Evaluation(
        n=found.identity.samples,
        labels=columns["label"] if labelled else None,
        predictions=columns["prediction"],
        outputs=columns["outputs"],
        spikes={name: columns["spikes"][:, k] for k, name in enumerate(found.populations)},
        steps=columns["steps"],
        executor=found.executor,
        target=found.target,
        graph_sha256=found.identity.graph_sha256,
        data=found.identity.data,
        file=file,
    )


def load_evaluation(path: str | Path) -> Evaluation:
    """Read the results that `evaluate` wrote.

    Args:
        path: the file, complete.

    Returns:
        The evaluation as `evaluate` returned it.

    Raises:
        FileError: not such a file, damaged, or not finished.
    """
    found = read_table(path)
    if not found.done.all():
        raise FileError(
            f"{str(path)!r} has {int(found.done.sum())} of {found.identity.samples} samples",
            remedy="Finish it with evaluate(..., resume=True).",
        )
    return result_of(found, Path(path))
