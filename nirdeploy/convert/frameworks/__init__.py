"""Layers of the libraries that networks are trained with.

A layer is recognised by the full name of its class, so no library is imported here: a module that came from one has
imported it already. One module a library; each has a table `FRAMEWORK` with one row a class.
"""

from __future__ import annotations

from nirdeploy.convert.frameworks.framework import Framework, LayerRow, framework_of, leading_axes, row_of, traceable

__all__ = ["Framework", "LayerRow", "framework_of", "leading_axes", "row_of", "traceable"]
