"""Every error nirdeploy raises on purpose.

    NirdeployError
    ├── GraphError           (ValueError)           the graph itself is not well formed
    ├── ConversionError      (ValueError)           a module or node that cannot be converted as it stands
    ├── UnsupportedError     (NotImplementedError)  a type, option or stage that is legal but not implemented here
    ├── ConventionError      (ValueError)           a convention that is missing, contradictory or unknown
    │   └── MissingTimeStepError (TypeError)        a time constant is there, dt is not
    ├── FileError            (ValueError)           a file that is not what it says, is damaged, stale or too large
    ├── RasterError          (ValueError)           an input raster of wrong shape, sign or type
    ├── TargetError          (ValueError)           an unknown target or a broken target table
    ├── CheckError           (ValueError)           a graph the target cannot hold; carries the Report
    ├── QuantizationError    (ValueError)           numbers that do not fit the target's integers
    │   └── MissingLayerError    (KeyError)         a deployment has no integers of a node
    ├── PlacementError       (ValueError)           layers that do not fit the target's cores
    ├── ComparisonError      (ValueError)           two trajectories that cannot be aligned
    ├── ConfigurationError   (ValueError)           a configuration file that does not validate
    ├── UnavailableError     (NotImplementedError)  a vendor SDK, device or extra that is not installed
    └── VendorError          (ValueError)           a vendor's software or device that failed, hung or answered nonsense

    QuantizationWarning      (UserWarning)          a trap of the quantiser asked for, met on this graph
    StabilityWarning         (UserWarning)          a step longer than a time constant it is integrated with

A message names the node (and its torch path), the value, the limit and the remedy, as far as they are known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nirdeploy.rules import Report

__all__ = [
    "CheckError",
    "ComparisonError",
    "ConfigurationError",
    "ConventionError",
    "ConversionError",
    "FileError",
    "GraphError",
    "MissingLayerError",
    "MissingTimeStepError",
    "NirdeployError",
    "PlacementError",
    "QuantizationError",
    "QuantizationWarning",
    "RasterError",
    "StabilityWarning",
    "TargetError",
    "UnavailableError",
    "UnsupportedError",
    "VendorError",
]


class NirdeployError(Exception):
    """Base of all errors of this package.

    Args:
        message: what is wrong, with the value and the limit.
        node: the graph node concerned, if there is one; prefixed to the message.
        remedy: what the user can do; appended to the message.
    """

    def __init__(self, message: str, *, node: str | None = None, remedy: str | None = None) -> None:
        self.node = node
        self.remedy = remedy
        text = f"node {node!r}: {message}" if node is not None else message
        if remedy:
            text = f"{text.rstrip('.')}. {remedy}"
        super().__init__(text)


class GraphError(NirdeployError, ValueError):
    """The graph itself is not well formed."""


class ConversionError(NirdeployError, ValueError):
    """A module or node cannot be converted as it stands.

    Args:
        message: as for every error.
        node: likewise.
        remedy: likewise.
        located: whether the message has the source line already.
    """

    def __init__(
        self, message: str, *, node: str | None = None, remedy: str | None = None, located: bool = False
    ) -> None:
        super().__init__(message, node=node, remedy=remedy)
        self.located = located


class UnsupportedError(NirdeployError, NotImplementedError):
    """A type, option or stage is legal but not implemented here."""


class ConventionError(NirdeployError, ValueError):
    """A convention is missing, contradictory or unknown."""


class MissingTimeStepError(ConventionError, TypeError):
    """A node has a time constant and no dt was given."""


class FileError(NirdeployError, ValueError):
    """A file is not what it says, is damaged, stale or too large."""


class RasterError(NirdeployError, ValueError):
    """An input raster has the wrong shape, sign or type."""


class TargetError(NirdeployError, ValueError):
    """The target is unknown, or its table is broken."""


class CheckError(NirdeployError, ValueError):
    """The target cannot hold the graph; `report` has every finding."""

    def __init__(self, report: Report) -> None:
        errors = report.errors
        shown = "; ".join(str(finding) for finding in errors[:3])
        more = f" (and {len(errors) - 3} more)" if len(errors) > 3 else ""
        super().__init__(f"{report.target} cannot hold this graph: {shown}{more}")
        self.report = report


class QuantizationError(NirdeployError, ValueError):
    """Numbers do not fit the target's integers."""


class MissingLayerError(QuantizationError, KeyError):
    """A deployment has no integers of a node."""

    def __str__(self) -> str:
        return Exception.__str__(self)  # KeyError's own would put the message in quotes


class PlacementError(NirdeployError, ValueError):
    """Layers do not fit the target's cores."""


class ComparisonError(NirdeployError, ValueError):
    """Two trajectories cannot be aligned."""


class ConfigurationError(NirdeployError, ValueError):
    """A configuration file does not validate."""


class UnavailableError(NirdeployError, NotImplementedError):
    """A vendor SDK, device or optional package is not installed."""


class VendorError(NirdeployError, ValueError):
    """A vendor's software or device failed, hung, or answered something else than agreed.

    Args:
        message: as for every error.
        node: likewise.
        remedy: likewise.
        log: all that the program said.
    """

    def __init__(self, message: str, *, node: str | None = None, remedy: str | None = None, log: str = "") -> None:
        super().__init__(message, node=node, remedy=remedy)
        self.log = log


class StabilityWarning(UserWarning):
    """Forward Euler with a step longer than a time constant: v swings, or grows without bound beyond twice of it."""


class QuantizationWarning(UserWarning):
    """The quantiser asked for has met one of its known traps."""
