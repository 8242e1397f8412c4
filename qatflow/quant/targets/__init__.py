"""The tables of targets, by the names that recipes have for them: `NAME` of `qatflow/quant/targets/name.py`."""

from __future__ import annotations

from collections.abc import Mapping

from qatflow.quant.target import Target
from qatflow.recipe.table import Table
from qatflow.recipe.targets import TARGETS as ENTRIES

TARGETS: Mapping[str, Target] = Table("target", ENTRIES, lambda name: (f"{__name__}.{name}", name.upper()))
