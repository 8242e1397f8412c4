"""What torch remembers of graphs is forgotten when a run is over."""

import gc
import linecache
from pathlib import Path

import torch
from torch import nn
from torch.fx import GraphModule
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from qatflow.export.onnx_file import OnnxOptions, write_onnx
from qatflow.export.signature import Example, Signature
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


def test_sizes_of_graphs_are_not_kept(tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)), torch.randn(2, 1, 4, 4)
    counts = []
    for _ in range(4):
        graph = capture(model.eval(), (x,))
        example: Example = ((x,), {})
        write_onnx(graph, Signature.of(graph, example), example, tmp_path / "model.onnx", OnnxOptions(18, False))
        del graph
        gc.collect()
        counts.append(sum(type(one) is ShapeEnv for one in gc.get_objects()))
    assert counts[-1] == counts[1]
