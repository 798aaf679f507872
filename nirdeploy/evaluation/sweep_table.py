"""The result of a sweep: a row a point, as text, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from nirdeploy import files
from nirdeploy.comparison.text import number, percent, several, shown, table
from nirdeploy.energy import with_unit
from nirdeploy.evaluation.points import Point
from nirdeploy.evaluation.result import Evaluation
from nirdeploy.rules import Finding

__all__ = ["FORMAT", "Sweep", "SweepRow"]

FORMAT, FORMAT_VERSION = "nirdeploy-sweep", 1


@dataclass(frozen=True)
class SweepRow(Point):
    """A point, and what became of it.

    Attributes:
        target: a chip, or 'reference'.
        quantizer: '' for the reference.
        bits: of a weight; None: the chip's own, or the reference's floats.
        dt: seconds of a step; None where the convention has none.
        n: samples of the data set.
        accuracy: share of samples predicted right; None without labels, or where the point is refused.
        agreement: share of samples that the reference of this dt predicts alike; None for the reference itself.
        spikes: spikes a sample, of all populations together.
        reference_spikes: likewise of the reference of this dt.
        cores: cores it takes; None for the reference.
        of_cores: cores of the chip; None where its table does not say.
        joules: estimated energy a sample, over at most 16 samples spread over the data set; None where no figures are
            published, or what ran is no emulator.
        notes: what the quantiser says of its integers.
        refusals: why the target does not take the network or this data; empty where it has run.
        file: its results, for `load_evaluation`; None: in memory.
        evaluation: its results where there is no file.
        seconds: what it took in this call, the deployment included.
    """

    n: int = 0
    accuracy: float | None = None
    agreement: float | None = None
    spikes: float | None = None
    reference_spikes: float | None = None
    cores: int | None = None
    of_cores: int | None = None
    joules: float | None = None
    notes: tuple[str, ...] = ()
    refusals: tuple[Finding, ...] = ()
    file: Path | None = field(default=None, compare=False)
    evaluation: Evaluation | None = field(default=None, compare=False, repr=False)
    seconds: float = field(default=0.0, compare=False)

    @property
    def refusal(self) -> Finding | None:
        """The first reason why it has not run; None where it has."""
        return self.refusals[0] if self.refusals else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; the file without its folder."""
        return {
            **{name: getattr(self, name) for name in (*_AXES, *_NUMBERS)},
            "notes": list(self.notes),
            "refusals": [asdict(found) for found in self.refusals],
            "file": None if self.file is None else self.file.name,
            "seconds": self.seconds,
        }


_AXES = tuple(part.name for part in fields(Point))
_NUMBERS = ("n", "accuracy", "agreement", "spikes", "reference_spikes", "cores", "of_cores", "joules")


@dataclass(frozen=True)
class Sweep:
    """A network over a data set at every point of some axes.

    Attributes:
        rows: for every dt the reference and then the chips, in the order of the axes given.
        n: samples.
        graph_sha256: of the float graph.
        data: fingerprint of the data set as it was given.
        executor: what ran the chips' points: 'emulator', 'simulator' or 'chip'; 'reference' without any.
        folder: where results, table and plot are; None: in memory alone.
    """

    rows: tuple[SweepRow, ...] = field(repr=False)  # `summary` shows them
    n: int
    graph_sha256: str
    data: str
    executor: str = "emulator"
    folder: Path | None = field(default=None, compare=False)

    @property
    def chips(self) -> tuple[SweepRow, ...]:
        """Rows without the references."""
        return tuple(row for row in self.rows if not row.is_reference)

    @property
    def best(self) -> SweepRow | None:
        """The first point of highest accuracy, without labels of highest agreement: of the chips where there are any.

        None where all are refused, or nothing can be compared.
        """
        rows = self.chips or self.rows
        scores = [row.accuracy for row in rows]
        if not any(score is not None for score in scores):
            scores = [row.agreement for row in rows]
        known = [(score, -k) for k, score in enumerate(scores) if score is not None]
        return rows[-max(known)[1]] if known else None

    def summary(self) -> str:
        """Plain text: the best point, a row a point, reasons of refusals, notes."""
        head = f"{several(len(self.rows), 'point')}, {several(self.n, 'sample')} ({self.executor})"
        refused = [row for row in self.rows if row.refusals]
        lines = [head + (f", {len(refused)} refused" if refused else "")]
        if (best := self._best_line()) is not None:
            lines.append(best)
        reasons = _Footnotes()
        columns = [column for column in _COLUMNS if column[0] in _ALWAYS or any(column[1](row) for row in self.rows)]
        cells = [
            [*(text(row) or "-" for _, text in columns), reasons.of(row.refusals) or reasons.of(_traps(row))]
            for row in self.rows
        ]
        lines += ["", *table([*(name for name, _ in columns), ""], cells)]
        if any(row.joules is not None for row in self.rows):
            lines += ["", "Energy is an estimate from published figures, not a measurement: nd.estimate has its rows."]
        return "\n".join([*lines, *reasons.lines()])

    def _best_line(self) -> str | None:
        best = self.best
        if best is None:
            return None
        name = "agreement" if best.accuracy is None else "accuracy"
        value = getattr(best, name)
        alike = sum(getattr(row, name) == value for row in self.chips or self.rows) - 1
        more = f", as {alike} more" if alike else ""
        return f"best {name} {value:.4f}: {best}{more}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "n": self.n,
            "executor": self.executor,
            "graph_sha256": self.graph_sha256,
            "data": self.data,
            "best": None if self.best is None else {name: getattr(self.best, name) for name in _AXES},
            "rows": [row.to_dict() for row in self.rows],
        }

    def to_csv(self) -> str:
        """A line a row; notes and refusals as text."""
        stream = io.StringIO()
        names = (*_AXES, *_NUMBERS, "seconds", "file", "refusal", "notes")
        writer = csv.DictWriter(stream, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            texts = {"refusal": "; ".join(map(str, row.refusals)), "notes": "; ".join(row.notes)}
            writer.writerow({**row.to_dict(), **texts})
        return stream.getvalue()

    def save_plot(self, path: str | Path) -> None:
        """Draw accuracy and agreement; the file's suffix is its format: .png, .svg or .pdf.

        Raises:
            ConfigurationError: another suffix.
            FileError: the file cannot be written.
        """
        from nirdeploy.evaluation.sweep_plot import save

        save(self, Path(path))

    def save(self, folder: Path) -> None:
        """Write `sweep.json`, `sweep.csv`, `sweep.png` and `sweep.svg` into a folder.

        Raises:
            FileError: it cannot be written.
        """
        files.write_text(folder / "sweep.json", json.dumps(self.to_dict(), indent=2, default=str) + "\n")
        files.write_text(folder / "sweep.csv", self.to_csv())
        for suffix in ("png", "svg"):
            self.save_plot(folder / f"sweep.{suffix}")


# ---------------------------------------------------------------- text


def _bits(row: SweepRow) -> str:
    if row.is_reference:
        return ""
    return "own" if row.bits is None else str(row.bits)


def _traps(row: SweepRow) -> tuple[str, ...]:
    """What `quantize` warns of; the notes of other quantisers are measurements."""
    return row.notes if row.quantizer == "max" else ()


def _cores(row: SweepRow) -> str:
    if row.cores is None:
        return ""
    return f"{row.cores}" if row.of_cores is None else f"{row.cores} of {row.of_cores}"


def _one_digit(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _share(value: float | None) -> str:
    return "" if value is None else percent(value, 1)


_COLUMNS: tuple[tuple[str, Callable[[SweepRow], str]], ...] = (
    ("target", lambda row: shown(row.target)),
    ("quantizer", lambda row: shown(row.quantizer)),
    ("bits", _bits),
    ("dt (s)", lambda row: "" if row.dt is None else f"{row.dt:g}"),
    ("accuracy", lambda row: _share(row.accuracy)),
    ("agreement", lambda row: _share(row.agreement)),
    ("spikes a sample", lambda row: _one_digit(row.spikes)),
    ("reference's", lambda row: "" if row.is_reference else _one_digit(row.reference_spikes)),
    ("cores", _cores),
    ("energy a sample", lambda row: "" if row.joules is None else with_unit(row.joules, "J")),
)
_ALWAYS = ("target", "accuracy", "agreement")


class _Footnotes:
    """Texts that stand below the table, each once, with a number."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def of(self, items: tuple[Finding, ...] | tuple[str, ...]) -> str:
        """'refused [1]' or '[2]' for a row's refusals or notes; '' without any."""
        if not items:
            return ""
        refused = isinstance(items[0], Finding)
        text = shown(str(items[0]) if refused else "; ".join(map(str, items)))
        if refused and len(items) > 1:
            text += f" And {number(len(items) - 1)} more."
        if text not in self.found:
            self.found.append(text)
        return f"{'refused ' if refused else ''}[{self.found.index(text) + 1}]"

    def lines(self) -> Iterator[str]:
        """The texts, after an empty line."""
        if self.found:
            yield ""
        for k, text in enumerate(self.found, 1):
            yield f"[{k}] {text}"
