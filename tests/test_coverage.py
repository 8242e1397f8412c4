"""A part of `python -m benchmarks.coverage`: real architectures, from capture to the simulation of every target."""

from pathlib import Path

import pandas as pd
import pytest

from benchmarks.coverage import Row, judge, main, markdown, table
from benchmarks.small import SMALL
from benchmarks.zoo import ZOO

pytestmark = pytest.mark.filterwarnings("default")  # of the libraries that the models come from

QUICK = [*SMALL, "bert", "distilbert", "vit", "wav2vec2"]
SLOW = [
    "mobilenetv3_small_100",
    "shufflenet_v2_x0_5",
    "swinv2_cr_tiny_ns_224",
    "nfnet_f0",
    "EfficientNet-Lite0 (real weights)",
    "all-MiniLM-L6-v2 (real weights)",
]


def assert_green(name: str) -> Row:
    row = judge(name, ZOO[name])
    assert row.green, row
    return row


@pytest.mark.parametrize("name", QUICK)
def test_small_models_are_green(name: str) -> None:
    row = assert_green(name)
    quantized, found = row.layers.split(" / ")
    assert quantized == found
    assert min(row.sqnr_db.values()) > 10


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_larger_models_are_green(name: str) -> None:
    assert_green(name)


def test_an_lstm_stays_in_float_and_is_listed() -> None:
    assert "lstm" in judge("lstm", ZOO["lstm"]).left_in_float


def test_a_model_that_fails_says_why_and_is_not_green() -> None:
    def broken() -> object:
        raise RuntimeError("no such model")

    row = judge("broken", ZOO["lstm"].__class__("nowhere", broken, ZOO["lstm"].inputs))
    assert (row.green, row.captured, row.why) == (False, False, "RuntimeError: no such model")


def test_the_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "two inputs, dict output", "--out", str(tmp_path)]) == 0
    written = pd.read_csv(tmp_path / "coverage.csv")
    assert list(written["model"]) == ["two inputs, dict output"]
    assert bool(written["green"][0])
    assert (tmp_path / "coverage.md").read_text().splitlines()[2] in capsys.readouterr().out
    assert "**no**" in markdown(table([Row("a|b", "small", why="because")]))


def test_unknown_models_are_told() -> None:
    with pytest.raises(SystemExit):
        main(["--only", "resnet"])
