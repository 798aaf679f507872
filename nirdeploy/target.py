"""Targets: one TOML table a chip, read into a frozen value."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from nirdeploy.errors import TargetError

__all__ = ["Target", "load_table"]


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
    """

    name: str
    backend: str
    title: str
    verified: Mapping[str, str]
    on_chip: str
    table: Mapping[str, Any] = field(repr=False)


def load_table(path: Path, backend: str) -> Target:
    """Read one target table.

    Raises:
        TargetError: the file is no TOML or lacks a field every target has.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        head = values.pop("target")
        return Target(
            name=str(head["name"]),
            backend=backend,
            title=str(head["title"]),
            verified=MappingProxyType({str(k): str(v) for k, v in head["verified"].items()}),
            on_chip=str(head["on_chip"]),
            table=MappingProxyType(values),
        )
    except (tomllib.TOMLDecodeError, KeyError, OSError) as error:
        raise TargetError(f"target table {path.name!r} is broken: {error!r}") from error
