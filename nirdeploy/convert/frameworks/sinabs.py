"""Layers of sinabs."""

from __future__ import annotations

from nirdeploy.convert.frameworks.framework import Framework

__all__ = ["FRAMEWORK"]

FRAMEWORK = Framework("sinabs", "sinabs", rows=())
