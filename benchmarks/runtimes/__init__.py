"""The same network in every runtime."""
