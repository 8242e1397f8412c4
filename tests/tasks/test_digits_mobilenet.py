"""The networks that ship: they are right, small, and one of them is as hard for INT8 as it is meant to be."""

import copy
import json
import struct

import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from qatflow.recipe import Model
from qatflow.tasks.digits import digits
from qatflow.tasks.digits_mobilenet import ConvNorm, digits_mobilenet, digits_mobilenet_skewed, skewed
from qatflow.tasks.models import MODELS, load_model, shipped_weights
from qatflow.tasks.train_digits import main, measure, shifted, whole

EACH = pytest.mark.parametrize("name", MODELS)
WIDE = ("digits_mobilenet", "digits_mobilenet_skewed")
SIZES = {"digits_mobilenet": 42_298, "digits_mobilenet_skewed": 42_298, "digits_mobilenet_thin": 4_270}


@pytest.fixture(scope="module")
def test_part():
    return whole(digits().test)


def folded(model):
    """Return a copy without batch norms, by torch's own folding."""
    model = copy.deepcopy(model)
    for layer in model.modules():
        if isinstance(layer, ConvNorm):
            layer.conv, layer.norm = fuse_conv_bn_eval(layer.conv, layer.norm), nn.Identity()
    return model


@torch.no_grad()
def per_tensor_int8(model):
    """Return a folded copy with weights rounded to 8 bits, one min-max scale per tensor."""
    model = folded(model)
    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            scale = layer.weight.abs().max() / 127
            layer.weight.copy_((layer.weight / scale).round() * scale)
    return model


def random_network(seed=0):
    """Return a network with ReLU in double precision, with statistics of batch norms as if it were trained."""
    torch.manual_seed(seed)
    model = digits_mobilenet_skewed().double()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight.data, layer.running_var):
                tensor.uniform_(0.5, 2)
            for tensor in (layer.bias.data, layer.running_mean):
                tensor.normal_()
    return model.eval()


@EACH
def test_shipped_weights_are_right_and_say_so_themselves(name, test_part):
    path = shipped_weights(name)
    content = path.read_bytes()
    facts = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])["__metadata__"]
    accuracy = measure(load_model(Model(name=name)), test_part)[1]
    assert accuracy >= (0.985 if name in WIDE else 0.975)
    assert accuracy == pytest.approx(float(facts["test_accuracy"]), abs=0.003)
    assert float(facts["final_lr"]) == 1e-4
    assert {"command", "seed", "validation_accuracy", "torch"} <= facts.keys()
    assert path.stat().st_size < 300_000


@EACH
def test_networks_are_small_mobilenets(name):
    model = MODELS[name]()
    assert sum(parameter.numel() for parameter in model.parameters()) == SIZES[name]
    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    assert sum(layer.groups == layer.in_channels > 1 for layer in convolutions) == 6
    assert sum(block.residual for block in model.blocks) == 3
    assert [layer.stride for layer in convolutions].count((2, 2)) == 1
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_the_activation_is_relu6_where_channels_are_not_stretched():
    kinds = {type(layer.activation) for layer in digits_mobilenet().modules() if isinstance(layer, ConvNorm)}
    assert kinds == {nn.ReLU6, nn.Identity}


def test_stretching_leaves_the_function_as_it_is():
    model = random_network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stretched = skewed(model)
    images = torch.randn(16, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(stretched(images), model(images), rtol=1e-12, atol=1e-12)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_stretching_leaves_residual_sums_as_they_are():
    model = random_network()
    seen = []
    for network in (model, skewed(model)):
        for block in network.blocks:
            block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    images = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    stretched = skewed(model)
    assert stretched is not model
    model(images)
    unstretched, seen[:] = list(seen), []
    stretched(images)
    for mine, other in zip(seen, unstretched, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


def test_stretching_loses_no_bit_of_a_weight():
    model = random_network().float()
    undone = {
        name: value / 2 ** value.abs().log2().floor() for name, value in model.state_dict().items() if "conv" in name
    }
    for name, value in skewed(model).state_dict().items():
        if name in undone:
            torch.testing.assert_close(value / 2 ** value.abs().log2().floor(), undone[name], rtol=0, atol=0)


def test_stretching_is_seeded():
    model = random_network()
    first, again, other = skewed(model, seed=1), skewed(model, seed=1), skewed(model, seed=2)
    assert torch.equal(first.head.norm.weight, again.head.norm.weight)
    assert not torch.equal(first.head.norm.weight, other.head.norm.weight)


def test_shipped_ranges_are_stretched_between_channels():
    def ratio(layer):
        largest = layer.conv.weight.detach().flatten(1).abs().amax(1)
        return float(largest.quantile(0.95) / largest.quantile(0.05))

    plain, stretched = (folded(load_model(Model(name=name))) for name in WIDE)
    ratios = [[ratio(layer) for layer, _ in model.chains()] for model in (plain, stretched)]
    assert max(ratios[0]) < 10
    assert min(ratios[1]) > 200


def test_per_tensor_int8_is_harmless_for_one_and_ruins_the_other(test_part):
    easy, hard = (per_tensor_int8(load_model(Model(name=name))) for name in WIDE)
    assert measure(easy, test_part)[1] > 0.98
    assert measure(hard, test_part)[1] < 0.5


def test_images_are_shifted_by_at_most_one_pixel():
    image = torch.zeros(1, 1, 8, 8)
    image[0, 0, 3, 4] = 5
    moved = shifted(image.expand(200, 1, 8, 8), torch.Generator().manual_seed(0))
    places = {(int(y), int(x)) for _, _, y, x in (moved == 5).nonzero()}
    assert places == {(y, x) for y in (2, 3, 4) for x in (3, 4, 5)}
    assert ((moved == 5).sum((1, 2, 3)) == 1).all()


def test_training_explains_itself(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "python -m qatflow.tasks.train_digits" in capsys.readouterr().out


@pytest.mark.slow
def test_training_writes_files_that_load(tmp_path, test_part):
    threads = torch.get_num_threads()
    try:
        main(["--epochs", "2", "--folder", str(tmp_path)])
    finally:
        torch.set_num_threads(threads)
    for name in MODELS:
        load_model(Model(name=name, weights=str(tmp_path / f"{name}.safetensors")))
