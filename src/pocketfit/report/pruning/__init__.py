"""The page of sensitivity."""
