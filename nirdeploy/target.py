"""Targets: one TOML table a chip, read into a frozen value."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from nirdeploy.errors import TargetError

__all__ = ["Energy", "Figure", "Target", "load_table"]


@dataclass(frozen=True)
class Figure:
    """A published figure.

    Attributes:
        quantity: what it is of: a counter of a population ('synaptic_operations', 'spikes'), 'neuron_updates',
            'rest' (watts) or 'step' (seconds).
        value: joules each, watts or seconds.
        source: where it stands.
    """

    quantity: str
    value: float
    source: str


@dataclass(frozen=True)
class Energy:
    """What is published of a chip's energy and time.

    Attributes:
        operations: joules of an operation, one entry a quantity.
        rest: watts that the chip takes when nothing happens; None: not published.
        step: the shortest a step can take, in seconds; None: not published, or the chip has no steps.
        notes: what the figures do not cover, as sentences.
    """

    operations: tuple[Figure, ...] = ()
    rest: Figure | None = None
    step: Figure | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Energy:
        """Build from the section `[energy]` of a target table.

        Raises:
            ValueError: an unknown field, notes that are no list, or a figure that is not above 0 or has no source.
        """
        unknown = set(values) - {"operations", "rest", "step", "notes"}
        if unknown:
            raise ValueError(f"energy has the unknown field {min(unknown)!r}")
        operations = tuple(
            _figure(f"energy.operations.{quantity}", quantity, found, "joules")
            for quantity, found in values.get("operations", {}).items()
        )
        rest, step = (
            _figure(f"energy.{name}", name, values[name], unit) if name in values else None
            for name, unit in (("rest", "watts"), ("step", "seconds"))
        )
        notes = values.get("notes", [])
        if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
            raise ValueError(f"energy.notes is {notes!r}, expected a list of sentences")
        return cls(operations, rest, step, tuple(notes))


def _figure(place: str, quantity: str, values: Mapping[str, Any], unit: str) -> Figure:
    if set(values) != {unit, "source"}:
        raise ValueError(f"{place} has the fields {sorted(values)}, expected {unit!r} and 'source'")
    value, source = values[unit], values["source"]
    if isinstance(value, bool) or not isinstance(value, int | float) or not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{place}.{unit} is {value!r}, expected a number above 0")
    if not isinstance(source, str) or not source.strip():
        raise ValueError(f"{place}.source is {source!r}, every figure needs one")
    return Figure(quantity, float(value), source)


@dataclass(frozen=True)
class Target:
    """A chip as data.

    Attributes:
        name: e.g. 'speck2f'.
        backend: entry-point name of the backend that serves it.
        title: one line for people.
        verified: what each stage was held against, e.g. {'emulator': 'sinabs 3.1.3'}.
        on_chip: 'not run on silicon' until someone has.
        table: the chip's limits, as its backend defines them; read-only.
        energy: what is published of its energy and time.
    """

    name: str
    backend: str
    title: str
    verified: Mapping[str, str]
    on_chip: str
    table: Mapping[str, Any] = field(repr=False)
    energy: Energy = field(default=Energy(), repr=False)

    @property
    def core_count(self) -> int | None:
        """Cores of the chip, where its table says so in `cores.count`."""
        count = self.table.get("cores", {}).get("count")
        return None if count is None else int(count)

    def __deepcopy__(self, memo: Any) -> Target:
        """Itself: it never changes, and what holds it, such as a network in training, may be copied."""
        return self

    def __reduce__(self) -> Any:
        """Read-only mappings are pickled as what they hold."""
        values = {part.name: getattr(self, part.name) for part in fields(self)}
        return _target, ({**values, "verified": dict(self.verified), "table": dict(self.table)},)


def _target(values: Mapping[str, Any]) -> Target:
    frozen = {name: MappingProxyType(values[name]) for name in ("verified", "table")}
    return Target(**{**values, **frozen})


def load_table(path: Path, backend: str) -> Target:
    """Read one target table.

    Raises:
        TargetError: the file is no TOML, lacks a field every target has, or has a figure without a source.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        head = values.pop("target")
        energy = Energy.from_dict(values.pop("energy", {}))
        return Target(
            name=str(head["name"]),
            backend=backend,
            title=str(head["title"]),
            verified=MappingProxyType({str(k): str(v) for k, v in head["verified"].items()}),
            on_chip=str(head["on_chip"]),
            table=MappingProxyType(values),
            energy=energy,
        )
    except (tomllib.TOMLDecodeError, KeyError, OSError) as error:
        raise TargetError(f"target table {path.name!r} is broken: {error!r}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise TargetError(f"target table {path.name!r} is broken: {error}") from error
