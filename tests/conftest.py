"""What every test needs."""

import torch

# on shared cores a second OpenMP thread makes small layers several times slower
torch.set_num_threads(1)
