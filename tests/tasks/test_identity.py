"""What tells a live object from others in a later session: its code and what it holds."""

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from qatflow.tasks.identity import identity
from tests.live_task import Holder, weighted

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        (weighted(1.0), weighted(1.0), weighted(2.0)),
        (functools.partial(weighted, 1.0), functools.partial(weighted, 1.0), functools.partial(weighted, 2.0)),
        (MulticlassF1Score(3), MulticlassF1Score(3), MulticlassF1Score(4)),
        (MulticlassF1Score(3), MulticlassF1Score(3), MulticlassF1Score(3, average="micro")),
        (MulticlassF1Score(3), MulticlassF1Score(3), MulticlassAccuracy(3)),
        (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1)),
        (
            nn.CrossEntropyLoss(torch.tensor([1.0, 2.0])),
            nn.CrossEntropyLoss(torch.tensor([1.0, 2.0])),
            nn.CrossEntropyLoss(torch.tensor([1.0, 3.0])),
        ),
        (Holder({"a": [1, 2]}), Holder({"a": [1, 2]}), Holder({"a": [1, 3]})),
        (Holder({1, 2, 3}), Holder({3, 2, 1}), Holder({1, 2})),
        (Holder(weighted(1.0)), Holder(weighted(1.0)), Holder(weighted(2.0))),
        (Holder(Holder(1).__init__), Holder(Holder(1).__init__), Holder(Holder(2).__init__)),
    ],
)
def test_equal_objects_are_the_same_and_others_are_not(one: Any, same: Any, other: Any) -> None:
    assert identity(one) is not None
    assert identity(one) == identity(same)
    assert identity(one) != identity(other)


def test_an_object_that_holds_itself() -> None:
    ring = Holder(1)
    ring.inner = ring
    assert identity(ring) is not None


def test_what_has_no_text_has_no_identity() -> None:
    assert identity(Holder(iter([1]))) is None


def test_it_is_the_same_in_another_process() -> None:
    code = """
from torchmetrics.classification import MulticlassF1Score
from qatflow.tasks.identity import identity
from tests.live_task import weighted
print(identity(MulticlassF1Score(3)), identity(weighted(1.0)))
"""
    line = [sys.executable, "-W", "ignore", "-c", code]
    told = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert told == [identity(MulticlassF1Score(3)), identity(weighted(1.0))]
