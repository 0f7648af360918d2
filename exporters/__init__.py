"""ONNX files from a quantized student, and proof that they compute the same."""

import os

# ONNX Runtime's official builds tell their maker what is run, and keep an identifier of the
# machine, unless this is set before it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
