"""Every path that runs on a GPU, checked against the CPU and timed; meant for six minutes, on a GPU not run yet.

    python -m benchmarks.gpu                        # all checks, on the first GPU
    python -m benchmarks.gpu --checks kernels,steps
    python -m benchmarks.gpu --device cpu --small   # the script itself, where there is no GPU

A check that fails says why, and the next one runs; the exit code is 1 then. Each prints its row at once: what was
compared, the figure, how it compares with the CPU, the GPU's memory at its peak.

On a machine without a registry, carry the wheels of what its image lacks (Python 3.12, `pip download --no-deps`):
hydra-core 1.3.8, omegaconf 2.3.1, antlr4-python3-runtime 4.9.3 (a wheel made of its sdist), optuna 5.0.0, alembic,
Mako, SQLAlchemy, colorlog, pandas, plotly, pydantic, pydantic_core, annotated-types, typing-inspection, rich,
lightning-fabric and lightning-utilities; then `pip install --no-index --find-links WHEELS --no-deps WHEELS/*.whl` and
`pip install --no-index --no-deps --no-build-isolation -e .`, or set PYTHONPATH to the checkout. torchvision and
scikit-learn are needed for the models and the digits.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.qat_steps import rows as step_rows
from benchmarks.qat_variants import Work
from qatflow import STEPS, Simulation, export_onnx
from qatflow.export.runtimes.onnxruntime import OnnxModel
from qatflow.quant.design import Design
from qatflow.quant.fake_quantize import fake_quantize
from qatflow.quant.fused import kernels
from qatflow.quant.grid import Grid, sqnr_db
from qatflow.quant.prepare import captured_network
from qatflow.recipe import Precision
from qatflow.recipe.steps import STEP_CONFIGS
from qatflow.steps.context import StepContext

SAME = 35.0
"""Decibels between GPU and CPU that rounding in another order leaves of a quantized network's outputs."""
SOLVERS = ("fold_batch_norms", "equalize", "correct_bias", "search_scales", "adaround")


@dataclass(frozen=True)
class Bench:
    """Where checks run, and how large they are."""

    device: str
    small: bool

    def model(self) -> nn.Module:
        """Return an untrained network, always the same."""
        from torchvision.models import mobilenet_v2, resnet18

        torch.manual_seed(0)
        return (mobilenet_v2(num_classes=10, width_mult=0.25) if self.small else resnet18(num_classes=100)).eval()

    def images(self, count: int) -> Tensor:
        """Return images on the CPU, always the same."""
        size = 32 if self.small else 224
        return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@dataclass
class Rows:
    """What a check found: a name and a figure each."""

    found: list[tuple[str, str]] = field(default_factory=list)

    def add(self, name: str, figure: object) -> None:
        """Print a figure and keep it."""
        self.found.append((name, str(figure)))
        print(f"  {name}: {figure}", flush=True)

    def same(self, name: str, wanted: Tensor, got: Tensor, least: float = SAME) -> None:
        """Print how near two tensors are.

        Raises:
            AssertionError: they are farther apart than `least`, in dB.
        """
        near = sqnr_db(wanted.detach().cpu().double(), got.detach().cpu().double())
        self.add(name, f"{near:.1f} dB to the CPU")
        assert near >= least, f"{name}: {near:.1f} dB, expected {least} at least"


def seconds(device: str, call: Callable[[], object], repeats: int = 20) -> float:
    """Return the median time of a call, the device's work waited for."""
    times = []
    for number in range(repeats + 3):
        started = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        if number >= 3:
            times.append(time.perf_counter() - started)
    return sorted(times)[len(times) // 2]


def check_kernels(bench: Bench, rows: Rows) -> None:
    """Compiled fake-quantize kernels: forward and gradients in float32 and bfloat16, and their time beside a ReLU's."""
    found = kernels(bench.device)
    rows.add("compiled", "yes" if not isinstance(found, str) else f"no: {found}")
    x = torch.randn(8, 64, 32, 32) if bench.small else torch.randn(32, 256, 56, 56)
    grid, zero = Grid(8, signed=False, symmetric=False), torch.tensor(100.0)

    def run(device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        value = x.detach().to(device, dtype, copy=True).requires_grad_(True)
        scale = torch.tensor(0.02, device=device, requires_grad=True)
        result = fake_quantize(value, scale, zero.to(device), grid)
        result.sin().sum().backward()
        assert value.grad is not None
        assert scale.grad is not None
        return result, value.grad, scale.grad

    for dtype in (torch.float32, torch.bfloat16):
        parts = zip(
            ("result", "gradient", "scale's gradient"), run("cpu", dtype), run(bench.device, dtype), strict=True
        )
        for name, wanted, got in parts:
            rows.same(f"{name}, {str(dtype).removeprefix('torch.')}", wanted, got, 30.0)
    value, scale = x.to(bench.device), torch.tensor(0.02, device=bench.device)
    ours = seconds(bench.device, lambda: fake_quantize(value, scale, zero.to(bench.device), grid))
    relu = seconds(bench.device, lambda: torch.relu(value))
    rows.add("forward", f"{ours * 1e3:.2f} ms, {ours / relu:.2f} times a ReLU")


def simulated(bench: Bench, device: str, steps: tuple[str, ...], rows: Rows | None = None) -> tuple[Simulation, Tensor]:
    """Climb some steps on a device; returns the simulation and its outputs on unseen images."""
    images = bench.images(16 if bench.small else 64).to(device)
    design = Design(precision=Precision(weights=4 if "adaround" in steps else 8))
    context = StepContext(lambda limit: [((images,), {})])
    network = captured_network(bench.model().to(device), (images[:2],), design=design)
    for name in steps:
        started = time.perf_counter()
        network, _ = STEPS[name](network, STEP_CONFIGS[name](), context)
        if device == "cuda":
            torch.cuda.synchronize()
        if rows is not None:
            rows.add(f"{name} on {device}", f"{time.perf_counter() - started:.2f} s")
    simulation = Simulation(network)
    started = time.perf_counter()
    simulation.calibrate([((images,), {})])
    if rows is not None:
        rows.add(f"calibration on {device}", f"{time.perf_counter() - started:.2f} s")
    with torch.no_grad():
        return simulation, simulation.model(bench.images(80)[64:].to(device))


def check_simulation(bench: Bench, rows: Rows) -> None:
    """Capture, calibration and simulation at W8A8, folded."""
    both = [simulated(bench, device, SOLVERS[:1], rows)[1] for device in ("cpu", bench.device)]
    rows.same("outputs", *both)


def check_steps(bench: Bench, rows: Rows) -> None:
    """Every solver at W4A8: what the GPU finds is as near to FP32 as what the CPU finds."""
    images = bench.images(80)[64:]
    with torch.no_grad():
        wanted = bench.model()(images)
    found = []
    for device in ("cpu", bench.device):
        _, outputs = simulated(bench, device, SOLVERS, rows)
        found.append(sqnr_db(wanted, outputs.cpu()))
        rows.add(f"W4A8 on {device}", f"{found[-1]:.1f} dB to FP32")
    assert abs(found[0] - found[1]) < 1.5, "GPU and CPU find networks of another quality"


def check_training(bench: Bench, rows: Rows) -> None:
    """Steps of training, ranges frozen and learned, and memory, as ratios to FP32."""
    works = [
        Work(
            "mobilenet_v2" if bench.small else "resnet18",
            8 if bench.small else 64,
            64 if bench.small else 224,
            bench.device,
        )
    ]
    for found in step_rows(works, ["qatflow"], repeats=3 if bench.small else 10, memory=not bench.small):
        for row in found:
            rows.add(str(row["variant"]), {key: row[key] for key in row if key not in ("model", "tool", "variant")})


def check_export(bench: Bench, rows: Rows) -> None:
    """Export of a simulation on the GPU, run on the CPU."""
    simulation, outputs = simulated(bench, bench.device, SOLVERS[:1])
    with tempfile.TemporaryDirectory() as folder:
        images = bench.images(80)[64:].to(bench.device)
        file = export_onnx(simulation, ((images[:2],), {}), Path(folder) / "model.onnx")
        got = OnnxModel(file.path, file.signature)(images)
    assert str(got.device).startswith(bench.device)
    rows.same("the file", outputs, got, 25.0)


def check_run(bench: Bench, rows: Rows) -> None:
    """Whole runs: the ladder alone, and the ladder with QAT and its search."""
    from qatflow.door.cli import main

    for recipe in ("tiny",) if bench.small else ("quickstart", "quickstart_qat"):
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            code = main([f"recipe={recipe}", f"device={bench.device}", f"run.dir={folder}"])
            rows.add(recipe, f"exit code {code}, {time.perf_counter() - started:.0f} s")
            assert code == 0, f"{recipe} ended with {code}"


CHECKS: dict[str, Callable[[Bench, Rows], None]] = {
    "kernels": check_kernels,
    "simulation": check_simulation,
    "steps": check_steps,
    "training": check_training,
    "export": check_export,
    "run": check_run,
}


def main(argv: list[str] | None = None) -> int:
    """Run the checks that were asked for; returns 1 where one failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--checks", default=",".join(CHECKS), help="which, in this order (%(default)s)")
    parser.add_argument("--small", action="store_true", help="small networks and images")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("error: PyTorch sees no GPU here; --device cpu --small tries the script itself")
        return 1
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(f"torch {torch.__version__}, {name}", flush=True)
    failed = list(_failures(Bench(options.device, options.small), options.checks.split(",")))
    print(f"failed: {', '.join(failed)}" if failed else "all checks passed")
    return int(bool(failed))


def _failures(bench: Bench, names: list[str]) -> Iterator[str]:
    """Run checks one after another; yields those that fail."""
    for name in names:
        if bench.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        print(f"{name}: {(CHECKS[name].__doc__ or '').splitlines()[0]}", flush=True)
        try:
            CHECKS[name](bench, Rows())
        except Exception:  # noqa: BLE001  # whatever broke, the other checks are wanted as well
            print(traceback.format_exc(), flush=True)
            yield name
        peak = f", {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB" if bench.device == "cuda" else ""
        print(f"  {time.perf_counter() - started:.1f} s{peak}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
