"""Batches: every form of sample becomes one form of batch, or a sentence says what is wrong with it."""

import pytest
import torch
from torch.utils.data import TensorDataset

from qatflow.errors import DataError
from qatflow.recipe import Data
from qatflow.tasks.data import Batch, as_batch, batches

NUMBERS = TensorDataset(torch.arange(10.0)[:, None], torch.arange(10))


def config(**changes):
    return Data(name="digits", **{"batch_size": 4, **changes})


def targets(made):
    return [batch.target.tolist() for batch in made]


def test_a_tensor_is_one_positional_input():
    first, *_, last = batches(NUMBERS, config())
    assert (first.args[0].shape, first.kwargs, first.target.tolist(), first.size) == ((4, 1), {}, [0, 1, 2, 3], 4)
    assert last.size == 2


def test_a_tuple_is_positional_and_a_dict_is_keyword_inputs():
    pairs = [((torch.ones(3), torch.zeros(2)), index) for index in range(4)]
    named = [({"ids": torch.ones(3), "mask": torch.zeros(3)}, index) for index in range(4)]
    (batch,) = batches(pairs, config())
    assert [value.shape for value in batch.args] == [(4, 3), (4, 2)]
    (batch,) = batches(named, config())
    assert batch.args == ()
    assert {name: value.shape for name, value in batch.kwargs.items()} == {"ids": (4, 3), "mask": (4, 3)}


@pytest.mark.parametrize(
    ("sample", "args", "kwargs"),
    [
        (torch.ones(3), [(2, 3)], {}),
        ((torch.ones(3),), [(2, 3)], {}),
        ((torch.ones(3), torch.ones(1)), [(2, 3), (2, 1)], {}),
        ({"x": torch.ones(3)}, [], {"x": (2, 3)}),
    ],
)
def test_without_labels_a_sample_is_the_inputs(sample, args, kwargs):
    (batch,) = batches([sample, sample], config(labels=False))
    assert [value.shape for value in batch.args] == args
    assert {name: value.shape for name, value in batch.kwargs.items()} == kwargs
    assert batch.target is None
    assert batch.size == 2


def test_nested_targets_move_with_the_batch():
    batch = Batch(
        (torch.ones(2, 3),), {"m": torch.ones(2)}, {"boxes": [torch.ones(2, 4)], "n": (torch.ones(2), "a")}, 2
    )
    moved = batch.to("meta")
    assert [moved.args[0].device.type, moved.kwargs["m"].device.type] == ["meta", "meta"]
    assert moved.target["boxes"][0].is_meta
    assert moved.target["n"][0].is_meta
    assert moved.target["n"][1] == "a"


def test_shuffling_is_seeded_and_new_in_every_pass():
    shuffled = batches(NUMBERS, config(), shuffle=True, seed=3)
    first, second = targets(shuffled), targets(shuffled)
    assert first != second
    assert sorted(label for batch in first for label in batch) == list(range(10))
    again = batches(NUMBERS, config(), shuffle=True, seed=3)
    assert [targets(again), targets(again)] == [first, second]


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    targets(batches(NUMBERS, config()))
    targets(batches(NUMBERS, config(), shuffle=True))
    assert torch.equal(before, torch.get_rng_state())


def test_a_limit_is_spread_over_the_dataset():
    assert targets(batches(NUMBERS, config(), limit=5)) == [[0, 2, 4, 6], [8]]
    assert targets(batches(NUMBERS, config(batch_size=16), limit=99)) == [list(range(10))]


def test_drop_last_leaves_out_a_part_batch_but_never_the_only_one():
    assert [len(one) for one in targets(batches(NUMBERS, config(), drop_last=True))] == [4, 4]
    assert len(batches(NUMBERS, config(), drop_last=True)) == 2
    assert [len(one) for one in targets(batches(NUMBERS, config(batch_size=64), drop_last=True))] == [10]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_worker_processes_load_the_same_batches():
    assert targets(batches(NUMBERS, config(workers=1))) == targets(batches(NUMBERS, config()))


def test_a_batch_is_returned_as_it_is():
    batch = as_batch([torch.ones(2, 3), torch.ones(2)], labels=True)
    assert as_batch(batch, labels=True) is batch


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (torch.ones(2, 3), r"is Tensor \[2, 3\], but a sample is \(inputs, target\)"),
        ((torch.ones(2), torch.ones(2), torch.ones(2)), r"tuple of \(Tensor, Tensor, Tensor\).*data.labels: false"),
        ({"ids": torch.ones(2)}, "dict with the keys ids, but"),
        (({"ids": ["a", "b"]}, torch.ones(2)), r"input 'ids' of the data is list of \(str, str\)"),
        ((torch.tensor(1.0), torch.ones(2)), "no batch dimension"),
        (((torch.ones(2), torch.ones(3)), torch.ones(2)), r"sizes \[2, 3\]"),
        (((), torch.ones(2)), "no inputs"),
    ],
)
def test_what_is_no_batch_is_told(raw, message):
    with pytest.raises(DataError, match=message):
        as_batch(raw, labels=True)


def test_samples_that_cannot_be_stacked_are_told():
    with pytest.raises(DataError, match=r"cannot be stacked \(stack expects each tensor to be equal size"):
        list(batches([(torch.ones(2), 0), (torch.ones(3), 0)], config()))
    with pytest.raises(DataError, match=r"cannot be stacked .*NoneType"):
        list(batches([(torch.ones(2), None)] * 2, config()))


def test_the_mask_of_a_batch_moves_with_it():
    moved = Batch((torch.ones(2, 3),), {}, None, 2, torch.ones(2, 3, dtype=torch.bool)).to("meta")
    assert moved.mask.is_meta
