"""A simulation is called like the model, computes what the encodings say, and can be stored and continued."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qatflow.errors import DataError, RunFolderError
from qatflow.graph.capture import capture
from qatflow.graph.layers import set_tensor, tensor
from qatflow.quant.design import Design
from qatflow.quant.grid import Encoding, Grid, sqnr_db
from qatflow.quant.network import Network
from qatflow.quant.quantizer import ActivationFakeQuantize, WeightFakeQuantize
from qatflow.quant.saved import load, save
from qatflow.quant.simulation import QUANTIZERS, Simulation
from qatflow.recipe import Calibration, Precision
from qatflow.recipe.steps import Equalize
from qatflow.steps import STEPS
from tests import captured
from tests.networks import TwoInputs


def simulate(network: Network, *inputs: Tensor, precision: Precision | None = None, **options: object) -> Simulation:
    design = Design(precision=precision or Precision(), calibration=Calibration(**options))
    simulation = Simulation(network.designed(design))
    simulation.calibrate([((x,), {}) for x in inputs])
    return simulation


@pytest.fixture
def two_layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 25, 4)).eval()


@pytest.fixture
def folded() -> Network:
    return captured.folded()


def test_it_is_called_like_the_model_with_keywords_and_nested_outputs() -> None:
    model = TwoInputs().eval()
    x, y = torch.randn(8, 2, 9), torch.randn(8, 6)
    network = Network(capture(model, (x[:2],), {"y": y[:2]}))
    simulation = Simulation(network)
    simulation.calibrate([((x,), {"y": y})])
    wanted, got = model(x, y=y), simulation.model(x, y=y)
    assert got.keys() == wanted.keys()
    assert isinstance(got["parts"], tuple)
    for one, other in ((got["sum"], wanted["sum"]), *zip(got["parts"], wanted["parts"], strict=True)):
        assert 25 < sqnr_db(other, one) < 80, one
    assert simulation.model(x[:3], y=y[:3])["sum"].shape == (3, 4)


def qdq(values: np.ndarray, scale: np.ndarray | float, zero_point: float, qmin: int, qmax: int) -> np.ndarray:
    """Quantize-dequantize in float64 numpy, written down independently."""
    q = np.clip(np.rint(values / scale) + zero_point, qmin, qmax)
    return (q - zero_point) * scale


def range_of(values: np.ndarray) -> tuple[float, float]:
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    scale = (high - low) / 255
    return scale, -np.rint(low / scale)


def per_channel(weight: np.ndarray) -> np.ndarray:
    rows = weight.reshape(len(weight), -1)
    scale = np.maximum(rows.max(1).clip(0) / 127, -rows.min(1).clip(max=0) / 128)
    scale = scale.reshape(-1, *[1] * (weight.ndim - 1))
    return qdq(weight, scale, 0, -128, 127)


def test_two_layers_by_hand(two_layers: nn.Module) -> None:
    x = torch.randn(32, 3, 5, 5)
    simulation = simulate(
        Network(capture(two_layers, (x[:2],))), x[:16], x[16:], activations="minmax", weights="minmax"
    )

    def numbers(value: Tensor) -> np.ndarray:
        return value.detach().double().numpy()

    conv, linear = two_layers[0], two_layers[3]
    weights = [per_channel(numbers(layer.weight)) for layer in (conv, linear)]

    def hidden(inputs: np.ndarray) -> np.ndarray:
        out = nn.functional.conv2d(
            torch.from_numpy(inputs), torch.from_numpy(weights[0]), conv.bias.double(), padding=1
        )
        return out.relu().detach().numpy()

    def last(inputs: np.ndarray) -> np.ndarray:
        return inputs.reshape(len(inputs), -1) @ weights[1].T + numbers(linear.bias)

    ranges = [range_of(values) for values in (numbers(x), hidden(numbers(x)), last(hidden(numbers(x))))]
    at_input = qdq(numbers(x), *ranges[0], 0, 255)
    at_hidden = qdq(hidden(at_input), *ranges[1], 0, 255)
    wanted = last(at_hidden)  # a linear layer may give floats
    got = simulation.model(x).detach().double().numpy()
    off_by = np.abs(got - wanted) / ranges[2][0]
    assert off_by.max() < 1.01
    assert (off_by < 0.01).mean() > 0.95
    assert sqnr_db(two_layers(x), torch.from_numpy(wanted)) < 55


def test_every_tensor_is_on_its_grid(folded: Network) -> None:
    x = torch.randn(8, 3, 8, 8)
    simulation = simulate(folded, x)
    seen = {}
    for point in simulation.placement.points:
        quantizer = simulation.quantizer(point.tensor)
        quantizer.register_forward_hook(lambda module, args, out, name=point.tensor: seen.__setitem__(name, out))
    simulation.model(x)
    assert seen.keys() == simulation.encodings().keys()
    for name, encoding in simulation.encodings().items():
        values = seen[name].detach()
        torch.testing.assert_close(encoding.dequantize(encoding.quantize(values)), values)
        assert len(values.unique()) > 1


def test_it_leaves_the_network_as_it_is(folded: Network) -> None:
    before = {name: value.clone() for name, value in folded.graph.state_dict().items()}
    nodes = [node.name for node in folded.graph.graph.nodes]
    simulate(folded, torch.randn(4, 3, 8, 8))
    assert [node.name for node in folded.graph.graph.nodes] == nodes
    assert all(torch.equal(folded.graph.state_dict()[name], value) for name, value in before.items())


def test_its_float_network_computes_what_the_network_did(folded: Network) -> None:
    x = torch.randn(4, 3, 8, 8)
    simulation = simulate(folded, x)
    back = simulation.to_network()
    assert torch.equal(back.graph(x), folded.graph(x))
    assert [node.name for node in back.graph.graph.nodes] == [node.name for node in folded.graph.graph.nodes]
    weights = {point.parameter for point in simulation.placement.points} - {None}
    assert back.encodings.keys() == weights
    assert back.graph.state_dict().keys() == folded.graph.state_dict().keys()


def disturb(simulation: Simulation) -> None:
    """Move weights and ranges as training with range learning does."""
    simulation.learn_ranges(True)
    with torch.no_grad():
        for parameter in simulation.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)


def same_bits(one: dict[str, Encoding], other: dict[str, Encoding]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name].scale, other[name].scale) and torch.equal(one[name].zero_point, other[name].zero_point)
        for name in one
    )


@pytest.mark.parametrize("trained", [False, True], ids=["calibrated", "trained"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_its_encodings_give_the_same_outputs_to_the_last_bit(folded: Network, trained: bool, per_channel: bool) -> None:
    x, precision = torch.randn(8, 3, 8, 8), Precision(per_channel=per_channel)
    simulation = simulate(folded, x, precision=precision)
    if trained:
        disturb(simulation)
    again = Simulation(simulation.to_network())
    again.load_encodings(simulation.encodings())
    assert same_bits(simulation.encodings(), again.encodings())
    assert torch.equal(again.model(x), simulation.model(x))


def test_a_missing_encoding_is_an_error(folded: Network) -> None:
    simulation = simulate(folded, torch.randn(4, 3, 8, 8))
    encodings = simulation.encodings()
    encodings.popitem()
    with pytest.raises(KeyError):
        simulation.load_encodings(encodings)


def test_saved_and_loaded_it_gives_the_same_outputs_to_the_last_bit(tmp_path, make_context) -> None:
    x = torch.randn(16, 3, 8, 8)
    base = captured.captured().graph
    network = STEPS["equalize"](captured.folded(), Equalize(choose="all"), make_context(x))[0]
    simulation = simulate(network, x)
    disturb(simulation)
    save(tmp_path / "one", base, simulation.to_network(), simulation.encodings())
    assert {path.name for path in (tmp_path / "one").iterdir()} == {
        "model.safetensors",
        "encodings.json",
        "graph.json",
    }
    loaded, encodings = load(tmp_path / "one", captured.captured())
    again = Simulation(loaded)
    again.load_encodings(encodings)
    assert torch.equal(again.model(x), simulation.model(x))
    assert same_bits(dict(loaded.encodings), dict(simulation.to_network().encodings))
    assert same_bits(encodings, simulation.encodings())


def cut_short(folder) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def take_away(folder) -> None:
    (folder / "model.safetensors").unlink()


def forget_a_field(folder) -> None:
    path = folder / "encodings.json"
    path.write_text(json.dumps({"tensors": {"x": {}}, "fixed": {}}))


def lose_the_end(folder) -> None:
    path = folder / "encodings.json"
    path.write_text(path.read_text()[:50])


def change_the_scales(folder) -> None:
    path = folder / "encodings.json"
    stored = json.loads(path.read_text())
    next(iter(stored["tensors"].values()))["zero_point"] = [0.0, 0.0]
    path.write_text(json.dumps(stored))


def name_another_type(folder) -> None:
    path = folder / "encodings.json"
    path.write_text(path.read_text().replace('"float32"', '"load"'))


@pytest.mark.parametrize(
    "harm", [cut_short, take_away, forget_a_field, lose_the_end, change_the_scales, name_another_type]
)
def test_a_damaged_candidate_is_told_of(harm, tmp_path, folded: Network) -> None:
    simulation = simulate(folded, torch.randn(4, 3, 8, 8))
    save(tmp_path, folded.graph, folded, simulation.encodings())
    load(tmp_path, folded)
    harm(tmp_path)
    with pytest.raises(RunFolderError, match="damaged"):
        load(tmp_path, folded)


def test_a_tensor_missing_from_the_file_is_taken_from_the_model_only_if_it_has_it(tmp_path, folded: Network) -> None:
    save(tmp_path, folded.graph, folded, {})
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    del state["head.bias"]
    save_file(state, path)
    loaded, _ = load(tmp_path, folded)
    assert torch.equal(tensor(loaded.graph, "head.bias"), tensor(folded.graph, "head.bias"))


def test_weight_scales_follow_the_weights_and_activation_scales_stay(folded: Network) -> None:
    simulation = simulate(folded, torch.randn(8, 3, 8, 8))
    before = simulation.encodings()
    weights = {point.tensor: point.parameter for point in simulation.placement.points if point.parameter}
    for parameter in weights.values():
        set_tensor(simulation.model, parameter, tensor(simulation.model, parameter) * 1.5)
    after = simulation.encodings()
    for name in before:
        if name in weights:
            torch.testing.assert_close(after[name].scale, before[name].scale * 1.5)
        else:
            assert torch.equal(after[name].scale, before[name].scale)


def test_a_channel_of_zeros_gets_a_range_once_it_moves() -> None:
    quantizer, grid = WeightFakeQuantize(Grid(8, True, True), 0, 2), Grid(8, True, True)
    weight = torch.tensor([[0.0, 0.0], [1.0, -0.5]])
    fixed = Encoding(grid, torch.tensor([0.02, 0.01]), torch.zeros(2), 0)
    quantizer.adopt(weight, fixed)
    assert torch.equal(quantizer.encoding_of(weight).scale, fixed.scale)
    moved = weight + torch.tensor([[0.3, -0.1], [0.0, 0.0]])
    torch.testing.assert_close(quantizer(moved)[0], moved[0], rtol=0, atol=0.3 / 127)


def correction(quantizer: ActivationFakeQuantize | WeightFakeQuantize) -> nn.Parameter:
    return quantizer.widened if isinstance(quantizer, WeightFakeQuantize) else quantizer.log_ratio


def test_the_end_of_a_weight_range_moves_as_far_as_its_correction_and_small_channels_do_not_leap() -> None:
    weight = torch.tensor([[0.5, -0.25], [7.0, 3.0], [1e-7, 0.0], [0.0, 0.0]])
    quantizer = WeightFakeQuantize(Grid(4, True, True), axis=0, channels=4)
    quantizer.settle(weight, "minmax")
    ends = quantizer.encoding_of(weight).scale * 7
    with torch.no_grad():
        quantizer.widened.add_(0.01)
    moved = quantizer.encoding_of(weight).scale * 7 - ends
    torch.testing.assert_close(moved[:2], torch.full((2,), 0.01), rtol=0.02, atol=0)
    assert bool(moved.isfinite().all())
    assert float(moved[2] / ends[2]) < 0.2


@pytest.mark.parametrize("bits", [4, 8])
def test_learn_ranges_lets_ranges_be_trained_but_not_fixed_or_symmetric_ones(folded: Network, bits: int) -> None:
    simulation = simulate(folded, torch.randn(4, 3, 8, 8), precision=Precision(activations=bits))
    simulation.learn_ranges(True)
    (given,) = (node.name for node in simulation.model.graph.nodes if node.op == "placeholder")
    assert given in {point.tensor for point in simulation.placement.points}
    for point in simulation.placement.points:
        quantizer = simulation.quantizer(point.tensor)
        learned = point.tensor != given or bits < 8
        assert correction(quantizer).requires_grad == learned
        if isinstance(quantizer, ActivationFakeQuantize):
            assert quantizer.shift.requires_grad == learned
    simulation.learn_ranges(False)
    names = [name for name, one in simulation.model.named_parameters() if one.requires_grad]
    assert names
    assert not [name for name in names if name.startswith(f"{QUANTIZERS}.")]
    fixed = ActivationFakeQuantize(Grid(8, False, False), (0.0, 1.0))
    symmetric = ActivationFakeQuantize(Grid(8, True, True))
    for quantizer in (fixed, symmetric):
        quantizer.learn_range(True)
    assert (fixed.log_ratio.requires_grad, fixed.shift.requires_grad) == (False, False)
    assert (symmetric.log_ratio.requires_grad, symmetric.shift.requires_grad) == (True, False)


def test_ranges_get_gradients_when_they_are_learned(folded: Network) -> None:
    x = torch.randn(8, 3, 8, 8)
    simulation = simulate(folded, x, precision=Precision(weights=4, activations=4))
    simulation.learn_ranges(True)
    simulation.model(x).square().sum().backward()
    for point in simulation.placement.points:
        grad = correction(simulation.quantizer(point.tensor)).grad
        assert grad is not None
        assert float(grad.abs().sum()) > 0, point.tensor


def test_a_fixed_range_is_not_calibrated() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1), nn.Linear(4, 4))
    x = torch.randn(16, 4)
    simulation = simulate(Network(capture(model, (x[:2],))), x)
    encoding = simulation.encodings()["softmax"]
    assert float(encoding.scale) == pytest.approx(1 / 256)
    assert float(encoding.zero_point) == 0


def test_calibration_without_a_sample_is_an_error(folded: Network) -> None:
    with pytest.raises(DataError, match="has no sample"):
        simulate(folded)
    with pytest.raises(DataError, match="never had a value"):
        simulate(folded, torch.zeros(0, 3, 8, 8))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_calibration_with_values_that_are_not_finite_is_an_error(folded: Network, bad: float) -> None:
    x = torch.randn(4, 3, 8, 8)
    x[1, 0, 0, 0] = bad
    with pytest.raises(DataError, match="not finite"):
        simulate(folded, x)


def test_calibration_does_not_depend_on_the_batches(folded: Network) -> None:
    x = torch.randn(12, 3, 8, 8)
    whole, cut = (simulate(folded, *parts).encodings() for parts in ([x], list(x.split(4))))
    for name in whole:
        torch.testing.assert_close(cut[name].scale, whole[name].scale, rtol=1e-5, atol=0)


def test_more_bits_mean_less_noise(folded: Network) -> None:
    x = torch.randn(16, 3, 8, 8)
    noise = [
        sqnr_db(folded.graph(x), simulate(folded, x, precision=Precision(weights=bits, activations=bits)).model(x))
        for bits in (3, 4, 6, 8, 12, 16)
    ]
    assert noise == sorted(noise)
    assert noise[-1] > 70
    gain = (noise[-2] - noise[1]) / 8
    assert 5 < gain < 7


def test_weights_in_float_leave_only_the_activations_rounded() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), torch.randn(16, 3, 8, 8)
    network = Network(capture(model, (x[:2],)))
    simulation = simulate(network, x, precision=Precision(weights=2, activations=16), activations="minmax")
    coarse = sqnr_db(model(x), simulation.model(x))
    simulation.quantize_weights(False)
    assert sqnr_db(model(x), simulation.model(x)) > 70 > coarse
    simulation.quantize_weights(True)
    assert sqnr_db(model(x), simulation.model(x)) == pytest.approx(coarse)


def test_a_loaded_zero_point_of_a_weight_is_used() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    network = Network(capture(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), (x[:2],)))
    simulation = simulate(network, x, precision=Precision(weights_symmetric=False))
    before, encodings = simulation.model(x), simulation.encodings()
    name = next(point.tensor for point in simulation.placement.points if point.parameter)
    raised = replace(encodings[name], zero_point=encodings[name].zero_point + 9)
    simulation.load_encodings({**encodings, name: raised})
    assert torch.equal(simulation.encodings()[name].zero_point, raised.zero_point)
    assert not torch.equal(simulation.model(x), before)
    simulation.load_encodings(encodings)
    assert torch.equal(simulation.model(x), before)
