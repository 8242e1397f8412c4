"""The four parts of a task's data.

Parts are apart because each answers another question: `train` is for QAT, `calibration` for ranges and rounding,
`validation` for choosing among epochs and trials, and `test` for the gate, which is only honest on samples that
nothing was fitted to or chosen by.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

from qatflow.errors import DataError, UserCodeError, near_match


class Samples(Protocol):
    """A dataset of known length: PyTorch's map-style `Dataset`, or a plain list of samples."""

    def __len__(self) -> int:
        """Return how many samples there are."""

    def __getitem__(self, index: int, /) -> Any:
        """Return one sample: `(inputs, target)`, or the inputs alone where there are no labels."""


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Data in parts that share no sample.

    Raises:
        DataError: a part is empty or no dataset, a required one is None, or `test` is the same object as another.
    """

    train: Samples | None = None
    """For QAT."""
    validation: Samples | None = None
    """For choosing among epochs and trials."""
    calibration: Samples
    """For ranges, rounding and equalization."""
    test: Samples
    """For the figures in the report and the gate."""

    def __post_init__(self) -> None:
        for name in PARTS:
            _check_part(name, getattr(self, name))
        same = [name for name in PARTS if name != "test" and getattr(self, name) is self.test]
        if same:
            message = (
                f"the data's test part is the same dataset as its {same[0]} part, so that the gate would be judged on "
                "samples already used; give `test` samples of its own"
            )
            raise DataError(message)


@contextmanager
def naming(part: str, batch: int | None = None) -> Iterator[None]:
    """Let what is told of the data in here say which part it is about, and which of its batches, from 1.

    A part without a name is one that whoever called says the name of.

    Raises:
        DataError: what was raised in here, led by the part.
        UserCodeError: what was raised in here, followed by the part.
    """
    place = f"the data's {part} part" + (f", batch {batch}" if batch is not None else "")
    try:
        yield
    except DataError as error:
        if not part:
            raise
        message = f"{place}: {error}"
        raise DataError(message) from error
    except UserCodeError as error:
        error.where += [place] if part else []
        raise


def with_validation(splits: Splits) -> tuple[Splits, int]:
    """Return splits that have a validation part, and how many samples of the training part were split off for it.

    A validation part that is missing is every tenth training sample, which QAT then does not train on: epochs and
    trials are never chosen by test data.

    Raises:
        DataError: there is no training part, or one too small to split.
    """
    if splits.validation is not None:
        return splits, 0
    if splits.train is None or len(splits.train) < FEWEST_TO_SPLIT:
        found = "no training part either" if splits.train is None else f"only {len(splits.train)} training samples"
        message = (
            "QAT needs a validation part of the data to choose epochs and trials by. This data has none and "
            f"{found}, of which at least {FEWEST_TO_SPLIT} are needed to split one off: add `validation` to what the "
            "factory returns, or turn QAT off with qat.when=never"
        )
        raise DataError(message)
    indices = range(len(splits.train))
    apart = list(indices[::TAKEN])
    rest = [index for index in indices if index % TAKEN]
    train, validation = _Part(splits.train, rest), _Part(splits.train, apart)
    return replace(splits, train=train, validation=validation), len(apart)


@dataclass(frozen=True)
class _Part:
    """Some samples of a dataset."""

    whole: Samples
    indices: list[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.whole[self.indices[index]]


TAKEN = 10
FEWEST_TO_SPLIT = 20
PARTS = tuple(field.name for field in fields(Splits))
REQUIRED = ("calibration", "test")


def splits_from(mapping: Mapping[str, Samples | None]) -> Splits:
    """Return the splits in a mapping with the parts' names as keys.

    Raises:
        DataError: a key is unknown, a required one is missing, or a part is none.
    """
    unknown = [str(key) for key in mapping if key not in PARTS]
    if unknown:
        message = (
            f"the data has a part called {unknown[0]!r}, which is none of ours; {near_match(unknown[0], PARTS)} "
            f"allowed: {', '.join(PARTS)}"
        )
        raise DataError(" ".join(message.split()))
    return Splits(**{name: mapping.get(name) for name in PARTS})  # type: ignore[arg-type]  # None is told of there


def _check_part(name: str, part: Any) -> None:
    if part is None:
        if name not in REQUIRED:
            return
        message = f"the data has no {name} part; required: {' and '.join(REQUIRED)}; add it to what the factory returns"
        raise DataError(message)
    try:
        length = len(part)
    except TypeError as error:
        message = (
            f"the data's {name} part is a {type(part).__name__}, which has no length; give a map-style dataset "
            "(`__len__` and `__getitem__`) or a list of samples"
        )
        raise DataError(message) from error
    except (ValueError, OverflowError) as error:
        message = f"the data's {name} part has a length that is no number of samples ({error}); correct its `__len__`"
        raise DataError(message) from error
    if not hasattr(part, "__getitem__") or isinstance(part, (str, bytes, Mapping)):
        message = f"the data's {name} part is a {type(part).__name__}; give a map-style dataset or a list of samples"
        raise DataError(message)
    if length == 0:
        message = f"the data's {name} part has no samples; give it at least one, or check the path it is read from"
        raise DataError(message)
