"""Findings: what a target says about a graph, all at once, each with value, limit and remedy."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["Finding", "Report"]


@dataclass(frozen=True)
class Finding:
    """One thing a target cannot hold (error) or computes differently (warning).

    Attributes:
        code: short stable name, e.g. 'kernel_size'.
        node: the graph node, or '' where the whole graph is meant.
        problem: one sentence with value and limit.
        remedy: what to do about it.
        severity: 'error' stops a deployment, 'warning' does not.
        value: the number found, where there is one.
        limit: the number allowed, where there is one.
        torch_path: module path the node came from, where known.
    """

    code: str
    node: str
    problem: str
    remedy: str
    severity: Literal["error", "warning"] = "error"
    value: Any = None
    limit: Any = None
    torch_path: str | None = None

    def __str__(self) -> str:
        where = f"{self.node!r}" if self.node else "graph"
        if self.torch_path and self.torch_path != self.node:
            where += f" ({self.torch_path})"
        return f"{where}: {self.problem} [{self.code}]. {self.remedy}"


@dataclass(frozen=True)
class Report:
    """All findings of one check.

    Attributes:
        target: name of the target.
        findings: errors first, each group in execution order of the nodes.
    """

    target: str
    findings: tuple[Finding, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether there is no error; warnings may remain."""
        return not self.errors

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings that stop a deployment."""
        return tuple(f for f in self.findings if f.severity == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Findings that do not."""
        return tuple(f for f in self.findings if f.severity == "warning")

    @property
    def headline(self) -> str:
        """Target and counts, e.g. 'speck2f: 0 errors, 7 warnings'."""
        if not self.findings:
            return f"{self.target}: no findings"
        return f"{self.target}: {len(self.errors)} errors, {len(self.warnings)} warnings"

    def __str__(self) -> str:
        return "\n".join([self.headline, *(f"{found.severity}: {found}" for found in self.findings)])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {"target": self.target, "ok": self.ok, "findings": [asdict(f) for f in self.findings]}

    def to_json(self) -> str:
        """JSON text."""
        return json.dumps(self.to_dict(), indent=2, default=_plain)


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)
