"""A stored graph is rebuilt from a fresh capture with the same function."""

import json
from typing import Any

import pytest
import torch
from torch import nn

from qatflow.errors import CaptureError
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


def call(target: str, *args: Any) -> dict[str, Any]:
    return {"name": "x", "op": "call_function", "target": target, "args": list(args), "kwargs": {}, "like": None}


@pytest.mark.parametrize(
    ("description", "sentence"),
    [
        ({}, "it is no list of nodes"),
        ([3], "'int' object is not subscriptable"),
        ([{"name": "x"}], "'args' is missing"),
        ([call("load_library", "nowhere.so")], "'load_library' is no operator"),
        ([call("operator.methodcaller", "x")], "'operator.methodcaller' is no operator"),
        ([call("operator.call", "x")], "'operator.call' is no operator"),
        ([call("aten.relu.__class__", "x")], "'aten.relu.__class__' is no operator"),
        ([call("aten.relu", "x")], "'aten.relu' is no operator"),
        ([call("operator.add", {"torch": "load"})], "'load' is no constant"),
    ],
)
def test_a_stored_graph_of_another_form_is_told(description: Any, sentence: str) -> None:
    base = capture(inverted_residuals(), (torch.randn(2, 3, 8, 8),))
    with pytest.raises(CaptureError) as caught:
        rebuild(base, description, {})
    assert str(caught.value) == f"a stored graph does not fit the captured model: {sentence}"
