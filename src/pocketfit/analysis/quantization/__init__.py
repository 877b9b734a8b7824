"""What quantization costs, and where."""
