"""Awkward models: captured if they can be, else told with the user's line, what is the matter and the mend."""

import re
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from qatflow.errors import CaptureError, UserCodeError
from qatflow.graph.capture import capture
from tests.graph import awkward

SOURCE = Path(awkward.__file__).read_text().splitlines()

REFUSED = {
    awkward.DecidesByValues: ("if x.sum() > 0:", "depends on the values of a tensor", "torch.where"),
    awkward.LoopsUntil: ("while x.abs().max() > 1:", "depends on the values of a tensor", "torch.where"),
    awkward.TakesANumber: ("float(x.abs().max())", "depends on the values of a tensor", "move the part out"),
    awkward.UsesNumPy: ("x.detach().numpy().mean()", "a tensor leaves PyTorch", "torch functions"),
    awkward.ViewsTwoSamples: ("x.view(2, 4)", "batch size is taken for a fixed number", "write -1"),
    awkward.AddsAParameterPerSample: ("x + self.per_sample", "batch size is taken for a fixed number", "do not mix"),
    awkward.LoopsOverSamples: ("range(int(x.shape[0]))", "batch size is taken for a fixed number", "do not loop"),
    awkward.IsRandom: (None, "two calls with the same input differ", "random"),
    awkward.Counts: (None, "forward changes calls in evaluation mode", "leave it out"),
    awkward.ReturnsADataclass: (None, "neither a tensor nor a tuple", "register_dataclass"),
    awkward.HasAScriptedPart: (None, "is TorchScript", "Python classes"),
}
CAPTURED = (
    awkward.ChangesItsInput,
    awkward.TakesAnything,
    awkward.PicksRows,
    awkward.ReturnsText,
    awkward.FillsACache,
    awkward.TransformsComplexNumbers,
)


def built(model: type[nn.Module]) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit.script
        return model()


@pytest.mark.parametrize("model", REFUSED, ids=lambda model: model.__name__)
def test_refused_with_line_matter_and_mend(model: type[nn.Module], capfd: pytest.CaptureFixture[str]) -> None:
    code, matter, mend = REFUSED[model]
    with pytest.raises(CaptureError) as caught:
        capture(built(model), (torch.randn(2, 4),))
    said = str(caught.value)
    assert model.__name__ in said
    assert matter in said
    assert mend in said
    assert "\n" not in said
    if code is not None:
        (number,) = [i for i, line in enumerate(SOURCE, 1) if code in line]
        assert re.search(rf" at \S*awkward\.py:{number} \(`.*{re.escape(code)}", said), said
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("model", CAPTURED, ids=lambda model: model.__name__)
def test_captured_all_the_same(model: type[nn.Module]) -> None:
    module = model().eval()
    graph = capture(module, (torch.randn(2, 4),))
    for size in (1, 3):
        x = torch.randn(size, 4)
        x[0, 0] = 1.0
        wanted, got = (pytree.tree_leaves(run(x.clone())) for run in (module, graph))
        for a, b in zip(wanted, got, strict=True):
            assert torch.allclose(a, b, atol=1e-6) if isinstance(a, torch.Tensor) else a == b


def test_a_model_that_fails_itself_is_told_with_its_inputs_and_line() -> None:
    said = r"^/\S*awkward.py:\d+, in forward: .*2x4 and 5x4.*\(WantsFiveColumns, given x: float32 \[2, 4\]\)$"
    with pytest.raises(UserCodeError, match=said):
        capture(awkward.WantsFiveColumns(), (torch.randn(2, 4),))


def test_inputs_of_the_wrong_type_are_told() -> None:
    with pytest.raises(UserCodeError, match=r"same dtype.*check shape and type .*input: uint8 \[2, 4\]"):
        capture(nn.Linear(4, 4), (torch.zeros(2, 4, dtype=torch.uint8),))


def test_a_whole_torchscript_model_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        scripted = torch.jit.script(nn.Linear(4, 4))
    with pytest.raises(CaptureError, match=r"TorchScript.*build the model from its Python classes"):
        capture(scripted, (torch.randn(2, 4),))
