"""Vendor SDKs: which are really there, found out without importing any, and interpreters of their own for them.

An environment is a folder with an interpreter and, written last, a stamp of what it holds; without the stamp it is
none. They lie in `$NIRDEPLOY_HOME/env`, by default in `~/.local/share/nirdeploy/env`.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nirdeploy.errors import FileError, UnavailableError
from nirdeploy.files import UNFINISHED
from nirdeploy.names import suggest
from nirdeploy.recipes import RECIPES, Recipe
from nirdeploy.version import __version__
from nirdeploy.worker import call

__all__ = [
    "RECIPES",
    "Environment",
    "Recipe",
    "build",
    "create",
    "doctor",
    "environments",
    "home",
    "interpreter",
    "python310",
    "samna_state",
]

_FORMAT = 1
_STAMP = "nirdeploy-environment.json"
_ABANDONED = 3600.0  # seconds after which what a killed build left is removed
_MINUTES = 900.0  # seconds an installation may take

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


# ---------------------------------------------------------------- environments


@dataclass(frozen=True)
class Environment:
    """One environment as it is now.

    Attributes:
        name: e.g. 'speck'.
        purpose: one line for people.
        folder: where it is, or would be.
        state: 'missing', 'ready', 'stale' (holds something else than the recipe of now), or 'given' (an interpreter
            named by $NIRDEPLOY_PYTHON_<NAME>).
        python: its interpreter, or None where there is none.
        holds: requirements and shared packages.
    """

    name: str
    purpose: str
    folder: Path
    state: str
    python: Path | None
    holds: tuple[str, ...]


def home() -> Path:
    """Folder of this package's own data: $NIRDEPLOY_HOME, else nirdeploy in $XDG_DATA_HOME or ~/.local/share."""
    if given := os.environ.get("NIRDEPLOY_HOME"):
        return Path(given).expanduser().absolute()
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "nirdeploy"


def environments() -> dict[str, Environment]:
    """Every environment there is a recipe for, by name."""
    return {name: _environment(recipe) for name, recipe in RECIPES.items()}


def interpreter(name: str) -> Path:
    """The interpreter of an environment that is ready.

    Raises:
        UnavailableError: there is none, or it holds something else than the recipe of now; names what builds it.
    """
    found = _environment(_recipe(name))
    remedy = f"Run `nirdeploy env create {name}`."
    if found.python is None:
        if found.state == "given":
            variable = _variable(name)
            raise UnavailableError(f"${variable} is {os.environ[variable]!r}, which is no file", remedy=remedy)
        problem = f"{found.purpose} needs the environment {name!r}, which is not built"
        raise UnavailableError(problem, remedy=remedy)
    if found.state == "stale":
        problem = f"the environment {name!r} holds something else than this version and interpreter need"
        raise UnavailableError(f"{problem} ({', '.join(found.holds) or 'nothing known'})", remedy=remedy)
    return found.python


def create(name: str, *, progress: Callable[[str], None] | None = None, rebuild: bool = False) -> Environment:
    """Build an environment unless this very one is there.

    Args:
        name: of a recipe.
        progress: called with a line for every step of the installation.
        rebuild: build it in any case.

    Raises:
        UnavailableError: unknown name, or the Python it needs is not there.
        VendorError: an installation failed; the installer's last lines are in the message.
        FileError: its folder cannot be written.
    """
    recipe = _recipe(name)
    folder = home() / "env" / name
    build(recipe, folder, progress=progress, rebuild=rebuild)
    return _environment(recipe)


def build(
    recipe: Recipe, folder: Path, *, progress: Callable[[str], None] | None = None, rebuild: bool = False
) -> bool:
    """Build an environment in a folder unless this very one is there; whether anything was built.

    It is made beside `folder` and renamed when it is complete; what was there before stays until then.

    Raises:
        UnavailableError: the Python it needs is not there.
        VendorError: an installation failed.
        FileError: the folder cannot be written.
    """
    python = _base_python(recipe)
    wanted = _wanted(recipe, python)
    if not rebuild and _stamp_of(folder) == wanted and _python_in(folder).exists():
        return False
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    except OSError as error:
        raise FileError(f"cannot build in {str(folder.parent)!r}: {error.strerror or error}") from error
    UNFINISHED.add(staging)
    try:
        _install(recipe, python, staging, progress or (lambda _: None))
        (staging / _STAMP).write_text(json.dumps(wanted, indent=2, sort_keys=True), encoding="utf-8")
        _exchange(staging, folder)
    except OSError as error:
        raise FileError(f"cannot build {str(folder)!r}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        UNFINISHED.discard(staging)
    return True


def _install(recipe: Recipe, python: Path, folder: Path, progress: Callable[[str], None]) -> None:
    def step(title: str, *command: str | Path, remedy: str | None = None) -> None:
        progress(title)
        what = f"building the environment {recipe.name!r} ({title})"
        call(command, what=what, timeout=_MINUTES, progress=progress, remedy=remedy)

    step(f"an interpreter from {python}", python, "-I", "-m", "venv", folder)
    own = _python_in(folder)
    pip = (own, "-I", "-m", "pip", "install", "--no-deps", "--no-input", "--progress-bar=off")
    remedy = "Check the network and the package index of pip, then try again."
    step(f"installing {', '.join(recipe.packages)}", *pip, *recipe.packages, remedy=remedy)
    if recipe.shared:  # after pip, which would find its packages there and not install them
        (site,) = {path.parent for path in folder.glob("[Ll]ib/**/site-packages/pip")}
        (site / "nirdeploy-shared.pth").write_text("\n".join(_shared_sites(recipe)) + "\n", encoding="utf-8")
    step(f"importing {', '.join(recipe.imports)}", own, "-I", "-c", f"import {', '.join(recipe.imports)}")
    for script in own.parent.iterdir():
        # they name the folder it is built in, which gets another name
        if not script.name.lower().startswith("python"):
            script.unlink()


def _exchange(staging: Path, folder: Path) -> None:
    """Put the complete environment in the place of the one before."""
    if not (folder.exists() or folder.is_symlink()):
        staging.rename(folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    folder.rename(old / "old")
    staging.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _remove_abandoned(folder: Path) -> None:
    for path in folder.parent.glob(f".{folder.name}.*.part"):
        if time.time() - path.lstat().st_mtime > _ABANDONED:
            shutil.rmtree(path, ignore_errors=True)


def _recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise UnavailableError(f"there is no environment {name!r}", remedy=suggest(str(name), RECIPES))
    return RECIPES[name]


def _variable(name: str) -> str:
    return f"NIRDEPLOY_PYTHON_{name.upper()}"


def _environment(recipe: Recipe) -> Environment:
    folder = home() / "env" / recipe.name
    if given := os.environ.get(_variable(recipe.name)):
        path = Path(given)
        return Environment(recipe.name, recipe.purpose, path, "given", path if path.is_file() else None, ())
    stamp, python = _stamp_of(folder), _python_in(folder)
    if stamp is None or not python.exists():
        return Environment(recipe.name, recipe.purpose, folder, "missing", None, ())
    try:
        ready = stamp == _wanted(recipe, _base_python(recipe))
    except UnavailableError:  # the Python it was made from is gone
        ready = False
    shared = stamp.get("shared")
    holds = [str(package) for package in stamp.get("packages") or ()]
    holds += [f"{package}=={found}" for package, found in (shared if isinstance(shared, dict) else {}).items()]
    state = "ready" if ready else "stale"
    return Environment(recipe.name, recipe.purpose, folder, state, python, tuple(holds))


def _wanted(recipe: Recipe, python: Path) -> dict[str, Any]:
    """The stamp of an environment as it should be."""
    return {
        "format": _FORMAT,
        "name": recipe.name,
        "python": str(python),
        "packages": list(recipe.packages),
        "shared": {package: _version(package) for package in recipe.shared},
        "sites": _shared_sites(recipe),
    }


def _stamp_of(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / _STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _shared_sites(recipe: Recipe) -> list[str]:
    """Folders from which this interpreter imports the shared packages."""
    found: dict[str, None] = {}
    for package in recipe.shared:
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise UnavailableError(f"{package} is not installed", remedy=f"pip install {package}")
        found[str(Path(spec.origin).parent.parent)] = None
    return list(found)


def _base_python(recipe: Recipe) -> Path:
    if not recipe.needs_310:
        return Path(sys.executable)
    found = python310()
    if found is None:
        raise UnavailableError(
            f"the environment {recipe.name!r} needs Python 3.10, and none was found",
            remedy="Install it, or name it in $NIRDEPLOY_PYTHON310.",
        )
    return Path(found)


def _python_in(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


# ---------------------------------------------------------------- what is there


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
        "environments": {
            name: {"state": found.state, "python": None if found.python is None else str(found.python)}
            for name, found in environments().items()
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
