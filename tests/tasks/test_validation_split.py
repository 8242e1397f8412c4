"""A validation part that is missing is split off the training part, or asked for; test data never takes its place."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qatflow.errors import DataError
from qatflow.tasks.splits import FEWEST_TO_SPLIT, Splits, with_validation


def numbered(first: int, count: int) -> list[tuple[torch.Tensor, int]]:
    return [(torch.zeros(1), number) for number in range(first, first + count)]


def numbers(part) -> list[int]:
    return [part[index][1] for index in range(len(part))]


def splits(train: int | None, validation: int | None = None) -> Splits:
    return Splits(
        train=None if train is None else numbered(0, train),
        validation=None if validation is None else numbered(2000, validation),
        calibration=numbered(3000, 3),
        test=numbered(4000, 3),
    )


@given(st.integers(FEWEST_TO_SPLIT, 500))
def test_every_tenth_sample_is_set_apart_and_none_is_lost(count: int) -> None:
    made, taken = with_validation(splits(count))
    train, validation = numbers(made.train), numbers(made.validation)
    assert sorted(train + validation) == list(range(count))
    assert taken == len(validation) == -(-count // 10)
    assert validation == list(range(0, count, 10))
    assert numbers(made.test) == [4000, 4001, 4002]


def test_a_validation_part_that_is_there_is_used_as_it_is() -> None:
    given_splits = splits(100, 7)
    made, taken = with_validation(given_splits)
    assert made is given_splits
    assert taken == 0


@pytest.mark.parametrize(
    ("train", "found"), [(None, "no training part either"), (FEWEST_TO_SPLIT - 1, "only 19 training samples")]
)
def test_what_cannot_be_split_is_refused(train: int | None, found: str) -> None:
    with pytest.raises(DataError, match=found) as caught:
        with_validation(splits(train))
    assert "add `validation`" in str(caught.value)
    assert "qat.when=never" in str(caught.value)
