"""Models whose graphs and files name tensors differently, each quantized for every target."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer, mobilenet_v3_small, resnet18
from transformers import BertConfig, BertModel

from qatflow.export.aimet_encodings import aimet_encodings
from qatflow.export.integer_biases import IntegerBiases, integer_biases
from qatflow.export.onnx_export import OnnxFiles, onnx_files
from qatflow.export.onnx_file import save_onnx
from qatflow.export.signature import Example
from qatflow.quant.design import Design
from qatflow.quant.prepare import captured_network
from qatflow.quant.simulation import Simulation
from qatflow.quant.targets import TARGETS
from qatflow.recipe import Export, Precision
from qatflow.recipe.steps import FoldBatchNorms
from qatflow.results.store import write_json
from qatflow.steps import STEPS
from qatflow.steps.context import StepContext
from tests.export.exported import MINMAX


class Inverted(nn.Module):
    """In-place activations, one activation module used again and again, squeeze and excitation, batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=True)
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.deep = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.squeeze = nn.Conv2d(16, 4, 1)
        self.excite = nn.Conv2d(4, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.stem(x)))
        y = self.act(self.deep(x))
        y = y * torch.sigmoid(self.excite(self.act(self.squeeze(y.mean((2, 3), keepdim=True)))))
        x = self.act(x + y)
        x = self.act(self.deep(x) - 1)
        return self.head(self.act(x).mean((2, 3)).contiguous())


class Nested(nn.Module):
    """Inputs in a dict, a tensor called like an output, an input that is returned, and one output twice."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(8, 8)
        self.right = nn.Linear(8, 6)
        self.output = nn.Linear(6, 4)

    def forward(self, batch: dict[str, Tensor], scale: Tensor) -> dict[str, Any]:
        hidden = torch.relu(self.left(batch["first"]) + batch["second"])
        relu = self.output(torch.relu(self.right(hidden)) * scale)
        return {"relu": relu, "again": relu, "scale": scale, "hidden": (hidden, hidden[:, :2])}


def vit() -> nn.Module:
    model = VisionTransformer(32, 8, 1, 2, 32, 64, num_classes=5)
    nn.init.normal_(model.heads.head.weight, std=0.2)
    return model


def double() -> nn.Module:
    return Inverted().double()


def bert() -> nn.Module:
    config = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=16, attn_implementation="eager",
    )  # fmt: skip
    return BertModel(config)


def _images(count: int) -> Example:
    return (torch.randn(count, 3, 32, 32),), {}


def _nested(count: int) -> Example:
    first, second = torch.randn(count, 8), torch.randn(count, 8)
    return ({"first": first, "second": second},), {"scale": torch.rand(count, 1)}


def _doubles(count: int) -> Example:
    return (torch.randn(count, 3, 32, 32).double(),), {}


def _tokens(count: int) -> Example:
    mask = torch.ones(count, 12, dtype=torch.long)
    mask[:, 10:] = 0
    return (), {"input_ids": torch.randint(0, 50, (count, 12)), "attention_mask": mask}


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Example]]] = {
    "inverted": (Inverted, _images),
    "nested": (Nested, _nested),
    "vit": (vit, _images),
    "double": (double, _doubles),
    "bert": (bert, _tokens),
    "resnet18": (lambda: resnet18(num_classes=10), _images),
    "mobilenet_v3_small": (lambda: mobilenet_v3_small(num_classes=10), _images),
}
FOLDED = ("resnet18", "mobilenet_v3_small")
SMALL = ("inverted", "nested", "vit", "double")


@dataclass(frozen=True)
class Pair:
    """A simulation, its files, and an example.

    `model.onnx`, `model_float.onnx` and an encodings file of every version lie in `folder`.
    """

    simulation: Simulation
    content: IntegerBiases
    files: OnnxFiles
    example: Example
    folder: Path


@cache
def pair(model: str, target: str, weights: int = 8, activations: int = 8) -> Pair:
    precision = Precision(weights=weights, activations=activations)
    torch.manual_seed(0)
    make, examples = MODELS[model]
    example = examples(8)
    design = Design(TARGETS[target], precision, MINMAX)
    network = captured_network(make().eval(), *examples(2), design)
    if model in FOLDED:
        network, _ = STEPS["fold_batch_norms"](network, FoldBatchNorms(), StepContext(lambda limit: [example]))
    simulation = Simulation(network)
    simulation.calibrate([example])
    content = integer_biases(simulation)
    files = onnx_files(simulation, content, examples(2), Export(weights="int8"))
    folder = Path(mkdtemp())
    save_onnx(files.quantized, folder / "model.onnx")
    save_onnx(files.floats, folder / "model_float.onnx")
    for version in ("0.6.1", "1.0.0", "2.0.0"):
        values = aimet_encodings(
            simulation.placement,
            content.encodings,
            design,
            version=version,
            biases=content.biases,
            tensors=files.tensors,
        )
        write_json(folder / f"{version}.encodings", values)
    return Pair(simulation, content, files, example, folder)
