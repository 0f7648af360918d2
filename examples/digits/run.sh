#!/usr/bin/env bash
# The demo: train a small network, forget its data, quantize it to 4 bits. `make demo` runs this.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

say() { printf '\n# %s\n' "$*"; }
run() { printf '$ %s\n' "$*"; "$@"; }

# Networks this small gain nothing from threads, and lose much where others use the cores.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
rm -rf demo  # a run is resumable, and must not resume one of other weights

say "Train a network of our own on handwritten digits."
run python examples/digits/train.py demo

say "Forget the training data: what is left is demo/digits.pt, the weights alone. The held-out" \
    "digits are read after quantization, to say in the report how good it is."
run fxquant quantize demo/digits.pt --arch examples.digits.net:DigitsNet --bits 4 \
    --input-shape 1,8,8 --preset fast --output demo/run \
    --eval-data demo/digits_test.npz --eval-mean 0.3 --eval-std 0.38

say "Done: a network of 4-bit weights and activations for ONNX Runtime, and how good it is."
run ls -l demo/digits.pt demo/run/model.onnx
printf '\nOpen the report: %s\n' "$PWD/demo/run/report.html"
