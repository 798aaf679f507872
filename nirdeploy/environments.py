"""Which vendor SDKs are really there, found out without importing any."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nirdeploy.version import __version__

__all__ = ["doctor", "python310", "samna_state"]

_PACKAGES = (
    "torch",
    "numpy",
    "nir",
    "h5py",
    "numba",
    "networkx",
    "scipy",
    "typer",
    "rich",
    "pydantic",
    "matplotlib",
    "jinja2",
)
_OPTIONAL = {
    "scikit-learn": "the demo: pip install 'nirdeploy[demo]'",
    "xarray": "opening trajectory files as labelled arrays: pip install 'nirdeploy[xarray]'",
    "sinabs": "models trained with sinabs",
    "snntorch": "models trained with snnTorch",
    "norse": "models trained with Norse",
    "spikingjelly": "models trained with SpikingJelly",
}


def samna_state() -> str:
    """'missing', 'installer' or 'real'.

    The samna on PyPI is an installer that runs pip when imported; its `__init__.py` contains PYPI_SAMNA. So the
    package is looked at, never imported.
    """
    try:
        spec = find_spec("samna")
    except (ImportError, ValueError):
        return "missing"
    if spec is None:
        return "missing"
    if spec.origin is None or not Path(spec.origin).is_file():
        return "missing"
    return "installer" if b"PYPI_SAMNA" in Path(spec.origin).read_bytes() else "real"


def python310() -> str | None:
    """A Python 3.10 for Lava: $NIRDEPLOY_PYTHON310, python3.10, or one of pyenv's versions."""
    given = os.environ.get("NIRDEPLOY_PYTHON310")
    if given:
        return given if Path(given).is_file() else None
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    own = sorted(root.glob("versions/3.10*/bin/python"))
    if own:
        return str(own[-1])  # before PATH: pyenv's shim of that name fails where 3.10 is not selected
    return shutil.which("python3.10")


def doctor() -> dict[str, Any]:
    """Versions, vendor SDKs and what is missing, as plain data."""
    from nirdeploy.backend import listed_backends, targets

    return {
        "nirdeploy": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "packages": {name: _version(name) for name in _PACKAGES},
        "cuda": _cuda(),
        "optional": {name: {"version": _version(name), "for": why} for name, why in _OPTIONAL.items()},
        "vendors": {
            "samna": {"state": samna_state(), "for": "running on a Speck or DYNAP-CNN device"},
            "lava-nc": {
                "state": "real" if _version("lava-nc") else "missing",
                "for": "Lava on the CPU as a simulator; needs Python 3.10 in an environment of its own",
            },
            "python3.10": {"state": python310() or "missing", "for": "building that environment"},
        },
        "backends": {name: reason or "ok" for name, reason in listed_backends().items()},
        "targets": list(targets()),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cuda() -> str | None:
    import torch

    return str(torch.cuda.get_device_name(0)) if torch.cuda.is_available() else None
