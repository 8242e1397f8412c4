#!/usr/bin/env bash
# torch 2.13.0, torch.onnx.export of an ExportedProgram: a value of the file bears the name of another tensor of the
# program. Expected: a name that occurs in both, program and file, is the same tensor, or the file has names of its own.
#
# Seen: the exporter decomposes in-place ops, which numbers the nodes anew. The program's `relu_1` is the last ReLU, the
# file's `relu_1` the one in the middle (the program calls that `relu_`), and what the program calls `relu_1` is `relu_2`.
# Ranges, encodings or captured activations that are matched by name land, without an error, on another tensor.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.3.4 onnx==1.20.0 onnxscript==0.6.2 onnxruntime==1.24.1
cd "$work"
"$work/venv/bin/python" -W ignore - 2>"$work/errors" <<'PY'
import onnx
import onnxruntime
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        x = torch.relu(x) - 0.5
        x = self.act(x) - 0.25
        return torch.relu(x) * 2


class Values(torch.fx.Interpreter):
    def run_node(self, node):
        self.seen = getattr(self, "seen", {})
        result = super().run_node(node)
        self.seen[node.name] = result.clone() if isinstance(result, torch.Tensor) else result
        return result


x = torch.tensor([[-1.0, 1.0, 2.0]])
program = torch.export.export(Net().eval(), (x,))
values = Values(program.module())
values.run(x)
torch.onnx.export(program, dynamo=True, verbose=False).save("net.onnx")
model = onnx.load("net.onnx")
names = [name for node in model.graph.node for name in node.output]
model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in {o.name for o in model.graph.output})
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
outputs = dict(zip([one.name for one in session.get_outputs()], session.run(None, {session.get_inputs()[0].name: x.numpy()})))
program_says, file_says = values.seen["relu_1"].flatten().tolist(), outputs["relu_1"].flatten().tolist()
print("torch", torch.__version__, "relu_1 in the program", program_says, "in the file", file_says)
assert program_says != file_says, "this has changed"
assert file_says == values.seen["sub"].relu().flatten().tolist() or "relu_2" in outputs
assert outputs["relu_2"].flatten().tolist() == program_says
PY
