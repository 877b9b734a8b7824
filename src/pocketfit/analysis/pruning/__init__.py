"""What channels are worth and what they cost."""
