"""Quantization simulated in torch."""
