"""Mixed precision: what the rung `mixed_precision` gains for its cost and time, beside AIMET's AMP where both can.

    python -m benchmarks.mixed_precision --out reports/mixed_precision            # every case
    python -m benchmarks.mixed_precision --cases resnet minilm --tools qatflow

Weights of 4 or 8 bits, on networks trained on MNIST digits and on EfficientNet-Lite0 with its ImageNet weights:
accuracy, or agreement with FP32, and SQNR of the outputs against bit-operations, as a share of those of W8A8. They are
counted in the same way for both tools, from the bits of every layer and its multiply-accumulates
(`qatflow.graph.work`). Both tools get the same model, batch norms folded (`skewed`: equalized as well), and the same
samples for ranges and search; they are judged on others. Where AIMET has a choice, ours is asked for the best of no
more bit-operations, and both searches are timed in one process, ours before and after AIMET's. Float, which the rung
may give besides and AIMET's candidates do not have, is kept out of its reach here.

`onnxruntime`, `xnnpack`: EfficientNet-Lite0 at W8A8 per tensor, equalized, with at most 5 % of its multiply-accumulates
in float, with AdaRound below and without. `minilm`: a sentence encoder on the HTP with at most 15 % of its
multiply-accumulates reading 16 bits; its score is the cosine of its embeddings to FP32's. Nothing is a gate here, so
that the rung tries all that it knows: in a run that meets its gate it ends sooner.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, fx, nn
from torch.nn.functional import cosine_similarity

from benchmarks import mnist_networks
from benchmarks.mixed_search import Found, folded, rounded, searched, simulated, weights_only
from benchmarks.peers import aimet, aimet_mixed
from benchmarks.peers.case import Case, PeerError, inference
from benchmarks.photographs import split_crops
from benchmarks.zoo import ZOO, efficientnet_lite0, sentences
from qatflow import Network, captured_network
from qatflow.graph.layers import weighted_layers
from qatflow.graph.work import multiply_accumulates
from qatflow.quant.grid import sqnr_db
from qatflow.quant.placement import place
from qatflow.quant.simulation import Inputs
from qatflow.recipe import LayerPrecision

TOOLS = ("qatflow", "aimet")
BATCH = 32
DIGITS, CROPS, PHOTOGRAPHS = 256, 128, 256
"""Samples to calibrate and search with: digits, crops of photographs; crops of others that are judged on."""
CROPS_BESIDE_AIMET = 32
BESIDE = (0.75, 0.5, 0.25, 0.1)
"""Of the way from all weights at 4 bits to all at 8: AIMET's choices nearest to these are compared, and one below."""
LOW, HIGH = aimet_mixed.LOW, aimet_mixed.HIGH
EMBEDDED = 24
"""Sentences that embeddings are compared on."""

Row = dict[str, object]
Judge = Callable[[Callable[..., Any]], tuple[float, float]]
"""Returns a model's score and its SQNR in dB, on samples that nothing was fitted to."""


# -- bit-operations


def bit_operations(graph: fx.GraphModule, example: Inputs, weights: Mapping[str, int]) -> float:
    """Return the bit-operations of weighted layers as a share of those with 8 bits; activations are alike.

    Args:
        graph: in float.
        example: a batch of inputs.
        weights: bits of every layer's weight, by the layer's path.
    """
    work = multiply_accumulates(graph, example)
    layers = weighted_layers(graph)
    return sum(work[one.node.name] * weights[one.name] for one in layers) / (sum(work.values()) * HIGH)


def share_of(network: Network, example: Inputs) -> float:
    """Return the bit-operations of a network as a share of those with 8 bits."""
    points = {point.parameter: point.grid.bits for point in place(network).points if point.parameter}
    bits = {layer.name: points[layer.weight] for layer in weighted_layers(network.graph)}
    return bit_operations(network.graph, example, bits)


# -- fronts of 4 and 8 bits


@dataclass(frozen=True)
class Front:
    """A model whose weights have 4 or 8 bits.

    Attributes:
        name: of the case.
        model: in float.
        samples: to calibrate and search with.
        judge: on others.
        per_channel: whether weights have a scale per output channel.
        equalize: before the search.
        schemes: AIMET's ways to choose ranges.
    """

    name: str
    model: nn.Module
    samples: Tensor
    judge: Judge
    per_channel: bool = True
    equalize: bool = False
    schemes: Sequence[str] = aimet.SCHEMES

    @property
    def batches(self) -> list[Inputs]:
        return [((one,), {}) for one in self.samples.split(BATCH)]

    def network(self, weights: int) -> Network:
        """Return our network with all weights alike."""
        precision = f"w{weights}a8" + ("" if self.per_channel else "_per_tensor")
        return folded(self.model, self.batches, precision, equalize=self.equalize)

    def row(self, tool: str, choice: str, network: Network, **more: object) -> Row:
        """Return what one of our networks reaches."""
        score, sqnr = self.judge(simulated(network, self.batches))
        share = round(share_of(network, self.batches[0]), 4)
        return {
            "case": self.name,
            "tool": tool,
            "choice": choice,
            "bops": share,
            "score": score,
            "sqnr_db": sqnr,
            **more,
        }


def fronts(front: Front, tools: Sequence[str]) -> Iterator[Row]:
    """Yield our front, AIMET's, and ours at AIMET's bit-operations."""
    low, batches = front.network(LOW), front.batches
    all_high = front.row("qatflow", "all w8", front.network(HIGH))
    yield all_high
    seconds: list[float] = []
    if "qatflow" in tools:
        found = weights_only(low, batches, None)
        seconds.append(found.seconds)
        rows = [
            front.row("qatflow", _choice(one), low.designed(low.design.with_overrides(one))) for one in found.measured
        ]
        yield from rows
        yield _cheapest(rows, all_high)
        yield {"case": front.name, "tool": "qatflow", "choice": "search", "seconds": round(found.seconds, 1)}
    if "aimet" not in tools:
        return
    for scheme in front.schemes:
        try:
            yield from _beside(front, scheme, low, seconds)
        except PeerError as error:
            yield {"case": front.name, "tool": f"aimet {scheme}", "choice": f"not run: {error}"}


def _choice(overrides: Mapping[str, LayerPrecision]) -> str:
    return f"{len(overrides)} relieved" if overrides else "all w4"


def _cheapest(rows: Sequence[Row], all_high: Row) -> Row:
    """Return the cheapest of our choices that scores no less than all weights at 8 bits."""
    reaching = [one for one in rows if float(str(one["score"])) >= float(str(all_high["score"]))]
    if not reaching:
        return {**all_high, "choice": "nothing cheaper scores as w8"}
    return {**min(reaching, key=lambda one: float(str(one["bops"]))), "choice": "cheapest that scores as w8"}


def _beside(front: Front, scheme: str, low: Network, seconds: list[float]) -> Iterator[Row]:
    tool = f"aimet {scheme}"
    case = Case(front.name, front.model, list(front.samples.split(BATCH)), HIGH, 8, front.per_channel)
    found = aimet_mixed.search(case, scheme, equalize=front.equalize)
    after = weights_only(low, front.batches, None).seconds
    ours = (seconds[-1] + after) / 2 if seconds else after
    seconds.append(after)
    took = found.phase1 + found.phase2
    note = f"{took / ours:.1f} times ours ({ours:.1f} s), phase 1 alone {found.phase1 / ours:.1f}"
    yield {"case": front.name, "tool": tool, "choice": "search", "seconds": round(took, 1), "note": note}
    graph = captured_network(found.model, *front.batches[0]).graph
    shares = [bit_operations(graph, front.batches[0], one) for one in found.choices]
    for place_ in sorted({0, *_nearest(shares), len(shares) - 1}):
        bits, share = found.choices[place_], shares[place_]
        score, sqnr = front.judge(aimet_mixed.simulated(found, case, scheme, bits))
        choice = f"{sum(one == HIGH for one in bits.values())} of {len(bits)} at w8"
        theirs = {"tool": tool, "choice": choice, "bops": round(share, 4), "score": score, "sqnr_db": sqnr}
        yield {"case": front.name, **theirs}
        if share < 1:
            budget = share * HIGH / LOW - 1 + 1e-9
            own = weights_only(low, front.batches, max(budget, 0.0))
            yield _against(front, theirs, own)


def _against(front: Front, theirs: Row, own: Found) -> Row:
    row = front.row("qatflow", "within that", own.network, seconds=round(own.seconds, 1))
    gain = float(str(row["sqnr_db"])) - float(str(theirs["sqnr_db"]))
    points = 100 * (float(str(row["score"])) - float(str(theirs["score"])))
    return {**row, "note": f"{gain:+.1f} dB, {points:+.1f} points beside {theirs['tool']}"}


def _nearest(shares: Sequence[float]) -> list[int]:
    least = min(shares)
    return [
        min(range(len(shares)), key=lambda place: abs(shares[place] - least - wanted * (1 - least)))
        for wanted in BESIDE
    ]


def classes(model: nn.Module, inputs: Tensor, labels: Tensor | None) -> Judge:
    """Return a judge of the share of right classes, or of FP32's where there are no labels."""
    wanted = _outputs(inference(model), inputs)
    truth = wanted.argmax(1) if labels is None else labels

    def judge(call: Callable[..., Any]) -> tuple[float, float]:
        got = _outputs(call, inputs)
        return round(float((got.argmax(1) == truth).float().mean()), 4), round(sqnr_db(wanted, got), 2)

    return judge


def _outputs(call: Callable[..., Any], inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([call(one) for one in inputs.split(BATCH)])


def digits(network: str, tools: Sequence[str], *, per_channel: bool) -> Iterator[Row]:
    """Yield the rows of a network trained on MNIST digits."""
    calibration, test, labels = mnist_networks.data()
    model = mnist_networks.load(network)
    judge = classes(model, test, labels)
    name = f"{network} per {'channel' if per_channel else 'tensor'}"
    score, _ = judge(inference(model))
    yield {"case": name, "tool": "fp32", "choice": "", "score": score}
    yield from fronts(
        Front(name, model, calibration[:DIGITS], judge, per_channel, network == "mobilenet_skewed"), tools
    )


def photographs(tools: Sequence[str]) -> Iterator[Row]:
    """Yield the rows of EfficientNet-Lite0 with weights of 4 or 8 bits; AIMET's faster scheme alone."""
    samples, test = split_crops(CROPS_BESIDE_AIMET, PHOTOGRAPHS, 0)
    model = efficientnet_lite0()
    yield from fronts(
        Front("lite0 per channel", model, samples, classes(model, test, None), schemes=("min_max",)), tools
    )


# -- a better precision than 8 bits


def in_float(target: str, tools: Sequence[str]) -> Iterator[Row]:
    """Yield EfficientNet-Lite0 at W8A8 per tensor with at most 5 % in float, without AdaRound and with it."""
    if "qatflow" not in tools:
        return
    samples, test = split_crops(CROPS, PHOTOGRAPHS, 0)
    batches: list[Inputs] = [((one,), {}) for one in samples.split(BATCH)]
    model = efficientnet_lite0()
    judge = classes(model, test, None)
    network = folded(model, batches, "w8a8_per_tensor", target, equalize=True)
    for fitted in (False, True):
        case = f"{target}: lite0, float" + (", on adaround" if fitted else "")
        start = time.perf_counter()
        network = rounded(batches, network) if fitted else network
        below = round(time.perf_counter() - start, 1) if fitted else None
        yield from _relieved(case, network, batches, judge, below, refit=fitted, budget=0.05)


def minilm(tools: Sequence[str]) -> Iterator[Row]:
    """Yield a sentence encoder on the HTP with at most 15 % of its multiply-accumulates reading 16 bits."""
    if "qatflow" not in tools:
        return
    model = ZOO["all-MiniLM-L6-v2 (real weights)"].build()
    batches = [sentences(8, seed) for seed in range(4)]
    judge = _embeddings(model, [sentences(8, 99 + seed) for seed in range(EMBEDDED // 8)])
    network = folded(model, batches, "w8a8", "qnn")
    yield from _relieved("qnn: minilm, a16", network, batches, judge, None, budget=0.15)


def _relieved(
    case: str, network: Network, batches: Sequence[Inputs], judge: Judge, below: float | None, **config: Any
) -> Iterator[Row]:
    score, sqnr = judge(simulated(network, batches))
    yield {"case": case, "tool": "qatflow", "choice": "before", "score": score, "sqnr_db": sqnr, "seconds": below}
    found = searched(network, batches, **config)
    score, sqnr = judge(simulated(found.network, batches))
    note = f"{found.notes['tensors']} tensors, {float(found.notes['multiply_accumulates']):.1%} above 8 bits"
    after: Row = {"case": case, "tool": "qatflow", "choice": "after", "score": score, "sqnr_db": sqnr}
    yield {**after, "seconds": round(found.seconds, 1), "note": note}


def _embeddings(model: nn.Module, batches: Sequence[Inputs]) -> Judge:
    """Return a judge of the mean cosine of the means over real words, and of these means' SQNR."""

    def embedded(call: Callable[..., Any]) -> Tensor:
        means = []
        with torch.no_grad():
            for args, kwargs in batches:
                hidden = call(*args, **kwargs)["last_hidden_state"]
                real = kwargs["attention_mask"].float().unsqueeze(-1)
                means.append((hidden * real).sum(1) / real.sum(1))
        return torch.cat(means)

    wanted = embedded(model)

    def judge(call: Callable[..., Any]) -> tuple[float, float]:
        got = embedded(call)
        return round(float(cosine_similarity(wanted, got).mean()), 4), round(sqnr_db(wanted, got), 2)

    return judge


CASES: dict[str, Callable[[Sequence[str]], Iterator[Row]]] = {
    **{
        f"{network}_per_{'channel' if per_channel else 'tensor'}": partial(digits, network, per_channel=per_channel)
        for network in mnist_networks.NETWORKS
        for per_channel in (True, False)
    },
    "lite0": photographs,
    "minilm": minilm,
    "onnxruntime": partial(in_float, "onnxruntime"),
    "xnnpack": partial(in_float, "xnnpack"),
}


def main() -> None:
    """Run the cases asked for; rows go to `mixed_precision.csv` as soon as they are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES), metavar="NAME")
    parser.add_argument("--tools", default=",".join(TOOLS), help="qatflow, aimet, or both, separated by a comma")
    parser.add_argument("--out", type=Path, default=Path("reports/mixed_precision"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for name in arguments.cases:
        for row in CASES[name](arguments.tools.split(",")):
            rows.append(row)
            print({key: value for key, value in row.items() if value is not None}, flush=True)
            pd.DataFrame(rows).to_csv(arguments.out / "mixed_precision.csv", index=False)
    (arguments.out / "mixed_precision.md").write_text(markdown(rows))
    print(markdown(rows))


def markdown(rows: Sequence[Row]) -> str:
    """Return the rows as a table for people."""
    columns = ["case", "tool", "choice", "bops", "score", "sqnr_db", "seconds", "note"]
    shown = pd.DataFrame(rows).reindex(columns=columns).astype(object)
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join("" if pd.isna(one) else str(one) for one in row) + " |" for row in shown.to_numpy()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
