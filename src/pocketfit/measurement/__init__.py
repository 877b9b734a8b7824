"""Accuracy, cost and fidelity of a file, in the runtime that ships."""
