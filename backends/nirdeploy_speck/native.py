"""The compiler of the Speck's kernels."""

from __future__ import annotations

from pathlib import Path

from nirdeploy.native import compiler, inline

__all__ = ["inline", "kernel"]

_MADE_OF = ("fields", "kernels", "two_lanes")
# Python's own rules for division by zero
kernel = compiler(
    (path for path in Path(__file__).parent.glob("*.py") if path.stem.endswith(_MADE_OF)),
    error_model="python",
)
"""Compile a function when it is first called with arguments of a type."""
