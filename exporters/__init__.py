"""ONNX files from a quantized student, and proof that they compute the same."""
