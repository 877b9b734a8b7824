"""ONNX Runtime (.onnx)."""
