"""Round a large tensor where no compiler can be found; run by a test in a process of its own."""

import sys

import torch

from qatflow.quant.fake_quantize import fake_quantize
from qatflow.quant.fused import kernels
from qatflow.quant.grid import Grid

x = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0)).requires_grad_()
scale = torch.tensor(0.05, requires_grad=True)
grid = Grid(4, signed=True, symmetric=True)
result = fake_quantize(x, scale, torch.tensor(0.0), grid)
result.sum().backward()
wanted = torch.fake_quantize_per_tensor_affine(x.detach(), 0.05, 0, grid.qmin, grid.qmax)
assert scale.grad is not None
torch.testing.assert_close(result.detach(), wanted)
sys.stdout.write(str(kernels("cpu")))
