"""What makes up for quantization."""
