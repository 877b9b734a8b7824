"""The loop, and one trial from plan to measurements."""
