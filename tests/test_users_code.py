"""What the user's code raises is one sentence that begins with its file and line; what ours raises is no such thing."""

import errno
import re
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import multiprocessing

import qatflow
from qatflow import users_code
from qatflow.errors import DataError, MachineError, QatflowError, UserCodeError
from qatflow.ladder import climb as ladder
from qatflow.recipe import Recipe
from qatflow.results.result import RunResult
from qatflow.tasks.batches import _collate
from qatflow.users_code import FULL, READER_DIED, anywhere, owner_of, said
from tests.users_task import DATA, MODEL

NO_ROOM = "the memory does not suffice"
TASK = r"/.*tests/users_task\.py:\d+, in "


def recipe(what: str = "", **changes: object) -> Recipe:
    data = {"factory": DATA, "kwargs": {"what": what}, "batch_size": 8, **changes.pop("data", {})}
    settings = {"model": {"factory": MODEL}, "data": data, "gate": {"max_drop": 0.2}, "qat": {"when": "never"}}
    return Recipe.model_validate({**settings, **changes})


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            recipe("test:raise"),
            rf"{TASK}__getitem__: ValueError: sample 20 is corrupt \(reading the data; the data's test part, batch 3\)",
        ),
        (
            recipe("test:raise", data={"workers": 1}),
            rf"{TASK}__getitem__: ValueError: sample 20 is corrupt \(reading the data; the data's test part, batch 3\)",
        ),
        (recipe("test:exit"), rf"{TASK}__getitem__: SystemExit: enough \(reading the data; .* batch 3\)"),
        (
            recipe(gate={"metric": "tests.users_task:metric", "direction": "higher"}),
            rf"{TASK}score: ZeroDivisionError: no score \(gate.metric: .*; the data's validation part, batch 1\)",
        ),
        (
            recipe(gate={"metric": "tests.users_task:Whole"}),
            rf"{TASK}compute: RuntimeError: nothing to compute \(gate.metric: Whole; the data's validation part\)",
        ),
    ],
    ids=["loader", "worker", "exit", "metric", "whole metric"],
)
def test_what_the_users_code_raises_is_one_sentence(tmp_path: Path, made: Recipe, message: str) -> None:
    with pytest.raises(UserCodeError, match=f"^{message}$"):
        qatflow.run(made, tmp_path, trust=("tests",))
    left = RunResult.model_validate_json((tmp_path / "result.json").read_text())
    assert (left.status, left.verdict) == ("failed", None)
    assert left.error.startswith("/")
    assert "Traceback (most recent call last)" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_that_cannot_be_stacked_are_told_of_without_a_traceback(tmp_path: Path, workers: int) -> None:
    with pytest.raises(DataError, match=r"^the data's test part, batch 3: the samples of a batch cannot be st") as told:
        qatflow.run(recipe("test:shape", data={"workers": workers}), tmp_path, trust=("tests",))
    assert "Traceback" not in str(told.value)


def test_a_loss_is_tried_before_the_ladder(tmp_path: Path) -> None:
    made = recipe(qat={"when": "missed", "loss": "tests.users_task:loss"})
    with pytest.raises(DataError, match=rf"^{TASK}of: TypeError: this loss wants weights \(qat.loss: .*given"):
        qatflow.run(made, tmp_path, trust=("tests",))


def test_a_defect_of_ours_passes_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, object] = {}
    exec(compile("def broken(bench): raise ValueError('a defect')", ladder.__file__, "exec"), made)
    monkeypatch.setattr("qatflow.engine.climb", made["broken"])
    with pytest.raises(ValueError, match="a defect") as raised:
        qatflow.run(recipe(), tmp_path, trust=("tests",))
    assert not isinstance(raised.value, QatflowError)
    assert "climb.py" in (tmp_path / "log.txt").read_text()


def test_library_code_in_between_does_not_hide_the_users() -> None:
    def key(number: int) -> int:
        raise KeyError(number)

    with pytest.raises(UserCodeError, match=rf"^{__file__}:\d+, in key: KeyError: 3$"), anywhere():
        torch.utils._pytree.tree_map(key, [3])


def test_the_users_code_that_misuses_ours_is_not_blamed() -> None:
    with pytest.raises(AttributeError), anywhere():
        owner_of(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError("no more"), f"{NO_ROOM}; "),
        (RuntimeError("could not create a primitive"), f"{NO_ROOM}; "),
        (RuntimeError("could not execute a primitive"), f"{NO_ROOM}; "),
        (
            RuntimeError(
                "DefaultCPUAllocator: can't allocate memory: you "
                "tried to allocate 4294967296 bytes. Error code 12 (Cannot allocate memory)"
            ),
            f"{NO_ROOM} (PyTorch asked for 4 GiB); ",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has ... "),
            f"{NO_ROOM} (PyTorch asked for 2.50 GiB); ",
        ),
        (RuntimeError("std::bad_alloc"), f"{NO_ROOM}; "),
        (OSError(errno.ENOSPC, "No space left on device"), f"{FULL}$"),
        (
            RuntimeError(
                "[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/0: "
                "file write failed"
            ),
            f"{FULL}$",
        ),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), f"{FULL}$"),
    ],
)
def test_what_the_machine_ran_out_of_is_nobodys_defect(error: Exception, message: str) -> None:
    pattern = re.escape(message).replace(r"\$", "$")
    with pytest.raises(MachineError, match=f": {pattern}"), anywhere():
        raise error
    with pytest.raises(MachineError, match=f": {pattern}"), anywhere():
        raise RuntimeError("something went wrong") from error
    with pytest.raises(MachineError, match=f": {pattern}"), users_code.users_code("reading the data"):
        raise error


def puts_and_stays(queue: "multiprocessing.Queue[torch.Tensor]") -> None:
    queue.put(torch.ones(3))
    time.sleep(600)


def test_a_process_that_died_before_its_tensor_was_fetched() -> None:
    """As it is met where the process is killed between sending a batch and sharing it, which is a matter of luck."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=puts_and_stays, args=(queue,))
    process.start()
    try:
        while queue.empty():
            time.sleep(0.05)
    finally:
        process.kill()
        process.join()
    with pytest.raises(MachineError, match=re.escape(READER_DIED)), users_code.users_code("reading the data"):
        queue.get()
    with pytest.raises(UserCodeError, match="ConnectionResetError: the server hung up"), users_code.users_code("it"):
        raise ConnectionResetError("the server hung up")


def test_a_batch_that_memory_does_not_suffice_for_is_not_blamed_on_the_data() -> None:
    with pytest.raises(MachineError, match=rf"{NO_ROOM} \(PyTorch asked for 3.64 TiB\)"):
        _collate([torch.empty(0).new_zeros(1).expand(10**12)])


def test_whose_code_a_file_is() -> None:
    site = Path(torch.__file__).parent.parent
    files = {
        "qatflow": Path(users_code.__file__),
        "user": Path(__file__),
        "library": site / "torchmetrics" / "metric.py",
        "nobody": site / "torch" / "nn" / "modules" / "module.py",
    }
    assert {whose: owner_of(file) for whose, file in files.items()} == {whose: whose for whose in files}
    assert owner_of(Path("<eval_with_key>.3")) == owner_of(Path("<frozen importlib>")) == "nobody"
    assert owner_of(Path("<stdin>")) == "user"


def test_an_error_without_words_or_place() -> None:
    assert said(ValueError()) == "ValueError"
