"""A quantizer that clips for the ReLU before it gives what both give, and harms no other reader."""

import copy

import pytest
import torch
from torch import Tensor, nn

from qatflow.graph.layers import set_tensor, tensor
from qatflow.quant.design import Design
from qatflow.quant.prepare import captured_network
from qatflow.quant.quantizer import WeightFakeQuantize
from qatflow.quant.simulation import Simulation
from qatflow.quant.targets import TARGETS
from qatflow.recipe import Calibration, Precision
from qatflow.recipe.steps import Equalize
from qatflow.steps import STEPS


class Bounded(nn.Module):
    """ReLU and a minimum per channel, as equalizing a ReLU6 makes it."""

    def __init__(self, sign: float = 1.0) -> None:
        super().__init__()
        self.conv, self.next = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 1)
        self.bound = nn.Buffer(sign * torch.tensor([0.1, 0.5, 1.0, 2.0]).view(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.next(torch.minimum(self.conv(x).relu(), self.bound))


class Shared(nn.Module):
    """Values that several ops read: a ReLU read twice, a convolution read by two, and the input read last of all."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        z = y.relu()
        return self.b(z) + z + y.clamp(-0.5, 0.5) + x


MODELS = {
    "relu": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)),
    "relu6": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Conv2d(4, 4, 3), nn.ReLU6()),
    "hardtanh": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Hardtanh(-0.2, 0.4), nn.Conv2d(4, 4, 3)),
    "minimum per channel": Bounded,
    "minimum below zero": lambda: Bounded(-1.0),
    "shared": Shared,
    "input first": lambda: nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 3)),
}


def simulated(model: nn.Module, x: Tensor, target: str = "onnxruntime") -> Simulation:
    design = Design(TARGETS[target], Precision(activations=4))
    simulation = Simulation(captured_network(model.eval(), (x[:2],), design=design))
    simulation.calibrate([((x,), {})])
    return simulation


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("name", MODELS)
def test_clipping_by_itself_and_within_the_quantizer_are_the_same(name: str, target: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 9, 9) * 2
    simulation = simulated(MODELS[name](), x, target)
    before = x.clone()
    with torch.no_grad():
        absorbed = simulation.model(x)
    assert torch.equal(x, before)
    x.requires_grad_()
    explicit = simulation.model(x)
    assert explicit.requires_grad
    assert torch.equal(absorbed, explicit.detach())


def test_the_clip_is_gone_where_the_quantizer_alone_read_it() -> None:
    x = torch.randn(8, 3, 9, 9)
    ops = {name: str(simulated(MODELS[name](), x, "tensorrt").model.graph) for name in MODELS}
    assert "aten.relu" not in ops["relu"]
    assert "aten.hardtanh" not in ops["hardtanh"]
    assert "aten.minimum" not in ops["minimum per channel"]
    assert "aten.minimum" in ops["minimum below zero"]


def test_an_equalized_relu6_keeps_its_function_in_the_simulation(make_context) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU6(), nn.Conv2d(6, 4, 1)).eval()
    x = torch.randn(32, 3, 9, 9) * 4
    minmax = Calibration(activations="minmax", weights="minmax")
    design = Design(TARGETS["tensorrt"], Precision(weights=16, activations=16), minmax)
    network = captured_network(model, (x[:2],), design=design)
    simulation = Simulation(STEPS["equalize"](network, Equalize(choose="all"), make_context(x))[0])
    simulation.calibrate([((x,), {})])
    assert "aten.minimum" not in str(simulation.model.graph)
    with torch.no_grad():
        torch.testing.assert_close(simulation.model(x), model(x), rtol=1e-2, atol=5e-3)


def changed_in_place(simulation: Simulation) -> None:
    with torch.no_grad():
        tensor(simulation.model, "0.weight").mul_(1.7)


def loaded(simulation: Simulation) -> None:
    state = {
        name: value * 1.5 if name == "0.weight" else value for name, value in simulation.model.state_dict().items()
    }
    simulation.model.load_state_dict(state)


def replaced(simulation: Simulation) -> None:
    set_tensor(simulation.model, "0.weight", tensor(simulation.model, "0.weight") + 0.3)


def stepped(simulation: Simulation) -> None:
    optimizer = torch.optim.SGD(simulation.model.parameters(), lr=0.5)
    simulation.model(torch.randn(4, 3, 9, 9)).square().sum().backward()
    optimizer.step()


def adopted(simulation: Simulation) -> None:
    weight = tensor(simulation.model, "0.weight")
    (quantizer,) = (
        one for one in simulation.model.modules() if isinstance(one, WeightFakeQuantize) and one.scale.dim()
    )
    encoding = quantizer.encoding_of(weight)
    quantizer.adopt(weight, type(encoding)(encoding.grid, encoding.scale * 3, encoding.zero_point, encoding.axis))


def moved(simulation: Simulation) -> None:
    with torch.no_grad():
        tensor(simulation.model, "0.weight").mul_(1.2)
    simulation.model.to(torch.float64).to(torch.float32)


@pytest.mark.parametrize("change", [changed_in_place, loaded, replaced, stepped, adopted, moved])
def test_a_weight_that_changed_is_rounded_anew(change) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 9, 9)
    simulation = simulated(nn.Sequential(nn.Conv2d(3, 4, 3)), x)
    with torch.no_grad():
        first = simulation.model(x)
        assert torch.equal(simulation.model(x), first)
    change(simulation)
    with torch.no_grad():
        second = simulation.model(x)
    fresh = simulation.model(x).detach()
    assert not torch.equal(first, second)
    torch.testing.assert_close(second, fresh, rtol=0, atol=0)


def test_a_copy_does_not_see_what_the_original_rounds() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 9, 9)
    simulation = simulated(nn.Sequential(nn.Conv2d(3, 4, 3)), x)
    with torch.no_grad():
        first = simulation.model(x)
        twin = copy.deepcopy(simulation.model)
        changed_in_place(simulation)
        assert torch.equal(twin(x), first)
        assert not torch.equal(simulation.model(x), first)
