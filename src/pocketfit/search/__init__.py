"""What to try, what to choose, and why limits cannot be met."""
