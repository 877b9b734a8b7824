"""What is tried next: pure functions."""
