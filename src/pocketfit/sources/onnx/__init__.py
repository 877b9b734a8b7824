"""An .onnx file as a network of torch: read and checked in a child process, converted, compared with ONNX Runtime."""
