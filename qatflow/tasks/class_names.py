"""What a model's classes are called, where it or its data say so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

UNNAMED = "LABEL_"
"""How transformers call classes that nobody has named."""


def class_names(model: object, samples: object) -> list[str]:
    """Return the names of classes, in order; empty where neither knows them.

    Args:
        model: transformers keep names in `config.id2label`.
        samples: torchvision's datasets keep them in `classes`, and a subset has the dataset that it is of.
    """
    known = getattr(getattr(model, "config", None), "id2label", None)
    if isinstance(known, Mapping) and sorted(known) == list(range(len(known))):
        names = _names([known[place] for place in range(len(known))])
        if not all(name.startswith(UNNAMED) for name in names):
            return names
    while samples is not None:
        if names := _names(getattr(samples, "classes", None)):
            return names
        samples = getattr(samples, "dataset", None)
    return []


def _names(value: Any) -> list[str]:
    usable = isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(one, str) for one in value)
    return list(value) if usable else []
