"""The compiler of the Loihi's kernels."""

from __future__ import annotations

from pathlib import Path

from nirdeploy.native import compiler

__all__ = ["kernel"]

kernel = compiler(Path(__file__).parent.glob("*kernels.py"))
"""Compile a function when it is first called with arguments of a type."""
