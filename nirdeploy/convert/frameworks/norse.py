"""Layers of Norse."""

from __future__ import annotations

from nirdeploy.convert.frameworks.framework import Framework

__all__ = ["FRAMEWORK"]

FRAMEWORK = Framework("Norse", "norse", rows=())
