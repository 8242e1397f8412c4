"""Values of chosen nodes, also for models with keyword inputs."""

import torch

from qatflow.graph.capture import capture
from qatflow.graph.observe import observe
from qatflow.graph.ops import kind
from tests.networks import TwoInputs


def test_keyword_inputs_reach_the_right_places() -> None:
    model = TwoInputs().eval()
    graph = capture(model, (torch.randn(2, 2, 9),), {"y": torch.randn(2, 6)})
    x, y = torch.randn(3, 2, 9), torch.randn(3, 6)
    linear = next(node for node in graph.graph.nodes if kind(node) == "linear")
    seen = []
    observe(graph, [linear], [((x,), {"y": y})], lambda node, value: seen.append(value))
    torch.testing.assert_close(seen[0], model.right(y))
