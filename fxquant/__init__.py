"""Data-free quantization of trained PyTorch networks, down to integer ONNX files."""
