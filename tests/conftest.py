"""What every test needs."""

import torch
from hypothesis import HealthCheck, settings

# on shared cores a second OpenMP thread makes small layers several times slower
torch.set_num_threads(1)
# how long an example takes says nothing about whether it is right
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
