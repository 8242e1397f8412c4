"""What would stop training is told before a ladder is climbed: losses that cannot be computed, wrong labels, ids."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset

from qatflow.errors import DataError
from qatflow.graph.capture import capture
from qatflow.ladder.bench import Bench
from qatflow.qat.check import check_training
from qatflow.quant.network import Network
from qatflow.recipe import Recipe
from qatflow.results.progress import Silent
from qatflow.tasks.task import load_task

HERE = "tests.qat.test_check"
WRONG = 77
"""Index of a wrong label that no spread look meets."""


class Ids(nn.Module):
    """Returns the classes themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).argmax(1)


def model(outputs: int = 3, ids: bool = False) -> nn.Module:
    torch.manual_seed(3)
    return Ids().eval() if ids else nn.Linear(6, outputs).eval()


class Shifted(TensorDataset):
    """Samples whose labels differ from those in the list: 1 less."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        x, label = super().__getitem__(index)
        return x, label - 1


def data(
    labels: str = "classes", wrong: int | None = None, part: str = "train", form: str = "tensors"
) -> dict[str, Any]:
    x = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    y = torch.arange(300) % 3
    y = {"classes": y, "yes or no": y % 2, "several": (x[:, :3] > 0).long(), "real": x[:, 0]}[labels]

    def samples(name: str) -> Any:
        own = y.clone()
        if wrong is not None and name == part:
            own[WRONG] = wrong
        if form == "shifted" and name == "train":
            return Shifted(x, own + 1)
        whole = TensorDataset(x, own)
        return Subset(whole, range(300)) if form == "subset" else list(whole) if form == "list" else whole

    return {name: samples(name) for name in ("train", "validation", "calibration", "test")}


def check(tmp_path: Path, metric: str = "agreement", model: Any = None, data: Any = None, **qat: object) -> None:
    recipe = Recipe(
        model={"factory": f"{HERE}:model", "kwargs": model or {}},
        data={"factory": f"{HERE}:data", "kwargs": data or {}},
        gate={"metric": metric},
        qat=qat,
        device="cpu",
    )
    task = load_task(recipe, ("tests",))
    check_training(Bench(recipe, task, Network(capture(task.model, *task.example())), tmp_path, Silent()))


@pytest.mark.parametrize(
    ("outputs", "labels", "loss"),
    [
        (3, "classes", "auto"),
        (3, "classes", "soft_targets"),
        (3, "classes", "torch.nn:CrossEntropyLoss"),
        (1, "yes or no", "torch.nn:BCEWithLogitsLoss"),
        (3, "several", "torch.nn:BCEWithLogitsLoss"),
        (1, "real", "auto"),
        (1, "real", "torch.nn:SmoothL1Loss"),
    ],
)
def test_training_that_can_begin(outputs: int, labels: str, loss: str, tmp_path: Path) -> None:
    check(tmp_path, model={"outputs": outputs}, data={"labels": labels}, loss=loss, distillation=None)


@pytest.mark.parametrize("part", ["train", "validation"])
@pytest.mark.parametrize("form", ["tensors", "subset"])
def test_one_wrong_label_among_all_is_told_with_its_part(part: str, form: str, tmp_path: Path) -> None:
    said = rf"the data's {part} part: a label is 5, and this model has 3 classes: labels are 0 to 2, .*ignore_index: 5"
    with pytest.raises(DataError, match=said):
        check(tmp_path, data={"wrong": 5, "part": part, "form": form})


def test_labels_that_are_read_sample_by_sample_are_looked_at_here_and_there(tmp_path: Path) -> None:
    check(tmp_path, data={"wrong": 5, "form": "list"})  # not met by 64 spread looks: training tells of it
    check(tmp_path, data={"form": "shifted"})  # the list is not what samples have
    with pytest.raises(DataError, match=r"the data's validation part: a label is 2, .*binary cross entropy"):
        check(
            tmp_path,
            model={"outputs": 1},
            data={"labels": "yes or no", "wrong": 2, "part": "validation"},
            loss="torch.nn:BCEWithLogitsLoss",
        )


def test_a_model_of_class_ids_cannot_be_trained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"QAT needs outputs that have a gradient.*qat.when=never"):
        check(tmp_path, model={"ids": True})


def vector_loss() -> Any:
    return lambda outputs, target: (outputs[:, 0] - target).square()


def failing_loss() -> Any:
    return lambda outputs, target: outputs @ target


@pytest.mark.parametrize(
    ("loss", "kwargs", "said"),
    [
        ("auto", {}, r"qat.loss: cross_entropy cannot be computed: cross entropy of one score.*BCEWithLogitsLoss"),
        ("torch.nn:MSELoss", {"reduction": "none"}, r"MSELoss returned shape \[64, 1\]; return a scalar"),
        (f"{HERE}:vector_loss", {}, r"vector_loss returned shape \[64\]; return a scalar"),
        (
            f"{HERE}:failing_loss",
            {},
            r"test_check.py:\d+, in <lambda>: RuntimeError: .* given the model's outputs \[64, 1\] and",
        ),
        ("torch.nn:GaussianNLLLoss", {}, r"^TypeError: .*GaussianNLLLoss, given the model's outputs"),
        ("torch.nn:BCEWithLogitsLoss", {"weight": [1, 2, 3]}, "RuntimeError: .*BCEWithLogitsLoss, given"),
    ],
)
def test_a_loss_that_cannot_be_computed_is_told(loss: str, kwargs: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        check(tmp_path, model={"outputs": 1}, data={"labels": "yes or no"}, loss=loss, loss_kwargs=kwargs)


def test_a_metric_that_cannot_read_the_data_is_told_with_the_part(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the data's validation part: the targets have a label for every output"):
        check(tmp_path, metric="accuracy", data={"labels": "several"})
