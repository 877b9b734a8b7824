"""The page of explain."""
