"""Pipeline configurations in TOML: what `nirdeploy deploy --config` reads, validated by pydantic."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nirdeploy.errors import ConfigurationError
from nirdeploy.files import unreadable
from nirdeploy.reference.convention import Convention
from nirdeploy.reference.presets import convention

__all__ = ["PipelineConfiguration", "load_configuration", "refuse_separate"]


_MAX_BYTES = 1 << 20


def refuse_separate(fields: Iterable[str], where: str, remedy: str) -> None:
    """Refuse 'preset' and 'dt' among the fields that change a preset: they have places of their own.

    Raises:
        ConfigurationError: one is there.
    """
    for name in ("preset", "dt"):
        if name in fields:
            raise ConfigurationError(f"{name!r} among the {where}", remedy=remedy)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ConventionSection(_Strict):
    """`[convention]`: a preset and the fields that differ from it."""

    preset: str = "nir"
    dt: float | None = None
    fields: dict[str, Any] = Field(default_factory=dict)

    def build(self) -> Convention:
        """The Convention."""
        refuse_separate(self.fields, "fields of [convention]", "Write preset and dt beside fields.")
        return convention(self.preset, dt=self.dt, **self.fields)


class QuantizationSection(_Strict):
    """`[quantization]`: the quantiser and its data."""

    quantizer: Literal["calibrated", "max", "exact"] = "calibrated"
    calibration: Path | None = None
    weight_bits: int | None = None


class PipelineConfiguration(_Strict):
    """One deployment: paths are relative to the configuration file.

    Attributes:
        graph: a .nir file.
        target: a target's name.
        output: folder the deployment is written to.
        convention: None: the one the graph carries.
        quantization: quantiser and calibration raster (.npz with 'raster', or .npy).
        placement: the backend's placement options.
    """

    graph: Path
    target: str
    output: Path
    convention: ConventionSection | None = None
    quantization: QuantizationSection = QuantizationSection()
    placement: dict[str, Any] = Field(default_factory=dict)


def load_configuration(path: str | Path) -> PipelineConfiguration:
    """Read and validate a configuration; relative paths are resolved against its folder.

    Raises:
        ConfigurationError: missing, no TOML, or wrong fields; the message names each field.
    """
    source = Path(path)
    if reason := unreadable(source):
        raise ConfigurationError(f"{str(source)!r} {reason}, expected a configuration")
    if source.stat().st_size > _MAX_BYTES:
        raise ConfigurationError(f"{str(source)!r} is larger than {_MAX_BYTES} bytes")
    try:
        values = tomllib.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # TOML and UTF-8 errors are ValueErrors
        raise ConfigurationError(f"{str(source)!r} is no readable TOML: {error}") from error
    try:
        found = PipelineConfiguration.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg'].lower()}" for e in error.errors(include_url=False)
        )
        raise ConfigurationError(f"{str(source)!r}: {problems}") from error
    folder = source.parent
    calibration = found.quantization.calibration
    return found.model_copy(
        update={
            "graph": folder / found.graph,
            "output": folder / found.output,
            "quantization": found.quantization.model_copy(
                update={"calibration": None if calibration is None else folder / calibration}
            ),
        }
    )
