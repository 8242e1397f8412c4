"""Feature matching: which tensors the modules' paths mean, what the loss comes to, and that training lowers it."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from qatflow.errors import RecipeError
from qatflow.qat.features import Watched, feature_loss, feature_nodes
from qatflow.quant.design import Design
from qatflow.quant.simulation import Simulation
from qatflow.recipe import Precision
from tests import captured

X = torch.randn(16, *captured.SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def simulation() -> Simulation:
    result = Simulation(captured.folded().designed(Design(precision=Precision(weights=3, activations=6))))
    result.calibrate([((X,), {})])
    return result


def hooked(model: nn.Module, path: str) -> Iterator[Tensor]:
    """Yield the output of a module of an ordinary model."""
    seen: list[Tensor] = []
    handle = model.get_submodule(path).register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        model(X)
    handle.remove()
    yield from seen


def test_a_path_means_what_a_forward_hook_sees() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Flatten(), nn.Linear(144, 5)).eval()
    graph = captured.capture(model, (X[:2],))
    paths = ("0", "0.0", "2")
    watched = Watched(graph, feature_nodes(graph, paths))
    with torch.no_grad():
        outputs, features = watched(X)
    torch.testing.assert_close(outputs, model(X))
    for path, feature in zip(paths, features, strict=True):
        (wanted,) = hooked(model, path)
        torch.testing.assert_close(feature, wanted)


def test_an_unknown_path_is_refused_with_the_nearest() -> None:
    graph = captured.folded().graph
    with pytest.raises(RecipeError, match=r"no module 'haed'.*head"):
        feature_nodes(graph, ("haed", "head"))


def test_features_are_the_rounded_values_where_the_graph_rounds(simulation: Simulation) -> None:
    point = next(one for one in simulation.placement.points if one.parameter is None and one.tensor != "x")
    with torch.no_grad():
        outputs, (feature,) = Watched(simulation.model, [point.tensor])(X)
        torch.testing.assert_close(outputs, simulation.model(X))
    encoding = simulation.quantizer(point.tensor).encoding
    torch.testing.assert_close(encoding.dequantize(encoding.quantize(feature)), feature)


def test_the_loss_by_hand() -> None:
    got = [torch.tensor([1.0, 3.0]), torch.tensor([0.0])]
    wanted = [torch.tensor([2.0, 4.0]), torch.tensor([10.0])]
    assert float(feature_loss(got, wanted)) == pytest.approx(((1 / 10) + (100 / 100)) / 2)


def test_it_flows_back_into_the_weights_before_a_feature_and_no_further(simulation: Simulation) -> None:
    simulation.model.requires_grad_(True)
    (name,) = feature_nodes(simulation.network.graph, ("stem",))
    wanted = Watched(simulation.network.graph, [name])(X)[1]
    feature_loss(Watched(simulation.model, [name])(X)[1], [one.detach() for one in wanted]).backward()
    stem = [one.grad for path, one in simulation.model.named_parameters() if path.startswith("stem")]
    assert any(grad is not None and float(grad.abs().sum()) > 0 for grad in stem)
    assert simulation.model.head.weight.grad is None
