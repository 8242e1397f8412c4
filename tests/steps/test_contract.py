"""What every step of the table must hold to."""

import hashlib
from functools import cache

import pytest
import torch
from torch import nn

from qatflow.graph.capture import capture
from qatflow.quant.design import Design
from qatflow.quant.network import Network
from qatflow.recipe import Calibration
from qatflow.recipe.steps import STEP_CONFIGS
from qatflow.steps import STEPS
from tests import captured

QUICK = {"adaround": {"samples": 16}, "set_precision": {"layers": {"head": "w4a16"}}}
CLIPPED = Design(calibration=Calibration(activations="percentile", percentile=80))


def state_of(network: Network) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(network.graph.state_dict().items()):
        digest.update(name.encode() + value.detach().numpy().tobytes())
    digest.update(str(network.graph.graph).encode() + repr(network.design).encode())
    for name, encoding in sorted(network.encodings.items()):
        digest.update(name.encode() + encoding.scale.numpy().tobytes())
    return digest.hexdigest()


@cache
def normed() -> Network:
    """Return a network with a layer norm, for inputs of the same shape."""
    model = nn.Sequential(nn.Flatten(2), nn.LayerNorm(64), nn.Linear(64, 8), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5))
    return Network(capture(model.eval(), (torch.randn(2, *captured.SHAPE),)))


def biased() -> Network:
    """Return a network with a bias that its ReLU never cuts off, for inputs of the same shape."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Conv2d(captured.SHAPE[0], 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1))
    nn.init.constant_(model[0].bias, 20.0)
    return Network(capture(model.eval(), (torch.randn(2, *captured.SHAPE),)))


def fresh(name: str) -> Network:
    if name == "smooth":
        return normed().copy()
    if name == "absorb_bias":
        return biased()
    if name == "calibrate":
        return captured.folded(nn.ReLU).designed(CLIPPED)
    return (
        captured.captured(nn.ReLU)
        if name in ("fold_batch_norms", "reestimate_batch_norms")
        else captured.folded(nn.ReLU)
    )


def apply(name: str, network: Network, make_context) -> tuple[Network, dict[str, object]]:
    generator = torch.Generator().manual_seed(3)
    context = make_context(torch.randn(16, *captured.SHAPE, generator=generator))
    return STEPS[name](network, STEP_CONFIGS[name](**QUICK.get(name, {})), context)


def test_order_rules_name_steps_of_the_table() -> None:
    for config in STEP_CONFIGS.values():
        assert set(config.not_after) <= STEPS.keys()


@pytest.mark.parametrize("name", STEPS)
def test_the_network_that_goes_in_is_left_as_it_is(name: str, make_context) -> None:
    network = fresh(name)
    before = state_of(network)
    result, _ = apply(name, network, make_context)
    assert state_of(network) == before
    assert state_of(result) != before
    if result.graph is network.graph:
        assert result.design != network.design, "a graph is shared only where nothing of it changes"
        return
    ours = {value.data_ptr() for value in network.graph.state_dict().values()}
    assert ours.isdisjoint(value.data_ptr() for value in result.graph.state_dict().values())


@pytest.mark.parametrize("name", STEPS)
def test_the_same_seed_gives_the_same_network(name: str, make_context) -> None:
    one, other = (apply(name, fresh(name), make_context) for _ in range(2))
    assert state_of(one[0]) == state_of(other[0])
    assert one[1] == other[1]


@pytest.mark.parametrize("name", STEPS)
def test_notes_are_flat(name: str, make_context) -> None:
    _, notes = apply(name, fresh(name), make_context)
    assert notes
    assert all(isinstance(key, str) and type(value) in (bool, int, float, str) for key, value in notes.items())


@pytest.mark.parametrize("name", [name for name in STEPS if name != "reestimate_batch_norms"])
def test_the_result_runs_and_computes_about_what_went_in_did(name: str, make_context) -> None:
    network = fresh(name)
    result, _ = apply(name, network, make_context)
    x = torch.randn(8, *captured.SHAPE)
    with torch.no_grad():
        wanted, got = network.graph(x), result.graph(x)
    assert got.shape == wanted.shape
    assert float((got - wanted).square().mean() / wanted.square().mean()) < 1e-2
