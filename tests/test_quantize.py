"""`qatflow.quantize`: the whole run on live objects, resumed where they can be told to be the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)
from torchmetrics.classification import MulticlassF1Score

import qatflow
from qatflow.errors import DataError, RecipeError
from qatflow.ladder import tensor_records
from qatflow.results.progress import Silent
from qatflow.tasks.live import live_splits


class Told(Silent):
    """Remembers notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).train()


def samples(count: int, seed: int) -> TensorDataset:
    """Return inputs with FP32's own answers, so that its accuracy is 1."""
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return TensorDataset(x, network()(x).argmax(1))


def parts(*names: str) -> dict[str, Any]:
    return {name: samples(64, seed) for seed, name in enumerate(("calibration", "test", *names))}


def right(outputs: Tensor, target: Tensor) -> Tensor:
    return (outputs.argmax(1) == target).float()


FAST: Any = {"report": {"html": False}, "export": {"verify": False}}
"""What most of these runs need not write."""
UP = {"max_drop": 0.2, "direction": "higher"}


def test_a_whole_run_on_live_objects(tmp_path: Path) -> None:
    model, folder = network(), tmp_path / "run"
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = qatflow.quantize(model, parts(), folder=folder, progress=Silent(), gate="5%", steps=[])
    assert (result.status, result.folder, result.fp32, result.passed) == ("finished", folder, 1.0, True)
    assert [one.id for one in result.candidates] == ["fp32", "naive", "naive", "deployed"]
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    for name in ("report.html", "export/model.onnx", "recipe.yaml", "results.csv", "log.txt"):
        assert (folder / name).stat().st_size > 0
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert (recipe["model"]["factory"], recipe["gate"]["max_drop"], recipe["qat"]["when"]) == (
        "live:Sequential",
        "5%",
        "never",
    )
    assert result.command == f"qatflow.quantize(..., folder={str(folder)!r})"


def test_a_second_call_goes_on_from_the_first(tmp_path: Path) -> None:
    def run(model: nn.Module, metric: Any) -> list[bool]:
        result = qatflow.quantize(
            model, parts(), metric=metric, gate=UP, folder=tmp_path, progress=Silent(), steps=["equalize"], **FAST
        )
        return [one.resumed for one in result.candidates if one.stage == "ptq"]

    assert not any(run(network(), right))
    assert all(run(network(), right))
    other = network()
    with torch.no_grad():
        other[0].weight.mul_(1.01)
    assert not any(run(other, right))
    assert not any(run(network(), lambda outputs, target: 1 - right(outputs, target)))


def test_a_metric_that_cannot_be_told_is_measured_anew_and_that_is_said(tmp_path: Path) -> None:
    def made() -> Any:
        handle = open(__file__)  # noqa: SIM115, PTH123 - an object without a text of its own
        handle.close()
        return lambda outputs, target, fp32: right(outputs, target) if handle else None

    for _ in range(2):
        told = Told()
        result = qatflow.quantize(
            network(), parts(), metric=made(), gate=UP, folder=tmp_path, progress=told, steps=[], **FAST
        )
        assert not any(one.resumed for one in result.candidates)
        assert any("the metric function holds what has no text of its own" in note for note in told.notes)


def test_torchmetrics_loaders_a_loss_and_training(tmp_path: Path) -> None:
    calls = []

    def loss(outputs: Tensor, target: Tensor) -> Tensor:
        calls.append(len(outputs))
        return nn.functional.cross_entropy(outputs, target)

    metric = MulticlassF1Score(3, average="macro")
    every = parts("train", "validation").items()
    loaders = {name: DataLoader(part, batch_size=16, shuffle=True) for name, part in every}
    result = qatflow.quantize(
        network(),
        loaders,
        metric=metric,
        loss=loss,
        precision="w2a4_per_tensor",
        steps=[],
        qat={"when": "always", "range_learning": True},
        search={"max_trials": 1, "epochs": [1, 1], "lr": [1e-3, 1e-3]},
        ladder={"judge": False},
        folder=tmp_path,
        progress=Silent(),
        **FAST,
    )
    assert result.gate is not None
    assert result.gate.metric == "F1"
    assert [trial.state for trial in result.trials] == ["complete"]
    assert max(calls) == 16  # the loaders' batch size
    assert metric.update_count == 0  # the user's own object has seen nothing
    assert set(result.frames) == {"results", "layers", "trials", "epochs", "float_tensors"}
    assert list(result.frames["trials"]["number"]) == [0]


def collated(batch: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor] | Any:
    """Stack in a way of one's own: scaled inputs."""
    return torch.stack([x * 2 for x, _ in batch]), torch.stack([y for _, y in batch])


def test_a_loader_with_its_own_collate_is_taken_apart(tmp_path: Path) -> None:
    data = {name: DataLoader(part, batch_size=24, collate_fn=collated) for name, part in parts().items()}
    doubled = network()
    with torch.no_grad():
        doubled[0].weight.div_(2)
    result = qatflow.quantize(doubled, data, folder=tmp_path, progress=Silent(), steps=[], **FAST)
    assert (result.fp32, result.candidates[0].samples) == (1.0, 64)


def some_right(outputs: Tensor, target: Tensor, scale: float = 0.5) -> Tensor:
    return right(outputs, target) * scale


class Right(nn.Module):
    def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
        return right(outputs, target)


def same_as(outputs: Tensor, target: Tensor, fp32_outputs: Tensor | None = None) -> Tensor:
    assert fp32_outputs is not None
    return (outputs.argmax(1) == fp32_outputs.argmax(1)).float()


@pytest.mark.parametrize(("metric", "fp32"), [(some_right, 0.5), (Right(), 1.0), (same_as, 1.0)])
def test_an_option_of_a_metric_is_not_given_the_fp32_outputs(metric: Any, fp32: float, tmp_path: Path) -> None:
    result = qatflow.quantize(
        network(), parts(), metric=metric, gate=UP, folder=tmp_path, progress=Silent(), steps=None, **FAST
    )
    assert result.fp32 == fp32


def test_loaders_that_choose_are_judged_on_what_they_give(tmp_path: Path) -> None:
    whole, chosen = samples(200, 1), torch.arange(50)
    loaders = {
        "sampler": DataLoader(whole, batch_size=16, sampler=SubsetRandomSampler(chosen.tolist())),
        "order": DataLoader(whole, batch_size=16, sampler=SequentialSampler(chosen)),
        "number": DataLoader(whole, batch_size=16, sampler=RandomSampler(whole, num_samples=50)),
        "batches": DataLoader(whole, batch_sampler=[list(range(25)), list(range(25, 50))]),
        "samples": DataLoader(Subset(whole, chosen.tolist()), batch_size=None),
        "all": DataLoader(whole, batch_size=16, shuffle=True),
    }
    counts = {
        name: len(live_splits({"calibration": samples(8, 0), "test": loader}).test) for name, loader in loaders.items()
    }
    assert counts == {**dict.fromkeys(loaders, 50), "all": 200}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": nn.Linear}, "model: Linear is a class"),
        ({"model": lambda x: x}, "model: it is a function"),
        ({"metric": Right}, "metric: Right is a class"),
        ({"metric": 3}, "metric: int is neither a name nor a function"),
        ({"loss": nn.CrossEntropyLoss}, "loss: CrossEntropyLoss is a class"),
        ({"steps": ["equalize", "equalize"]}, "steps: 'equalize' is there twice"),
        ({"steps": [{"adaround": {}}]}, r"steps: \{'adaround': \{\}\} is not a name"),
        ({"data": []}, "data is a list; give its parts"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_objects_of_the_wrong_kind_are_sentences(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    every = {"model": network(), "data": parts(), "folder": tmp_path / "none", **given}
    with pytest.raises((RecipeError, DataError), match=said):
        qatflow.quantize(**every)
    assert not (tmp_path / "none").exists()


def test_short_forms_and_a_model_in_doubles(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)).double()
    x = torch.randn(64, 1, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        target = model(x).argmax(1)
    data = {"calibration": TensorDataset(x[:32], target[:32]), "test": TensorDataset(x[32:], target[32:])}
    report = {"html": False}
    result = qatflow.quantize(
        model, data, steps="equalize", qat="never", gate="50%", folder=tmp_path, progress=Silent(), report=report
    )
    assert result.verification is not None
    assert result.verification.agreement == 1.0
    assert result.verification.latency is not None
    assert [one.stage for one in result.candidates][-1] == "deployed"
    assert qatflow.read_result(str(tmp_path)).fp32 == result.fp32 == 1.0


def test_all_mistakes_are_sentences_with_near_matches(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as raised:
        qatflow.quantize(
            network(), parts(), gaet=1, target="onxruntime", precision="w99", steps=["equalise"], metric="acuracy",
            folder=tmp_path / "none",
        )  # fmt: skip
    told = [str(mistake) for mistake in raised.value.mistakes]
    assert [line.partition(":")[0] for line in told] == ["gaet", "target", "precision", "steps.equalise", "gate.metric"]
    for line, close in zip(told, ("gate", "onnxruntime", "", "equalize", "accuracy"), strict=True):
        assert f"did you mean {close!r}?" in line or not close
    assert not (tmp_path / "none").exists()
    with pytest.raises(DataError, match=r"a part called 'tset'.*did you mean 'test'"):
        qatflow.quantize(network(), {"calibration": samples(8, 0), "tset": samples(8, 1)})


def test_what_needs_other_processes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"search.workers: 2 processes cannot share objects of a Python session"):
        qatflow.quantize(network(), parts("train", "validation"), search={"workers": 2}, folder=tmp_path / "none")


def test_a_live_recipe_cannot_be_run_by_its_file(tmp_path: Path) -> None:
    from qatflow.recipe.check import check

    qatflow.quantize(network(), parts(), folder=tmp_path, progress=Silent(), steps=[], **FAST)
    _, mistakes = check(yaml.safe_load((tmp_path / "recipe.yaml").read_text()))
    assert [one.path for one in mistakes] == ["model.factory", "data.factory"]
    assert "'live:Sequential' was an object of a Python session" in str(mistakes[0])


def test_a_result_shows_itself(tmp_path: Path) -> None:
    result = qatflow.quantize(network(), parts(), name="tiny", gate=0.1, folder=tmp_path, progress=Silent(), **FAST)
    assert repr(result).startswith("<RunResult tiny: gate met; naive: accuracy ")
    assert repr(result).endswith(f"; in {tmp_path}>")
    assert str(result) == repr(result)
    html = result._repr_html_()
    assert html.count("<tr>") == 1 + len(result.candidates)
    assert "W8A8" in html
    again = qatflow.read_result(tmp_path)
    assert again.folder == tmp_path
    assert again == result == again.in_folder(tmp_path / "elsewhere")
    assert "folder" not in again.model_dump()
    assert str(tmp_path) not in again.model_copy(update={"command": ""}).model_dump_json()
    assert "_folder" not in (tmp_path / "result.json").read_text()


def test_dir_shows_the_public_names_only() -> None:
    assert dir(qatflow) == sorted(qatflow.__all__)
    assert all(getattr(qatflow, name) is not None for name in dir(qatflow))


def test_no_run_ends_because_costs_cannot_be_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where gradients have no room; the next start tries again."""
    asked = []

    def failing(*_: object) -> dict[str, float]:
        asked.append(1)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(tensor_records, "estimated", failing)
    for count in (1, 2):
        result = qatflow.quantize(network(), parts(), folder=tmp_path, progress=Silent(), steps=[], gate=UP, **FAST)
        assert (result.status, len(asked)) == ("finished", count)
        assert {one.output_sqnr_db for one in result.tensors} == {None}
        assert any("out of memory" in note for note in result.notes)
