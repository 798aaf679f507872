"""Build what the oracle tests use: .venv-lava (Python 3.10), .venv-sinabs, and the oldest nir in .venv-nir104.

They cannot share one interpreter with the package: Lava exists for Python 3.10 and numpy < 2 only, and sinabs pins
an old nir. What cannot be built is said and skipped, unless NIRDEPLOY_REQUIRE_ORACLES=1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from nirdeploy.environments import python310

ROOT = Path(__file__).resolve().parents[2]
LAVA = ("lava-nc==0.10.0", "numpy==1.26.4", "scipy==1.15.3", "networkx==2.8.7", "asteval==0.9.31", "h5py==3.14.0")
OLD_NIR = ("nir==1.0.4",)  # what sinabs pins; a folder to put before everything else
SINABS = ("sinabs==3.1.3", "pbr==7.1.3", "nir==1.0.4", "nirtorch==2.0.2")


def pip(folder: Path, *packages: str) -> None:
    """Install without dependencies: they would bring CUDA builds, another numpy, or samna's installer."""
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, "--no-deps", *packages], check=True, timeout=600)


def build(name: str, interpreter: str, packages: tuple[str, ...], *, share: bool = False) -> None:
    """A virtual environment in the repository root, unless this very one is there."""
    folder = ROOT / name
    stamp = folder / ".installed"
    wanted = "\n".join((interpreter, *packages))
    if stamp.exists() and stamp.read_text() == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([interpreter, "-m", "venv", str(folder)], check=True, timeout=300)
    if share:
        # torch and numpy of the main environment, without installing them again
        site = next((folder / "lib").glob("python3*/site-packages"))
        (site / "shared.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    pip(folder, *packages)
    stamp.write_text(wanted)


def old_nir(folder: Path) -> None:
    """The oldest supported nir in a folder of its own, unless it is there."""
    stamp = folder / ".installed"
    if stamp.exists() and stamp.read_text() == "\n".join(OLD_NIR):
        return
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*command, "--target", str(folder), *OLD_NIR], check=True, timeout=300)
    stamp.write_text("\n".join(OLD_NIR))


def main() -> int:
    """Build both; 1 where one that is required is missing."""
    failed = False
    old_nir(ROOT / ".venv-nir104")
    lava = python310()
    for name, interpreter, packages, share in (
        (".venv-lava", lava, LAVA, False),
        (".venv-sinabs", sys.executable, SINABS, True),
    ):
        reason = "no Python 3.10 found" if interpreter is None else ""
        if interpreter is not None:
            try:
                build(name, interpreter, packages, share=share)
            except (OSError, subprocess.SubprocessError) as error:
                reason = str(error)
        if reason:
            failed = True
            sys.stderr.write(f"{name}: not built, its tests will be skipped: {reason}\n")
    return int(failed and os.environ.get("NIRDEPLOY_REQUIRE_ORACLES") == "1")


if __name__ == "__main__":
    sys.exit(main())
