"""Build what the oracle tests use: .venv-lava (Python 3.10), .venv-sinabs, and the oldest nir in .venv-nir104.

The first two are the environments of `nirdeploy env create`, in the repository. .venv-with-<library> holds a library
that networks are trained with, and this interpreter's packages behind it. What cannot be built is said and skipped,
unless NIRDEPLOY_REQUIRE_ORACLES=1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from nirdeploy.environments import RECIPES, build
from nirdeploy.errors import NirdeployError

ROOT = Path(__file__).resolve().parents[2]
OLD_NIR = ("nir==1.0.4",)  # what sinabs pins; a folder to put before everything else
# without their dependencies, which would bring a CUDA build of torch and samna's installer
LIBRARIES = {
    "snntorch": ("snntorch==1.0.0", "nirtorch==2.6"),
    "norse": ("norse==1.1.0", "nirtorch==2.6"),
    "sinabs": ("sinabs==3.1.3", "pbr==7.1.3", "nir==1.0.4", "nirtorch==2.0.2"),
    "spikingjelly": ("spikingjelly==2.0.0", "loguru==0.7.3", "nirtorch==2.6"),
}


def old_nir(folder: Path) -> None:
    """The oldest supported nir in a folder of its own, unless it is there."""
    stamp = folder / ".installed"
    if stamp.exists() and stamp.read_text() == "\n".join(OLD_NIR):
        return
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*command, "--target", str(folder), *OLD_NIR], check=True, timeout=300)
    stamp.write_text("\n".join(OLD_NIR))


def library(name: str) -> None:
    """An interpreter with a library, which sees this one's packages behind its own; unless it is there."""
    folder, packages = ROOT / f".venv-with-{name}", LIBRARIES[name]
    wanted = "\n".join((sys.version, sys.prefix, *packages))
    stamp = folder / ".installed"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=300)
    found = next(folder.glob("lib/python3*/site-packages"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*command, "--target", str(found), *packages], check=True, timeout=600)
    # a folder named in a .pth has its own .pth files read, such as that of an editable installation
    (found / "behind.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    stamp.write_text(wanted)


def main() -> int:
    """Build all; 1 where one that is required is missing."""
    failed = False
    old_nir(ROOT / ".venv-nir104")
    for name in LIBRARIES:
        try:
            library(name)
        except (OSError, subprocess.SubprocessError) as error:
            failed = True
            sys.stderr.write(f".venv-with-{name}: not built, its tests will be skipped: {error}\n")
    for folder, name in ((".venv-lava", "loihi"), (".venv-sinabs", "speck")):
        try:
            build(RECIPES[name], ROOT / folder)
        except NirdeployError as error:
            failed = True
            sys.stderr.write(f"{folder}: not built, its tests will be skipped: {error}\n")
    return int(failed and os.environ.get("NIRDEPLOY_REQUIRE_ORACLES") == "1")


if __name__ == "__main__":
    sys.exit(main())
