"""The compiler of the reference's kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nirdeploy.native import compiler, inline

__all__ = ["inline", "kernel"]

_MADE_OF = ("dynamics", "lanes", "sparse", "surrogates", "watch", "kernels")
# its kernels have no types, which would say less than their docstrings
kernel: Any = compiler(path for path in Path(__file__).parent.glob("*.py") if path.stem.endswith(_MADE_OF))
"""Compile a function when it is first called with arguments of a type."""
