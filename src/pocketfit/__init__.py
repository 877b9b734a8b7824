"""pocketfit makes a trained neural network fit a device, and proves that it fits."""

from __future__ import annotations

__version__ = "0.1.0"
