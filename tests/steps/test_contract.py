"""What every step of the table must hold to."""

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
from qatflow.testing import check_step, images
from tests import captured

QUICK = {"adaround": {"samples": 16}, "set_precision": {"layers": {"head": "w4a16"}}}
CLIPPED = Design(calibration=Calibration(activations="percentile", percentile=80))
ABOUT_THE_SAME = 20.0
"""SQNR of the float outputs in dB; other statistics make another function."""


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


def test_order_rules_name_steps_of_the_table() -> None:
    for config in STEP_CONFIGS.values():
        assert set(config.not_after) <= STEPS.keys()


@pytest.mark.parametrize("name", STEPS)
def test_a_step_holds_to_the_contract(name: str) -> None:
    config = STEP_CONFIGS[name](**QUICK.get(name, {}))
    least = None if name == "reestimate_batch_norms" else ABOUT_THE_SAME
    check_step(STEPS[name], config, fresh(name), [images(shape=captured.SHAPE)], least_sqnr=least)
