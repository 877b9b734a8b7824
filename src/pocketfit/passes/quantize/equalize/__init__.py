"""Channels rescaled between layers."""
