"""Build what the oracle tests use: .venv-lava (Python 3.10), .venv-sinabs, and the oldest nir in .venv-nir104.

The first two are the environments of `nirdeploy env create`, in the repository. What cannot be built is said and
skipped, unless NIRDEPLOY_REQUIRE_ORACLES=1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from nirdeploy.environments import RECIPES, build
from nirdeploy.errors import NirdeployError

ROOT = Path(__file__).resolve().parents[2]
OLD_NIR = ("nir==1.0.4",)  # what sinabs pins; a folder to put before everything else


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
    for folder, name in ((".venv-lava", "loihi"), (".venv-sinabs", "speck")):
        try:
            build(RECIPES[name], ROOT / folder)
        except NirdeployError as error:
            failed = True
            sys.stderr.write(f"{folder}: not built, its tests will be skipped: {error}\n")
    return int(failed and os.environ.get("NIRDEPLOY_REQUIRE_ORACLES") == "1")


if __name__ == "__main__":
    sys.exit(main())
