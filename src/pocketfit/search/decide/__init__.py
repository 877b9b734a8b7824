"""Which trial is handed over, and why: pure functions."""
