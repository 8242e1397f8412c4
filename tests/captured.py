"""Networks that several tests use, captured once: an export takes a second or two."""

from functools import cache

import torch

from qatflow.graph.capture import capture
from qatflow.quant.network import Network
from qatflow.recipe.steps import FoldBatchNorms
from qatflow.steps.context import StepContext
from qatflow.steps.fold_batch_norms import fold_batch_norms
from tests.networks import inverted_residuals

SHAPE = (3, 8, 8)
"""Of one input of the networks here."""


@cache
def _captured(activation: type[torch.nn.Module]) -> Network:
    return Network(capture(inverted_residuals(activation), (torch.randn(2, *SHAPE),)))


@cache
def _folded(activation: type[torch.nn.Module]) -> Network:
    return fold_batch_norms(_captured(activation), FoldBatchNorms(), StepContext(lambda limit: []))[0]


def captured(activation: type[torch.nn.Module] = torch.nn.ReLU6) -> Network:
    """Return a capture of `inverted_residuals(activation)`, the caller's own."""
    return _captured(activation).copy()


def folded(activation: type[torch.nn.Module] = torch.nn.ReLU6) -> Network:
    """Return the same with its batch norms folded."""
    return _folded(activation).copy()
