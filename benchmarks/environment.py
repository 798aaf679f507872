"""Build .venv-bench: nirdeploy and the peers it is measured against, in one interpreter.

Run `python3.11 benchmarks/environment.py`. The peers are installed without their dependencies: those would bring a
CUDA build of torch, torchvision, another nir, and samna's installer, which runs pip when imported.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
FOLDER = ROOT / ".venv-bench"
CONSTRAINTS = HERE / "constraints.txt"
PEERS = ("nirtorch", "norse", "snntorch", "spikingjelly", "sinabs")
EXTRA = ("loguru", "pbr")  # imported by spikingjelly, and by sinabs to know its own version


def pip(*arguments: str) -> None:
    """Install into the environment, constrained."""
    command = [str(FOLDER / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, "-c", str(CONSTRAINTS), *arguments], check=True, timeout=1800)


def main() -> int:
    """Build it from scratch, unless this very one is there."""
    stamp = FOLDER / ".installed"
    wanted = "\n".join((sys.version, CONSTRAINTS.read_text(), (ROOT / "pyproject.toml").read_text(), *PEERS, *EXTRA))
    if stamp.exists() and stamp.read_text() == wanted:
        return 0
    shutil.rmtree(FOLDER, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(FOLDER)], check=True, timeout=300)
    pip("torch")
    pip("-e", str(ROOT))
    pip("--no-deps", *PEERS, *EXTRA)
    stamp.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
