"""Runs a script with the stand-in of lava-loihi beside this file to be found: run.py SCRIPT ARGUMENTS."""

import runpy
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
