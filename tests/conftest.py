"""What every test needs."""

import ctypes
import errno
import sys

import pytest
import torch
from hypothesis import HealthCheck, settings

# on shared cores a second OpenMP thread makes small layers several times slower
torch.set_num_threads(1)
# how long an example takes says nothing about whether it is right
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 6 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if sys.platform != "linux":
        pytest.skip("mounts a tmpfs")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0, b"size=6m"):
        code = errno.errorcode[ctypes.get_errno()]
        pytest.skip(f"mounting is not permitted ({code})")
    yield folder
    libc.umount2(str(folder).encode(), 2)
