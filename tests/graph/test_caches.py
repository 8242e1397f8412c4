"""What torch remembers of graphs is forgotten when a run is over."""

import gc

import torch
from torch import nn
from torch.fx import GraphModule
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from qatflow.graph.caches import graphs_forgotten
from qatflow.graph.capture import capture


def captures() -> int:
    gc.collect()
    return sum(type(one) is ShapeEnv for one in gc.get_objects())


def test_captures_do_not_add_up() -> None:
    model, before = nn.Linear(3, 2), captures()
    for _ in range(3):
        with graphs_forgotten():
            capture(model, (torch.randn(2, 3),))
    assert captures() <= before


def test_a_graph_that_lives_on_runs_on() -> None:
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    with graphs_forgotten():
        graph = capture(model, (torch.randn(2, 3),))
    assert isinstance(graph, GraphModule)
    assert torch.equal(graph(x), model(x))
