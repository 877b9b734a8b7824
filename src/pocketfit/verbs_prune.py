"""The verbs that look at what pruning would cost and bring: costs, sensitivity. Words in, plain dicts out."""

from __future__ import annotations
