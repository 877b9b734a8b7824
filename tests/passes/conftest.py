"""One thread: what these tests train is small."""

import torch

torch.set_num_threads(1)
