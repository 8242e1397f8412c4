"""A stored graph is rebuilt from a fresh capture with the same function."""

import json

import torch
from torch import nn

from qatflow.graph.capture import capture
from qatflow.graph.edits import describe, rebuild
from qatflow.quant.network import Network
from qatflow.recipe.steps import Equalize, FoldBatchNorms
from qatflow.steps import STEPS
from tests.networks import inverted_residuals


def test_folded_and_equalized_graph_comes_back(make_context) -> None:
    x = torch.randn(16, 3, 8, 8)
    model = inverted_residuals(nn.ReLU6)
    base = capture(model, (x[:2],))
    network = STEPS["fold_batch_norms"](Network(base), FoldBatchNorms(), make_context(x))[0]
    network = STEPS["equalize"](network, Equalize(choose="all"), make_context(x))[0]
    text = json.dumps(describe(base, network.graph))
    fresh = capture(model, (x[:2],))
    again = rebuild(fresh, json.loads(text), network.graph.state_dict())
    assert torch.equal(again(x), network.graph(x))
    assert dict(again.named_parameters()).keys() == dict(network.graph.named_parameters()).keys()


def test_an_unchanged_graph_is_names_only() -> None:
    base = capture(inverted_residuals(), (torch.randn(2, 3, 8, 8),))
    assert all(isinstance(entry, str) for entry in describe(base, base))
