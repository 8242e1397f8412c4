"""How much slower than FP32: simulated forward passes, calibration, and the whole ladder, as ratios in one process.

    python -m benchmarks.speed                # resnet18 and EfficientNet-Lite0, forward and calibration; AIMET beside
    python -m benchmarks.speed --growth       # seconds of the rounding rung against depth and against samples
    python -m benchmarks.speed --ladder 512   # the whole ladder on EfficientNet-Lite0 with so many crops

Runs of the things compared alternate, and the median of several counts: machines are noisy.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import torch
import torchvision
from torch import Tensor, nn

from benchmarks.peers import aimet
from benchmarks.peers.case import Case, PeerError
from benchmarks.photographs import split_crops
from benchmarks.zoo import efficientnet_lite0
from qatflow import STEPS, Network, Simulation
from qatflow.quant.design import Design
from qatflow.quant.grid import sqnr_db
from qatflow.quant.prepare import captured_network
from qatflow.recipe import Precision
from qatflow.recipe.steps import STEP_CONFIGS
from qatflow.steps.context import StepContext

ROUNDS = 7
LADDER = ("fold_batch_norms", "equalize", "adaround")


def medians(*calls: Callable[[], object]) -> list[float]:
    """Return the median seconds of several calls, run in turn."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(ROUNDS):
        for call, seconds in zip(calls, times, strict=True):
            started = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - started)
    return [statistics.median(seconds) for seconds in times]


def context_of(inputs: Tensor) -> StepContext:
    """Return what steps work with, on these inputs in batches of 32."""
    return StepContext(lambda limit: [((part,), {}) for part in inputs[:limit].split(32)])


def captured(model: nn.Module, inputs: Tensor, weights: int = 8) -> Network:
    """Return a model as the ladder gets it."""
    return captured_network(model.eval(), (inputs[:2],), design=Design(precision=Precision(weights=weights)))


@torch.no_grad()
def forward_and_calibration(name: str, model: nn.Module) -> None:
    """Print the cost of a simulated forward pass and of calibrating with one batch, relative to FP32."""
    x = split_crops(16, 16, 0)[0]
    context = context_of(x)
    network, _ = STEPS["fold_batch_norms"](captured(model, x), STEP_CONFIGS["fold_batch_norms"](), context)
    simulation = Simulation(network)
    simulation.calibrate([((x,), {})])
    fresh = Simulation(network)
    observed = [((x,), {})]
    calls: dict[str, Callable[[], object]] = {
        "FP32": lambda: model(x),
        "simulated": lambda: simulation.model(x),
        "calibration, one batch": lambda: fresh.observe(observed),
    }
    try:
        case = Case(name, model, [x], 8, 8, per_channel=True)
        peer, calibrate = aimet.simulated(case), aimet.calibration_batch(case)
        calls |= {"AIMET simulated": lambda: peer(x), "AIMET calibration (tf_enhanced), one batch": calibrate}
    except PeerError as error:
        print(error)
    seconds = dict(zip(calls, medians(*calls.values()), strict=True))
    for what, took in seconds.items():
        print(f"{name:20s} {what:45s} {took * 1e3:8.0f} ms   {took / seconds['FP32']:6.2f} x FP32", flush=True)


class Stack(nn.Sequential):
    """So many equal convolutions."""

    def __init__(self, depth: int) -> None:
        layers = [nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()) for _ in range(depth)]
        super().__init__(nn.Conv2d(3, 32, 3, padding=1), *layers)


def growth() -> None:
    """Print the seconds of AdaRound's exact solver against depth and against samples."""
    for depth, samples in ((8, 128), (16, 128), (32, 128), (64, 128), (16, 256), (16, 512), (16, 1024)):
        torch.manual_seed(0)
        x = torch.randn(samples, 3, 32, 32)
        network, context = captured(Stack(depth), x, weights=4), context_of(x)
        started = time.perf_counter()
        STEPS["adaround"](network, STEP_CONFIGS["adaround"](samples=samples), context)
        print(f"{depth:4d} layers {samples:5d} samples {time.perf_counter() - started:7.1f} s", flush=True)


@torch.no_grad()
def ladder(count: int) -> None:
    """Print seconds and peak memory of the whole ladder on EfficientNet-Lite0 at W4A8 per channel."""
    x, test = split_crops(count, 128, 0)
    model = efficientnet_lite0().eval()
    context = context_of(x)
    wanted = torch.cat([model(part) for part in test.split(32)])
    begun = time.perf_counter()
    network = captured(model, x, weights=4)
    for name in LADDER:
        started = time.perf_counter()
        network, _ = STEPS[name](network, STEP_CONFIGS[name](), context)
        print(f"{name:20s} {time.perf_counter() - started:7.1f} s", flush=True)
    simulation = Simulation(network)
    simulation.calibrate(context.inputs(None))
    print(f"{'all':20s} {time.perf_counter() - begun:7.1f} s")
    got = torch.cat([simulation.model(part) for part in test.split(32)])
    agreement = float((got.argmax(1) == wanted.argmax(1)).float().mean())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"agreement {agreement:.3f}, {sqnr_db(wanted, got):.1f} dB, peak memory {peak:.1f} GiB")


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--ladder", type=int, metavar="CROPS")
    arguments = parser.parse_args()
    if arguments.growth:
        growth()
    elif arguments.ladder:
        ladder(arguments.ladder)
    else:
        forward_and_calibration("resnet18", torchvision.models.resnet18().eval())
        forward_and_calibration("EfficientNet-Lite0", efficientnet_lite0().eval())


if __name__ == "__main__":
    main()
