"""What quantization-aware training costs: a training step as a ratio to FP32's, and the memory that it takes.

Everything compared runs in turn in one process, and the median over rounds of the ratio within a round counts: machines
are noisy.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from itertools import product

import torch

from benchmarks.peers.case import PeerError
from benchmarks.qat_memory import measure
from benchmarks.qat_variants import COUNTED, VARIANTS, Trainee, Work

WARM_UP = 2
"""Rounds before those that count."""
Row = dict[str, object]


def rows(works: Sequence[Work], tools: Sequence[str], repeats: int, memory: bool) -> Iterator[list[Row]]:
    """Yield the rows of one model after another; a peer that is not there says so in its only row."""
    for work in works:
        found = list(_times(work, tools, repeats))
        if memory:
            for row in found:
                if row["variant"] not in ("", COUNTED):
                    row |= {key: round(value, 1) for key, value in measure(work, row["tool"], row["variant"]).items()}  # type: ignore[arg-type]
            _relate_memory(found)
        yield found


def _times(work: Work, tools: Sequence[str], repeats: int) -> Iterator[Row]:
    """Yield a row for each variant, with its median seconds and ratio to its tool's FP32."""
    trainees: dict[tuple[str, str], Trainee] = {}
    common: Row = {"model": work.model, "batch": work.batch, "size": work.size, "device": work.device}
    missing: list[Row] = []
    for tool in tools:
        try:
            trainees |= {(tool, variant): build(work) for variant, build in VARIANTS[tool].items()}
        except PeerError as error:
            missing.append({**common, "tool": tool, "variant": "", "note": f"not run: {error}"})
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in trainees}
    for _, (key, trainee) in product(range(WARM_UP + repeats), trainees.items()):
        seconds[key].append(_timed(trainee, work.device))
    for (tool, variant), times in seconds.items():
        base = seconds[tool, next(iter(VARIANTS[tool]))]
        ratios = [one / other for one, other in zip(times[WARM_UP:], base[WARM_UP:], strict=True)]
        yield {
            **common,
            "tool": tool,
            "variant": variant,
            "milliseconds": round(statistics.median(times[WARM_UP:]) * 1e3, 1),
            "ratio": round(statistics.median(ratios), 3),
            "least": round(min(ratios), 3),
            "most": round(max(ratios), 3),
        }
    yield from missing


def _timed(trainee: Trainee, device: str) -> float:
    """Return the seconds of a step; its gradients are dropped before the next trainee's turn."""
    _wait(device)
    started = time.perf_counter()
    trainee.step()
    _wait(device)
    took = time.perf_counter() - started
    trainee.optimizer.zero_grad()
    return took


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _relate_memory(found: list[Row]) -> None:
    """Add what a step's memory is as a ratio to FP32's of the same tool."""
    base = {row["tool"]: row for row in found if row["variant"] == "FP32"}
    for row in found:
        if "step_mib" in row:
            for name in ("step", "saved", "activations", "peak"):
                if f"{name}_mib" in row:
                    row[f"{name}_ratio"] = round(row[f"{name}_mib"] / base[row["tool"]][f"{name}_mib"], 2)  # type: ignore[operator]
