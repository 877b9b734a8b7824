"""The page of `pocketfit sensitivity`."""
