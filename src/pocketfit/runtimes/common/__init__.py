"""What all runtimes share."""
