"""`python -m qatflow.inspect`: what it shows, and its exit codes."""

from pathlib import Path

import pytest

from qatflow.door import cli
from qatflow.door.inspection import inspect_recipe
from qatflow.errors import DataError
from qatflow.inspect import main
from qatflow.recipe import Recipe
from qatflow.report.read import read_result


def shown(capsys: pytest.CaptureFixture[str], *argv: str) -> list[str]:
    assert main(list(argv)) == 0
    return capsys.readouterr().out.splitlines()


def test_it_shows_layers_chains_tensors_and_what_stays_in_float(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = shown(capsys, "recipe=quickstart", "precision.overrides={stem: float, head.*: w4}")
    assert lines[0] == "DigitsMobileNet: 42,298 parameters, 20 weighted layers, 19 quantized"
    assert "Layers (20)" in lines
    assert (
        "  stem.conv                conv                24x1x3x3    precision.overrides['stem'] leaves it in float"
        in lines
    )
    (chains,) = [line for line in lines if line.startswith("Chains")]
    assert chains == "Chains that equalize would take (13)"
    assert "  blocks.1.expand.conv -> relu_2 -> blocks.1.depthwise.conv" in lines
    (head,) = [line.split() for line in lines if line.startswith("  head.conv.weight")]
    assert head == ["head.conv.weight", "weight", "int4", "symmetric,", "per", "tensor"]
    assert lines[-1].split()[:2] == ["linear", "linear"]
    assert list(tmp_path.iterdir()) == []


def test_it_shows_the_graph_as_captured_without_folding(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, "recipe=tiny", "steps=[]", "target=qnn")
    assert "batch norms are not folded" in lines
    assert "target qnn: quantizers stand at each tensor's producer, biases are int32 at export" in lines


def test_the_bits_of_set_precision_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, "recipe=tiny", "steps=[set_precision]", "steps.set_precision.layers={head: float, x: a4}")
    assert "design: W8A8, head float, x a4, ranges by sqnr" in lines
    told = [line for line in lines if "steps.set_precision" in line or "'head'" in line]
    assert any("precision.overrides['head'] leaves it in float" in line for line in told)


def test_the_best_candidate_of_a_run_is_shown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    steps = ["steps=[fold_batch_norms,set_precision]", "steps.set_precision.layers={head: w4}", "ladder.stop=end"]
    line = ["recipe=tiny", f"run.dir={tmp_path}", "export.verify=false", "report=tables", "gate.max_drop=1", *steps]
    before = shown(capsys, *line)
    assert "design: W8A8, head w4, ranges by sqnr" in before
    cli.main([*line])
    capsys.readouterr()
    best = read_result(tmp_path).best
    after = shown(capsys, *line)
    stated = "W8A8, head w4, ranges by sqnr" if best == "set_precision" else "W8A8, ranges by sqnr"
    assert f"design: {stated}, as the best candidate of the run has it" in after


def test_mistakes_are_told_as_a_run_tells_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe=tiny", "precision.overrides={steem: float}"]) == 1
    assert (
        "precision.overrides['steem']: matches no layer and no tensor; did you mean 'stem'?" in capsys.readouterr().err
    )
    assert main(["recipe=tiny", "target=qn", "precision.bits=4"]) == 1
    told = capsys.readouterr().err
    assert "target: 'qn' is not an option; did you mean 'qnn'?" in told
    assert "precision.bits: unknown key" in told
    assert main(["-m", "recipe=tiny"]) == 1


def test_without_a_recipe_it_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys)
    assert lines[0].startswith("`python -m qatflow.inspect recipe=NAME ...`")
    assert any(line.split()[:1] == ["quickstart"] for line in lines)


def test_a_mask_that_is_no_input_is_told_before_work_starts() -> None:
    recipe = Recipe(model={"name": "digits_mobilenet"}, data={"name": "digits", "mask": "valid"})
    with pytest.raises(DataError, match=r"data\.mask: 'valid' cannot say which positions count: the model has no such"):
        inspect_recipe(recipe)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["target=onnxruntime"], None),
        (["precision=w4a8"], None),
        (["precision=w4a4"], "target onnxruntime has no integer kernels for 4-bit activations, which all have here"),
        (["precision=w4a4", "target=openvino"], "target openvino has no integer kernels for 4-bit activations"),
        (["precision=w8a16"], "a8 in first_layer, last_layer and overrides), or target: qnn"),
        (["precision=w8a16", "target=qnn"], None),
        (["precision.first_layer=a4"], "which 2 of 24 (x, stem.activation) have here"),
        (["precision.last_layer=w16"], "16-bit weights, which 1 of 20 (classifier) have here"),
        (["precision.overrides={head: a3}"], "for integers write precision.activations: 8"),
        (["precision.overrides={head: w16a8}", "target=xnnpack"], "target xnnpack has no integer kernels for 16-bit"),
    ],
)
def test_bits_without_integer_kernels_are_told_before_a_run(
    overrides: list[str], said: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = [line for line in shown(capsys, "recipe=tiny", *overrides) if line.startswith("note: ")]
    assert len(notes) == (said is not None)
    assert said is None or said in notes[0]


def test_the_run_of_another_model_is_told_to_be_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its weights would fit nothing."""
    line = ["recipe=tiny", f"run.dir={tmp_path}", "steps=[]", "qat=never", "report=tables", "export.verify=false"]
    assert cli.main(line) == 0
    assert main(["recipe=quickstart_qat", f"run.dir={tmp_path}"]) == 1
    said = capsys.readouterr().err
    assert f"the run in {tmp_path} is of another model" in said
    assert f"recipe={tmp_path / 'recipe.yaml'}" in said
