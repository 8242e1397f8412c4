#!/usr/bin/env bash
# torchmetrics 1.9.0: BinaryAccuracy takes scores for logits or for probabilities batch by batch, by whether one of
# them lies outside 0 to 1. Expected: the same data give the same accuracy however they are cut into batches, and a
# probability that a quantized sigmoid rounds to 1.004 changes the verdict on one sample at most.
#
# Seen: four probabilities with accuracy 1.0; with 1.004 in place of 0.9 the whole batch goes through a sigmoid, every
# score exceeds 0.5, and the accuracy is 0.25. Three logits with accuracy 1.0 in one batch have 0.6667 in batches of
# two and one, whose last logit, 0.3, is taken for a probability below the threshold.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 torchmetrics==1.9.0
"$work/venv/bin/python" - <<'PY'
import torch
import torchmetrics
from torchmetrics.classification import BinaryAccuracy


def accuracy(*batches):
    metric = BinaryAccuracy()
    for scores, labels in batches:
        metric.update(torch.tensor(scores), torch.tensor(labels))
    return round(float(metric.compute()), 4)


found = {
    "probabilities": accuracy(([0.2, 0.4, 0.9, 0.3], [0, 0, 1, 0])),
    "one of them 1.004": accuracy(([0.2, 0.4, 1.004, 0.3], [0, 0, 1, 0])),
    "logits, one batch": accuracy(([2.0, -1.0, 0.3], [1, 0, 1])),
    "logits, two batches": accuracy(([2.0, -1.0], [1, 0]), ([0.3], [1])),
}
print("torchmetrics", torchmetrics.__version__, found)
expected = {
    "probabilities": 1.0,
    "one of them 1.004": 0.25,
    "logits, one batch": 1.0,
    "logits, two batches": 0.6667,
}
assert found == expected, f"this has changed: {found}"
PY
