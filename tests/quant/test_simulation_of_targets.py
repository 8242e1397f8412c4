"""What targets do that ONNX Runtime does not, worked out by hand in double precision."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qatflow.quant.design import Design
from qatflow.quant.grid import Grid, encoding_of_range, sqnr_db
from qatflow.quant.prepare import captured_network
from qatflow.quant.simulation import Simulation
from qatflow.quant.targets import TARGETS
from qatflow.recipe import Calibration

MINMAX = Calibration(activations="minmax", weights="minmax")


def simulate(model: nn.Module, target: str, *args: Tensor, calibration: Calibration = MINMAX) -> Simulation:
    design = Design(TARGETS[target], calibration=calibration)
    simulation = Simulation(captured_network(model.eval(), args, design=design))
    simulation.calibrate([(args, {})])
    return simulation


def rounded(values: np.ndarray, scale: np.ndarray | float, zero_point: float, qmin: int, qmax: int) -> np.ndarray:
    q = np.clip(np.rint(values / scale) + zero_point, qmin, qmax)
    return (q - zero_point) * scale


def symmetric(values: np.ndarray, of: np.ndarray | None = None) -> np.ndarray:
    """Round to int8 without a zero point, on the range of `of`."""
    of = values if of is None else of
    return rounded(values, max(of.max() / 127, -of.min() / 128), 0, -128, 127)


def narrow_rows(weight: np.ndarray) -> np.ndarray:
    rows = np.abs(weight.reshape(len(weight), -1)).max(1).reshape(-1, *[1] * (weight.ndim - 1))
    return rounded(weight, rows / 127, 0, -127, 127)


class Residual(nn.Module):
    """A skip around a linear layer; a layer norm reads the tensor as well."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(6, 6), nn.Linear(6, 6), nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        return (y + self.b(y)).relu() + self.norm(y)


def test_tensorrt_quantizes_inputs_and_the_skip_and_nothing_else() -> None:
    model = Residual()
    x = torch.randn(64, 6)
    simulation = simulate(model, "tensorrt", x)
    (skip,) = [point for point in simulation.placement.points if point.tensor == "relu"]
    assert set(skip.readers) == {"linear_1", "add"}

    def layer(one: nn.Linear, values: np.ndarray) -> np.ndarray:
        return values @ narrow_rows(one.weight.detach().double().numpy()).T + one.bias.detach().double().numpy()

    inputs = x.double().numpy()
    y = np.maximum(layer(model.a, symmetric(inputs)), 0)
    y_calibrated = np.maximum(layer(model.a, inputs), 0)  # activations are observed while weights are quantized
    y_rounded = symmetric(y, of=y_calibrated)
    normed = nn.functional.layer_norm(
        torch.from_numpy(y), (6,), model.norm.weight.double(), model.norm.bias.double(), 1e-5
    )
    wanted = np.maximum(y_rounded + layer(model.b, y_rounded), 0) + normed.detach().numpy()
    got = simulation.model(x).detach().double().numpy()
    off = np.abs(got - wanted).max(1)
    assert np.median(off) < 1e-5
    assert (off < 1e-4).mean() > 0.9  # a value at a tie may round the other way in float


class Joined(nn.Module):
    """Two branches of different magnitude, joined."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.large, self.head = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(8, 3)
        with torch.no_grad():
            self.large.weight *= 20

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.small(x).relu(), self.large(x).relu()], 1))


@pytest.mark.parametrize("target", ["qnn", "tensorrt", "xnnpack", "openvino"])
def test_what_is_joined_has_one_grid_that_holds_all_of_it(target: str) -> None:
    x = torch.randn(64, 6)
    simulation = simulate(Joined(), target, x)
    encodings = simulation.encodings()
    assert float(encodings["relu"].scale) == float(encodings["relu_1"].scale)
    assert simulation.quantizer("relu") is simulation.quantizer("relu_1")
    network = simulation.network.graph
    with torch.no_grad():
        highest = max(
            float(one(x).relu().max()) for one in (network_layer(network, "small"), network_layer(network, "large"))
        )
    assert float(encodings["relu"].high) == pytest.approx(highest, rel=0.01)
    simulation.learn_ranges(True)
    simulation.model(x).square().sum().backward()
    assert float(simulation.quantizer("relu").log_ratio.grad.abs()) > 0
    again = Simulation(simulation.network)
    again.load_encodings(encodings)
    torch.testing.assert_close(again.model(x), simulation.model(x))


def network_layer(graph: nn.Module, name: str) -> nn.Linear:
    layer = nn.Linear(6, 4)
    layer.load_state_dict({key: graph.state_dict()[f"{name}.{key}"] for key in ("weight", "bias")})
    return layer


def test_onnxruntime_keeps_a_scale_for_each_of_what_is_joined() -> None:
    encodings = simulate(Joined(), "onnxruntime", torch.randn(64, 6)).encodings()
    assert float(encodings["relu_1"].scale) > 5 * float(encodings["relu"].scale)


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(1, 2) + mask[:, None, :]
        return scores.softmax(-1) @ self.value(x)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("hidden", [-100.0, torch.finfo(torch.float32).min, float("-inf")])
def test_a_mask_does_not_widen_the_grid_of_scores(target: str, hidden: float) -> None:
    x = torch.randn(16, 5, 6)
    mask = torch.zeros(16, 5)
    mask[:, 3:] = hidden
    simulation = simulate(Masked(), target, x, mask, calibration=Calibration())
    with torch.no_grad():
        assert sqnr_db(simulation.network.graph(x, mask), simulation.model(x, mask)) > 25
    if target == "qnn":
        *_, masked = [point.tensor for point in simulation.placement.points if point.softmax]
        assert float(simulation.encodings()[masked].low) > -40


def test_no_activation_of_xnnpack_is_finer_than_its_smallest_scale() -> None:
    grid = TARGETS["xnnpack"].activation_grid(8)
    encoding = encoding_of_range(grid, torch.tensor(-1e-6), torch.tensor(2e-6))
    assert float(encoding.scale) == 2**-12
    assert float(encoding.dequantize(encoding.quantize(torch.tensor(0.0)))) == 0.0
    assert grid == Grid(8, signed=True, symmetric=False)
