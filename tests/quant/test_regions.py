"""Parts of a model that may run in float, as a recipe's overrides name them."""

from fnmatch import fnmatchcase

import pytest
import torch
from torch import Tensor, nn

from qatflow.graph.ops import kind
from qatflow.quant.design import Design
from qatflow.quant.network import Network
from qatflow.quant.placement import place
from qatflow.quant.prepare import captured_network
from qatflow.quant.regions import gone, in_float, regions
from qatflow.quant.targets import TARGETS
from qatflow.recipe import LayerPrecision


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.project = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(nn.functional.hardswish(self.depthwise(x)))


class Net(nn.Module):
    """A module is called like a tensor, so that no pattern may mistake one for the other."""

    def __init__(self) -> None:
        super().__init__()
        self.add_1 = nn.Conv2d(3, 8, 1)
        self.blocks = nn.Sequential(Block(), Block(), Block())
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(torch.relu(self.add_1(x))).mean((2, 3)))


def network(target: str = "onnxruntime") -> Network:
    torch.manual_seed(0)
    return captured_network(Net().eval(), (torch.randn(2, 3, 8, 8),), {}, Design(TARGETS[target]))


def matched(net: Network, patterns: tuple[str, ...]) -> set[str]:
    names = [point.tensor for point in place(net).points if point.parameter is None]
    return {name for name in names if any(fnmatchcase(name, one) for one in patterns)}


def test_a_kind_is_named_by_patterns_that_fit_nothing_else() -> None:
    net = network()
    kinds = {node.name: kind(node) for node in net.graph.graph.nodes}
    by_kind = {}
    for one in regions(net):
        names = matched(net, one)
        if names and one != ("add_1",):
            assert len({kinds[name] for name in names}) == 1
            by_kind[kinds[next(iter(names))]] = one
    assert by_kind["hardswish"] == ("hardswish*",)
    assert by_kind["add"] == ("add", "add_2")  # `add_1` is a module, whose pattern would mean that


def test_modules_and_depthwise_layers_are_parts() -> None:
    found = regions(network())
    assert ("blocks.0.depthwise", "blocks.1.depthwise", "blocks.2.depthwise") in found
    assert {("add_1",), ("head",), ("blocks.1.project",)} <= {*found}
    assert len(found) == len({*found})


@pytest.mark.parametrize("target", TARGETS)
def test_a_part_in_float_has_no_quantizer_inside(target: str) -> None:
    net = network(target)
    before = place(net)
    there = {point.parameter or point.tensor for point in before.points}
    tried = 0
    for part in regions(net):
        changed = in_float(net, part)
        if changed is None:
            continue
        tried += 1
        dropped = gone(before, place(changed))
        assert dropped <= there
        if part == ("blocks.1.project",):
            assert "blocks.1.project.weight" in dropped
            assert "blocks.0.project.weight" not in dropped
    assert tried >= 5


def test_nothing_in_float_is_the_network_itself_and_all_in_float_is_no_answer() -> None:
    net = network()
    assert in_float(net, ()) is net
    assert in_float(net, ("add_1", "blocks", "head")) is None
    assert in_float(net, ("nowhere*",)) is None


def test_parts_go_together_though_one_leaves_the_other_nothing_to_change() -> None:
    net = network()
    both = in_float(net, ("mean*", "head"))
    assert both is not None
    alone = in_float(net, ("head",))
    assert alone is not None
    assert gone(place(net), place(both)) >= gone(place(net), place(alone))
    assert in_float(net, ("x*", "add_1")) is not None


def test_an_override_within_a_part_gives_way_to_it() -> None:
    net = network()
    design = net.design.with_overrides({"blocks.1.project": LayerPrecision(weights=4)})
    changed = in_float(net.designed(design), ("blocks.1",))
    assert changed is not None
    assert changed.design.precision.overrides == {"blocks.1": LayerPrecision(quantized=False)}
    kept = in_float(net.designed(design), ("blocks.0",))
    assert kept is not None
    assert set(kept.design.precision.overrides) == {"blocks.1.project", "blocks.0"}
