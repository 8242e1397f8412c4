"""Feature matching: the outputs of chosen modules are to be FP32's as well (FitNets, Romero et al. 2015)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from qatflow.errors import Mistake, RecipeError, allowed_values
from qatflow.graph.ops import module_path
from qatflow.graph.padding import Padding, real_positions
from qatflow.graph.tree import flat_inputs, nested_outputs
from qatflow.quant.simulation import QUANTIZERS


def feature_nodes(graph: fx.GraphModule, paths: tuple[str, ...]) -> list[str]:
    """Return the names of the nodes that give the outputs of the modules at `paths`.

    Raises:
        RecipeError: there is no such module, or it gives no float tensor.
    """
    last: dict[str, fx.Node] = {}
    for node in graph.graph.nodes:
        value = node.meta.get("val")
        if node.op != "call_function" or not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        parts = module_path(node).split(".")
        for count in range(1, len(parts) + 1):
            last[".".join(parts[:count])] = node
    unknown = [path for path in paths if path not in last]
    if unknown:
        known = [name for name in last if name]
        raise RecipeError(
            [
                Mistake("qat.features", f"no module {path!r} in the model", allowed_values(path, known))
                for path in unknown
            ]
        )
    return [last[path].name for path in paths]


class Watched(nn.Module):
    """A graph that gives `(outputs, features)`, the features quantized where the graph rounds them.

    Args:
        model: the graph; parameters are shared with it.
        names: of the nodes whose values are wanted, as in the float graph.
    """

    def __init__(self, model: fx.GraphModule, names: list[str]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, list[Tensor]]:
        """Return what the graph returns, and the features."""
        seen = _Seen(self.model, self.names)
        outputs = seen.run(*flat_inputs(self.model, args, kwargs), enable_io_processing=False)
        return nested_outputs(self.model, outputs), [seen.values[name] for name in self.names]


class _Seen(fx.Interpreter):
    """Runs a graph and remembers the values of some tensors, the quantized one where there is one."""

    def __init__(self, graph: fx.GraphModule, names: list[str]) -> None:
        super().__init__(graph)
        self.names = frozenset(names)
        self.values: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        target = str(n.target)
        name = target.rpartition(".")[2] if target.startswith(f"{QUANTIZERS}.") else n.name
        if name in self.names:
            self.values[name] = result
        return result


def feature_loss(got: list[Tensor], wanted: list[Tensor], padding: Padding | None = None) -> Tensor:
    """Return the mean squared difference of features from FP32's, relative to FP32's mean square; their mean.

    Padded positions of features `[n, T, ...]` do not count.
    """
    losses = []
    for one, other in zip(got, wanted, strict=True):
        real = None if padding is None else real_positions(other, padding.mask)
        x, y = (one, other) if real is None else (one[real], other[real])
        losses.append(functional.mse_loss(x, y) / y.square().mean().clamp(min=1e-12))
    return torch.stack(losses).mean()
