"""Which data candidates were measured on, and what FP32 measured there: kept in the run folder for later starts.

Every sample is hashed while FP32 runs over it. A later start compares the length of a part, size and time of its files
and at least `FEWEST` samples spread over it, and goes on through all of them for `PATIENCE` seconds; where all agree,
neither the other samples nor FP32 are gone through again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field, TypeAdapter

from qatflow import recipe
from qatflow.errors import RunFolderError
from qatflow.results.gate import Measurement
from qatflow.results.record import Record
from qatflow.results.store import key_of, read_json, write_json
from qatflow.tasks.batches import Batch
from qatflow.tasks.fingerprint import DIGITS, batch_digests, digests_in_looks, form_of, is_random
from qatflow.tasks.sample_files import file_stats
from qatflow.tasks.splits import Samples

FILE = "evaluation.json"


@dataclass(frozen=True)
class _Known:
    """What is known of a part."""

    size: int
    files: str
    random: bool
    form: str
    digests: str
    """Of all samples, `DIGITS` each, one after another; empty of a random part."""
    fp32: Mapping[str, Any] | None = None
    """FP32's measurement, with the key of all that it depends on besides the data."""

    @property
    def hash(self) -> str:
        """Hash of all samples, or, where they are random, of how many and of which form they are."""
        return key_of(self.size, self.form) if self.random else key_of(self.size, self.digests)


_PARTS = TypeAdapter(dict[str, _Known])


class EvaluationData:
    """The parts of the data that models are measured on.

    Args:
        folder: the run folder; `evaluation.json` is kept in it.
        parts: the samples, by the part's name.
        config: how the data is read.
        tell: called with a sentence for the user.
    """

    def __init__(
        self, folder: Path, parts: Mapping[str, Samples], config: recipe.Data, tell: Callable[[str], None]
    ) -> None:
        self._path = folder / FILE
        self._parts = parts
        self._config = config
        self._tell = tell
        self._known: dict[str, _Known] = {}
        self._seen: dict[str, _Known] = {}
        self._stored = self._read()

    def known(self, part: str) -> str | None:
        """Return the hash of a part that an earlier start has gone through, if the part is still the same.

        The user is told where it is not, and of a part that cannot be compared, since its samples are random.
        """
        if part in self._known:
            return self._known[part].hash
        before, now = self._stored.get(part), self._looked_at(part)
        if before is None:
            return None
        difference = _form_differs(before, now) or (None if now.random else self._sample_differs(part, before))
        if difference:
            self._tell(f"the {part} part is not as it was at the last start ({difference}): all of it is read anew")
            return None
        self._known[part] = before
        return before.hash

    def recording(self, part: str, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches of a part, hashing their samples until that was done once."""
        if part in self._known:
            yield from batches
            return
        digests: list[str] = []
        for batch in batches:
            digests += batch_digests(batch)
            yield batch
        found = self._looked_at(part)
        self._known[part] = replace(found, digests="" if found.random else "".join(digests))

    def hash(self, part: str) -> str:
        """Return the hash of a part that is known or was recorded.

        Raises:
            KeyError: it is neither.
        """
        return self._known[part].hash

    def digests(self, part: str) -> frozenset[str]:
        """Return the hashes of a part's samples; none of one that is random, or that models are not measured on."""
        text = self._known[part].digests if part in self._known else ""
        return frozenset(text[first : first + DIGITS] for first in range(0, len(text), DIGITS))

    def fp32(self, part: str, key: str) -> Measurement | None:
        """Return what FP32 measured on a part that is known, for the same key; None where that is not stored."""
        found = self._known[part].fp32 if part in self._known else None
        return None if found is None or found.get("key") != key else measurement_from_json(found)

    def keep_fp32(self, part: str, key: str, measurement: Measurement) -> None:
        """Store what FP32 measured on a part, and what is known of the part.

        Args:
            part: one that is known or was recorded.
            key: hash of all that the measurement depends on besides the data.
            measurement: FP32's.

        Raises:
            RunFolderError: the folder cannot be written to.
        """
        self._known[part] = replace(self._known[part], fp32={"key": key, **measurement_to_json(measurement)})
        known = {**self._stored, **self._known}
        write_json(self._path, {"parts": {name: vars(one) for name, one in known.items()}})

    def _read(self) -> dict[str, _Known]:
        """Return what is stored; nothing where that is missing, damaged, or of another form."""
        if not self._path.exists():
            return {}
        try:
            parts = _PARTS.validate_python(read_json(self._path)["parts"])
            for one in parts.values():
                if one.fp32 is not None:
                    measurement_from_json(one.fp32)
        except (RunFolderError, LookupError, TypeError, ValueError):
            self._tell(f"{self._path} cannot be read: the evaluation data is read anew")
            return {}
        return parts

    def _looked_at(self, part: str) -> _Known:
        """Return what can be told of a part without reading all of it; the user is told once if it is random."""
        if part not in self._seen:
            samples = self._parts[part]
            random = is_random(samples, self._config)
            if random:
                self._tell(random_sentence(part))
            self._seen[part] = _Known(len(samples), file_stats(samples), random, form_of(samples, self._config), "")
        return self._seen[part]

    def _sample_differs(self, part: str, before: _Known) -> str:
        """Return which sample differs from the stored hashes; empty where none is found to."""
        for index, digest in digests_in_looks(self._parts[part], self._config):
            if digest != before.digests[index * DIGITS : (index + 1) * DIGITS]:
                return f"sample {index} is another one"
        return ""


def _form_differs(before: _Known, now: _Known) -> str:
    """Return what differs of two parts before their samples are looked at; empty where nothing does."""
    if before.size != now.size:
        return f"{now.size} samples, {before.size} before"
    if before.files != now.files:
        return "its files have other sizes or times"
    return "its samples have another form" if (before.random, before.form) != (now.random, now.form) else ""


def random_sentence(part: str) -> str:
    """Return what a user should know of a part whose samples are random."""
    return (
        f"samples of the {part} part come out otherwise each time they are read (random augmentation?): figures cannot "
        "be compared, and a later start knows the part by its length and form only; leave augmentation to `train`"
    )


def measurement_to_json(measurement: Measurement) -> dict[str, Any]:
    """Return a measurement as plain values that keep every bit; null is not a finite number."""
    return {
        "value": _finite(measurement.value),
        "per_sample": _listed(measurement.per_sample),
        "higher_is_better": measurement.higher_is_better,
        "replicates": _listed(measurement.replicates),
        "samples": measurement.samples,
    }


class _StoredMeasurement(Record):
    """A measurement as `measurement_to_json` writes it."""

    model_config = ConfigDict(extra="ignore")

    value: float | None
    per_sample: list[float | None] | None
    higher_is_better: bool
    replicates: list[float | None] | None
    samples: Annotated[int, Field(ge=0)]


def measurement_from_json(value: Any) -> Measurement:
    """Undo `measurement_to_json`; other keys are left aside.

    Raises:
        ValueError: it is of another form.
    """
    stored = _StoredMeasurement.taken(value)
    measured = math.nan if stored.value is None else stored.value
    per_sample, replicates = _array(stored.per_sample), _array(stored.replicates)
    return Measurement(measured, per_sample, stored.higher_is_better, replicates, stored.samples)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _listed(values: npt.NDArray[np.float64] | None) -> list[float | None] | None:
    return None if values is None else [_finite(one) for one in values.tolist()]


def _array(values: list[float | None] | None) -> npt.NDArray[np.float64] | None:
    return None if values is None else np.array([math.nan if v is None else v for v in values], dtype=np.float64)
