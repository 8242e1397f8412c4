"""What torch remembers of graphs is forgotten when a run is over."""

import linecache

import torch
from torch import nn
from torch.fx import GraphModule

from qatflow.graph.caches import graphs_forgotten
from qatflow.graph.capture import capture


def texts() -> int:
    return sum(name.startswith("<eval_with_key>") for name in linecache.cache)


def test_texts_are_forgotten_and_a_graph_that_lives_on_runs_on() -> None:
    model, x, before = nn.Linear(3, 2), torch.randn(4, 3), texts()
    with graphs_forgotten():
        graph = capture(model, (torch.randn(2, 3),))
        assert texts() > before
    assert texts() == before
    assert isinstance(graph, GraphModule)
    assert torch.equal(graph(x), model(x))
