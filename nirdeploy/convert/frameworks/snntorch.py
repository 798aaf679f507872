"""Layers of snnTorch."""

from __future__ import annotations

from nirdeploy.convert.frameworks.framework import Framework

__all__ = ["FRAMEWORK"]

FRAMEWORK = Framework("snnTorch", "snntorch", rows=())
