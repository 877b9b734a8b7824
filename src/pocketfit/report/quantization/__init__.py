"""The page of `pocketfit explain`."""
