"""An .onnx file read in a process of its own, as plain values."""
