"""Accuracy, latency, memory and fidelity of a file, in the runtime that ships."""
