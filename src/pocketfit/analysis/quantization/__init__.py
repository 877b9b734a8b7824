"""How much quantization costs, and in which layers."""
