"""Data by name and by factory, and every way in which a factory's answer is none."""

import pytest
import torch
from torch.utils.data import IterableDataset

from qatflow.errors import DataError, RecipeError
from qatflow.recipe import Data
from qatflow.recipe.names import DATASETS as NAMES
from qatflow.tasks.data import DATASETS, Splits, load_data

TRUST = ("test_load_data",)
SAMPLES = [(torch.ones(2), 0)]
OTHERS = [(torch.zeros(2), 1)]


class Endless(IterableDataset):
    def __iter__(self):
        yield from ()


def as_splits(train=None):
    return Splits(train=train, calibration=SAMPLES, test=OTHERS)


def as_dict():
    return {"calibration": SAMPLES, "test": OTHERS}


def answer(which):
    answers = {
        "no test": {"calibration": SAMPLES},
        "empty": {"calibration": SAMPLES, "test": []},
        "typo": {"calibration": SAMPLES, "test": OTHERS, "validaton": SAMPLES},
        "list": SAMPLES,
        "endless": {"calibration": SAMPLES, "test": Endless()},
        "a set": {"calibration": SAMPLES, "test": {1, 2}},
        "same": {"calibration": SAMPLES, "test": SAMPLES},
    }
    return answers[which]


def fails():
    raise ValueError("no such folder: /data")


def of(function, **kwargs):
    return Data(factory=f"test_load_data:{function}", kwargs=kwargs)


def test_names_and_code_agree():
    assert list(DATASETS) == list(NAMES)


def test_data_by_name():
    splits = load_data(Data(name="digits"))
    assert [len(part) for part in (splits.train, splits.validation, splits.calibration, splits.test)] == [
        1001,
        150,
        149,
        497,
    ]


@pytest.mark.parametrize("function", ["as_splits", "as_dict"])
def test_data_by_factory(function):
    splits = load_data(of(function), TRUST)
    assert (splits.train, splits.validation, len(splits.calibration), len(splits.test)) == (None, None, 1, 1)


def test_a_factory_gets_its_arguments():
    assert load_data(of("as_splits", train=[1, 2]), TRUST).train == [1, 2]


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("no test", "no test part; required: calibration and test"),
        ("empty", "test part has no samples"),
        ("typo", "'validaton', which is none of ours; did you mean 'validation'"),
        ("list", r"'test_load_data:answer' returned a list; return qatflow.tasks.data.Splits\(...\) or a dict"),
        ("endless", "test part is a Endless, which has no length"),
        ("a set", "test part is a set; give a map-style dataset"),
        ("same", "same dataset as its calibration part"),
    ],
)
def test_an_answer_that_is_no_data_is_told(which, message):
    with pytest.raises(DataError, match=message):
        load_data(of("answer", which=which), TRUST)


def test_a_factory_that_fails_is_told_with_its_line():
    with pytest.raises(
        RecipeError,
        match=r"data.factory: .*failed: .*test_load_data.py:\d+, in fails: ValueError: no such folder: ",
    ):
        load_data(of("fails"), TRUST)


def test_arguments_that_a_factory_does_not_take_are_told():
    with pytest.raises(
        RecipeError, match=r"data.kwargs.trian: .*no such argument; did you mean 'train'\? allowed: train"
    ):
        load_data(of("as_splits", trian=1), TRUST)
    with pytest.raises(RecipeError, match=r"data.kwargs: .*missing a required argument: 'which'"):
        load_data(of("answer"), TRUST)


def test_an_unknown_name_is_told():
    with pytest.raises(RecipeError, match=r"data.name: unknown name 'digit'; did you mean 'digits'\?"):
        load_data(Data(name="digit"))
