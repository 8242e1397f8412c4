"""Float weights in the shape of the user's module: they load, and compute what the network does."""

import pytest
import torch
import torchvision
from torch import Tensor, nn

from qatflow.export.weights import FloatWeights, float_weights
from qatflow.graph.capture import capture
from qatflow.graph.layers import set_tensor, tensor
from qatflow.quant.network import Network
from qatflow.recipe.steps import Equalize, FoldBatchNorms
from qatflow.steps import STEPS
from tests.networks import give_statistics, inverted_residuals


def folded(model: nn.Module, x: Tensor, make_context) -> tuple[Network, Network]:
    base = Network(capture(model, (x,)))
    return base, STEPS["fold_batch_norms"](base, FoldBatchNorms(), make_context(x))[0]


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))


def check_loads(weights: FloatWeights, fresh: nn.Module, network: Network, x: Tensor) -> None:
    assert (weights.loadable, weights.reason) == (True, "")
    fresh.load_state_dict(weights.state, strict=True)
    with torch.no_grad():
        close(fresh.eval()(x), network.graph(x))


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18"])
def test_folded_weights_of_torchvision_load_and_compute_the_folded_function(name: str, make_context) -> None:
    factory = getattr(torchvision.models, name)
    torch.manual_seed(0)
    model = give_statistics(factory(weights=None, num_classes=7))
    x = torch.randn(2, 3, 64, 64)
    base, network = folded(model, x, make_context)
    weights = float_weights(model, base.graph, network.graph, ((x,), {}))
    unseen = torch.randn(2, 3, 64, 64)
    check_loads(weights, factory(weights=None, num_classes=7), network, unseen)
    with torch.no_grad():
        close(network.graph(unseen), model(unseen))
    norms = [one for one in model.modules() if isinstance(one, nn.BatchNorm2d)]
    assert all(float(one.running_mean.abs().max()) > 0.5 for one in norms)
    means = [value for key, value in weights.state.items() if key.endswith("running_mean")]
    assert len(means) == len(norms)
    assert all(float(mean.abs().max()) == 0 for mean in means)


NORMS = {
    "affine": nn.BatchNorm2d(4),
    "eps": nn.BatchNorm2d(4, eps=0.1),
    "not affine": nn.BatchNorm2d(4, affine=False),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_a_norm_becomes_the_place_for_a_bias_that_the_layer_has_no_place_for(norm, bias: bool, make_context) -> None:
    def fresh() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3, bias=bias), NORMS[norm], nn.ReLU(), nn.Conv2d(4, 2, 1))

    x = torch.randn(2, 3, 6, 6)
    model = give_statistics(fresh())
    base, network = folded(model, x, make_context)
    weights = float_weights(model, base.graph, network.graph, ((x,), {}))
    assert weights.state.keys() == model.state_dict().keys()
    check_loads(weights, fresh(), network, torch.randn(2, 3, 6, 6))


def test_weights_that_training_changed_are_shipped(make_context) -> None:
    model, x = inverted_residuals(nn.ReLU), torch.randn(2, 3, 8, 8)
    base, network = folded(model, x, make_context)
    for name in ("stem.0.weight", "stem.0.bias", "head.weight", "head.bias"):
        set_tensor(network.graph, name, tensor(network.graph, name) * 1.5)
    weights = float_weights(model, base.graph, network.graph, ((x,), {}))
    check_loads(weights, inverted_residuals(nn.ReLU, seed=3), network, torch.randn(2, 3, 8, 8))
    assert torch.equal(weights.state["head.weight"], model.head.weight * 1.5)
    assert torch.equal(weights.state["stem.0.weight"], tensor(network.graph, "stem.0.weight"))


def test_neither_module_nor_network_is_changed(make_context) -> None:
    model, x = inverted_residuals(), torch.randn(2, 3, 8, 8)
    base, network = folded(model, x, make_context)
    before = [{name: value.clone() for name, value in one.state_dict().items()} for one in (model, network.graph)]
    weights = float_weights(model, base.graph, network.graph, ((x,), {}))
    for value in weights.state.values():
        value.zero_()
    after = [one.state_dict() for one in (model, network.graph)]
    for old, new in zip(before, after, strict=True):
        assert all(torch.equal(new[name], value) for name, value in old.items())


def test_equalized_weights_load_where_no_op_changed(make_context) -> None:
    model, x = inverted_residuals(nn.ReLU), torch.randn(2, 3, 8, 8)
    base, network = folded(model, x, make_context)
    equalized = STEPS["equalize"](network, Equalize(choose="all"), make_context(x))[0]
    weights = float_weights(model, base.graph, equalized.graph, ((x,), {}))
    check_loads(weights, inverted_residuals(nn.ReLU, seed=3), equalized, x)


def test_scaled_bounds_of_a_relu6_have_no_place_in_the_module(make_context) -> None:
    model, x = inverted_residuals(nn.ReLU6), torch.randn(2, 3, 8, 8)
    base, network = folded(model, x, make_context)
    equalized, notes = STEPS["equalize"](network, Equalize(choose="all"), make_context(x))
    assert notes["relu6_scaled"] > 0
    weights = float_weights(model, base.graph, equalized.graph, ((x,), {}))
    assert not weights.loadable
    assert "the module has no place for the changed ops" in weights.reason
    assert weights.state.keys() == equalized.graph.state_dict().keys()
    assert any(name.endswith("_bound") for name in weights.state)


class SharedNorm(nn.Module):
    """One batch norm behind two layers: folded into both, it has no place for two biases."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 4, 1, bias=False)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.other(self.norm(self.one(x)).relu()))


def test_weights_that_do_not_compute_the_same_in_the_module_are_told_of(make_context) -> None:
    model, x = give_statistics(SharedNorm()), torch.randn(2, 3, 6, 6)
    base, network = folded(model, x, make_context)
    tampered = network.copy()
    set_tensor(tampered.graph, "other.bias", tensor(tampered.graph, "other.bias") + 1)
    weights = float_weights(model, base.graph, tampered.graph, ((x,), {}))
    assert not weights.loadable
    assert "do not compute what the network does" in weights.reason
    assert weights.state.keys() == tampered.graph.state_dict().keys()


class Tied(nn.Module):
    """Two names for one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.one(x).relu())


def test_a_weight_with_two_names_is_shipped_under_both() -> None:
    model, x = Tied().eval(), torch.randn(2, 4)
    base = Network(capture(model, (x,)))
    network = base.copy()
    read = {str(node.target) for node in base.graph.graph.nodes if node.op == "get_attr"}
    (name,) = [name for name in read if name.endswith("weight")]
    set_tensor(network.graph, name, tensor(network.graph, name) * 2)
    weights = float_weights(model, base.graph, network.graph, ((x,), {}))
    check_loads(weights, Tied(), network, torch.randn(2, 4))
    assert torch.equal(weights.state["one.weight"], model.one.weight * 2)
    assert torch.equal(weights.state["other.weight"], model.one.weight * 2)
