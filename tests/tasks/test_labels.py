"""Labels of whole datasets, and a part none of whose labels counts."""

import pytest
import torch
from torch.utils.data import Subset, TensorDataset

from qatflow.errors import DataError
from qatflow.tasks.data import Batch
from qatflow.tasks.evaluate import Evaluator
from qatflow.tasks.labels import all_labels, read_labels
from qatflow.tasks.metrics import METRICS
from qatflow.tasks.splits import Splits, with_validation


class Listed:
    """As torchvision's datasets: labels in a list beside the samples."""

    def __init__(self, targets: object) -> None:
        self.targets = targets

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.zeros(2), int(self.targets[index])


def test_labels_are_found_without_reading_samples() -> None:
    whole = TensorDataset(torch.zeros(30, 2), torch.arange(30))
    assert all_labels(whole).tolist() == list(range(30))
    assert all_labels(Subset(Subset(whole, [5, 7, 9]), [2, 0])).tolist() == [9, 5]
    assert all_labels(Listed([3, 1, 2, 0])).tolist() == [3, 1, 2, 0]
    splits, _ = with_validation(Splits(train=whole, calibration=[1], test=[1]))
    assert all_labels(splits.validation).tolist() == [0, 10, 20]


@pytest.mark.parametrize("targets", [["a.png", "b.png"], None, [1, 2, 3], torch.zeros(4, 2), {"a": 1}])
def test_what_is_no_list_of_labels_is_left_alone(targets: object) -> None:
    assert all_labels(Listed(targets)) is None
    assert all_labels([(torch.zeros(2), 1)]) is None


def test_bytes_do_not_wrap_round() -> None:
    labels, counts = read_labels(torch.tensor([156, 255, 3], dtype=torch.uint8), 200, None)
    assert (labels.tolist(), counts.tolist()) == ([156, 255, 3], [True, False, True])


def test_a_part_without_a_label_that_counts_is_told_of() -> None:
    batch = Batch((torch.randn(3, 4),), {}, torch.full((3,), -100), 3)
    evaluator = Evaluator(lambda x: x, lambda: [batch], METRICS["accuracy"], torch.device("cpu"))
    with pytest.raises(DataError, match="no label of the data counts"):
        evaluator.evaluate(lambda x: x)


def test_samples_that_do_not_count_are_left_out_of_the_mean() -> None:
    x, target = torch.eye(4), torch.tensor([0, -100, 2, 1])
    evaluator = Evaluator(lambda x: x, lambda: [Batch((x,), {}, target, 4)], METRICS["accuracy"], torch.device("cpu"))
    got = evaluator.evaluate(lambda x: x)
    assert got.measurement.per_sample.tolist() == [1, 1, 0]
    assert got.measurement.value == pytest.approx(2 / 3)
