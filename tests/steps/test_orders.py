"""Whatever the order of steps: real networks end at least where the best of their steps ends alone."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from benchmarks import mnist_networks
from benchmarks.photographs import split_crops
from benchmarks.zoo import efficientnet_lite0
from qatflow import STEPS, Network, Simulation
from qatflow.quant.design import Design
from qatflow.quant.grid import sqnr_db
from qatflow.quant.prepare import captured_network
from qatflow.recipe import Precision
from qatflow.recipe.steps import STEP_CONFIGS
from qatflow.steps.context import StepContext

W4A8 = Design(precision=Precision(weights=4, activations=8))
FITTING = ("correct_bias", "search_scales", "adaround")
ORDERS = (
    ("correct_bias", "adaround"),
    ("search_scales", "adaround"),
    ("search_scales", "correct_bias", "adaround"),
    ("correct_bias", "search_scales", "adaround"),
    ("equalize", "correct_bias", "search_scales", "adaround"),
)
NOISE_DB = 1.0
"""What two solutions of the same problem may differ by, in dB of the outputs."""
BROKEN_DB = 3.0
"""Outputs with less are noise above all, and how much of it says nothing: the skewed network before it is equalized."""


@dataclass
class Climber:
    """Climbs orders of steps at W4A8 per channel; what orders begin alike with is climbed once."""

    model: nn.Module
    calibration: Tensor
    test: Tensor
    rungs: dict[tuple[str, ...], Network] = field(default_factory=dict)

    @property
    def context(self) -> StepContext:
        return StepContext(lambda limit: [((part,), {}) for part in self.calibration[:limit].split(32)])

    def climbed(self, names: tuple[str, ...]) -> Network:
        if names not in self.rungs:
            if names:
                config = STEP_CONFIGS[names[-1]]()
                self.rungs[names] = STEPS[names[-1]](self.climbed(names[:-1]), config, self.context)[0]
            else:
                self.rungs[names] = captured_network(self.model, (self.calibration[:2],), design=W4A8)
        return self.rungs[names]

    @torch.no_grad()
    def outputs(self, run: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.cat([run(part) for part in self.test.split(64)])

    def score(self, *names: str) -> tuple[float, float]:
        """Return agreement with FP32, and SQNR in dB, on samples that nothing was fitted to."""
        simulation = Simulation(self.climbed(("fold_batch_norms", *names)))
        simulation.calibrate(self.context.inputs(None))
        wanted, got = self.outputs(self.model), self.outputs(simulation.model)
        return float((wanted.argmax(1) == got.argmax(1)).float().mean()), sqnr_db(wanted, got)


@pytest.mark.slow
@pytest.mark.parametrize("network", mnist_networks.NETWORKS)
def test_networks_on_digits(network: str) -> None:
    calibration, test, _ = mnist_networks.data()
    climber = Climber(mnist_networks.load(network), calibration[:64], test[:500])
    alone = {name: climber.score(name) for name in FITTING}
    agreement, ratio = (max(one) for one in zip(*alone.values(), strict=True))
    for order in ORDERS:
        got = climber.score(*order)
        assert got[0] > agreement - 0.02, (order, got, alone)
        assert got[1] > ratio - NOISE_DB or ratio < BROKEN_DB, (order, got, alone)


@pytest.mark.slow
def test_real_weights_on_photographs() -> None:
    """The bias correction ends at 3 dB; as AdaRound's goal it brought that down from 8 to 0.4."""
    calibration, test = split_crops(24, 64, 0)
    climber = Climber(efficientnet_lite0().eval(), calibration, test)
    rounded, both = climber.score("adaround"), climber.score("correct_bias", "adaround")
    assert both[1] > rounded[1] - NOISE_DB, (rounded, both)
    assert both[1] > climber.score("correct_bias")[1] + 2
