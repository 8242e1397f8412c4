#!/usr/bin/env bash
# torchmetrics 1.9.0: merging a state into a fresh metric. Expected: a metric that saw nothing is the neutral element
# of `merge_state`, so that partial results can be folded one after another from an empty start.
#
# Seen: for MeanSquaredError it is; PeakSignalNoiseRatio with a given data range becomes NaN, because its data range is
# a state that is averaged by the number of updates, and the fresh metric had none. Merged into one that has been
# updated the result is right.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 torchmetrics==1.9.0
"$work/venv/bin/python" -W ignore - <<'PY'
import math

import torch
import torchmetrics
from torchmetrics.image import PeakSignalNoiseRatio
from torchmetrics.regression import MeanSquaredError

x = torch.linspace(0, 1, 40)
y = x + 0.1


def of(make, *parts):
    metric = make()
    for part in parts:
        metric.update(y[part], x[part])
    return metric


first, second = slice(0, 13), slice(13, 40)
for make in (MeanSquaredError, lambda: PeakSignalNoiseRatio(data_range=1.0)):
    whole = float(of(make, first, second).compute())
    folded, merged = make(), of(make, first)
    folded.merge_state(of(make, first, second))
    merged.merge_state(of(make, second))
    name = type(folded).__name__
    into_fresh, into_updated = float(folded.compute()), float(merged.compute())
    print("torchmetrics", torchmetrics.__version__, name, whole, "into fresh:", into_fresh, "updated:", into_updated)
    assert math.isclose(into_updated, whole, rel_tol=1e-5), "this has changed"
    assert math.isnan(into_fresh) == (name == "PeakSignalNoiseRatio"), "this has changed"
PY
