"""What several tests of the Speck need."""

import sys

import pytest
import samna_double
from nirdeploy_speck import samna_device


@pytest.fixture
def world(monkeypatch, tmp_path):
    """A samna that is found and imported like the real one, and what is behind it."""
    found = samna_double.World()
    monkeypatch.setattr(samna_double, "WORLD", found)
    (tmp_path / "samna").mkdir()
    text = "import samna_double\nglobals().update(samna_double.names(samna_double.WORLD))\n"
    (tmp_path / "samna" / "__init__.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "samna", raising=False)
    monkeypatch.setattr(samna_device, "time", found.clock)
    yield found
    sys.modules.pop("samna", None)
