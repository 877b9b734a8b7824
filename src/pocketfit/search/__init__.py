"""The search: what to try, what to choose, and why limits cannot be met."""
