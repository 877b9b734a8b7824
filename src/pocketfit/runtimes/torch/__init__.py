"""Eager PyTorch, for analysis."""
