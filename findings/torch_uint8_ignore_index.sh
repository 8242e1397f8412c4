#!/usr/bin/env bash
# torch 2.13.0: a label map stored as uint8, as segmentation masks usually are, compared with the ignore index -100.
# Expected: no element equals a number that its type cannot hold (NumPy refuses the comparison of a uint8 array with a
# Python integer out of its range, or tells that nothing is equal).
#
# Seen: the number is wrapped into uint8 without a word. Class 156 equals -100, and class 255 equals -1: masking the
# ignored labels of a 200-class map leaves a real class out of every metric.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.3.4
"$work/venv/bin/python" -W ignore - <<'PY'
import numpy as np
import torch

labels = torch.tensor([3, 155, 156, 157], dtype=torch.uint8)
found = (labels == -100).tolist()
numpy = (labels.numpy() == -100).tolist()
print("torch", torch.__version__, "uint8", labels.tolist(), "== -100:", found, "| numpy", np.__version__, numpy)
assert found == [False, False, True, False], "this has changed"
assert numpy == [False, False, False, False], "this has changed"
assert (labels.long() == -100).sum() == 0
PY
