#!/usr/bin/env bash
# aimet-torch 2.42.0: encodings that `sim.onnx.export` wrote, loaded into the same simulation by `sim.load_encodings`.
# Expected: what a tool wrote it loads, or it says that it cannot.
#
# Seen: 0.6.1 ends in a RuntimeError, 1.0.0 in an AttributeError, 2.0.0 in "modules/parameters that doesn't
# exist in the model: encodings, producer, version". 2.0.0 with strict=False and partial=False loads without a word, and
# leaves no quantizer at all: the simulation then computes in float, and its accuracy looks perfect.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet aimet-torch==2.42.0 torch==2.14.1 torchvision==0.29.1
cd "$work"
"$work/venv/bin/python" -W ignore - 2>"$work/errors" <<'PY'
import torch
from aimet_torch import QuantizationSimModel
from torch import nn

x = torch.randn(8, 3, 9, 9, generator=torch.Generator().manual_seed(0))


def fresh():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 49, 5)).eval()
    return QuantizationSimModel(model, dummy_input=x[:1])


def quantizers(sim):
    return sum(type(one).__name__.startswith("Quantize") and "quantizers" in name for name, one in sim.model.named_modules())


def loaded(version, **how):
    sim = fresh()
    try:
        sim.load_encodings(f"m_{version}.encodings", **how)
    except Exception as error:
        return type(error).__name__
    return quantizers(sim)


sim = fresh()
sim.compute_encodings(lambda model: model(x))
found = {}
for version in ("0.6.1", "1.0.0", "2.0.0"):
    sim.onnx.export(x[:1], f"m_{version}.onnx", encoding_version=version)
    found[version] = loaded(version)
found["2.0.0, not strict, not partial"] = loaded("2.0.0", strict=False, partial=False)
print("quantizers before:", quantizers(sim), "| after loading:", found)
assert quantizers(sim) > 0
assert not any(isinstance(found[version], int) and found[version] > 0 for version in ("1.0.0", "2.0.0")), "this has changed"
assert found["2.0.0, not strict, not partial"] == 0, "this has changed"
PY
