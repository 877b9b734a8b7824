"""The end of a run: what was disturbed is timed again, the test split is read once."""
