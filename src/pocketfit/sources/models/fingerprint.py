"""A hash of a network's structure and weights."""

from __future__ import annotations

import hashlib

import numpy as np
from torch import nn


def fingerprint(network: nn.Module) -> str:
    """sha256 over the printed structure and, sorted by name, each tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(f"{type(network).__qualname__}\n{network}".encode())
    tensors = {**dict(network.named_buffers()), **network.state_dict()}
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"\n{name} {values.dtype} {tuple(values.shape)}\n".encode())
        raw = values if values.dtype.is_floating_point is False else values.float()
        digest.update(np.ascontiguousarray(raw.numpy()).tobytes())
    return digest.hexdigest()
