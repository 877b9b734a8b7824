"""The networks of networks_as_brought.py."""
