"""Remove channels, set weights to zero."""
