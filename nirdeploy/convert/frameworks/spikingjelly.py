"""Layers of SpikingJelly."""

from __future__ import annotations

from nirdeploy.convert.frameworks.framework import Framework

__all__ = ["FRAMEWORK"]

FRAMEWORK = Framework("SpikingJelly", "spikingjelly", rows=())
