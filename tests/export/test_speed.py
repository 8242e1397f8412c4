"""The second gate: what a latency is worth, files with parts in float, and which parts are taken."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from scipy.stats import binom
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import qatflow
from qatflow.door.endings import DEFECT, ERROR, MET, MISSED, TOO_SLOW, code_of, worst
from qatflow.errors import ExportError, RecipeError
from qatflow.export import float_parts as parts_module
from qatflow.export import latency as latency_module
from qatflow.export import speed as speed_module
from qatflow.export.float_parts import Files, float_parts
from qatflow.export.latency import Beside, Latency, beside
from qatflow.export.runtimes import RUNTIMES
from qatflow.graph.layers import set_tensor, tensor
from qatflow.quant.design import Design
from qatflow.quant.grid import sqnr_db
from qatflow.quant.network import Network
from qatflow.quant.placement import place
from qatflow.quant.prepare import captured_network
from qatflow.quant.regions import Region, in_float
from qatflow.quant.simulation import Simulation
from qatflow.quant.targets import TARGETS
from qatflow.recipe import Export
from qatflow.report.wording import headline
from qatflow.results.latency import LatencyRecord
from qatflow.results.progress import Silent
from qatflow.results.result import RunResult
from qatflow.results.speed import SpeedRecord


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.project = nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(nn.functional.hardswish(self.depthwise(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 16, 3, padding=1), nn.Sequential(Block(), Block(), Block())
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(torch.relu(self.stem(x))).mean((2, 3)))


def network() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def images(count: int, seed: int) -> Tensor:
    return torch.randn(count, 3, 128, 128, generator=torch.Generator().manual_seed(seed))


class Clock:
    """Every call takes as long as it says, and no more."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def call(self, seconds: Iterable[float]) -> Callable[[], None]:
        rest = iter(seconds)

        def run() -> None:
            self.now += next(rest)

        return run


def test_a_ratio_has_the_interval_of_order_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, generator = Clock(), np.random.default_rng(0)
    monkeypatch.setattr(latency_module, "time", clock)
    own, other = generator.uniform(1, 3, 200), generator.uniform(2, 4, 200)
    found = beside(clock.call([1, *own]), clock.call([1, *other]), seconds=0.5 + (own[:30] + other[:30]).sum())
    count = 31
    assert found.ratio == pytest.approx(np.median(other[:count]) / np.median(own[:count]))
    ratios = np.sort(other[:count] / own[:count])
    below = max(k for k in range(count) if binom.cdf(k, count, 0.5) <= 0.025)
    assert found.low == pytest.approx(ratios[below], abs=1e-9)
    assert found.high == pytest.approx(ratios[count - 1 - below], abs=1e-9)
    assert found.faster == (found.low > 1)


def latency(low: float, high: float, int8: float = 10.0, fp32: float = 10.0, **more: float) -> LatencyRecord:
    return LatencyRecord(
        batch=1,
        int8=int8,
        int8_quartiles=(int8, int8),
        fp32=fp32,
        fp32_quartiles=(fp32, fp32),
        speed_up_interval=(low, high),
        **more,
    )


@pytest.mark.parametrize(
    ("low", "high", "strict", "passed", "title"),
    [
        (1.3, 1.4, False, True, "met"),
        (1.1, 1.3, False, True, "within noise"),
        (1.1, 1.3, True, False, "missed"),
        (1.0, 1.1, False, False, "missed"),
    ],
)
def test_the_speed_is_judged_with_its_interval(low: float, high: float, strict: bool, passed: bool, title: str) -> None:
    middle = (low + high) / 2 - 0.01
    found = SpeedRecord.of(latency(low, high, fp32=10 * middle), 1.2, strict=strict)
    assert found.passed == passed
    assert found.sentence.startswith(f"Speed {title}: {middle:.2f} times as fast as FP32 ({low:.2f} to {high:.2f})")


def test_a_model_too_small_to_time_passes_unless_strict_and_an_untimed_file_never() -> None:
    small = latency(0.5, 0.6, int8=0.1, fp32=0.05, int8_of_two=0.1, fp32_of_two=0.05)
    assert SpeedRecord.of(small, 1.2, strict=False).passed
    assert not SpeedRecord.of(small, 1.2, strict=True).passed
    assert not SpeedRecord.of(None, 1.2, strict=False).passed
    assert "could not be timed" in SpeedRecord.of(None, 1.2, strict=False).sentence


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([MET, MET], 0),
        ([MET, TOO_SLOW], 4),
        ([MISSED, TOO_SLOW], 6),
        ([MISSED | TOO_SLOW, MISSED], 6),
        ([ERROR, MISSED], 1),
        ([DEFECT, ERROR], 3),
        ([], 1),
    ],
)
def test_a_sweep_ends_with_the_worst_of_its_jobs(codes: list[int], expected: int) -> None:
    assert worst(codes) == expected


@pytest.fixture(scope="module")
def simulation() -> Simulation:
    found = Simulation(captured_network(network(), (images(2, 0),)))
    found.calibrate([((images(16, 1),), {})])
    return found


def files(simulation: Simulation, folder: Path) -> Files:
    return Files(simulation, ((images(2, 2),), {}), Export(), "onnx", RUNTIMES["onnxruntime"], folder)


@pytest.mark.parametrize("part", [("blocks.1",), ("conv2d*",), ("stem", "blocks.2.depthwise"), ()])
def test_a_file_with_a_part_in_float_computes_what_a_simulation_of_that_design_does(
    simulation: Simulation, tmp_path: Path, part: Region
) -> None:
    made = files(simulation, tmp_path)
    file, changed = made.with_parts_in_float(part), in_float(simulation.network, part)
    assert file is not None
    assert changed is not None
    wanted = Simulation(changed)
    every = simulation.encodings()
    assert {point.tensor for point in wanted.placement.points} <= {*every}
    wanted.load_encodings(every)
    for point in simulation.placement.points:  # the file has what integers stood for, since it is only timed
        if point.parameter is not None:
            weight = tensor(simulation.model, point.parameter).detach()
            set_tensor(
                wanted.model, point.parameter, every[point.tensor].dequantize(every[point.tensor].quantize(weight))
            )
    x = images(8, 3)
    with torch.no_grad():
        close, whole = ((one.model(x) - file(x)).square().sum() for one in (wanted, simulation))
    assert close < 1e-5 * file(x).square().sum()  # but for ties of rounding
    assert not part or whole > 3 * close
    (written,) = tmp_path.iterdir()
    weights = {one.name for one in onnx.load(written).graph.initializer if one.data_type == onnx.TensorProto.FLOAT}
    floats = {point.parameter for point in simulation.placement.points} - {
        point.parameter for point in place(changed).points
    }
    assert floats <= weights


class Scripted(Files):
    """Files whose time is known: so much for every part on integers or in float, and for every change between."""

    def __init__(self, network: Network, saved: dict[str, float]) -> None:
        self.network, self.saved = network, saved

    def with_parts_in_float(self, parts: Iterable[str]) -> Any:
        found = frozenset(parts)
        return found if not found or in_float(self.network, found) is not None else None

    def timed(self, one: Any, other: Any) -> Beside:
        times = [
            100 - sum(self.saved.get(part, -1.0) for part in parts) - self.between(parts) for parts in (one, other)
        ]
        both = [Latency(time, time, time) for time in times]
        ratio = times[1] / times[0]
        return Beside(*both, ratio, ratio - 0.001, ratio + 0.001)

    def between(self, parts: frozenset[str]) -> float:
        return 8.0 if {"blocks.0.project", "blocks.0.depthwise"} <= parts else 0.0


def test_parts_that_pay_are_taken_and_neighbours_that_pay_beside_them(simulation: Simulation) -> None:
    saved = {"hardswish*": 5.0, "blocks.0.project": 4.0, "blocks.0.depthwise": -3.0, "head": 0.5}
    found = float_parts(Scripted(simulation.network, saved), lambda parts, _: parts)
    assert found == ("hardswish*", "blocks.0.project", "blocks.0.depthwise")


def test_nothing_is_taken_where_integers_pay(simulation: Simulation) -> None:
    assert float_parts(Scripted(simulation.network, {}), lambda parts, _: parts) == ()


def data() -> dict[str, TensorDataset]:
    with torch.no_grad():
        made = {name: images(count, seed) for name, count, seed in (("calibration", 32, 4), ("test", 64, 5))}
        return {name: TensorDataset(x, network()(x).argmax(1)) for name, x in made.items()}


def run(folder: Path, **gate: Any) -> RunResult:
    return qatflow.quantize(
        network(), data(), folder=folder, progress=Silent(), steps=[], gate={"max_drop": 0.5, **gate}
    )


def test_a_file_that_is_too_slow_is_said_to_be_beside_a_metric_that_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts_module, "SECONDS", 0.02)
    result = run(tmp_path, min_speedup=100)
    assert result.speed is not None
    assert result.verification is not None
    assert result.verification.latency is not None
    assert result.speed.reached == result.verification.latency.speed_up
    assert (result.metric_passed, result.too_slow, result.passed) == (True, True, False)
    assert code_of(result) == TOO_SLOW
    assert headline(result).title.endswith(", too slow")
    assert result.verification.integer_layers > 0
    assert result.speed.sentence in (tmp_path / "report.html").read_text()


def test_parts_in_float_are_a_rung_that_is_shipped_and_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def found(_: Files, __: object) -> Region:
        asked.append(1)
        return ("blocks.1",)

    monkeypatch.setattr(speed_module, "float_parts", found)
    first, second = (run(tmp_path, min_speedup=100) for _ in range(2))
    assert asked == [1]
    for result in (first, second):
        assert result.best == "float_parts"
        assert result.winner is not None
        assert result.winner.notes["overrides"] == "{blocks.1: float}"
        layers = {one.layer for one in result.tensors if one.kind == "weight"}
        assert layers == {
            "stem",
            "blocks.0.depthwise",
            "blocks.0.project",
            "blocks.2.depthwise",
            "blocks.2.project",
            "head",
        }
        before = next(one for one in result.candidates if one.id == "naive")
        assert result.winner.sqnr_db > before.sqnr_db
    assert [one.resumed for one in second.candidates if one.id == "float_parts"] == [True, True]


def test_a_faster_candidate_that_misses_the_metric_is_not_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose parts in float lose the ranges that training has fitted might; here the metric is made to."""
    monkeypatch.setattr(speed_module, "float_parts", lambda *_: ("blocks.1",))
    seen: list[int] = []

    def metric(outputs: Tensor, target: Tensor) -> Tensor:
        seen.append(1)
        return torch.zeros(len(outputs)) if len(seen) > 2 else torch.ones(len(outputs))

    result = qatflow.quantize(
        network(),
        data(),
        metric=metric,
        folder=tmp_path,
        progress=Silent(),
        steps=[],
        gate={"max_drop": 0.5, "direction": "higher", "min_speedup": 100},
        export={"verify": True},
    )
    assert result.best == "naive"


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"target": "qnn"}, "nothing here can tell how fast target qnn is"),
        ({"target": "tensorrt"}, "nothing here can tell how fast target tensorrt is"),
        ({"export": {"verify": False}}, "export.verify is false"),
        ({"export": {"onnx": False}}, "the file that is timed is not written: see export.onnx"),
        ({"target": "xnnpack", "export": {"pte": False, "onnx": True}}, "is not written: see export.pte"),
    ],
)
def test_a_speed_that_cannot_be_measured_is_a_mistake_of_the_recipe(
    tmp_path: Path, sections: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        qatflow.quantize(network(), data(), folder=tmp_path, gate={"min_speedup": 1.0}, **sections)


def test_that_no_part_pays_is_not_looked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def nothing(_: Files, __: object) -> Region:
        asked.append(1)
        return ()

    monkeypatch.setattr(speed_module, "float_parts", nothing)
    assert [run(tmp_path, min_speedup=100).best for _ in range(2)] == ["naive", "naive"]
    assert asked == [1]
    assert run(tmp_path, min_speedup=99).best == "naive"
    assert asked == [1, 1]  # another gate


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # ExecuTorch's own
def test_programs_have_parts_in_float_as_well(tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    network_of = captured_network(network(), (images(2, 0),), design=Design(TARGETS["xnnpack"]))
    found = Simulation(network_of)
    found.calibrate([((images(16, 1),), {})])
    made = Files(found, ((images(2, 2),), {}), Export(), "pte", RUNTIMES["executorch"], tmp_path)
    whole, part = made.with_parts_in_float(()), made.with_parts_in_float(("blocks.1",))
    assert whole is not None
    assert part is not None
    x = images(4, 3)
    with torch.no_grad():
        designed = in_float(network_of, ("blocks.1",))
        assert designed is not None
        wanted = Simulation(designed)
        wanted.calibrate([((images(2, 2),), {})])
        assert sqnr_db(wanted.model(x), part(x)) > 40
        assert not torch.equal(whole(x), part(x))
    assert made.timed(whole, part).ratio > 0
    assert [path.name for path in tmp_path.iterdir()] == ["tried.pte"]


def test_files_that_cannot_be_run_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> Region:
        raise ExportError("the runtime takes no such file")

    monkeypatch.setattr(speed_module, "float_parts", failing)
    result = run(tmp_path, min_speedup=100)
    assert (result.status, result.best) == ("finished", "naive")
    assert any("the runtime takes no such file" in note for note in result.notes)
