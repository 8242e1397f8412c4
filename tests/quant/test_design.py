"""A design: a frozen value that says how a network is quantized, and comes back from its record."""

import json
from dataclasses import FrozenInstanceError

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from qatflow.quant.design import Design
from qatflow.quant.prepare import captured_network
from qatflow.quant.simulation import Simulation
from qatflow.quant.targets import TARGETS
from qatflow.recipe import Calibration, LayerPrecision, Precision
from qatflow.results.result import DesignRecord

FLOAT, A16, W4 = LayerPrecision(quantized=False), LayerPrecision(activations=16), LayerPrecision(weights=4)
RICH = Design(
    TARGETS["qnn"],
    Precision.model_validate(
        {
            "weights": 4,
            "activations": 16,
            "per_channel": False,
            "weights_symmetric": False,
            "first_layer": "w8a16",
            "last_layer": "float",
            "overrides": {"a.*": "a16", "b": "float", "relu_1": "a8_per_tensor"},
        }
    ),
    Calibration(samples=64, activations="percentile", weights="minmax", percentile=99.5),
    {"relu": "minmax", "add_1": "entropy"},
)


def test_without_a_word_it_is_eight_bits_for_onnx_runtime() -> None:
    design = Design()
    assert (design.target.name, design.precision, design.calibration) == ("onnxruntime", Precision(), Calibration())
    assert design.ranges == {}
    with pytest.raises(FrozenInstanceError):
        design.precision = Precision(weights=4)  # type: ignore[misc]


@pytest.mark.parametrize("target", TARGETS)
def test_its_record_gives_it_back(target: str) -> None:
    for design in (Design(TARGETS[target]), Design(TARGETS[target], RICH.precision, RICH.calibration, RICH.ranges)):
        text = json.dumps(design.to_record().model_dump(mode="json"), allow_nan=False)
        assert Design(TARGETS[target]).from_record(json.loads(text)) == design
        assert DesignRecord.model_validate_json(text) == design.to_record()


def test_the_order_of_overrides_comes_back_too() -> None:
    """A later pattern counts more: sorted, the layers would get other bits."""
    design = Design().with_overrides({"z": W4, "a": A16, "m.*": FLOAT})
    stored = json.loads(json.dumps(design.to_record().model_dump(mode="json")))
    assert list(Design().from_record(stored).precision.overrides) == ["z", "a", "m.*"]


def test_a_record_of_another_target_or_a_damaged_one_is_refused() -> None:
    record = RICH.to_record().model_dump(mode="json")
    with pytest.raises(ValueError, match=r"^a design for target qnn is none for target tensorrt$"):
        Design(TARGETS["tensorrt"]).from_record(record)
    for harm in ({"precision": {"weights": 99}}, {"ranges": {"x": "guess"}}, {"calibration": None}, {"more": 1}):
        with pytest.raises(ValidationError):
            RICH.from_record({**record, **harm})


def test_new_overrides_count_more_than_those_before() -> None:
    first = Design().with_overrides({"a": W4, "b": W4})
    second = first.with_overrides({"a": FLOAT, "c": A16})
    assert list(second.precision.overrides.items()) == [("b", W4), ("a", FLOAT), ("c", A16)]
    assert list(first.precision.overrides.items()) == [("a", W4), ("b", W4)]
    assert second.with_overrides({}) == second


def test_found_by_changes_the_ways_that_are_given_and_no_other() -> None:
    assert RICH.found_by() == RICH
    assert RICH.found_by(activations="sqnr").calibration == RICH.calibration.model_copy(update={"activations": "sqnr"})
    assert RICH.found_by(weights="sqnr").calibration == RICH.calibration.model_copy(update={"weights": "sqnr"})
    assert RICH.found_by(activations="sqnr").ranges == RICH.ranges
    assert RICH.found_by(ranges={}).ranges == {}
    changed = RICH.found_by("minmax", "sqnr", {"x": "sqnr"})
    assert (changed.target, changed.precision) == (RICH.target, RICH.precision)
    assert (changed.calibration.samples, changed.calibration.percentile) == (64, 99.5)


def test_a_tensor_may_have_a_way_of_its_own() -> None:
    assert RICH.calibration_of("relu").activations == "minmax"
    assert RICH.calibration_of("add_1").percentile == 99.5
    assert RICH.calibration_of("another") is RICH.calibration


def test_the_simulation_finds_the_range_of_that_tensor_by_it() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x = torch.randn(64, 6)
    network = captured_network(model, (x[:2],), design=Design().found_by("percentile"))

    def scales(design: Design) -> dict[str, float]:
        simulation = Simulation(network.designed(design))
        simulation.calibrate([((x,), {})])
        return {point.tensor: float(simulation.encodings()[point.tensor].scale.max())
                for point in simulation.placement.points if point.parameter is None}  # fmt: skip

    clipped = Design(calibration=Calibration(activations="percentile", percentile=80))
    plain, widest = scales(clipped), scales(clipped.found_by("minmax"))
    assert {"relu", "relu_1"} <= plain.keys()
    assert all(widest[name] > 1.2 * plain[name] for name in ("relu", "relu_1"))
    one = scales(clipped.found_by(ranges={"relu_1": "minmax"}))
    assert one == {**plain, "relu_1": one["relu_1"]}
    assert one["relu_1"] == pytest.approx(widest["relu_1"], rel=0.2)


def test_its_sentence_says_what_differs() -> None:
    assert Design().to_record().sentence == "W8A8, ranges by sqnr"
    assert RICH.to_record().sentence == (
        "W4A16 per tensor, first layer w8a16, last layer float, a.* a16, b float, relu_1 a8_per_tensor, "
        "ranges by percentile, of 2 by others, weights' by minmax"
    )
