"""What a training step is measured on: FP32, and the simulations of qatflow and AIMET with frozen and learned ranges.

All of one model train on the same batch with the same loss and the same optimizer, batch norms folded, at W8A8 per
channel for ONNX Runtime. AIMET's are compared with the FP32 model that it prepares itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.peers import aimet_qat
from benchmarks.peers.case import Case
from benchmarks.zoo import ZOO, images
from qatflow import STEPS, Network, Simulation
from qatflow.qat.oscillation import Oscillations
from qatflow.quant.network import copy_graph
from qatflow.quant.prepare import captured_network
from qatflow.recipe.steps import STEP_CONFIGS
from qatflow.steps.context import StepContext

MODELS = {
    "resnet18": "resnet18",
    "mobilenet_v2": "mobilenet_v2",
    "efficientnet_lite0": "EfficientNet-Lite0 (real weights)",
}
"""Names in the zoo."""
LR = 1e-6


@dataclass(frozen=True)
class Work:
    """A model and the batch that it trains on."""

    model: str
    batch: int = 16
    size: int = 224
    device: str = "cpu"

    def images(self) -> Tensor:
        """Return the batch, `[batch, 3, size, size]`."""
        (x,), _ = images(self.size)(self.batch, 0)
        return x.to(self.device)

    def build(self) -> nn.Module:
        """Return the float model."""
        return ZOO[MODELS[self.model]].build()


class Trainee:
    """A model, its optimizer and a batch.

    Args:
        model: all its parameters that need a gradient are trained.
        work: gives the batch.
        after: called at the end of a step.
    """

    def __init__(self, model: nn.Module, work: Work, after: Callable[[], None] = lambda: None) -> None:
        self.model = model.to(work.device)
        self.x = work.images()
        classes = 1000
        self.labels = torch.randint(classes, (work.batch,), generator=torch.Generator().manual_seed(0)).to(work.device)
        self.optimizer = torch.optim.Adam([one for one in model.parameters() if one.requires_grad], lr=LR, fused=True)
        self.after = after

    def loss(self, samples: int | None = None) -> Tensor:
        """Go forward with the batch, or with its first samples."""
        return functional.cross_entropy(self.model(self.x[:samples]), self.labels[:samples])

    def step(self) -> None:
        """Train on the batch once."""
        loss = self.loss()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.after()


def _folded(work: Work) -> tuple[Network, StepContext]:
    x = work.images()
    network = captured_network(work.build().to(work.device), (x[:2],))
    context = StepContext(lambda limit: [((x,), {})])
    network, _ = STEPS["fold_batch_norms"](network, STEP_CONFIGS["fold_batch_norms"](), context)
    return network, context


def _float(work: Work) -> Trainee:
    network, _ = _folded(work)
    return Trainee(copy_graph(network.graph).requires_grad_(True), work)


def _simulated(work: Work, learn: bool, count: bool = False) -> Trainee:
    network, context = _folded(work)
    simulation = Simulation(network)
    simulation.calibrate(context.inputs(None))
    simulation.trainable(learn)
    return Trainee(simulation.model, work, *([Oscillations(simulation, freeze=False).step] if count else []))


def _case(work: Work) -> Case:
    """Return the model for AIMET, which prepares and calibrates it on the CPU."""
    return Case(work.model, work.build(), [work.images().cpu()], 8, 8, per_channel=True)


COUNTED = "learning, oscillations counted"
VARIANTS: dict[str, dict[str, Callable[[Work], Trainee]]] = {
    "qatflow": {
        "FP32": _float,
        "frozen": lambda work: _simulated(work, learn=False),
        "learning": lambda work: _simulated(work, learn=True),
        COUNTED: lambda work: _simulated(work, learn=True, count=True),
    },
    "aimet": {
        "FP32": lambda work: Trainee(aimet_qat.float_model(_case(work)), work),
        "frozen": lambda work: Trainee(aimet_qat.simulated(_case(work), learn=False), work),
        "learning": lambda work: Trainee(aimet_qat.simulated(_case(work), learn=True), work),
    },
}
"""By tool; the first is what the others of a tool are compared with. Counting oscillations is what `train` does too."""
