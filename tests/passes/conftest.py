"""The small networks of small_nets.py, importable whatever pytest's import mode is."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)
